"""A value that is handed on."""

from __future__ import annotations

import gc
import pickle
import weakref

import numpy as np
import pytest

from fedray.holder import Holder


def test_who_takes_a_value_is_its_only_owner() -> None:
    holder = Holder(np.ones(3, dtype=np.float32))
    assert holder.value is holder.value
    taken = holder.take()
    alive = weakref.ref(taken)
    del taken
    gc.collect()
    assert alive() is None


def test_nothing_is_taken_twice() -> None:
    holder = pickle.loads(pickle.dumps(Holder(7)))
    assert holder.take() == 7
    with pytest.raises(LookupError, match="taken"):
        holder.take()
    with pytest.raises(LookupError, match="taken"):
        _ = holder.value
