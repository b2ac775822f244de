"""What a client does locally and what the server does with the mean."""
