"""Built-in models and how a user's own is found."""
