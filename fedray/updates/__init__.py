"""What an update goes through on its way: compression, and a bound on its norm."""
