"""Speak to one server: the only wire formats, the only sockets."""
