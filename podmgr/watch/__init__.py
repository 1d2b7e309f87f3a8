"""`podmgr watch`: the service that keeps the pods of a node as their annotations say."""
