"""The `fdtrace` command, and the sandbox engine that it can start."""

from fdtrace.recorder import __version__

__all__ = ["__version__"]
