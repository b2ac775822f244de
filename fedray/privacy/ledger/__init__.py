"""The privacy ledger: an append-only, hash-chained record of what was charged to whom."""
