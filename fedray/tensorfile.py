"""Tensor files: the safetensors format with two digests, by which every changed, cut or lengthened file is noticed.

The header's metadata holds ``fedray_sha256``, the SHA-256 of all tensors' bytes in the file's order, and ``fedray_header_sha256``, the
SHA-256 of the header and its length, in which this digest's own 64 digits are zeros. The second digest covers the first, so together they
cover every bit of the file. Any program that reads safetensors reads these files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedray.errors import FedrayError
from fedray.parameters import Values
from fedray.storage import damaged, write_atomic

#: Keys of the two digests in the metadata.
DIGEST, HEADER_DIGEST = "fedray_sha256", "fedray_header_sha256"

_ZEROS = "0" * 64
_ALIGNED = 8  # bytes; tensors that begin at a multiple of this can be mapped into memory
#: NumPy types, and their names in the format.
_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_TYPES = {name: np.dtype(kind).newbyteorder("<") for kind, name in _NAMES.items()}


def write_tensors(path: Path, tensors: Mapping[str, Values], metadata: Mapping[str, str]) -> None:
    """Write a tensor file atomically, without a copy of the tensors in memory.

    Args:
        path: the file.
        tensors: arrays of any shape by name, in the file's order; types with more bytes must come first, so that all are aligned.
        metadata: texts by name, to which the two digests are added.

    Raises:
        FedrayError: the disk is full, broken or not writable; the old content stays.
    """
    parts = {name: np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")) for name, value in tensors.items()}
    digest, position = sha256(), 0
    header: dict[str, Any] = {}
    for name, part in parts.items():
        digest.update(part.data)
        header[name] = {
            "dtype": _NAMES[part.dtype.name],
            "shape": list(np.shape(tensors[name])),
            "data_offsets": [position, position + part.nbytes],
        }
        position += part.nbytes
    facts = {**metadata, DIGEST: digest.hexdigest()}
    unsealed = _packed({**header, "__metadata__": {**facts, HEADER_DIGEST: _ZEROS}})
    sealed = _packed({**header, "__metadata__": {**facts, HEADER_DIGEST: sha256(unsealed).hexdigest()}})

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(sealed)
            for part in parts.values():
                file.write(part.data)

    write_atomic(path, write)


def read_tensors(path: Path) -> tuple[dict[str, Values], dict[str, str]]:
    """Read the tensors and the metadata of a file that :func:`write_tensors` wrote.

    Raises:
        FedrayError: the file cannot be read, or some bit differs from what was written.
    """
    try:
        with path.open("rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise FedrayError(f"{path}: there is no such file; bring it back from a copy.") from None
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, str(error) if type(error) is ValueError else "its header cannot be read") from error


def _packed(header: Mapping[str, Any]) -> bytes:
    """Return the header's length (8 bytes, little-endian) and the header, padded with blanks so that the tensors are aligned."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _read(file: BinaryIO, size: int) -> tuple[dict[str, Values], dict[str, str]]:
    length = file.read(8)
    text = file.read(min(int.from_bytes(length, "little"), size))
    try:
        header = json.loads(text)
    except ValueError:
        raise ValueError("its header is cut short or changed") from None
    metadata = header.pop("__metadata__", {})
    if HEADER_DIGEST not in metadata:
        raise ValueError("its header carries no digest, so this version did not write it, or it was changed")
    seal = metadata.pop(HEADER_DIGEST)
    if sha256((length + text).replace(seal.encode(), _ZEROS.encode())).hexdigest() != seal:
        raise ValueError("its header is not the one that was written")
    digest, tensors = sha256(), dict[str, Values]()
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        kind = _TYPES[entry["dtype"]]
        values = np.empty((end - start) // kind.itemsize, dtype=kind)
        if file.readinto(values.view(np.uint8)) != values.nbytes:  # type: ignore[attr-defined]
            raise ValueError("it is cut short")
        digest.update(values.data)
        tensors[name] = values.reshape(entry["shape"])
    if file.read(1):
        raise ValueError("something stands behind its end")
    if digest.hexdigest() != metadata[DIGEST]:
        raise ValueError("its tensors are not the ones that were written")
    return tensors, metadata
