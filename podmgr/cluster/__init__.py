"""The Kubernetes API server: how it is reached, and what it says. Knows nothing of the kernel."""
