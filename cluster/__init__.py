"""Bringing up a Ray cluster and its neighbours."""
