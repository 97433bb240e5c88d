"""The line that asks, and the help."""
