"""Stand in for the Replicate HTTP API, in a process of its own, counting every charge."""
