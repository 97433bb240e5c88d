"""The collector process beside a recorded engine: it reads the rings, decodes them to columns, publishes the trace."""
