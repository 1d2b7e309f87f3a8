"""TARGET on the command line, and manifests: whose rules are meant, and which they are."""
