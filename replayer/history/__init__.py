"""What a replay was: its steps, its outcome in figures, the steps in which a condition holds."""
