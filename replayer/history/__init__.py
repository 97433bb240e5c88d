"""The result of a replay: its steps, its outcome in figures, and the steps in which a condition holds."""
