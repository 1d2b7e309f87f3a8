"""The container runtime, over NRI: which pods it is about to start."""
