"""podmgr: make the network of a Kubernetes pod as slow or lossy as its annotations say."""

__version__ = "0.1.0"
