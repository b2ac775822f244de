"""What charges cost: the mechanisms as events, and epsilon of their composition."""
