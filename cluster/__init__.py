"""Bringing up a Ray cluster and its neighbours; fedray itself never imports this."""
