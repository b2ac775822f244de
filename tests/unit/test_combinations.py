"""The table of what goes together: it is what the checks say, each refusal says what to do, and the documentation has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedray import components
from fedray.cli import cli
from fedray.configfile import build_config
from fedray.planning.combinations import check_only
from fedray.planning.compatibility import BASE, Feature, features, grounds, merged, verdict

PAGE = (Path(__file__).parents[2] / "docs" / "combinations.md").read_text()
TABLE = {(row.name, ground): verdict(row, ground) for row in features() for ground in grounds()}
ROBUST = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "centered_clipping", "bucketing", "nnm")


def allowed(ground: str) -> set[str]:
    return {name for (name, of), found in TABLE.items() if of == ground and found is not None and found.allowed}


def test_every_regime_and_protocol_stands_by_itself() -> None:
    assert {"record", "client", "local", "distributed", *components.PROTOCOLS.parts()} == grounds().keys()
    for sections in grounds().values():
        check_only(build_config(merged(BASE, sections)))


@pytest.mark.parametrize("feature", features(), ids=lambda f: f.name)
def test_every_row_is_a_config_that_some_run_may_have(feature: Feature) -> None:
    """So what refuses a cell is the combination, and no mistake in the row; some go with runs without protection only."""
    if not any(found is not None and found.allowed for (name, _), found in TABLE.items() if name == feature.name):
        check_only(build_config(merged(BASE, feature.ways[0])))


def test_a_refusal_has_a_code_one_sentence_and_the_nearest_setting() -> None:
    for (name, ground), found in TABLE.items():
        if found is None or found.allowed:
            continue
        assert re.search(r"; [^;]*\b(use|set|give|take|replace|attack)\b[^;]*\.$", found.refusal), (name, ground, found.refusal)
        assert found.refusal.count(". ") == 0, (name, ground, found.refusal)
        if name != "adaptive clip norm":  # which no run without its regime has
            assert re.fullmatch(r"privacy\.incompatible\.[a-z_0-9]+\.[a-z_]+", found.code), (name, ground, found.refusal)


def test_what_the_guarantees_exclude_is_refused() -> None:
    for ground in ("client", "distributed", "secagg", "bfv", "ckks"):
        assert not allowed(ground) & {*ROBUST, "fedbuff", "semi_synchronous"}
    assert not allowed("distributed") & {"topk", "sign", "qsgd", "drive", "half"}
    assert not allowed("record") & {"ditto", "ifca", "bagged_trees", "histogram_trees", "newton", "qfedavg", "loss cox", "precision bf16"}
    for ground in ("record", "client", "local", "distributed"):
        assert not allowed(ground) & {"attack", "evaluation at the clients"}
    assert allowed("local") >= {*ROBUST, "fedbuff"}
    assert allowed("record") >= {*ROBUST, "fedbuff", "topk", "scaffold", "fedper", "fednova"}
    assert allowed("secagg") >= {"scaffold", "ditto", "fedper", "adam", "norm", "regime [record, distributed]"}
    for ground in ("bfv", "ckks"):
        assert allowed(ground) >= {"scaffold", "ditto", "fedper", "adam", "norm", "regime [record, client]"}
        assert not allowed(ground) & {"topk", "sign", "qsgd", "drive", "half", "randk", "regime [record, distributed]"}
    weighted = TABLE["weights by records", "client"]
    assert weighted is not None and weighted.beside == "privacy.weight_cap=100"


def test_the_command_prints_the_table_and_the_documentation_has_it() -> None:
    shown = CliRunner().invoke(cli, ["list", "combinations"])
    assert shown.exit_code == 0
    lines = shown.output.rstrip().splitlines()
    (block,) = re.findall(r"```text\n(.*?)```", PAGE, re.S)
    assert block.splitlines() == lines[:-2], "docs/combinations.md should have what `fedray list combinations` prints"


def test_the_command_gives_reasons() -> None:
    shown = CliRunner().invoke(cli, ["list", "combinations", "topk"])
    text = " ".join(shown.output.split())
    assert "[privacy.incompatible.secure.compression]" in text and "client: allowed with compression.feedback=false." in text
    wrong = CliRunner().invoke(cli, ["list", "combinations", "topq"])
    assert wrong.exit_code == 2 and "Did you mean 'topk'?" in wrong.output
