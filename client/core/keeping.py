"""The trash, quotas and events: what is kept after it was removed, how much may be kept at all, and what happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...proto.errors import Status, StatusError, error, status_of
from ...proto.gen.meta_pb2 import (
    QUOTA_KIND_DIRECTORY,
    QUOTA_KIND_GROUP,
    QUOTA_KIND_USER,
    ListQuotasRequest,
    ListTrashRequest,
    PurgeTrashRequest,
    ReadEventsRequest,
    RestoreTrashRequest,
    SetAttributesRequest,
    SetQuotaRequest,
)
from ...proto.gen.meta_pb2 import Event as EventMessage
from ...proto.gen.meta_pb2 import Quota as QuotaMessage
from ...proto.gen.meta_pb2 import TrashEntry as EntryMessage
from ...proto.rpc import META
from .attributes import Stat, stat_of
from .cluster import Cluster
from .paths import PathLike, place, text

PAGE_ENTRIES = 1024
EVENTS_WAIT_SECONDS_MAX = 3600.0  # servers answer sooner
EVENTS_ANSWER_SECONDS = 10.0  # beyond the wait
KEEP_SECONDS_MAX = (1 << 32) - 2
LIMIT_MAX = (1 << 63) - 1
ID_MAX = (1 << 32) - 2  # of a user or group

_EVENTS: dict[int, Literal["created", "removed", "renamed", "linked", "changed", "written"]] = {
    1: "created",
    2: "removed",
    3: "renamed",
    4: "linked",
    5: "changed",
    6: "written",
}
_NAMES: dict[int, Literal["directory", "user", "group"]] = {
    int(QUOTA_KIND_DIRECTORY): "directory",
    int(QUOTA_KIND_USER): "user",
    int(QUOTA_KIND_GROUP): "group",
}


@dataclass(frozen=True, slots=True)
class TrashEntry:
    """Something that was removed and can come back. `id` names it."""

    id: str
    name: str
    directory: str  # that it was in, as far as its path can be told
    expires: int  # seconds since the epoch
    removed_ns: int
    remover: int  # uid
    stat: Stat


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits, 0 for none, and what is used of them."""

    kind: Literal["directory", "user", "group"]
    id: int  # inode, uid or gid
    path: str  # of a directory
    bytes_max: int
    inodes_max: int
    bytes_used: int
    inodes_used: int
    counting: bool  # what was there before is still being counted


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. What is written or changed is known by its inode alone: it may have many names. "lost" stands for all that
    happened since the event before it: look at everything anew."""

    kind: Literal["created", "removed", "renamed", "linked", "changed", "written", "lost"]
    inode: int
    time_ns: int
    path: str  # empty where it is not known
    target: str  # the new path of a rename


@dataclass(frozen=True, slots=True)
class EventsPage:
    events: list[Event]
    cookie: bytes  # to go on from
    lost: bool  # some events were not there any more: look at everything anew


LOST = Event("lost", 0, 0, "", "")


class Keeping:
    """A part of the core."""

    cluster: Cluster

    async def trash(self) -> list[TrashEntry]:
        """What is in the trash and is the caller's (root's: everything), soonest to go first."""
        found: list[TrashEntry] = []
        cookie, end = b"", False
        while not end:
            reply = await self.cluster.meta(META.ListTrash, ListTrashRequest(cookie=cookie, entries_max=PAGE_ENTRIES))
            for entry in reply.entries:
                found.append(_entry(entry))
            cookie, end = reply.cookie, reply.end
        return found

    async def restore(self, entry: str, path: PathLike | None = None) -> Stat:
        """Give an entry of the trash its name again, or another one."""
        expires, inode = _split(entry)
        request = RestoreTrashRequest(expires=expires, inode=inode)
        if path is not None:
            request.target.CopyFrom(place(path))
        reply = await self.cluster.change(META.RestoreTrash, request)
        return stat_of(reply.attributes)

    async def purge(self, entries: Sequence[str]) -> list[StatusError | None]:
        """Let entries of the trash go for good: per entry None, or why it is still there."""
        results: list[StatusError | None] = []
        for start in range(0, len(entries), PAGE_ENTRIES):
            named = [_split(entry) for entry in entries[start : start + PAGE_ENTRIES]]
            request = PurgeTrashRequest(expires=[e for e, _ in named], inodes=[i for _, i in named])
            reply = await self.cluster.change(META.PurgeTrash, request)
            for name, code in zip(entries[start:], reply.statuses, strict=False):
                results.append(error(status_of(code), "", name) if code else None)
        return results

    async def keep_removed(self, path: PathLike, seconds: int | None) -> None:
        """How long the trash keeps what is removed from a directory, and from those made in it later; 0: not at all, None: as long as the
        cluster says."""
        if seconds is not None and not 0 <= seconds <= KEEP_SECONDS_MAX:
            raise error(Status.INVALID, f"{seconds} seconds: 0 to {KEEP_SECONDS_MAX}", text(path))
        request = SetAttributesRequest(place=place(path), follow=True, trash=0 if seconds is None else seconds + 1)
        await self.cluster.change(META.SetAttributes, request)

    async def events_page(self, path: PathLike, cookie: bytes, wait: float) -> EventsPage:
        """What happened in a directory and below it since the last page (an empty cookie: from now on); waits up to `wait` seconds for the
        first event."""
        request = ReadEventsRequest(
            place=place(path), cookie=cookie, wait_ms=int(max(0.0, min(wait, EVENTS_WAIT_SECONDS_MAX)) * 1000)
        )
        patience = self.cluster.patience(wait + EVENTS_ANSWER_SECONDS)
        reply = await self.cluster.meta(META.ReadEvents, request, patience)
        return EventsPage([_event(message) for message in reply.events], reply.cookie, reply.lost)

    async def quotas(self) -> list[Quota]:
        """All that the caller may see."""
        reply = await self.cluster.meta(META.ListQuotas, ListQuotasRequest())
        return [_quota(message) for message in reply.quotas]

    async def set_quota(
        self,
        *,
        path: PathLike | None = None,
        user: int | None = None,
        group: int | None = None,
        bytes_max: int = 0,
        inodes_max: int = 0,
    ) -> Quota:
        """Limit a directory, a user or a group; a limit of 0 is none."""
        request = _whose(path, user, group)
        if not (0 <= bytes_max <= LIMIT_MAX and 0 <= inodes_max <= LIMIT_MAX):
            raise error(Status.INVALID, f"limits of {bytes_max} bytes and {inodes_max} files: 0 to {LIMIT_MAX}")
        request.bytes_max, request.inodes_max = bytes_max, inodes_max
        return _quota((await self.cluster.change(META.SetQuota, request)).quota)

    async def remove_quota(
        self, *, path: PathLike | None = None, user: int | None = None, group: int | None = None
    ) -> None:
        """No limits any more, and no separate count of a directory."""
        request = _whose(path, user, group)
        request.remove = True
        await self.cluster.change(META.SetQuota, request)


def _split(entry: str) -> tuple[int, int]:
    expires, dash, inode = entry.partition("-")
    try:
        numbers = int(expires, 16), int(inode, 16)
        if not dash or not all(0 <= number < 1 << 64 for number in numbers):
            raise ValueError
        return numbers
    except ValueError as bad:
        raise error(Status.INVALID, f"{entry!r} is no entry of the trash: 'emberfs trash list' shows them") from bad


def _event(message: EventMessage) -> Event:
    names = [part.decode("utf-8", "surrogateescape") for part in (message.path, message.target)]
    return Event(_EVENTS.get(int(message.kind), "changed"), message.inode, message.time_ns, names[0], names[1])


def _entry(message: EntryMessage) -> TrashEntry:
    return TrashEntry(
        f"{message.expires:x}-{message.inode:x}",
        message.name.decode("utf-8", "surrogateescape"),
        message.path.decode("utf-8", "surrogateescape"),
        message.expires,
        message.removed_ns,
        message.remover,
        stat_of(message.attributes),
    )


def _whose(path: PathLike | None, user: int | None, group: int | None) -> SetQuotaRequest:
    if sum(given is not None for given in (path, user, group)) != 1:
        raise error(Status.INVALID, "a quota is of one directory, one user or one group")
    if path is not None:
        return SetQuotaRequest(kind=QUOTA_KIND_DIRECTORY, place=place(path))
    number = user if user is not None else group
    if number is not None and not 0 <= number <= ID_MAX:
        raise error(Status.INVALID, f"user or group {number}: 0 to {ID_MAX}")
    if user is not None:
        return SetQuotaRequest(kind=QUOTA_KIND_USER, id=user)
    return SetQuotaRequest(kind=QUOTA_KIND_GROUP, id=group)


def _quota(message: QuotaMessage) -> Quota:
    return Quota(
        _NAMES[int(message.kind)],
        message.id,
        message.path.decode("utf-8", "surrogateescape"),
        message.bytes_max,
        message.inodes_max,
        message.bytes_used,
        message.inodes_used,
        message.counting,
    )
