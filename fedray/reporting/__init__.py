"""What is made of a run's files for people who did not run it."""
