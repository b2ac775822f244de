"""The composition root: config in, wired objects out, run, result."""

from fedray.experiment.launch import Result, run

__all__ = ["Result", "run"]
