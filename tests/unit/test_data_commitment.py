"""Commitments to training records: order, what changes them, proofs, the salt, speed."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedray.data.commitment import SALT_BYTES, MerkleTree, check, commit_records, content_of, load_salt
from fedray.errors import DataError

SALT = bytes(range(SALT_BYTES))


def records(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.normal(size=(n, 3, 2)).astype(np.float32), rng.integers(0, 4, n)


def by_hand(x: np.ndarray, y: np.ndarray) -> str:
    """The definition, written out: leaves sorted, then the tree of RFC 6962, which splits at the largest power of two."""
    head = json.dumps([x.dtype.str, x.shape[1:], y.dtype.str, y.shape[1:]]).encode() + b"\n"
    leaves = []
    for features, target in zip(x, y, strict=True):
        content = hashlib.sha256(head + features.tobytes() + target.tobytes()).digest()
        leaves.append(hashlib.sha256(b"\x00" + hmac.digest(SALT, content, "sha256") + content).digest())

    def tree(row: list[bytes]) -> bytes:
        if len(row) == 1:
            return row[0]
        k = 1
        while 2 * k < len(row):
            k *= 2
        return hashlib.sha256(b"\x01" + tree(row[:k]) + tree(row[k:])).digest()

    return tree(sorted(leaves)).hex()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
def test_the_root_is_the_one_of_the_definition(n: int) -> None:
    x, y = records(n)
    assert commit_records(x, y, SALT) == by_hand(x, y)


def test_order_and_memory_layout_do_not_matter_but_everything_else_does() -> None:
    x, y = records(9)
    root = commit_records(x, y, SALT)
    order = np.random.default_rng(0).permutation(9)
    assert commit_records(x[order], y[order], SALT) == root
    assert commit_records(np.asfortranarray(x), y.astype(">i8"), SALT) == root
    other = x.copy()
    other[4, 1, 1] = np.nextafter(other[4, 1, 1], np.float32(9))
    doubled = np.r_[np.arange(9), 3]
    changed = {
        "a bit": commit_records(other, y, SALT),
        "targets of others": commit_records(x, np.roll(y, 1), SALT),
        "one less": commit_records(x[1:], y[1:], SALT),
        "one twice": commit_records(x[doubled], y[doubled], SALT),
        "type": commit_records(x, y.astype(np.int32), SALT),
        "shape": commit_records(x.reshape(9, 6), y, SALT),
        "salt": commit_records(x, y, SALT[::-1]),
        "none": commit_records(x[:0], y[:0], SALT),
    }
    assert len({root, *changed.values()}) == len(changed) + 1


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 33])
def test_each_record_can_be_proven_at_its_position_and_no_other(n: int) -> None:
    x, y = records(n)
    root, tree = commit_records(x, y, SALT), MerkleTree(x, y, SALT)
    assert tree.root == root and sorted(tree.record(k) for k in range(n)) == list(range(n))
    for k in range(n):
        i, proof = tree.record(k), tree.prove(k)
        content = content_of(x[i], y[i])
        assert check(root, n, content, proof)
        assert not check(root, n, content_of(x[i] + 1, y[i]), proof)
        assert not check(root, n, content_of(x[i], y[i] + 1), proof)
        assert not check(root[::-1], n, content, proof)
        assert not check(root, n, content, replace(proof, salt=SALT.hex()))
        assert not check(root, n, content, replace(proof, salt="no hex"))
        assert not check(root, n, content, replace(proof, path=(*proof.path, "00" * 32)))
        assert not any(check(root, n, content, replace(proof, position=other)) for other in range(-1, n + 1) if other != k)
    with pytest.raises(DataError, match=f"position {n} of {n}"):
        tree.prove(n)


def test_equal_records_have_a_leaf_each() -> None:
    x, y = np.ones((5, 2), dtype=np.float32), np.zeros(5, dtype=np.int64)
    tree = MerkleTree(x, y, SALT)
    assert sorted(tree.record(k) for k in range(5)) == list(range(5))
    assert all(check(tree.root, 5, content_of(x[0], y[0]), tree.prove(k)) for k in range(5))
    assert not check(tree.root, 6, content_of(x[0], y[0]), tree.prove(4))


def test_a_proof_gives_away_neither_the_salt_nor_other_records() -> None:
    x, y = records(4)
    proofs = [MerkleTree(x, y, SALT).prove(k) for k in range(4)]
    assert len({p.salt for p in proofs} | {SALT.hex()}) == 5


def test_what_is_no_array_of_records_is_refused() -> None:
    x, y = records(3)
    with pytest.raises(DataError, match="3 features with 2 targets"):
        commit_records(x, y[:2], SALT)
    with pytest.raises(DataError, match="Python objects"):
        commit_records(x, np.array(["a", None, 1], dtype=object), SALT)
    with pytest.raises(DataError, match="32 bytes, not 5"):
        commit_records(x, y, b"short")


def test_a_salt_is_made_once_and_kept_secret(tmp_path: Path) -> None:
    path = tmp_path / "a.salt"
    salt = load_salt(tmp_path, "a")
    assert len(salt) == SALT_BYTES
    assert load_salt(tmp_path, "a") == salt != load_salt(tmp_path, "b")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.salt", "b.salt"]
    path.write_bytes(salt[:5])
    with pytest.raises(DataError, match="5 bytes instead of a salt"):
        load_salt(tmp_path, "a")
    with pytest.raises(DataError, match="mount the volume"):
        load_salt(tmp_path / "away" / "books", "a")


def test_sixty_thousand_images_take_little_more_than_their_hash() -> None:
    x, y = np.zeros((60_000, 784), dtype=np.float32), np.zeros(60_000, dtype=np.int64)
    x[:, 0] = np.arange(60_000)
    images = [bytes(row) for row in x]

    def seconds(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    bare = min(seconds(lambda: [hashlib.sha256(image).digest() for image in images]) for _ in range(3))
    assert min(seconds(lambda: commit_records(x, y, SALT)) for _ in range(3)) < 10 * bare
