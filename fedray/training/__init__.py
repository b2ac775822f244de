"""Local engines, losses, schedules, evaluation."""
