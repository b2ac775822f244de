"""What an update goes through on its way."""
