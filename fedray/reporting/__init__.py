"""Reports on runs for reviewers."""
