"""Recordings and replays drawn on a time axis, for the timeline viewers of others: Perfetto, Chrome."""
