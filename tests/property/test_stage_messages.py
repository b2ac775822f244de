"""What a stage says that an update takes is what it takes: its message is packed into that many bytes, which alone give the same values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedray import rng
from fedray.parameters import Vector
from fedray.privacy.csprng import InsecureSeeded
from fedray.updates.drive import Drive
from fedray.updates.half import HalfPrecision
from fedray.updates.qsgd import Qsgd
from fedray.updates.randk import RandK
from fedray.updates.rotation import random_signs, walsh_hadamard
from fedray.updates.sign import Sign
from fedray.updates.stage import At, Stage
from fedray.updates.topk import TopK, largest

Floats = npt.NDArray[np.float64]
SEED, ROUND, CLIENT = 5, 2, 7


def at() -> At:
    return At(ROUND, 0, CLIENT, InsecureSeeded(1, ROUND, CLIENT), seed=SEED)


def topk_packed(stage: TopK, x: Vector, values: Vector) -> bytes:
    kept = largest(x, stage.number(len(x)))
    return kept.astype("<u4").tobytes() + values[kept].tobytes()


def topk_unpacked(stage: TopK, message: bytes, size: int) -> Vector:
    number, values = stage.number(size), np.zeros(size, dtype=np.float32)
    values[np.frombuffer(message, "<u4", number)] = np.frombuffer(message, "<f4", number, 4 * number)
    return values


def randk_packed(stage: RandK, x: Vector, values: Vector) -> bytes:
    return values[stage.positions(len(x), SEED, ROUND)].tobytes()


def randk_unpacked(stage: RandK, message: bytes, size: int) -> Vector:
    values = np.zeros(size, dtype=np.float32)
    values[stage.positions(size, SEED, ROUND)] = np.frombuffer(message, "<f4")
    return values


def sign_packed(stage: Sign, x: Vector, values: Vector) -> bytes:
    return np.abs(values[:1]).tobytes() + np.packbits(np.signbit(values)).tobytes()


def sign_unpacked(stage: Sign, message: bytes, size: int) -> Vector:
    (scale,) = np.frombuffer(message, "<f4", 1)
    return np.where(np.unpackbits(np.frombuffer(message, np.uint8, -1, 4), count=size), -scale, scale)


def qsgd_packed(stage: Qsgd, x: Vector, values: Vector) -> bytes:
    blocks = [slice(start, start + stage.block) for start in range(0, len(x), stage.block)]
    scales = np.array([np.abs(x[block]).max() for block in blocks])
    each = np.repeat(scales, stage.block)[: len(x)].astype(np.float64)
    codes = np.rint(np.divide(values * float(stage.levels), each, out=np.zeros(len(x)), where=each > 0)).astype(np.int64) + stage.levels
    bits = codes[:, None] >> np.arange(stage.bits) & 1
    return scales.tobytes() + np.packbits(bits.astype(np.uint8)).tobytes()


def qsgd_unpacked(stage: Qsgd, message: bytes, size: int) -> Vector:
    number = -(-size // stage.block)
    each = np.repeat(np.frombuffer(message, "<f4", number), stage.block)[:size].astype(np.float64)
    bits = np.unpackbits(np.frombuffer(message, np.uint8, -1, 4 * number), count=size * stage.bits).reshape(size, stage.bits)
    levels = (bits.astype(np.int64) << np.arange(stage.bits)).sum(axis=1) - stage.levels
    return (levels * each / stage.levels).astype(np.float32)


def drive_flips(stage: Drive, size: int) -> Floats:
    blocks, width = stage.shape(size)
    return random_signs(blocks * width, rng.derive(SEED, "drive", ROUND, CLIENT)).reshape(blocks, width)


def drive_packed(stage: Drive, x: Vector, values: Vector) -> bytes:
    rotated = np.zeros(stage.shape(len(x)))
    rotated.reshape(-1)[: len(x)] = x
    squares = np.square(rotated).sum(axis=1)
    rotated *= drive_flips(stage, len(x))
    walsh_hadamard(rotated)
    lengths = np.abs(rotated).sum(axis=1)
    scales = np.divide(squares, lengths, out=np.zeros_like(squares), where=lengths > 0)
    return scales.astype("<f4").tobytes() + np.packbits(rotated < 0).tobytes()


def drive_unpacked(stage: Drive, message: bytes, size: int) -> Vector:
    blocks, width = stage.shape(size)
    scales = np.frombuffer(message, "<f4", blocks)[:, None].astype(np.float64)
    bits = np.unpackbits(np.frombuffer(message, np.uint8, -1, 4 * blocks), count=blocks * width).reshape(blocks, width)
    values = np.where(bits, -scales, scales)
    walsh_hadamard(values)
    return (values * drive_flips(stage, size)).reshape(-1)[:size].astype(np.float32)


def float16_packed(stage: HalfPrecision, x: Vector, values: Vector) -> bytes:
    return x.astype("<f2").tobytes()


def float16_unpacked(stage: HalfPrecision, message: bytes, size: int) -> Vector:
    return np.frombuffer(message, "<f2").astype(np.float32)


def bfloat16_packed(stage: HalfPrecision, x: Vector, values: Vector) -> bytes:
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def bfloat16_unpacked(stage: HalfPrecision, message: bytes, size: int) -> Vector:
    return (np.frombuffer(message, "<u2").astype(np.uint32) << 16).view(np.float32)


MESSAGES: dict[str, tuple[Stage, Callable[..., bytes], Callable[..., Vector]]] = {
    "topk": (TopK(0.1, feedback=False), topk_packed, topk_unpacked),
    "randk": (RandK(0.1), randk_packed, randk_unpacked),
    "sign": (Sign(feedback=False), sign_packed, sign_unpacked),
    "qsgd": (Qsgd(), qsgd_packed, qsgd_unpacked),
    "qsgd of 3 bits": (Qsgd(3, block=7), qsgd_packed, qsgd_unpacked),
    "qsgd of 8 bits": (Qsgd(8, block=64), qsgd_packed, qsgd_unpacked),
    "drive": (Drive(), drive_packed, drive_unpacked),
    "drive of small blocks": (Drive(block=16), drive_packed, drive_unpacked),
    "float16": (HalfPrecision("float16"), float16_packed, float16_unpacked),
    "bfloat16": (HalfPrecision("bfloat16"), bfloat16_packed, bfloat16_unpacked),
}
vectors = st.integers(1, 700).flatmap(lambda size: hnp.arrays(np.float32, size, elements=st.floats(-1000, 1000, width=32)))


@pytest.mark.parametrize("name", MESSAGES)
@given(vectors)
@settings(max_examples=40)
def test_a_message_of_the_stated_size_gives_the_same_values(name: str, update: Vector) -> None:
    stage, packed, unpacked = MESSAGES[name]
    values = stage.out(update, at()).values
    message = packed(stage, update, values)
    assert len(message) == stage.sent(len(update), 8 * len(update))
    assert unpacked(stage, message, len(update)).tobytes() == values.tobytes()
