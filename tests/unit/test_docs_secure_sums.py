"""The protocol of the documentation is a complete one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fedray import components
from fedray.choices import Choice
from fedray.secure.protocol import TooFew, make_protocol
from tests.securesums import Attempt, random_updates

PAGE = (Path(__file__).parents[2] / "docs" / "secure_sums.md").read_text()


def test_the_example_is_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "my_protocols.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_protocols", raising=False)
    protocol = make_protocol(Choice.model_validate({"kind": "python:my_protocols:Pads", "lost": 2}))
    assert protocol is not None
    updates = random_updates(5, 40, 1)
    outcome = Attempt(protocol, updates, drops={"hello": [1], "train": [3]}).run()
    assert outcome.survivors == [0, 2, 4]
    assert np.array_equal(outcome.total, updates[[0, 2, 4]].sum(0))
    assert not np.array_equal(outcome.masked, outcome.total)
    with pytest.raises(TooFew, match="2 of 5 members are in the sum"):
        Attempt(protocol, updates, drops={"hello": [1], "train": [3, 4]}).run()


def test_every_protocol_that_a_config_can_name_is_on_the_page() -> None:
    assert all(f"`{kind}`" in PAGE for kind in components.PROTOCOLS.parts())
