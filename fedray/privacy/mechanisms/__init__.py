"""Mechanisms that protect whole clients: clip, randomise, sum, noise."""
