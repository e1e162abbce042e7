"""The contract of block stores, kept by every face of the API and with memory of every kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from .contract import Contract, Open
from .faces import FACES, opened, spec_of

BLOCK = 20_000
SMALL = 512


class FaceSubject:
    """A face, with blocks in memory of one kind."""

    def __init__(self, face: Any, spec: Any, memory: str) -> None:
        self.face = face
        self.spec = spec
        self.block_bytes = spec.object_bytes
        self.namespace = face.namespace(spec, mode=0o666)  # over a network root is nobody
        self._memory = memory

    def put(self, keys: Sequence[bytes], blocks: Sequence[bytes]) -> list[bool]:
        places, views = self._places(len(keys))
        for row, block in zip(views, blocks, strict=True):
            position = 0
            for part in row:
                part[:] = block[position : position + len(part)]
                position += len(part)
        self.last = self.face.put_from(self.namespace, list(keys), places)
        return [status == self.block_bytes for status in self.last]

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        places, views = self._places(len(keys))
        self.last = statuses = self.face.get_into(self.namespace, b"".join(keys), places)
        assert len(statuses) == len(keys)
        return [b"".join(row) if status >= 0 else None for row, status in zip(views, statuses, strict=True)]

    def exists(self, keys: Sequence[bytes]) -> list[bool]:
        found = [bool(one) for one in self.face.exists(self.namespace, [key.hex() for key in keys])]
        assert self.face.match(self.namespace, keys).n == [*found, False].index(False)
        return found

    def close(self) -> None:
        self.face.close()

    def _places(self, count: int) -> tuple[Any, list[list[memoryview]]]:
        """Memory for so many blocks, as the API takes it, and as we fill it."""
        size, half = self.block_bytes, self.block_bytes // 2
        if self._memory == "private":
            blocks = [memoryview(bytearray(size)) for _ in range(count)]
            return blocks, [[block] for block in blocks]
        if self._memory == "unaligned":  # and scattered: every block in two parts of odd lengths
            odd = [memoryview(bytearray(size + 3))[1:-2] for _ in range(count)]
            parts = [[block[:333], block[333:]] for block in odd]
            return parts, parts
        buffer = self.face.allocate(max(count, 1) * (size + 7))
        if self._memory == "slots":
            offsets = [row * (size + 7) + 3 for row in range(count)]
            return (buffer, offsets, size), [[buffer.view[at : at + size]] for at in offsets]
        keys_half, values_half = 0, count * half  # K of all blocks, then V of all blocks
        rows = [[keys_half + row * half, values_half + row * half] for row in range(count)]
        return (buffer, rows, half), [[buffer.view[at : at + half] for at in row] for row in rows]


def face_opener(face: str, url: str, memory: str) -> Open:
    """Opens subjects over this face: all that one test opens have one salt, and are the same but for what is given."""
    salt = spec_of(BLOCK).salt

    @contextmanager
    def open_one(*, small: bool = False, **identity: Any) -> Iterator[FaceSubject]:
        with opened(face, url) as made:
            yield FaceSubject(made, spec_of(SMALL if small else BLOCK, **{"salt": salt, **identity}), memory)

    return open_one


KINDS = [(face, "slots") for face in FACES] + [("blocking", memory) for memory in ("private", "unaligned", "halves")]


class TestFaces(Contract):
    @pytest.fixture(params=KINDS, ids="-".join)
    def open_subject(self, request: pytest.FixtureRequest, cluster: Any) -> Open:
        face, memory = request.param
        return face_opener(face, cluster.url, memory)


@pytest.mark.parametrize("bytes_of", [BLOCK + 1, None], ids=["blocks of another length", "blocks of any length"])
def test_another_length_is_another_namespace(face: Any, bytes_of: int | None) -> None:
    keys, salt = [bytes(32)], "lengths"
    subject = FaceSubject(face, spec_of(BLOCK, salt=salt), "private")
    subject.put(keys, [bytes(BLOCK)])
    other = face.namespace(spec_of(bytes_of, salt=salt))
    assert not any(face.exists(other, keys))
