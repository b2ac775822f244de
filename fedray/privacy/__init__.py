"""Regimes, accounting, the ledger, the privacy statement."""
