"""`podmgr demo`: a pod to throw away, and declared against measured."""
