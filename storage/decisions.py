"""What becomes of an update whose turn has come: the version under which it runs, or its result if it does not (again).

A clone is decided for the chunk that it makes; which version of its source it takes is a part of its name (`named`), so that every member
makes the same of it, or asks for the content.

At the head versions are given, and retries, ended sessions and truncates are told apart. Behind it the version alone decides: the
head has decided already, and refusing what it persisted would leave that pending for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..proto.errors import Status
from .events import ALWAYS, ChunkRow, Kind, Result, Rows, Update, Version


def decide(
    update: Update, rows: Rows, chain_version: int, ended: Collection[bytes], fences: Mapping[bytes, int]
) -> Result | Version:
    """At the head. `fences`: client -> the last sequence of a process of it that has died."""
    last = rows.channel(update.client, update.channel) if update.client else None
    row = rows.chunk(update.chunk)
    if update.client in ended or update.sequence <= fences.get(update.client, -1):
        return Result(Status.SESSION_ENDED)
    if last is not None and update.sequence <= last.sequence:
        same = update.sequence == last.sequence
        return Result(Status.OK, last.number, last.length) if same else Result(Status.DUPLICATE)
    floor = rows.truncate_floor(update.chunk)
    if update.kind is Kind.REMOVE:
        # A truncate's remove names the version that it made: chunks written since belong to the regrown file.
        if row is None:
            done = update.truncate_version <= floor if update.truncate_version != ALWAYS else not floor
        else:
            done = row.truncate_version >= update.truncate_version
        if done:
            return Result(Status.OK)
    elif update.truncate_version < max(floor, row.truncate_version if row is not None else 0):
        return Result(Status.STALE_TRUNCATE_VERSION)
    elif update.kind is Kind.CLONE and (refusal := _refuse_clone(update, row, rows)) is not None:
        return refusal
    elif row is None and update.kind is Kind.TRUNCATE and update.truncate_version == floor:
        return Result(Status.OK)  # nothing to cut; where the floor rises, that is persisted
    number = row.committed.number if row is not None else 0
    if row is None or update.kind is Kind.REPLACE:
        # Whole new content: its number is above all that were ever given here. A row that fell back when power was lost has forgotten some.
        number = max(number, rows.version_floor())
    return Version(chain_version, number + 1)


def _refuse_clone(update: Update, row: ChunkRow | None, rows: Rows) -> Result | None:
    """Why a clone is not made, or why there is nothing to make."""
    source = update.source
    there = rows.chunk(source.chunk) if source is not None else None
    if source is not None:
        known = max(rows.truncate_floor(source.chunk), there.truncate_version if there is not None else 0)
        if source.truncate_version < known:
            return Result(Status.STALE_TRUNCATE_VERSION)
    return Result(Status.OK) if row is None and there is None else None


def named(update: Update, version: Version, rows: Rows) -> Update:
    """The update under the name that the head gives it."""
    source = update.source
    if source is None:
        return update._replace(version=version)
    there = rows.chunk(source.chunk)
    return update._replace(
        version=version, source=source._replace(version=there.committed if there is not None else None)
    )


def decide_forwarded(update: Update, rows: Rows, serving: bool, ended: Collection[bytes]) -> Result | Version:
    """Behind the head. What is here already is a success, if what makes a retry recognisable is here as well: the one may have come
    with a sync, the other has to come with the update."""
    version = update.version
    assert version is not None
    row = rows.chunk(update.chunk)
    numbered = _is_numbered(update, rows, ended)
    if update.kind is Kind.CLONE and not _has_source(update, rows):
        done = row is not None and version.number <= row.committed.number and numbered
        return _old_news(version, row) if row is not None and done else Result(Status.NOT_COMMITTED)
    if update.kind is Kind.REMOVE and row is None:
        floor = rows.truncate_floor(update.chunk)
        moves = floor < update.truncate_version if update.truncate_version != ALWAYS else floor > 0
        return version if moves or not numbered else Result(Status.OK, version.number)
    if row is None:
        return version
    number = row.committed.number
    if update.kind is Kind.REPLACE:
        if (_is_same(update, row) and numbered) or (serving and version.number < number):
            return _old_news(version, row)
        return version  # also where the name is the same: the predecessor's bytes count
    if not serving:
        return version  # a remove: everything else comes whole
    if version.number <= number and (numbered or version.number < number):
        return _old_news(version, row)
    if update.kind is not Kind.REMOVE and version.number != number + 1:
        return Result(
            Status.NOT_COMMITTED
        )  # what it builds on is missing here: the predecessor sends the whole content
    return version


def _has_source(update: Update, rows: Rows) -> bool:
    """Whether the head's version of a clone's source is here: without it the predecessor sends the whole content."""
    if update.source is None:
        return True
    there = rows.chunk(update.source.chunk)
    return update.source.version == (there.committed if there is not None else None)


def _is_numbered(update: Update, rows: Rows, ended: Collection[bytes]) -> bool:
    """Whether a retry of this update would be recognised here, or cannot come."""
    if not update.client or update.client in ended:
        return True
    last = rows.channel(update.client, update.channel)
    return last is not None and last.sequence >= update.sequence


def _is_same(update: Update, row: ChunkRow) -> bool:
    mine = (row.committed, row.length, row.truncate_version, row.checksum)
    return mine == (update.version, update.length, update.truncate_version, update.checksum)


def _old_news(version: Version, row: ChunkRow) -> Result:
    return Result(Status.OK, version.number, row.length, row.checksum if row.committed == version else 0)
