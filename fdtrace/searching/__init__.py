"""What `falsify`, `shrink` and `sweep` do on many runs: their options, their processes and machines, their reports."""
