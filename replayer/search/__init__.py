"""Searches for a workload that breaks a formula, and makes it small."""
