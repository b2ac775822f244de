"""Sweeps: trials of one config with different settings, side by side on one cluster, and what they cost in privacy."""
