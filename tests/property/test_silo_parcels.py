"""Parcels and frames: one form each, and whatever is not of the form is refused and does nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.silos import frames, parcels
from fedray.silos.frames import Kind, Offered, Status, frame, offer, read_frame, read_hello, read_offer
from fedray.silos.parcels import CHUNK, Assembly, MalformedMessage, Parcel, packed, unpacked

heads = st.binary(max_size=200)
buffers = st.lists(st.binary(max_size=300), max_size=6).map(tuple)


def bytes_of(parcel: Parcel) -> bytes:
    return b"".join(packed(parcel).parts())


@given(heads, buffers)
def test_a_parcel_comes_back(head: bytes, arrays: tuple[bytes, ...]) -> None:
    data = bytes_of(Parcel(head, arrays))
    found = unpacked(memoryview(data))
    assert found.head == head and [bytes(b) for b in found.buffers] == list(arrays)
    assert bytes_of(found) == data


def test_arrays_are_aligned_and_not_copied() -> None:
    arrays = [np.arange(n, dtype=np.float32) for n in (1, 100_000, 3, 700_000)]
    stretch = packed(Parcel(b"{}", tuple(memoryview(a) for a in arrays)))
    assert [part.obj is a for a in arrays for part in stretch.parts() if part.obj is a] == [True] * 4
    assembly = Assembly(stretch.size, bytes(16))
    for number in reversed(range(stretch.chunks)):
        assert not assembly.whole
        assembly.put(number, memoryview(b"".join(stretch.chunk(number))))
    for sent, came in zip(arrays, assembly.parcel().buffers, strict=True):
        found = np.frombuffer(came, np.float32)
        assert (found == sent).all() and found.ctypes.data % 64 == 0 and found.flags.writeable


@given(heads, buffers, st.data())
def test_a_parcel_has_one_form(head: bytes, arrays: tuple[bytes, ...], data: st.DataObject) -> None:
    """Bytes that are changed are refused, or say something else that would be written as they are."""
    whole = bytearray(bytes_of(Parcel(head, arrays)))
    cut = data.draw(st.integers(0, len(whole)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    for changed in (bytes(whole), bytes(whole[:cut]), bytes(whole) + data.draw(st.binary(min_size=1, max_size=70))):
        try:
            found = unpacked(memoryview(changed))
        except MalformedMessage:
            continue
        assert bytes_of(found) == changed


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_malformed(data: bytes) -> None:
    try:
        found = read_frame(data)
    except MalformedMessage:
        return
    assert frame(found.kind, found.order, found.number, found.body) == data


@given(st.sampled_from(Kind), st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1), st.binary(max_size=60), st.data())
def test_a_changed_frame_is_refused(kind: Kind, order: bytes, number: int, body: bytes, data: st.DataObject) -> None:
    whole = bytearray(frame(kind, order, number, body))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MalformedMessage):
        read_frame(bytes(whole))
    with pytest.raises(MalformedMessage):
        read_frame(bytes(whole)[:at])


@given(st.integers(0, 2**64 - 1) | st.integers(0, 2**20 + 1), st.integers(0, 2**32 - 1) | st.integers(0, 17))
def test_an_offer_claims_no_more_than_is_taken(size: int, number: int) -> None:
    found = read_frame(frame(Kind.OFFER, bytes(16), number, frames._OFFER.pack(size, bytes(16))))
    if 0 < size <= 2**20 and number < 16 and number & 6 != 6:
        offered = read_offer(found, 2**20)
        assert offered == Offered(bool(number & 1), Status(number >> 1 & 3), size, bytes(16), bool(number & 8))
        assert offer(bytes(16), offered) == frame(Kind.OFFER, bytes(16), number, found.body)
    else:
        with pytest.raises(MalformedMessage):
            read_offer(found, 2**20)


@given(st.binary(min_size=2, max_size=200) | st.sampled_from([b"[]", b"{}", b"[[[[" * 900, b'{"client": 1, "boot": "", "cause": ""}']))
def test_a_hello_says_texts(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_hello(read_frame(frame(Kind.HELLO, bytes(16), 1, body)))


def test_a_peers_text_cannot_write_lines_of_a_log() -> None:
    client, boot, cause = read_hello(read_frame(frames.hello(1, "a\nb", "\x1b[2J", "c" * 10_000)))
    assert client == "a?b" and boot == "?[2J" and cause == "c" * 500


@pytest.mark.parametrize(
    ("parcel", "said"),
    [
        (Parcel(bytes(parcels.LONGEST_HEAD + 1)), "the head of a message has"),
        (Parcel(b"", (b"",) * (parcels.MOST_BUFFERS + 1)), "arrays; at most"),
    ],
)
def test_a_parcel_that_no_peer_takes_is_not_sent(parcel: Parcel, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        packed(parcel)


def test_a_version_is_refused_with_both_named() -> None:
    data = bytearray(bytes_of(Parcel(b"{}")))
    data[4] = 7
    with pytest.raises(MalformedMessage, match="version 7, and this side speaks version 1"):
        unpacked(memoryview(bytes(data)))


@pytest.mark.parametrize(("number", "length"), [(3, CHUNK), (2, CHUNK), (0, 10), (2**32 - 1, 1)])
def test_a_chunk_that_is_not_due_is_refused(number: int, length: int) -> None:
    with pytest.raises(MalformedMessage, match="chunk"):
        Assembly(2 * CHUNK + 5, bytes(16)).put(number, memoryview(bytes(length)))
