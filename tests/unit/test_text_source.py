"""Texts by role, file and author, and the LSTM that predicts at every position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.choices import ModelChoice
from fedray.config import Data
from fedray.data.dataset import client_names, load_client, load_federation
from fedray.data.text import PRINTABLE, cut, roles, tokens_of
from fedray.errors import DataError
from fedray.models.build import build_model

ROLES = ["First Citizen", "All", "KING RICHARD II"]
PLAY = "THE TRAGEDY\n\nAll:\nSpeak, speak.\n\nFirst Citizen:\nYou are all resolved\nrather to die?\n\nAll:\nResolved.\n"
speeches = st.lists(st.tuples(st.sampled_from(ROLES), st.text("ab .\u00e9", min_size=1, max_size=12).map(lambda s: f"x{s}y")), max_size=12)


def data(path: Path, **more: Any) -> Data:
    return Data.model_validate({"source": f"text:{path}", "by": "role", "sequence": 4, **more})


def spelt(x: np.ndarray) -> str:
    return "".join((*PRINTABLE, "?")[k] for k in x.reshape(-1))


def test_a_role_says_its_speeches_in_order_and_titles_are_nobodys() -> None:
    assert roles(PLAY) == {"All": "Speak, speak.\nResolved.\n", "First Citizen": "You are all resolved\nrather to die?\n"}
    assert roles("no roles here\n\n:\n") == {}


@settings(max_examples=40)
@given(speeches)
def test_roles_get_back_what_was_written(said: list[tuple[str, str]]) -> None:
    found = roles("\n\n".join(f"{role}:\n{words}" for role, words in said))
    assert found == {role: "".join(f"{words}\n" for other, words in said if other == role) for role, _ in said}


@settings(max_examples=40)
@given(text=st.text(max_size=40), length=st.integers(1, 9))
def test_records_are_the_texts_tokens_and_the_last_token_stands_for_all_others(text: str, length: int) -> None:
    tokens = tokens_of(text, "ab")
    assert tokens.tolist() == [{"a": 0, "b": 1}.get(character, 2) for character in text]
    x, y = cut(tokens, length)
    assert x.shape == y.shape == (max(0, len(text) - 1) // length, length)
    assert x.reshape(-1).tolist() == tokens[: x.size].tolist() and y.reshape(-1).tolist() == tokens[1 : 1 + y.size].tolist()


def test_test_records_follow_the_training_records_of_each_role(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    section = data(tmp_path / "play.txt", test=0.25, holdout={"at": "clients"})
    federation = load_federation(section, 0)
    assert list(federation.names) == ["All", "First Citizen"] == list(client_names(section, 0))
    assert federation.classes == len(federation.class_labels) == len(PRINTABLE) + 1
    for name, said in roles(PLAY).items():
        client = load_client(section, 0, name)
        assert client.test is not None
        n = (len(said) - 1) // 4
        assert (len(client.train), len(client.test)) == (n - n // 4, n // 4)
        assert spelt(client.train.x) + spelt(client.test.x) == said[: 4 * n]
        assert spelt(client.train.y) + spelt(client.test.y) == said[1 : 4 * n + 1]
    at_driver = load_federation(data(tmp_path / "play.txt", test=0.25), 0)
    assert at_driver.test is not None and federation.client_test is not None
    assert (at_driver.test.x == federation.client_test.x).all() and at_driver.train.x.tobytes() == federation.train.x.tobytes()
    drawn = load_federation(data(tmp_path / "play.txt", test=0.0, holdout={"fraction": 0.2, "at": "driver"}), 0)
    assert drawn.test is not None and len(drawn.test) + len(drawn.train) == len(at_driver.test) + len(at_driver.train)
    few = load_federation(data(tmp_path / "play.txt", min_records=6), 0)
    assert list(few.names) == ["First Citizen"]


def test_files_and_authors_are_clients_with_a_place_of_their_own(tmp_path: Path) -> None:
    for author, texts in {"Ann": ["first text.", "second text."], "Bob": ["another one, and longer."]}.items():
        (tmp_path / author).mkdir()
        for k, text in enumerate(texts):
            (tmp_path / author / f"{k}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("some notes of mine", encoding="utf-8")
    (tmp_path / "short.txt").write_text("no", encoding="utf-8")
    authors = load_federation(data(tmp_path, by="author", holdout={"at": "clients"}), 0)
    assert list(authors.names) == ["Ann", "Bob"]
    assert spelt(authors.client(0).train.x) == "first text.\nseco"  # five records, of which one is held out
    section = data(tmp_path, by="file", silos=["notes"], holdout={"at": "clients"})
    assert spelt(load_client(section, 0, "notes").train.x) == "some notes of mi"
    assert list(client_names(data(tmp_path, by="file"), 0)) == ["notes", "short"]
    with pytest.raises(DataError, match=r"text of 'short' gives 0 training records of 4 characters, fewer than data.min_records=1"):
        load_client(data(tmp_path, by="file"), 0, "short")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"vocabulary": "aba"}, "data.vocabulary: names 'a' twice"),
        ({"vocabulary": ""}, "data.vocabulary: is empty"),
        ({"min_records": 99}, "of 2 roles none has 99 training records of 4 characters"),
        ({"by": "file"}, "data.by: file is for a folder, but .* is a file"),
        ({"silos": ["All"]}, "data.silos: names clients that have texts of their own"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_federation(data(tmp_path / "play.txt", **more), 0)


def test_folders_and_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_bytes(b"All:\n\xff\xfe")
    with pytest.raises(DataError, match="is no text in UTF-8"):
        load_federation(data(tmp_path / "odd.txt"), 0)
    with pytest.raises(DataError, match="role is for one file, but .* is a folder"):
        load_federation(data(tmp_path), 0)


# -- the model -----------------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(position=st.integers(0, 5), seed=st.integers(0, 50))
def test_the_lstm_predicts_at_each_position_from_what_came_before(position: int, seed: int) -> None:
    model = build_model(ModelChoice(kind="lstm", tokens=5, hidden=8, levels=2, each_position=True), (6,), 5, seed, torch.int64, 6).eval()
    x = torch.randint(0, 5, (3, 6), generator=torch.Generator().manual_seed(seed))
    later = x.clone()
    later[:, position] = (later[:, position] + 1) % 5
    with torch.no_grad():
        before, after, alone = model(x), model(later), model(x[:1])
    assert before.shape == (3, 6, 5)
    assert torch.equal(before[:, :position], after[:, :position]) and not torch.equal(before[:, position], after[:, position])
    assert torch.allclose(before[:1], alone, atol=1e-6)
