"""The process beside a recorded engine: reads its rings, decodes to columns, publishes the trace."""
