"""Making the kernel as it is wished: what shall be, what is, the difference, and how it is done."""
