"""The safetensors format: eight bytes that say how long the header is, a JSON header, then the tensors' bytes without gaps.

What a header says is checked before anything is read by it, as the format's own library does: no gaps, no overlaps, no trailing bytes, no
name twice, and lengths that follow from shape and type.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...proto.errors import Status, StatusError, error

LENGTH = struct.Struct("<Q")
HEADER_BYTES_MAX = 100_000_000  # as the format's own library has it
DIMENSIONS_MAX = 64  # of a tensor, as numpy and torch have it
ELEMENTS_MAX = 1 << 56
METADATA = "__metadata__"
SUMS = "emberfs.crc32c"  # in the metadata: {"tensor": "crc32c in hex"}, of a width that does not depend on the value
ALIGNMENT = 8  # of the tensors' bytes in the file

# What the format calls a type -> bits of an element.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in a file."""

    name: str
    dtype: str  # in the format's words: "BF16"
    shape: tuple[int, ...]
    offset: int  # in the file, in bytes
    length: int  # bytes
    crc32c: int | None = None  # of its bytes, where who wrote them has said so


@dataclass(frozen=True, slots=True)
class Header:
    """What stands at the beginning of a file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]  # without our own
    data: int  # where the tensors' bytes begin
    size: int  # of the whole file, bytes


@dataclass(slots=True)
class Planned:
    """A tensor that is going to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    length: int  # bytes
    value: Any
    offset: int = 0  # behind the header, bytes
    crc32c: int = field(default=0)


def length_of(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor. Raises BAD_FORMAT for an unknown type, and where the last byte would be shared."""
    if dtype not in BITS:
        raise error(Status.BAD_FORMAT, f"type {dtype!r}: known are {', '.join(BITS)}")
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8:
        raise error(Status.BAD_FORMAT, f"{dtype} {list(shape)} does not fill whole bytes")
    return bits // 8


def arranged(tensors: Iterable[Planned]) -> list[Planned]:
    """The order in the file: large elements first, so that each lies at a multiple of its size, then by name. Sets the offsets."""
    ordered = sorted(tensors, key=lambda tensor: (-BITS[tensor.dtype], tensor.name))
    end = 0
    for tensor in ordered:
        tensor.offset = end
        end += tensor.length
    return ordered


def header_bytes(tensors: Sequence[Planned], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a file. It is equally long whatever the checksums are, so that they can be filled in afterwards."""
    sums = {tensor.name: f"{tensor.crc32c:08x}" for tensor in tensors}
    header: dict[str, Any] = {METADATA: {**metadata, SUMS: json.dumps(sums, separators=(",", ":"))}}
    for tensor in tensors:
        ends = [tensor.offset, tensor.offset + tensor.length]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": ends}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    if len(encoded) > HEADER_BYTES_MAX:
        raise error(
            Status.TOO_LARGE, f"a header of {len(encoded)} bytes: at most {HEADER_BYTES_MAX}; use several files"
        )
    return LENGTH.pack(len(encoded)) + encoded


def header_length(first: bytes, size: int, path: str) -> int:
    """How long the header is, from the first eight bytes of a file of `size` bytes. Raises BAD_FORMAT."""
    length = int(LENGTH.unpack(first)[0]) if len(first) == LENGTH.size else -1
    if not 2 <= length <= min(HEADER_BYTES_MAX, size - LENGTH.size):
        raise error(Status.BAD_FORMAT, f"{path} is no safetensors file: its header cannot be {length} bytes long")
    return length


def parse_header(encoded: bytes, size: int, path: str) -> Header:
    """The header of a file of `size` bytes, checked. Raises BAD_FORMAT."""
    try:
        header = json.loads(encoded, object_pairs_hook=_without_repeats)
        metadata = header.pop(METADATA, None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError(f"{METADATA} has something else than strings")
        sums = {name: int(value, 16) for name, value in json.loads(metadata.pop(SUMS, "{}")).items()}
        data = LENGTH.size + len(encoded)
        tensors = {name: _tensor(name, fields, data, sums.get(name)) for name, fields in header.items()}
        _check_places(tensors, data, size)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, StatusError) as bad:
        raise error(Status.BAD_FORMAT, f"{path}: {bad}") from bad
    return Header(tensors, metadata, data, size)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name comes twice")
    return made


def _tensor(name: str, fields: Mapping[str, Any], data: int, crc32c: int | None) -> TensorInfo:
    shape = tuple(fields["shape"])
    begin, end = fields["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"tensor {name!r}: sizes and offsets must be natural numbers")
    # One size may be zero, so that no bytes say how large the others can be.
    if len(shape) > DIMENSIONS_MAX or math.prod(size for size in shape if size) > ELEMENTS_MAX:
        raise ValueError(f"tensor {name!r}: no tensor has so many elements or dimensions")
    if length_of(fields["dtype"], shape) != end - begin:
        raise ValueError(f"tensor {name!r}: {fields['dtype']} {list(shape)} does not fill bytes {begin} to {end}")
    return TensorInfo(name, fields["dtype"], shape, data + begin, end - begin, crc32c)


def _check_places(tensors: Mapping[str, TensorInfo], data: int, size: int) -> None:
    end = data
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.length)):
        if tensor.offset != end:
            raise ValueError(f"tensor {tensor.name!r} begins at {tensor.offset - data} and not at {end - data}")
        end += tensor.length
    if end != size:
        raise ValueError(f"the tensors end at byte {end}, the file at {size}")
