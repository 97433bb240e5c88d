"""Budget formulas."""
