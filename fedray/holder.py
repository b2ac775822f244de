"""Hands a large value on, so that only its last owner keeps it in memory."""

from __future__ import annotations

from typing import Generic, TypeVar

Value = TypeVar("Value")


class Holder(Generic[Value]):
    """Holds one value until somebody takes it.

    Whoever only passes a model's weights on keeps the holder, which is empty afterwards, and not the weights.

    Args:
        value: what is held.
    """

    def __init__(self, value: Value) -> None:
        self._held = [value]

    @property
    def value(self) -> Value:
        """The value, which stays in the holder.

        Raises:
            LookupError: it has been taken.
        """
        if not self._held:
            raise LookupError("the value has been taken from its holder already")
        return self._held[0]

    def take(self) -> Value:
        """The value, which the holder gives up: the caller is its only owner.

        Raises:
            LookupError: it has been taken.
        """
        value = self.value
        self._held.clear()
        return value
