"""The documentation's pages whose commands or scripts start Ray, as a reader runs them: in an empty directory, from top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import PAGES, blocks, run_page


def heavy(page: str) -> bool:
    return any(block.starts_ray for block in blocks(page) if not block.reason)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if heavy(page)])
def test_a_page(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path)
