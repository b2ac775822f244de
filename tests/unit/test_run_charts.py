"""What a run's charts show, and what they leave out: their data, not their pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedray.tracking.charts import charts
from fedray.tracking.chartstyle import draw, save_charts, spaced, thinned
from fedray.tracking.roundcharts import happened, turns
from fedray.tracking.runcharts import comparable, grouped_counts, spent_for
from fedray.tracking.rundata import Relative, RunData, relatives
from fedray.tracking.starts import StartNote
from fedray.training.metrics import confusion


def rows(n: int, **metrics: Any) -> list[dict[str, Any]]:
    named = {key.replace("__", "/"): value for key, value in metrics.items()}
    return [{"round": r, "time": 1.7e9 + r, "metrics": {k: v(r) for k, v in named.items()}} for r in range(1, n + 1)]


def private(n: int = 6) -> RunData:
    """A run with record-level privacy that evaluates in every second round."""
    found = rows(n, eval__accuracy=lambda r: r / 10, privacy__epsilon=float, privacy__budget=lambda _: 8.0)
    for row in found[::2]:
        del row["metrics"]["eval/accuracy"]
    clients = [{"name": name, "unit": "record", "epsilon": e, "budget": 8.0} for name, e in (("a", 5.0), ("b", 6.0))]
    summary = {"rounds": n, "privacy": {"epsilon": 6.0, "unit": "record", "delta": 1e-4}}
    return RunData(found, summary, {"clients": clients})


def names(run: RunData) -> list[str]:
    return [chart.name for chart in charts(run)]


def captions(run: RunData) -> dict[str, str]:
    return {chart.name: chart.caption for chart in charts(run)}


def test_a_chart_is_made_only_of_what_there_is() -> None:
    assert charts(RunData()) == []
    assert names(RunData(rows(1, eval__accuracy=float))) == []
    assert names(RunData(rows(2, eval__accuracy=float, eval__loss=float))) == ["accuracy", "loss"]
    assert names(private()) == ["accuracy", "accuracy_vs_epsilon", "epsilon", "budget_by_client"]


def test_the_metric_that_a_run_is_judged_by_comes_first() -> None:
    run = RunData(rows(2, eval__accuracy=float, eval__loss=float), {"best": {"eval/loss": 0.3, "round": 2}})
    assert names(run) == ["loss", "accuracy"]


def test_quality_stands_at_the_epsilon_of_its_own_round() -> None:
    assert spent_for(private(), "eval/accuracy") == [(2.0, 0.2), (4.0, 0.4), (6.0, 0.6)]


def test_only_runs_of_the_same_unit_and_delta_share_an_axis() -> None:
    final = {"eval/accuracy": 0.5}
    others = [
        Relative("twin", {"eval/accuracy": 0.9}),
        Relative("same", final, 3.0, "record", 1e-4),
        Relative("clients", final, 2.0, "client", 1e-4),
        Relative("delta", final, 2.0, "record", 1e-5),
        Relative("unmeasured", {}, 2.0, "record", 1e-4),
    ]
    run = replace(private(), relatives=others)
    assert comparable(run, "eval/accuracy") == [("same", 3.0, 0.5)]
    assert run.twin is not None and run.twin.name == "twin"
    assert "twin, the same config without privacy, which the guarantee does not cover" in captions(run)["accuracy_vs_epsilon"]
    endless = Relative("endless", final, None, "record", 1e-4)
    assert replace(run, relatives=[endless]).twin is None
    open_run = RunData(rows(2, eval__accuracy=float), {"privacy": {"epsilon": None}}, relatives=others[1:])
    assert open_run.twin is None
    assert [name for name, *_ in comparable(open_run, "eval/accuracy")] == ["same"]


def test_charges_that_tell_secret_cohorts_are_not_drawn_and_what_rests_on_them_says_so() -> None:
    run = private()
    secret = replace(
        run, summary={"privacy": {"epsilon": 6.0, "unit": "client", "delta": 1e-4}}, statement={**run.statement, "reveals_cohorts": True}
    )
    assert "budget_by_client" not in names(secret)
    for chart in ("epsilon", "accuracy_vs_epsilon"):
        assert "counts on cohorts that stay secret" in captions(secret)[chart]
        assert "secret" not in captions(run)[chart]


def test_each_unit_has_a_chart_of_budgets_of_its_own() -> None:
    run = private()
    more = [{"name": name, "unit": "client", "epsilon": 1.0, "budget": None} for name in "ab"]
    both = replace(run, statement={"clients": [*run.statement["clients"], *more]})
    assert [name for name in names(both) if name.startswith("budget")] == ["budget_by_client", "budget_by_client_client"]
    assert "for a whole client" in captions(both)["budget_by_client_client"]


def test_results_by_class_are_those_of_the_model_at_the_end() -> None:
    results = {"labels": ["cat", "dog"], "confusion": [[8, 2], [5, 5]], "round": 3}
    run = RunData(summary={"rounds": 3}, classes=results)
    assert "The worst class is dog: 50 % of 10 records" in captions(run)["classes"]
    assert names(replace(run, summary={"rounds": 4})) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_counts_by_class_add_up(pairs: list[tuple[int, int]]) -> None:
    actual, claimed = (torch.tensor(column) for column in zip(*pairs, strict=True))
    counts = confusion(torch.nn.functional.one_hot(claimed, 4).float(), actual, 4)
    assert int(counts.sum()) == len(pairs)
    assert int(counts.diagonal().sum()) == sum(a == b for a, b in pairs)
    assert counts.sum(1).tolist() == torch.bincount(actual, minlength=4).tolist()
    assert counts.sum(0).tolist() == torch.bincount(claimed, minlength=4).tolist()


def test_the_timeline_has_the_ends_of_turns_and_the_faults() -> None:
    found = rows(
        4, round__clients_completed=lambda _: 3.0, round__clients_late=lambda r: float(r == 2), round__clients_failed=lambda _: 0.0
    )
    faults = [{"round": 2, "kind": "actor"}, {"round": 3, "kind": "actor"}]
    starts = [StartNote(1), StartNote(2, after=2)]
    run = RunData(found, {"rounds": 4}, faults=faults, starts=starts)
    assert turns(run) == ([1, 2, 3, 4], {"clients_completed": [3.0] * 4, "clients_late": [0.0, 1.0, 0.0, 0.0]})
    assert happened(run) == {"actor": [2, 3], "resumed": [3]}
    assert "1 turn late, 0 failed; 3 events beneath." in captions(run)["timeline"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 50))
def test_joined_rounds_keep_the_range_of_their_values(values: list[float], most: int) -> None:
    at, low, middle, high = thinned(range(1, len(values) + 1), values, most)
    assert len(at) == len(low) == min(most, len(values))
    assert min(low) == min(values) and max(high) == max(values)
    assert all(a <= b + 1e-6 and b <= c + 1e-6 for a, b, c in zip(low, middle, high, strict=True))
    kept = spaced(values, most)
    assert len(kept) <= most and kept[-1] == values[-1]


def test_very_many_clients_are_groups_whose_mean_is_that_of_all() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (1000, 4)).astype(float)
    groups = grouped_counts(counts, 50)
    assert groups.shape == (50, 4)
    assert np.allclose(groups.mean(0), counts.mean(0))
    assert list(groups.argmax(1)) == sorted(groups.argmax(1))


def test_ten_thousand_rounds_and_clients_stay_small(tmp_path: Path) -> None:
    n = 10_000
    rounds = rows(
        n,
        eval__accuracy=lambda r: r % 7,
        privacy__epsilon=float,
        time__round_s=lambda r: 1 + r % 3,
        round__clients_completed=lambda _: 10.0,
    )
    clients = [{"name": str(i), "unit": "record", "epsilon": i / n, "budget": 8.0} for i in range(n)]
    partition = [{"client": str(i), "records": 10 + i % 9, "classes": [i % 4, 5, i % 3]} for i in range(n)]
    made = charts(RunData(rounds, {"rounds": n}, {"clients": clients}, partition))
    assert {"budget_by_client", "records", "partition", "timeline", "accuracy"} <= {chart.name for chart in made}
    for chart in made:
        assert len(draw(chart).inline) < 300_000, chart.name


def test_files_are_pictures_and_vectors_with_the_caption_in_them(tmp_path: Path) -> None:
    (chart,) = charts(private())[:1]
    (made,) = save_charts(tmp_path, [chart])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.png", "accuracy.svg"]
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    root = ElementTree.fromstring((tmp_path / "accuracy.svg").read_text())
    words = " ".join(" ".join(root.itertext()).split())
    assert chart.title in words and chart.caption in words
    assert chart.caption not in " ".join(ElementTree.fromstring(made.inline).itertext()) and "currentColor" in made.inline
    assert made.svg == draw(chart).svg


def write_run(folder: Path, regime: str, **summary: Any) -> Path:
    folder.mkdir(parents=True)
    lr = summary.pop("lr", 0.1)
    (folder / "config.yaml").write_text(f"name: t\ntraining: {{lr: {lr}}}\nprivacy: {{regime: {regime}}}\ntracking: {{uri: {folder}}}\n")
    (folder / "summary.json").write_text(json.dumps({"name": "t", "status": "completed", "final": {"eval/accuracy": 0.9}} | summary))
    return folder


def test_what_was_spent_before_and_beside_the_rows_stands_below_the_epsilons() -> None:
    run = replace(private(), starts=[StartNote(1, spent_before={"record": 1.5}), StartNote(2, after=3, given_up=2)])
    run = replace(run, summary={**run.summary, "privacy": {**run.summary["privacy"], "epsilon": 6.5}})
    assert captions(run)["epsilon"] == (
        "What the largest client has spent, epsilon 6 after round 6 at delta 0.0001; the unit is one record. 1.50 of 6.50 was spent by earlier "
        "runs. The step behind round 3 holds what was charged, given up and done again when the run was resumed. What was charged later and "
        "not finished brings it to 6.5."
    )


@pytest.mark.parametrize(
    ("lr", "summary", "found"),
    [
        (0.1, {}, True),
        (0.2, {}, False),
        (0.1, {"status": "interrupted"}, False),
        (0.1, {"name": "other"}, False),
        (0.1, {"privacy": {"epsilon": "infinity", "unit": "record"}}, False),
    ],
)
def test_relatives_are_completed_runs_of_the_same_config(tmp_path: Path, lr: float, summary: dict[str, Any], found: bool) -> None:
    mine = write_run(tmp_path / "t", "record", privacy={"epsilon": 2.0})
    write_run(tmp_path / "t-2", "none", lr=lr, **summary)
    (tmp_path / "t-3").mkdir()
    (tmp_path / "t-3" / "summary.json").write_text("{")
    assert [one.name for one in relatives(mine)] == (["t-2"] if found or "privacy" in summary else [])
    assert (RunData.of(mine).twin is not None) == found
