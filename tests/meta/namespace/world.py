"""A namespace over a real engine with everything around it in memory: chunks, layouts, time. No server, no sockets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from emberfs.meta.keys import inode_key
from emberfs.meta.kv.engine import Engine, Transaction
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace.access import ROOT, Credentials
from emberfs.meta.namespace.inode import unpack
from emberfs.meta.namespace.namespace import Namespace
from emberfs.meta.namespace.seams import DeadFile, Layout, Space
from emberfs.meta.namespace.service import MetaService
from emberfs.meta.owners import Owners
from emberfs.proto.capability import Grant
from emberfs.proto.drivers.aio import AioPromise
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.common_pb2 import Attributes, Caller, FileType
from emberfs.proto.gen.meta_pb2 import Place
from emberfs.proto.rpc import Identity, PeerInfo

ALICE = Credentials(1001, 1001)
BOB = Credentials(1002, 1002, (2000,))
CAROL = Credentials(1003, 1003, (1001, 2000))


class ManualClock:
    """Time that moves only when a test says so, and a little with every file time, so that these differ."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.wall = 1_700_000_000_000_000_000
        self.spawned: list[str] = []

    async def sleep(self, seconds: float) -> None:
        self.time += seconds

    def now(self) -> float:
        return self.time

    def wall_ns(self) -> int:
        self.wall += 1_000_000
        return self.wall

    def random(self) -> float:
        return 0.5

    def promise(self) -> AioPromise:
        return AioPromise()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Any:
        self.spawned.append(name)


@dataclass
class MemoryChunks:
    """Chunks as one end per file: what a writer wrote, under which truncate version. Refuses while `down`."""

    ends: dict[int, int] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    first: dict[int, bytes] = field(default_factory=dict)  # what grew out of inodes
    removed: list[int] = field(default_factory=list)
    trims: list[tuple[int, int, int]] = field(default_factory=list)  # inode, new length, truncate version
    down: bool = False
    lost: set[int] = field(default_factory=set)  # inodes whose chains are down

    def write(self, inode: int, end: int, truncate_version: int = 0) -> None:
        if truncate_version < self.versions.get(inode, 0):
            raise error(Status.STALE_TRUNCATE_VERSION)
        self.ends[inode] = max(end, self.ends.get(inode, 0))

    def _check(self) -> None:
        if self.down:
            raise error(Status.UNAVAILABLE, "storage is down")

    async def truncate(
        self, inode: int, layout: Layout, old_length: int, new_length: int, truncate_version: int
    ) -> None:
        self._check()
        self.trims.append((inode, new_length, truncate_version))
        self.versions[inode] = max(truncate_version, self.versions.get(inode, 0))
        if inode in self.ends:
            self.ends[inode] = min(self.ends[inode], new_length)

    async def remove(self, files: Sequence[DeadFile]) -> list[StatusError | None]:
        if self.down:
            return [error(Status.UNAVAILABLE, "storage is down") for _ in files]
        for dead in files:
            self.removed.append(dead.inode)
            self.ends.pop(dead.inode, None)
        return [None] * len(files)

    async def write_first(self, inode: int, layout: Layout, data: bytes, truncate_version: int) -> None:
        self._check()
        self.write(inode, len(data), truncate_version)
        self.first[inode] = data

    async def query_last(self, inode: int, layout: Layout, truncate_version: int) -> int:
        self._check()
        if inode in self.lost:
            raise error(Status.UNAVAILABLE, "the chain is down")
        return self.ends.get(inode, 0)

    async def sync(self, inode: int, layout: Layout) -> None:
        self._check()

    def space(self) -> Space:
        return Space(1 << 40, 1 << 39)


class OneTable:
    def __init__(self, chains: int = 3) -> None:
        self.chains = chains

    def table(self) -> tuple[int, int, int]:
        return 1, 1, self.chains


class PlainGrants:
    valid_ms = 60_000

    def __init__(self) -> None:
        self.owners = Owners()

    def issue(self, client: bytes, inode: int, rights: int) -> bytes:
        return b"%d:%d:" % (inode, rights) + client

    def verify(self, client: bytes, capability: bytes) -> Grant:
        inode, rights, owner = capability.split(b":", 2)
        if owner != client:
            raise error(Status.PERMISSION_DENIED)
        return Grant(int(inode), int(rights), 0)


@dataclass
class Call:
    """The context of a request."""

    peer: PeerInfo
    cancelled: bool = False
    stopping: bool = False
    listening: bool = False

    def remaining(self) -> float:
        return 60.0

    def sink(self, length: int) -> Any:
        raise NotImplementedError

    async def pull(self) -> memoryview:
        raise NotImplementedError

    def lent(self) -> Any:
        raise NotImplementedError

    def subscribe(self, subscription: int, topic: str) -> Any:
        raise NotImplementedError


class World:
    """One namespace and the shortest way to ask it for things. Every helper raises the StatusError of its entry."""

    def __init__(
        self, engine: Engine | None = None, clock: ManualClock | None = None, chunks: MemoryChunks | None = None
    ) -> None:
        self.clock = clock or ManualClock()
        self.engine = engine or MemoryEngine(self.clock.now)
        self.chunks = chunks or MemoryChunks()
        self._numbers = itertools.count(1)
        self._requests = itertools.count(1)
        self.namespace = Namespace(
            self.engine,
            self.chunks,
            OneTable(),
            PlainGrants(),
            self.clock,
            random_u64=self._numbers.__next__,
        )
        self.service = MetaService(self.namespace)
        self.client = b"client-000000001"

    async def start(self) -> World:
        await self.namespace.start()
        return self

    def context(self, client: bytes | None = None, identity: Identity | None = None) -> Call:
        return Call(PeerInfo(client or self.client, identity or Identity(0, 0, trusted=True), "local"))

    def request_id(self) -> int:
        return next(self._requests)

    async def ask(self, method: str, request: Any, who: Credentials = ROOT, client: bytes | None = None) -> Any:
        """Send a request through the service, as that user; a missing request id is filled in."""
        if "caller" in request.DESCRIPTOR.fields_by_name:
            request.caller.CopyFrom(Caller(uid=who.uid, gid=who.gid, groups=who.groups))
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = self.request_id()
        return await getattr(self.service, method)(request, self.context(client))

    # one entry at a time

    async def stat(self, path: str, who: Credentials = ROOT, *, follow: bool = True) -> Attributes:
        reply = await self.ask("stat", meta_pb2.StatRequest(places=[place(path)], follow=follow), who)
        raise_status(reply.statuses[0])
        return reply.attributes[0]

    async def exists(self, path: str) -> bool:
        reply = await self.ask("stat", meta_pb2.StatRequest(places=[place(path)]))
        return reply.statuses[0] == 0

    async def make(self, path: str, kind: FileType, who: Credentials = ROOT, **fields: Any) -> Attributes:
        options = {name: fields.pop(name) for name in ("parents", "exist_ok") if name in fields}
        fields.setdefault("mode", 0o755 if kind == FileType.FILE_TYPE_DIRECTORY else 0o644)
        entry = meta_pb2.NewEntry(place=place(path), type=kind, **fields)
        reply = await self.ask("create", meta_pb2.CreateRequest(entries=[entry], **options), who)
        raise_status(reply.statuses[0])
        return reply.attributes[0]

    async def mkdir(self, path: str, who: Credentials = ROOT, **fields: Any) -> Attributes:
        return await self.make(path, FileType.FILE_TYPE_DIRECTORY, who, **fields)

    async def touch(self, path: str, who: Credentials = ROOT, **fields: Any) -> Attributes:
        """An empty file that once had bytes: what never had any leaves nothing to be removed from storage."""
        made = await self.make(path, FileType.FILE_TYPE_REGULAR, who, **fields)

        async def work(txn: Transaction) -> None:
            key = inode_key(made.inode)
            inode = unpack(made.inode, await txn.get(key) or b"")
            inode.truncate_version = inode.truncate_version or 1
            txn.put(key, inode.pack())

        await self.namespace.transact(work)
        made.truncate_version = 1
        return made

    async def symlink(self, path: str, target: str, who: Credentials = ROOT) -> Attributes:
        return await self.make(path, FileType.FILE_TYPE_SYMLINK, who, target=target.encode())

    async def open(
        self, path: str, flags: int, who: Credentials = ROOT, client: bytes | None = None, **fields: Any
    ) -> Any:
        fields.setdefault("mode", 0o644)
        return await self.ask("open", meta_pb2.OpenRequest(place=place(path), flags=flags, **fields), who, client)

    async def close(
        self, opened: Any, length: int | None = None, client: bytes | None = None, **fields: Any
    ) -> Attributes:
        request = meta_pb2.CloseRequest(inode=opened.attributes.inode, session=opened.session, **fields)
        if length is not None:
            request.written = True
            request.length = length
        reply = await self.ask("close", request, client=client)
        return reply.attributes

    async def remove(self, path: str, kind: meta_pb2.RemoveKind, who: Credentials = ROOT) -> None:
        reply = await self.ask("remove", meta_pb2.RemoveRequest(places=[place(path)], kind=kind), who)
        raise_status(reply.statuses[0])

    async def unlink(self, path: str, who: Credentials = ROOT) -> None:
        await self.remove(path, meta_pb2.REMOVE_KIND_UNLINK, who)

    async def rmdir(self, path: str, who: Credentials = ROOT) -> None:
        await self.remove(path, meta_pb2.REMOVE_KIND_RMDIR, who)

    async def remove_tree(self, path: str, who: Credentials = ROOT) -> None:
        await self.remove(path, meta_pb2.REMOVE_KIND_TREE, who)

    async def rename(self, source: str, target: str, flags: int = 0, who: Credentials = ROOT) -> Attributes:
        request = meta_pb2.RenameRequest(source=place(source), target=place(target), flags=flags)
        return (await self.ask("rename", request, who)).attributes

    async def link(self, source: str, target: str, who: Credentials = ROOT, *, follow: bool = False) -> Attributes:
        request = meta_pb2.LinkRequest(source=place(source), target=place(target), follow=follow)
        return (await self.ask("link", request, who)).attributes

    async def set(self, path: str, who: Credentials = ROOT, *, follow: bool = True, **fields: Any) -> Attributes:
        request = meta_pb2.SetAttributesRequest(place=place(path), follow=follow, **fields)
        return (await self.ask("set_attributes", request, who)).attributes

    async def truncate(self, path: str, length: int, who: Credentials = ROOT, **fields: Any) -> Attributes:
        request = meta_pb2.TruncateRequest(place=place(path), length=length, **fields)
        return (await self.ask("truncate", request, who)).attributes

    async def listdir(self, path: str, who: Credentials = ROOT) -> list[str]:
        reply = await self.ask(
            "read_directory", meta_pb2.ReadDirectoryRequest(place=place(path), entries_max=8192), who
        )
        assert reply.end
        return [name.decode() for name in reply.names]

    async def collect(self) -> None:
        """Let time pass and run the garbage collector, a few rounds."""
        for _ in range(50):
            while await self.namespace.collector.step():
                pass
            self.clock.time += 5.0


def place(path: str, parent: int = 0) -> Place:
    """An absolute path, or one relative to an inode."""
    raw = path.encode("utf-8", "surrogateescape")
    return Place(parent=parent, path=raw[1:] if raw.startswith(b"/") else raw)


def raise_status(code: int) -> None:
    if code:
        raise error(Status(code))
