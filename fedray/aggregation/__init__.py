"""Sums and aggregation rules."""
