"""Empirical privacy: what an adversary can be seen to learn, beside what is proven that nobody can."""
