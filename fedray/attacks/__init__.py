"""Attacks of malicious clients, for experiments with them."""
