"""What clients did to chunks, and what they were told: a history per chunk, for the linearizability check (linear.py).

A chunk is a row of cells of equal length. A write fills some of them with its number, so every byte that is read names the write that it
comes from; cells that were skipped hold zeros. The state of a chunk is the tuple of the numbers in its cells, None when it is not there,
beside the truncate version that it was written under.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

CELLS_MAX = 4  # of a chunk
NUMBER_BYTES = 8  # a cell is this number again and again


class Kind(enum.Enum):
    READ = "read"
    WRITE = "write"
    TRUNCATE = "truncate"  # to `last` cells; 0: a remove under the file's new truncate version
    REMOVE = "remove"  # of whatever is there


class State(NamedTuple):
    """What a chunk holds."""

    cells: tuple[int, ...] | None  # None: it is not there
    truncate_version: int = 0


ABSENT = State(None)


@dataclass(eq=False, slots=True)
class Operation:
    """One operation of one client on one chunk, over all its tries."""

    number: int  # rising in the order of the calls; a write's mark in the cells
    client: str
    kind: Kind
    first: int  # cell
    last: int  # cell behind the last
    truncate_version: int = 0
    found: tuple[int, ...] | None = None  # by a read
    outcome: str = "no answer"
    excludes: tuple[
        Operation, ...
    ] = ()  # the client's earlier ones here without an answer: too late once this one has happened

    def apply(self, before: State) -> State | None:
        """The state afterwards; None where this operation cannot have had its outcome in that state."""
        cells = before.cells
        if self.kind is Kind.READ:
            seen = None if cells is None else cells[self.first : self.last]
            return before if seen == self.found else None
        if self.kind is Kind.REMOVE:
            return State(None, before.truncate_version)
        if self.kind is Kind.WRITE:
            held = list(cells or ())
            held += [0] * (self.last - len(held))
            held[self.first : self.last] = [self.number] * (self.last - self.first)
            return State(tuple(held), max(before.truncate_version, self.truncate_version))
        return self._truncate(before)

    def _truncate(self, before: State) -> State:
        if before.cells is None:
            return before  # nothing to cut
        if not self.last:
            # A chunk that was written under this truncate version or later belongs to the file as it is now.
            return State(None) if before.truncate_version < self.truncate_version else before
        cut = (*before.cells[: self.last], *(0,) * (self.last - len(before.cells)))
        return State(cut, max(before.truncate_version, self.truncate_version))

    def __str__(self) -> str:
        what = f"{self.client} {self.kind.value} [{self.first}:{self.last}]"
        if self.truncate_version:
            what += f" under {self.truncate_version}"
        return f"#{self.number} {what} -> {self.found if self.kind is Kind.READ else self.outcome}"


class What(enum.Enum):
    CALL = "call"
    END = "end"  # it was done
    NEVER = "never"  # it was refused: it did not happen and will not
    SYNC_CALL = "sync call"  # all that had ended before survives power loss once the sync ends
    SYNC_END = "sync end"
    BLACKOUT = "blackout"  # every replica lost its power: what was not synced may be gone


class Event(NamedTuple):
    what: What
    time: float  # virtual seconds, for people
    operation: Operation | None = None
    sync: int = 0


@dataclass
class History:
    """Of one chunk. An operation that was called and neither ended nor was refused may have happened or may yet happen."""

    name: str
    events: list[Event] = field(default_factory=list)
    dead: bool = False  # the chunk's file is

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def possible(self) -> Iterator[Event]:
        """What may have happened. Nothing is remembered of a dead file that would keep late requests out: an operation that was refused may
        happen later all the same, and a remove, which has no number, once more. A write that was under way when the file died can be
        done after the remove, and stay as an orphan or be gone again."""
        for event in self.events:
            operation = event.operation
            if self.dead and event.what is What.NEVER:
                continue
            yield event
            if self.dead and event.what is What.CALL and operation is not None and operation.kind is Kind.REMOVE:
                yield event._replace(operation=replace(operation, outcome="once more"))

    def __str__(self) -> str:
        return "\n".join(
            f"{event.time:10.4f} {event.what.value:9} {event.operation or event.sync or ''}" for event in self.events
        )


class Histories:
    """Those of all chunks, and the one counter of operations."""

    def __init__(self) -> None:
        self.by_chunk: dict[str, History] = {}
        self._numbers = itertools.count(1)

    def of(self, chunk: str) -> History:
        return self.by_chunk.setdefault(chunk, History(chunk))

    def next_number(self) -> int:
        return next(self._numbers)

    def everywhere(self, event: Event) -> None:
        """Something that concerns all chunks."""
        for history in self.by_chunk.values():
            history.events.append(event)


def content_of(number: int, cells: int, cell_bytes: int) -> bytes:
    """The bytes of a write."""
    return number.to_bytes(NUMBER_BYTES, "big") * (cells * cell_bytes // NUMBER_BYTES)


def cells_of(content: bytes | bytearray | memoryview, cell_bytes: int) -> tuple[int, ...]:
    """The numbers in the cells. Raises AssertionError for bytes that nobody wrote so."""
    assert len(content) % cell_bytes == 0, f"{len(content)} bytes are no whole number of cells of {cell_bytes}"
    found = []
    for start in range(0, len(content), cell_bytes):
        cell = bytes(content[start : start + cell_bytes])
        number = int.from_bytes(cell[:NUMBER_BYTES], "big")
        assert cell == content_of(number, 1, cell_bytes), f"the cell at {start} mixes writes: it begins with #{number}"
        found.append(number)
    return tuple(found)
