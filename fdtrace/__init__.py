"""The `fdtrace` command, and the sandbox engine that it can start."""

__version__ = "0.1.0"
