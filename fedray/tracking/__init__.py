"""MLflow, the journal, terminal progress."""
