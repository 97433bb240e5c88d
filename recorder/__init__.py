"""The agent inside an engine, the collector beside it, and the trace that they leave."""
