"""The page about queries names every statistic, and its configs are complete ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedray import components
from fedray.catalogue import describe
from fedray.configfile import build_config, parse_yaml
from fedray.queries.asked import asked_of, bounds_of
from fedray.queryconfig import QueryChoice, QueryConfig, load_query

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "queries.md").read_text()
SECTIONS = [parse_yaml(text, "docs/queries.md") for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]


def test_every_statistic_is_on_the_page_with_its_arguments() -> None:
    for kind in components.QUERIES.parts():
        (row,) = re.findall(rf"^\| `{kind}` \|.*$", PAGE, re.M)
        assert all(f"`{argument.name}`" in row for argument in describe(components.QUERIES, kind).arguments)
    assert all(f"`queries.NAME.{name}`" in PAGE for name in QueryChoice.model_fields)


@pytest.mark.parametrize("section", [s for s in SECTIONS if "queries" in s])
def test_the_configs_on_the_page_can_be_asked(section) -> None:
    assert bounds_of(asked_of(build_config(section, QueryConfig)), 2)


def test_the_shipped_config_can_be_asked() -> None:
    assert bounds_of(asked_of(load_query(ROOT / "configs" / "heart-queries.yaml")), 2)
