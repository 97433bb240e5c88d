"""The scheduler model, the budget formulas and their comparison: no clock, no files, no terminal."""
