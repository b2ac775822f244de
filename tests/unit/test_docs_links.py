"""Pages that are read in the repository link to what exists; the strict build of the site checks the links within ``docs/``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "cluster/README.md", "k8s/README.md")
TEXTS = [ROOT / name for name in OUTSIDE] + sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    elsewhere = {"clusters.md", "kubernetes.md", "contributing.md", "security.md", "changes.md"}  # pages of the site (docs/tools/hooks.py)
    links = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    wanted = {t for t in links if t and "://" not in t and "reference/" not in t and Path(t).name not in elsewhere}
    assert not [target for target in wanted if not (page.parent / target).exists()]


def test_the_readme_is_short_and_has_three_pictures() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 9_000
    assert len(re.findall(r"!\[[^\]]+\]\(docs/pictures/[a-z_]+\.(?:svg|png)\)", text)) == 3


def test_every_page_is_in_the_navigation() -> None:
    """`make lint` finds this, too; a test tells whoever adds a page and runs the tests alone."""
    (nav,) = re.findall(r"^nav:\n(?:  .*\n)+", (ROOT / "mkdocs.yml").read_text(), re.M)
    named = set(re.findall(r"[\w./]+\.md", nav))
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert not pages - named, "name these pages in nav of mkdocs.yml"
    assert yaml.safe_load(nav)
