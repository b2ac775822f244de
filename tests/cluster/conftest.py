"""Hosts for the tests of clusters: network namespaces, where root allows them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.hosts import Hosts, missing
from cluster.tokens import token_file


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Hosts of this test alone; they are gone with it."""
    why = missing()
    if why:
        pytest.skip(why)
    with Hosts("t") as made:
        yield made


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """The token file of this test's cluster."""
    return token_file(tmp_path / "ray_token")
