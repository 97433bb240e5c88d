"""Where one is on the replay screen: cursor, window, jumps, playing."""
