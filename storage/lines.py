"""Batches, and the lines in which they wait for their chunks and channels.

A batch joins all of its lines at once and runs when it stands first in each of them, so batches cannot wait in a circle. It leaves
them when it is answered.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..proto.errors import Status
from .events import Result, Update

LINE_MAX = 32  # batches that wait for one chunk or channel

Resource = Any  # a chunk id, or (client, channel)


class Work(enum.Enum):
    """What a batch is for."""

    UPDATES = 1  # of a client, of the predecessor, or found pending
    SYNC = 2
    COPY = 3  # our content, for a successor that is made equal to us
    REPAIR = 4


class Stage(enum.Enum):
    """Where a batch is: each state follows the one before, or the batch is answered. Without a successor the last two are skipped."""

    WAITING = 1  # in line for its chunks and channels
    PERSISTING = 2  # or being mended, or taking a checkpoint
    FORWARDING = 3
    COMMITTING = 4


@dataclass(eq=False, slots=True)
class Batch:
    id: int
    ticket: Any  # None: nobody waits for the answer (it was found pending)
    chain_version: int  # under which it came
    updates: Sequence[Update]
    results: list[Result | None]
    work: Work = Work.UPDATES
    sender: int = 0  # the predecessor that forwarded it; 0: it is our own or a client's
    stage: Stage = Stage.WAITING
    ahead: int = 0  # lines in which another batch stands before this one
    lines: list[Resource] = field(default_factory=list)
    live: list[int] = field(default_factory=list)  # positions of the updates that were not answered yet
    staged: list[Update] = field(default_factory=list)  # those updates, with their versions
    doomed: bool = False  # we left the chain before it was persisted: it shall not be
    whole: bool = False  # forwarded as content, whoever the successor is
    sent: tuple[int, int] = (0, 0)  # session and number of the last forward
    retry_at: float | None = None  # seconds


class Lines:
    """Who waits for what."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[Resource, deque[Batch]] = {}

    def __contains__(self, resource: Resource) -> bool:
        return resource in self._lines

    def batches(self, prefix: bytes) -> set[int]:
        """The batches that stand in the line of any chunk whose id begins so."""
        lines = self._lines.items()
        return {b.id for key, line in lines if isinstance(key, bytes) and key.startswith(prefix) for b in line}

    def first(self, resource: Resource) -> Batch | None:
        line = self._lines.get(resource)
        return line[0] if line is not None else None

    def join(self, batch: Batch, resources: Sequence[Resource]) -> Status:
        """Stand behind whoever is there, in every line or in none. INVALID: it stands in one of them already."""
        lines = self._lines
        for resource in resources:
            line = lines.get(resource)
            if line is None:
                continue
            if line[-1] is batch:
                # A request updates a chunk once, and uses a channel once: its retry could not be told apart.
                return Status.INVALID
            if len(line) >= LINE_MAX:
                return Status.BUSY
        for resource in resources:
            line = lines.get(resource)
            if line is None:
                lines[resource] = deque((batch,))
            else:
                line.append(batch)
                batch.ahead += 1
        batch.lines += resources
        return Status.OK

    def take(self, batch: Batch, resource: Resource) -> None:
        """Stand before all others: what was found pending comes first. Nobody in this line may be past waiting."""
        line = self._lines.setdefault(resource, deque())
        if line:
            assert line[0].stage is Stage.WAITING, "two updates of one chunk at once"
            line[0].ahead += 1
        line.appendleft(batch)
        batch.lines.append(resource)

    def leave(self, batch: Batch) -> list[Batch]:
        """Leave all lines; the batches that stand first everywhere now."""
        ready = []
        lines = self._lines
        for resource in batch.lines:
            line = lines[resource]
            line.popleft()
            if not line:
                del lines[resource]
                continue
            line[0].ahead -= 1
            if not line[0].ahead:
                ready.append(line[0])
        return ready
