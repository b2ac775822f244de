"""The reference that the site makes from the code has every key, part and command."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from fedray.components import ROOMS
from fedray.config import Config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "tools"))

import reference  # noqa: E402

sys.path.pop(0)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: make() for name, make in reference.PAGES.items()}


def test_every_config_key_is_listed_with_a_meaning(pages: dict[str, str]) -> None:
    paths = [path for path, _, section, _ in reference.config_keys(Config.model_json_schema()) if section is None]
    assert len(paths) > 100
    lines = dict(re.findall(r"^\| `([^`]+)` \|(.*)\|$", pages["reference/config.md"], re.M))
    assert not [path for path in paths if not lines.get(path, "").rpartition("|")[2].strip()]


def test_every_part_has_a_heading(pages: dict[str, str]) -> None:
    headings = set(re.findall(r"^### (.+)$", pages["reference/parts.md"], re.M))
    assert not [f"{kind}: {name}" for kind, room in ROOMS.items() for name in room.parts() if f"{kind}: {name}" not in headings]


def test_every_command_has_a_heading_and_its_options(pages: dict[str, str]) -> None:
    page = pages["reference/commands.md"]
    assert {"## fedray run", "## fedray jobs show", "## fedray ledger verify"} <= set(page.splitlines())
    assert "| `--resume` |" in page


def test_what_users_derive_from_is_described(pages: dict[str, str]) -> None:
    for name in ("fedray.run", "fedray.Result", "Algorithm.local", "Rule.combine", "Stage"):
        assert re.search(rf"^###? .*{name}", pages["reference/python.md"], re.M), name


def test_tables_are_whole(pages: dict[str, str]) -> None:
    """A line break or bar in a meaning would tear its table."""
    for page in pages.values():
        for table in re.findall(r"(?:^\|.*\|\n)+", page, re.M):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
