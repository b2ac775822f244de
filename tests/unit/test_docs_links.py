"""Pages that are read in the repository link to what exists there; the strict build of the site checks the links of the site."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "cluster/README.md", "k8s/README.md")
TEXTS = [ROOT / name for name in OUTSIDE] + sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    assert not [target for target in links if target and "://" not in target and not (page.parent / target).exists()]


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


def test_the_architecture_names_each_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    packages = [path.parent.name for path in sorted((ROOT / "fedray").glob("*/__init__.py"))]
    assert not [name for name in packages if f"`fedray/{name}/`" not in page]


def test_measured_results_are_those_of_the_last_proofs() -> None:
    page, curves = (ROOT / "docs" / "results.md").read_text(), ROOT / "tests" / "published" / "curves"

    def figure(name: str, *keys: str | int) -> float:
        found = json.loads((curves / f"{name}.json").read_text())
        for key in keys:
            found = found[key]
        return float(found)

    shown = {
        f"| {figure('mnist-2nn', 'rounds_to_target'):.0f} | 87 |",
        f"| {figure('mnist-cnn', 'rounds_to_target'):.0f} | 20 |",
        f"| {figure('heart-disease', 'mean'):.3f} |",
        f"{figure('digits', 'mean', 'private'):.3f}, {figure('digits', 'mean', 'twin'):.3f}",
        f"{figure('opacus-mnist-15-epochs', 'accuracy'):.3f} at epsilon {figure('opacus-mnist-15-epochs', 'epsilon', 'pld'):.2f}",
        f"{figure('opacus-mnist-60-epochs', 'accuracy'):.3f} at epsilon {figure('opacus-mnist-60-epochs', 'epsilon', 'pld'):.2f}",
        f"{figure('client_level_mnist', 'noise_1.0', 'accuracy'):.3f}, {figure('client_level_mnist', 'without_privacy', 'accuracy'):.3f}",
        f"{figure('mnist-lstm', 'accuracy'):.3f}, {figure('mnist-lstm', 'accuracy_of_hooks'):.3f}",
        f"{figure('fedbuff-mnist-iid', 'fedbuff_virtual_s'):.0f} s beside {figure('fedbuff-mnist-iid', 'synchronous_virtual_s'):.0f} s",
        f"| `topk` | 15.9 kB | {figure('mnist-topk', 'accuracy_by_round', -1):.3f} |",
    }
    assert not [text for text in shown if text not in page], "docs/results.md states other figures than tests/published/curves"
