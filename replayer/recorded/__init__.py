"""What can be computed from a recording: the state when each call began, how long steps take, how memory grows."""
