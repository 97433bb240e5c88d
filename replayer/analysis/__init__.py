"""Explains results: why a step ran what it ran, how far a replay can be trusted, what happened to a request."""
