"""The agent inside an engine, the collector beside it, and the trace that they leave."""

__version__ = "0.1.0"
