"""What is said where those who call a run hold the room that its clients need; no Ray is started here."""

from __future__ import annotations

from typing import Any

import pytest

from fedray.choices import Resources
from fedray.clients.callers import Holding, in_group_sentence, unplaced, without_group
from fedray.clients.nodes import Node, bundles
from fedray.clients.placement import Place

GROUP = "00ff" * 9


def node(name: str, total: dict[str, float], free: dict[str, float] | None = None) -> Node:
    return Node(name, name, total, total if free is None else free, {})


def places(*resources: Resources) -> list[Place]:
    return [Place(f"lane/{n}", f"lane{n}", 0, r) for n, r in enumerate(resources)]


def test_a_job_whose_actors_hold_all_cpus_leaves_none_and_is_told_who_holds_what() -> None:
    nodes = [node("a", {"CPU": 2.0}), node("b", {"CPU": 1.0})]
    holdings = [Holding("actor Trainer", "a", {"CPU": 2.0}), Holding("a placement group", "b", {"CPU": 1.0})]
    said = without_group(places(Resources(cpu=1.0)), nodes, holdings)
    assert said is not None
    assert "actor Trainer holds CPU 2; a placement group holds CPU 1, of CPU 3" in said
    assert without_group(places(Resources(cpu=1.0)), nodes, holdings[:1]) is None, "node b has room"


@pytest.mark.parametrize(
    ("wanted", "holdings"),
    [
        (Resources(cpu=1.0), []),  # others hold it: they may give it back
        (Resources(cpu=4.0), [Holding("actor A", "a", {"CPU": 2.0})]),  # no node is large enough, whoever holds what
        (Resources(cpu=0.0), [Holding("actor A", "a", {"CPU": 2.0})]),
        (Resources(cpu=1.0), [Holding("actor A", "a", {"CPU": 1.0})]),
    ],
)
def test_what_is_not_for_want_of_the_callers_room_is_left_to_waiting(wanted: Resources, holdings: list[Holding]) -> None:
    assert without_group(places(wanted), [node("a", {"CPU": 2.0}, {})], holdings) is None


def test_the_bundles_of_a_placement_group_are_all_the_room_there_is() -> None:
    free = {
        "CPU": 5.0,
        f"CPU_group_{GROUP}": 1.0,
        f"CPU_group_1_{GROUP}": 1.0,
        f"site_group_1_{GROUP}": 2.0,
        f"CPU_group_0_{'11' * 18}": 3.0,
    }
    table: dict[str, Any] = {"bundles": {0: {"CPU": 1.0}, 1: {"CPU": 1.0, "site": 2.0}}, "bundles_to_node_id": {0: "a", 1: "a"}}
    found = bundles(GROUP, table, [node("a", {"CPU": 8.0}, free), node("b", {"CPU": 8.0})])
    assert [(n.id, dict(n.total), dict(n.free)) for n in found] == [
        ("a", {"CPU": 1.0}, {}),
        ("a", {"CPU": 1.0, "site": 2.0}, {"CPU": 1.0, "site": 2.0}),
    ]
    assert unplaced(places(Resources(cpu=1.0)), found) is None
    lacking = unplaced(places(Resources(cpu=1.0), Resources(cpu=0.5)), found)
    assert lacking is not None
    assert "PlacementGroupFactory([{'CPU': 1}, {'CPU': 0.5}])" in in_group_sentence(lacking, found)
    assert unplaced(places(Resources(cpu=1.5)), found) is not None, "one bundle has to hold all of an actor"
