"""A stand-in with FastDeploy's surface, as far as fdtrace touches it: its own small scheduler, no model."""

__version__ = "0.0-standin"
