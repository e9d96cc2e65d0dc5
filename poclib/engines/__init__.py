"""A pool of engines on this machine, for a person who has no server, and emulated links."""
