"""What keeps the code easy to find one's way in: short files, and a name for one thing."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "fedray").rglob("*.py"))


def test_no_file_has_more_than_400_lines() -> None:
    assert not {str(f.relative_to(ROOT)): n for f in FILES if (n := len(f.read_text().splitlines())) > 400}


def test_a_file_name_stands_once() -> None:
    names = Counter(f.name for f in FILES if f.name not in ("__init__.py", "__main__.py"))
    assert not [name for name, count in names.items() if count > 1]


def test_a_class_name_stands_once() -> None:
    names = Counter(node.name for f in FILES for node in ast.walk(ast.parse(f.read_text())) if isinstance(node, ast.ClassDef))
    assert not [name for name, count in names.items() if count > 1]


def test_a_test_file_has_its_name_alone() -> None:
    """All tests are collected by one process, in which two modules of one name cannot be."""
    names = Counter(f.name for f in (ROOT / "tests").rglob("*.py") if f.name not in ("__init__.py", "__main__.py", "conftest.py"))
    assert not [name for name, times in names.items() if times > 1]
