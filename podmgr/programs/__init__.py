"""From a rule to a checked object file: find the source, specify, compile, inspect, store."""
