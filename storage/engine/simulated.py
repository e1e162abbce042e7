"""Block files and an index in memory that fail as real ones do: for tests and the simulator.

Both keep what is durable apart from what was only written. `Faults` counts the effects of a whole target and strikes at a chosen one:
the process dies before it, after it, or in its middle, or the call fails with an errno. `power_loss` then leaves, per sector of
512 bytes, any beginning of the writes that touched it since the last fdatasync, and of the index any beginning of the writes since
the last sync."""

from __future__ import annotations

import errno
import os
import random
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .index import Change

SECTOR_BYTES = 512


class Crash(BaseException):
    """The process died here. No handler for errors may see it."""


@dataclass
class Faults:
    """What goes wrong, and when: `at` is the number of the effect (the first is 1), `kind` one of "before", "after", "torn" or an
    errno."""

    at: int = 0
    kind: str | int = "before"
    count: int = 0
    seen: list[str] = field(default_factory=list)  # the effects, by name

    def effect(self, name: str, act: Callable[[], None], half: Callable[[], None] | None = None) -> None:
        self.count += 1
        self.seen.append(name)
        if self.count != self.at:
            act()
            return
        if isinstance(self.kind, int):
            raise OSError(self.kind, os.strerror(self.kind))
        if self.kind == "after":
            act()
        elif self.kind == "torn" and half is not None:
            half()
        raise Crash(f"effect {self.count}: {self.kind} {name}")


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    named: bool = False  # its name is durable
    log: list[tuple[int, bytes]] = field(default_factory=list)  # (offset, bytes) since the last fdatasync


def _apply(data: bytearray, offset: int, content: bytes) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(content)] = content


class SimulatedDisk:
    """A Disk in memory, of `size_max` bytes."""

    buffered = True

    def __init__(self, faults: Faults | None = None, size_max: int = 1 << 40) -> None:
        self.faults = faults or Faults()
        self.size_max = size_max
        self.cold = False  # reads that may not wait find nothing in memory
        self.files: dict[str, _File] = {}
        self._handles: list[_File] = []
        self._by_name: dict[str, int] = {}

    def names(self) -> list[str]:
        return sorted(self.files)

    def open(self, name: str) -> int:
        if name not in self._by_name:
            if name not in self.files:
                self.faults.effect(f"create {name}", lambda: self.files.update({name: _File()}))
            self._by_name[name] = len(self._handles)
            self._handles.append(self.files[name])
        return self._by_name[name]

    def size(self, handle: int) -> int:
        return len(self._handles[handle].data)

    def _write(self, handle: int, offset: int, content: bytes) -> None:
        file = self._handles[handle]
        _apply(file.data, offset, content)
        file.log.append((offset, content))

    def free(self) -> int:
        return self.size_max - sum(len(file.data) for file in self.files.values())

    def allocate(self, handle: int, offset: int, length: int) -> None:
        file = self._handles[handle]
        grow = max(0, offset + length - len(file.data))
        if grow > self.free():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.faults.effect("allocate", lambda: self._write(handle, len(file.data), bytes(grow)))

    def punch(self, handle: int, offset: int, length: int) -> None:
        self.faults.effect("punch", lambda: self._write(handle, offset, bytes(length)))

    def pwritev(self, handle: int, buffers: Sequence[Any], offset: int, cold: bool = False) -> None:
        content = b"".join(bytes(buffer) for buffer in buffers)
        self.faults.effect(
            "pwritev",
            lambda: self._write(handle, offset, content),
            lambda: self._write(handle, offset, content[: len(content) // 2]),
        )

    def advise(self, handle: int, offset: int, length: int, needed: bool) -> None:
        """Of the page cache only this matters: without it the disk shows what it has."""
        if not needed:
            file = self._handles[handle]
            data = bytearray(file.durable)
            for at, content in file.log:
                _apply(data, at, content)
            data.extend(bytes(len(file.data) - len(data)))
            file.data = data

    def preadv(self, handle: int, buffers: Sequence[Any], offset: int, wait: bool, cold: bool = False) -> int:
        if self.cold and not wait:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        done = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            piece = self._handles[handle].data[offset + done : offset + done + view.nbytes]
            view[: len(piece)] = piece
            done += len(piece)
        return done

    def fill(self, places: Sequence[tuple[int, int]], buffer: memoryview, length: int, *, wait: bool = False) -> int:
        for i, (handle, offset) in enumerate(places):
            try:
                if self.preadv(handle, (buffer[i * length : (i + 1) * length],), offset, wait) != length:
                    return i
            except OSError:
                return i
        return len(places)

    def is_cached(self, handle: int, offset: int, length: int) -> bool:
        return False  # there is no descriptor to send from

    def fdatasync(self, handle: int) -> None:
        def act() -> None:
            file = self._handles[handle]
            for offset, content in file.log:
                _apply(file.durable, offset, content)
            file.log.clear()

        try:
            self.faults.effect("fdatasync", act)
        except OSError:
            self._handles[handle].log.clear()  # the next one would succeed, and the bytes stay in memory alone
            raise

    def sync_names(self) -> None:
        def act() -> None:
            for file in self.files.values():
                file.named = True

        self.faults.effect("sync_names", act)

    def close(self) -> None:
        self._handles.clear()
        self._by_name.clear()

    def power_loss(self, choice: random.Random) -> None:
        """The machine was reset: what was not synced is there in part, or not."""
        for name, file in list(self.files.items()):
            if not file.named and choice.random() < 0.5:
                del self.files[name]
                continue
            file.data = _survived(file, choice)
            file.durable = bytearray(file.data)
            file.log.clear()
            file.named = True
        self.close()


def _survived(file: _File, choice: random.Random) -> bytearray:
    data = bytearray(file.durable)
    mood = choice.random()  # nothing, everything, or each sector for itself
    kept: dict[int, int] = {}
    for number, (offset, content) in enumerate(file.log):
        position = 0
        while position < len(content):
            sector, inside = divmod(offset + position, SECTOR_BYTES)
            size = min(SECTOR_BYTES - inside, len(content) - position)
            if sector not in kept:
                kept[sector] = -1 if mood < 0.2 else len(file.log) if mood < 0.4 else choice.randint(-1, len(file.log))
            if number <= kept[sector]:
                _apply(data, offset + position, content[position : position + size])
            position += size
    return data


class SimulatedIndex:
    """An Index in memory."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self._keys: list[bytes] = []
        self._values: dict[bytes, bytes] = {}
        self._durable: dict[bytes, bytes] = {}
        self._log: list[list[Change]] = []  # writes since the last sync

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._values.get(key) for key in keys]

    def _apply(self, changes: Sequence[Change]) -> None:
        for key, value in changes:
            if value is None:
                if self._values.pop(key, None) is not None:
                    del self._keys[bisect_left(self._keys, key)]
                continue
            if key not in self._values:
                insort(self._keys, key)
            self._values[key] = value

    def write(self, changes: Sequence[Change], *, sync: bool = False) -> None:
        batch = list(changes)

        def logged() -> None:
            self._apply(batch)
            self._log.append(batch)

        def durable() -> None:
            logged()
            for key, value in (change for changes in self._log for change in changes):
                if value is None:
                    self._durable.pop(key, None)
                else:
                    self._durable[key] = value
            self._log.clear()

        # Dying inside a synced write: it may be in the log already, and not yet durable.
        self.faults.effect(
            "index sync" if sync else "index write", durable if sync else logged, logged if sync else None
        )

    def scan(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        keys = self._keys[bisect_left(self._keys, begin) : bisect_left(self._keys, end)]
        for key in reversed(keys) if reverse else keys:
            yield key, self._values[key]

    def close(self) -> None:
        pass

    def power_loss(self, choice: random.Random) -> None:
        """The machine was reset: a beginning of the unsynced writes is left."""
        log = self._log[: choice.randint(0, len(self._log))]
        self._values = dict(self._durable)
        self._keys = sorted(self._values)
        self._log = []
        for batch in log:
            self._apply(batch)
        self._durable = dict(self._values)
