"""Figures of single subjects of an account."""

from __future__ import annotations

from fedray.privacy.account import Account


def epsilons(account: Account) -> dict[str, float]:
    """Each subject's headline epsilon."""
    return {f.name: f.epsilon for f in account.figures()}


def left(account: Account, subject: str) -> int | None:
    """Number of rounds that a subject can still take part in; None if there is no limit."""
    return next(f.rounds_left for f in account.figures() if f.name == subject)
