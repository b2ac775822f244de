"""Secure sums: protocols of several phases after which only the sum of many clients' updates can be read."""
