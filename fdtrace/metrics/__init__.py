"""Prometheus metrics of a recording in progress: `--metrics` of `attach` and `record`."""
