"""Every block of code in the documentation is run, or says why it is not. Here: YAML, Python and commands that start no Ray."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import PAGES, RUN, SHOWN, Block, blocks, run_page

from fedray.configfile import build_config
from fedray.planning.combinations import check_only
from fedray.privacy.limits import LimitsSection
from fedray.queries.asked import asked_of
from fedray.queryconfig import QueryConfig

ALL = [block for page in PAGES for block in blocks(page)]
BASE: dict[str, Any] = {
    "name": "page",
    "rounds": 3,
    "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 12}},
    "model": {"kind": "mlp", "hidden": [8]},
    "training": {"lr": 0.1, "batch_size": 10, "epochs": 1},
    "evaluation": {"metrics": []},
}


def test_every_block_is_run_or_says_why_not() -> None:
    assert not [str(b) for b in ALL if b.language not in (*RUN, *SHOWN)], "name the language: console, python, yaml, or text and json"
    assert not [str(b) for b in ALL if b.comment.startswith("not run") and not b.reason], "give the reason: <!-- not run: REASON -->"
    assert not [str(b) for b in ALL if b.language == "console" and not b.commands], "begin each command with $, or call the block text"
    assert len([b for b in ALL if b.language in RUN]) > 60  # the pages are found


def merged(one: Any, other: Any) -> Any:
    """Sections of a config with those of a page, whose ``kind`` or source replaces what they say of another."""
    if not isinstance(one, dict) or not isinstance(other, dict) or {"kind", "source", "lr", "batch_size", "sampling_rate"} & other.keys():
        return other
    return {**one, **{key: merged(one.get(key), value) for key, value in other.items()}}


def check_yaml(block: Block) -> None:
    raw = yaml.safe_load(block.text)
    if block.file.endswith("limits.yaml"):
        LimitsSection.model_validate(raw)
        return
    if "queries" in raw:
        asked_of(build_config(raw, QueryConfig))
        return
    whole = {"name", "rounds", "data", "model", "training"} <= raw.keys()
    check_only(build_config(raw if whole else merged(BASE, raw)))


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_configs_and_code(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [b for b in blocks(page) if b.language in ("python", "yaml") and not b.reason]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    heavy = any(block.starts_ray for block in blocks(page) if not block.reason)  # tests/integration/test_docs_commands.py runs the scripts
    before = set(sys.modules)
    try:
        for block in found:
            if block.file:
                (tmp_path / block.file).parent.mkdir(exist_ok=True)
                (tmp_path / block.file).write_text(block.text)
            try:
                if block.language == "yaml":
                    check_yaml(block)
                elif block.file or not heavy:
                    (tmp_path / (block.file or "block_of_page.py")).write_text(block.text)
                    importlib.import_module(Path(block.file).stem or "block_of_page")
                    sys.modules.pop("block_of_page", None)
            except Exception as error:
                pytest.fail(f"{block}: {type(error).__name__}: {error}")
    finally:
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
                del sys.modules[name]


def light(page: str) -> bool:
    """Whether a page has commands, and none of its blocks starts Ray."""
    found = [b for b in blocks(page) if not b.reason]
    return any(b.language == "console" for b in found) and not any(b.starts_ray for b in found)


#: Pages of plans take long to compute; `make docs-test` has them.
LIGHT = [pytest.param(page, marks=pytest.mark.slow if "budget" in page else ()) for page in PAGES if light(page)]


@pytest.mark.parametrize("page", LIGHT)
def test_a_pages_commands(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path)
