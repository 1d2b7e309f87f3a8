"""podmgr: make the network of a Kubernetes pod as slow, late or lossy as its annotations say."""

__version__ = "0.1.0"
