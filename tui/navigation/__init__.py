"""The position on the replay screen: cursor, window, jumps, playing."""
