"""`fdtrace import`: files of others as traces."""
