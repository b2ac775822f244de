"""The unmasked sum has the bytes of the plain sum, whoever drops out and when; keys come back from any of enough shares."""

from __future__ import annotations

from itertools import combinations
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesums import Attempt, random_updates

from fedray.secure.graph import Graph, make_graph, sparse_degree
from fedray.secure.masks import add_masks
from fedray.secure.protocol import Order, TooFew
from fedray.secure.secagg import SecAgg
from fedray.secure.shamir import PRIME, SECRET, SHARE, reconstruct, share
from fedray.secure.wire import pack, pack_set, unpack, unpack_set

PHASES = ("keys", "shares", "train", "consistency", "unmask")


def test_two_of_five_may_drop_out_whenever_they_like():
    protocol, order = SecAgg(threshold=0.51, fewest=3, colluding=0.0), Order("run", 0, 0, 3, "terms")
    updates = random_updates(5, 3, 1)
    lost = [()] + [((a, p),) for a in range(5) for p in PHASES]
    lost += [((a, p), (b, q)) for a, b in combinations(range(5), 2) for p in PHASES for q in PHASES]
    for members in lost:
        outcome = Attempt(protocol, updates, {phase: [m for m, p in members if p == phase] for phase in PHASES}, order).run()
        assert set(outcome.survivors) == set(range(5)) - {m for m, phase in members if phase in ("keys", "shares", "train")}
        assert outcome.total.tobytes() == updates[outcome.survivors].sum(axis=0).tobytes(), members


@st.composite
def attempts(draw: Any) -> tuple[SecAgg, Order, int, dict[str, set[int]]]:
    """A protocol, an order, a number of members, and who drops out in which phase."""
    members = draw(st.integers(3, 9))
    protocol = SecAgg(threshold=draw(st.sampled_from([0.51, 0.6, 2 / 3, 0.8, 1.0])), fewest=draw(st.integers(3, 5)), colluding=0.0)
    drops: dict[str, set[int]] = {phase: set() for phase in PHASES}
    for member in draw(st.sets(st.integers(0, members - 1), max_size=4)):
        drops[draw(st.sampled_from(PHASES))].add(member)
    return protocol, Order("run", draw(st.integers(0, 5)), draw(st.integers(0, 2)), draw(st.integers(0, 6)), "terms"), members, drops


@given(attempts(), st.integers(0, 40), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_sum_is_the_plain_sum_of_who_stayed_or_cannot_be_read(attempt, size, seed):
    protocol, order, members, drops = attempt
    updates = random_updates(members, size, seed)
    left, answered = set(range(members)), {}
    for phase in PHASES:
        left -= drops[phase]
        answered[phase] = set(left)
    quorum = max(ceil(protocol.threshold * len(answered["keys"]) - 1e-9), len(answered["keys"]) // 2 + 1)
    readable = len(answered["train"]) >= max(quorum, protocol.fewest, order.least) and len(answered["unmask"]) >= quorum
    if not readable:
        with pytest.raises(TooFew, match=r"of \d+ members \d+ were left after the phase '\w+', and it takes \d+"):
            Attempt(protocol, updates, drops, order).run()
        return
    outcome = Attempt(protocol, updates, drops, order).run()
    assert set(outcome.survivors) == answered["train"]
    assert not outcome.refusals
    assert outcome.total.tobytes() == updates[outcome.survivors].sum(axis=0).tobytes()


@pytest.mark.parametrize("drops", [{}, {"keys": [0], "shares": [1, 2], "train": [3, 4, 5], "consistency": [6], "unmask": [7, 8]}])
def test_a_sparse_graph_has_the_same_sums(drops):
    protocol, members = SecAgg(complete=40, dropping=0.2, colluding=0.02), 80
    degree = sparse_degree(members - len(drops.get("keys", ())), 0.2, 0.02)
    assert degree is not None and degree[0] < members // 2
    updates = random_updates(members, 100, 1)
    outcome = Attempt(protocol, updates, drops).run()
    assert not outcome.refusals
    assert set(outcome.survivors) == set(range(members)) - {m for phase in ("keys", "shares", "train") for m in drops.get(phase, ())}
    assert outcome.total.tobytes() == updates[outcome.survivors].sum(axis=0).tobytes()


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=4), st.integers(0, 70_000), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_masks_come_off_again(keys, size, seed):
    values = random_updates(1, size, seed)[0]
    masked = values.copy()
    add_masks(masked, keys[:2], keys[2:])
    assert not keys or size < 4 or len(keys) > 1 or not np.array_equal(masked, values)
    add_masks(masked, keys[2:], keys[:2])
    assert masked.tobytes() == values.tobytes()


secret_keys = st.one_of(st.binary(min_size=SECRET, max_size=SECRET), st.sampled_from([bytes(SECRET), b"\xff" * SECRET]))


@st.composite
def sharings(draw: Any) -> tuple[bytes, int, list[int]]:
    """A secret, a threshold, and points."""
    points = draw(st.lists(st.one_of(st.integers(1, 300), st.integers(1, PRIME - 1)), min_size=1, max_size=12, unique=True))
    return draw(secret_keys), draw(st.integers(1, len(points))), points


@given(sharings(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_of_enough_shares_give_the_secret_back(sharing, random):
    secret, threshold, points = sharing
    shares = share(secret, threshold, points)
    assert {len(s) for s in shares.values()} == {SHARE}
    assert reconstruct({x: shares[x] for x in random.sample(points, threshold)}) == secret
    wrong = dict(shares)
    wrong[points[0]] = ((int.from_bytes(shares[points[0]], "little") + 2**300) % PRIME).to_bytes(SHARE, "little")
    with pytest.raises(ValueError, match="do not belong to one secret"):
        reconstruct({x: wrong[x] for x in [points[0], *random.sample(points[1:], threshold - 1)]})


@given(sharings(), secret_keys)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_one_share_too_few_fits_every_secret(sharing, other):
    secret, threshold, points = sharing
    if threshold == 1:
        return
    shares = share(secret, threshold, points)
    known, missing = points[: threshold - 1], points[threshold - 1]
    # The share that would make ``other`` the secret: Lagrange's interpolation through it, 0 excluded.
    weight, rest = 0, int.from_bytes(other, "little")
    for x in [*known, missing]:
        factor = 1
        for y in [*known, missing]:
            if y != x:
                factor = factor * y * pow(y - x, -1, PRIME) % PRIME
        if x == missing:
            weight = factor
        else:
            rest -= factor * int.from_bytes(shares[x], "little")
    imagined = (rest * pow(weight, -1, PRIME) % PRIME).to_bytes(SHARE, "little")
    assert reconstruct({x: shares[x] for x in known} | {missing: imagined}) == other


@given(st.dictionaries(st.integers(0, 2**32 - 1), st.binary(max_size=9), max_size=6), st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_messages_have_one_form_and_nothing_else_is_read(messages, data):
    packed = pack(messages)
    assert unpack(packed) == messages and list(unpack(packed)) == sorted(messages)
    assert unpack_set(pack_set(messages)) == tuple(sorted(messages))
    changed = bytearray(packed)
    changed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    for other in (bytes(changed), packed[: data.draw(st.integers(0, len(packed) - 1))], packed + data.draw(st.binary(min_size=1))):
        try:
            read = unpack(other)
        except ValueError:
            continue
        assert pack(read) == other


@given(st.sets(st.integers(0, 2**32 - 1), min_size=2, max_size=60), st.binary(min_size=32, max_size=32), st.integers(1, 40))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_graphs_are_regular_symmetric_and_connected(members, seed, half):
    circle = make_graph(seed, members, 1, 1000, 0.1, 0.1).circle
    assert circle == make_graph(seed, sorted(members, reverse=True), 1, 1000, 0.1, 0.1).circle and set(circle) == members
    degree = min(2 * half, len(members) - 1)
    graph = Graph(circle, degree, 2)
    near = {u: graph.near(u) for u in members}
    assert all(u in near[u] and len(near[u]) == degree + 1 for u in members)
    assert all(u in near[v] for u in members for v in near[u])
    reached, todo = set(), [circle[0]]
    while todo:
        u = todo.pop()
        if u not in reached:
            reached.add(u)
            todo += near[u]
    assert reached == members
