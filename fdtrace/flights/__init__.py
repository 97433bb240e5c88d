"""The flight recorder on the command line: its options, its conditions, its process."""
