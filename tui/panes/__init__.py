"""The panes of the replay screen: a chart each, what is computed for it, and their controller."""
