"""A folder in memory that forgets at a loss of power what was not synced, as a disk may: names in any state since the last sync of the
directory, each for itself; contents of files that were written after their last fsync cut, or with zeros in them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from emberfs.client.checkpoints.folders import Draft, Entry, Folder, Ranges, Source


class PowerLoss(BaseException):
    """Nothing that was going on goes on. No `except` of a program catches it."""


class MemoryFile:
    def __init__(self) -> None:
        self.data = bytearray()
        self.is_durable = False
        self.mtime_ns = 0


class MemorySource:
    def __init__(self, file: MemoryFile) -> None:
        self.file = file
        self.size = len(file.data)

    def read(self, ranges: Ranges, buffer: memoryview) -> None:
        begin = 0
        for offset, length in ranges:
            buffer[begin : begin + length] = self.file.data[offset : offset + length]
            begin += length

    def close(self) -> None: ...


class MemoryDraft:
    def __init__(self, folder: MemoryFolder) -> None:
        self.folder = folder
        self.file = MemoryFile()

    def write(self, data: Any, offset: int) -> None:
        self.folder.step()
        part = bytes(data)
        end = offset + len(part)
        self.file.data.extend(bytes(max(0, end - len(self.file.data))))
        self.file.data[offset:end] = part
        self.file.is_durable = False

    def fsync(self) -> None:
        self.folder.step()
        self.file.is_durable = True

    def discard(self) -> None: ...


class MemoryFolder:
    """`steps_left`: at the step after that many the power fails; negative: never."""

    url = "memory:"

    def __init__(self, steps_left: int = -1) -> None:
        self.steps_left = steps_left
        self.names: dict[str, MemoryFile] = {}
        self.since_sync: dict[str, list[MemoryFile | None]] = {}  # what a name stood for, from the last sync on
        self.clock = 0

    def step(self) -> None:
        if self.steps_left == 0:
            raise PowerLoss
        self.steps_left -= 1

    def after_power_loss(self, draw: random.Random) -> MemoryFolder:
        """What may be there when the power is back."""
        made = MemoryFolder()
        survivors = {**self.names, **{name: draw.choice(states) for name, states in self.since_sync.items()}}
        for name, file in survivors.items():
            if file is None:
                continue
            if not file.is_durable:
                _tear(file.data, draw)
                file.is_durable = True
            made.names[name] = file
        return made

    def _now(self, name: str, file: MemoryFile | None) -> None:
        self.since_sync.setdefault(name, [self.names.get(name)]).append(file)
        if file is None:
            del self.names[name]
        else:
            self.names[name] = file

    # --- as a `Folder` ---

    def make(self) -> None:
        self.step()

    def child(self, name: str) -> Folder:
        raise NotADirectoryError(name)

    def entries(self) -> dict[str, Entry]:
        return {name: Entry(len(file.data), file.mtime_ns, False) for name, file in self.names.items()}

    def draft(self, *, large: bool = True) -> Draft:
        self.step()
        return MemoryDraft(self)

    def publish(self, drafts: Sequence[Draft], names: Sequence[str]) -> None:
        for draft, name in zip(drafts, names, strict=True):
            self.step()
            assert isinstance(draft, MemoryDraft)
            self.clock += 1
            draft.file.mtime_ns = self.clock
            self._now(name, draft.file)

    def open(self, name: str) -> Source:
        if name not in self.names:
            raise FileNotFoundError(name)
        return MemorySource(self.names[name])

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            self.step()
            if name in self.names:
                self._now(name, None)

    def remove_all(self, *, forever: bool = False) -> None:
        self.remove(list(self.names))

    def sync(self) -> None:
        self.step()
        self.since_sync.clear()


def _tear(data: bytearray, draw: random.Random) -> None:
    """What a file may hold that was not synced."""
    if draw.random() < 0.5:
        del data[draw.randrange(len(data) + 1) :]
    else:
        begin = draw.randrange(len(data) + 1)
        data[begin:] = bytes(len(data) - begin)
