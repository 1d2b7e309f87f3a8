"""The kernel and its tools: each module owns one outside thing, and decides nothing."""
