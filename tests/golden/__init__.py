"""Golden runs: what a change of the code does to models, ledgers and rows."""
