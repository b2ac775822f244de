"""What only a GPU can show, as one script: ``make gpu``."""
