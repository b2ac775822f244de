"""What a round is: cohort samplers and the synchronous round."""
