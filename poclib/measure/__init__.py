"""Decide, send, time: the half that talks to machines and writes facts."""
