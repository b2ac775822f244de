"""The clip's bound in exact arithmetic, whatever the update."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedray.updates.norm import clip_update

updates = hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32))
finite = hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
clips = st.one_of(st.floats(1e-3, 1e3), st.floats(1e-44, 1e38), st.just(1.0))


def squared(vector: np.ndarray) -> Fraction:
    return sum((Fraction(float(x)) ** 2 for x in vector), Fraction(0))


@given(updates, clips, st.floats(0, 0.9))
@settings(max_examples=300)
def test_no_update_leaves_with_a_norm_above_the_bound(update, clip, share):
    slack = clip * share
    clipped, within = clip_update(update, clip, slack)
    assert clipped.dtype == np.float32
    assert clipped.shape == update.shape
    assert squared(clipped) <= Fraction(clip - slack) ** 2
    if not np.isfinite(update).all():
        assert not within
        assert not clipped.any()


@given(finite, clips)
@settings(max_examples=300)
def test_the_bit_is_that_of_the_exact_norm_but_for_rounding(update, clip):
    exact, bound = squared(update), Fraction(clip) ** 2
    assume(not bound * (1 - Fraction(2) ** -40) < exact < bound * (1 + Fraction(2) ** -40))
    assert clip_update(update, clip)[1] == (exact <= bound)


@given(finite, st.floats(1e-3, 1e3))
@settings(max_examples=300)
def test_clipping_keeps_the_direction_and_is_done_once(update, clip):
    clipped, within = clip_update(update, clip)
    if not within:
        factor = clip / float(np.sqrt(float(squared(update))))
        assert np.allclose(clipped, update.astype(np.float64) * factor, rtol=2e-7, atol=1e-44)
    assert clip_update(clipped, clip)[0].tobytes() == clipped.tobytes()
