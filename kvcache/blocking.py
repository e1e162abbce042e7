"""The blocking face: `KVCache(url)`.

    kv = KVCache("ember:///")
    ns = kv.namespace(NamespaceSpec(engine="mine", model="llama-3", revision="a1b2", dtype="bf16", page_tokens=64,
                                    layout="page_first", object_bytes=block_bytes))
    pool = kv.allocate(1 << 30)
    statuses = kv.put_from(ns, keys, (pool, offsets, block_bytes))
    hit = kv.match(ns, keys)
    statuses = kv.get_into(ns, keys[: hit.n], (pool, offsets[: hit.n], block_bytes))

Threads may share a cache: each request has a connection of its own while it is under way. A forked child may go on with it: it gets a new
identity and connections; memory that was shared with servers is copied to and from there until it is registered again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from ..client import process
from ..client.core.options import Options
from ..proto.drivers.blocking import BlockingEnvironment
from ..proto.env import drive
from ..proto.settings import parse_url
from .buffers import Buffer
from .core.core import OPERATION_SECONDS, KvCore
from .core.results import BlockInfo, Counters, Lease, Match, Usage
from .core.statuses import as_array
from .events import WATCH_SECONDS, Event, Events, watched
from .namespace import MODE_DEFAULT, Namespace, NamespaceSpec
from .tickets import Submitter, Ticket

Statuses = Any  # int32 for each key: a numpy array, or array.array where numpy is not installed


class KVCache:
    """A client of the KV cache. Long because it is the list of what can be done; each method is one line.

    Statuses: bytes moved (0 where nothing is moved), or a negative errno: -ENOENT (not there), -EMSGSIZE (of another size than the
    namespace says), -EBADMSG (damaged), -ESTALE, -EAGAIN (the server is away, busy or full: a miss now), -ETIMEDOUT, -EDQUOT, -ENOSPC,
    -EACCES, -ECANCELED, -EFAULT (the buffer is dead: register it anew), -EIO. What a buffer holds whose status is negative is not defined.
    """

    def __init__(self, url: str = "ember:///", **options: Any) -> None:
        """Connect to the cluster that `url` names. Options as of `emberfs.connect`; `timeout` is 5 seconds for an operation here. Raises
        NOT_FOUND, UNAVAILABLE, WRONG_CLUSTER, UNAUTHENTICATED."""
        chosen = Options.of({"name": process.name(), "timeout": OPERATION_SECONDS, **options})
        location = parse_url(url)
        env = BlockingEnvironment(cluster=location.cluster, secret_file=location.secret_file, pool_bytes=chosen.memory)
        self._begin(KvCore(env, location.addresses, chosen))

    def _begin(self, core: KvCore) -> None:
        self.core = core
        try:
            drive(core.connect())
        except BaseException:
            drive(core.close())
            raise
        self._submitter = Submitter(core)
        process.track(core)

    @classmethod
    def over(cls, core: KvCore) -> KVCache:
        """A face of a core over another blocking environment (tests, embedding)."""
        made = cls.__new__(cls)
        made._begin(core)
        return made

    # --- namespaces -------------------------------------------------------------------------------------------------------------------

    def namespace(self, spec: NamespaceSpec, *, ttl_s: int = 0, mode: int = MODE_DEFAULT) -> Namespace:
        """Register a namespace, or find it: the same for everybody with the same spec. `ttl_s`: of blocks that are put without a time
        (0: none); `mode`: permission bits, r to match and get, w to put, pin and delete. Raises StatusError."""
        return drive(self.core.namespace(spec, ttl_s=ttl_s, mode=mode))

    def namespaces(self) -> Sequence[Namespace]:
        """All that are registered. Raises StatusError."""
        return drive(self.core.namespaces())

    def drop(self, namespace: Namespace) -> None:
        """Forget a namespace and delete its blocks. Raises StatusError."""
        drive(self.core.drop(namespace))

    def set_quota(self, tenant: str, bytes_max: int, *, users: Sequence[int] = (), groups: Sequence[int] = ()) -> None:
        """How many bytes all namespaces of a tenant may hold; 0: no limit. Over it, its own blocks are evicted. Only administrators, and
        these users and groups (by number; none: those who were named before), may register namespaces of a tenant with a quota, and
        whom a quota names registers under its tenant only. Raises StatusError."""
        drive(self.core.set_quota(tenant, bytes_max, users=users, groups=groups))

    # --- memory -----------------------------------------------------------------------------------------------------------------------

    def register(self, memory: Any) -> Buffer:
        """Make memory known, once: anything with the buffer protocol, a CPU tensor, or (address, bytes), which must stay there as long.
        Shared memory (see `allocate`; an engine's memfd or tmpfs file) is then reached by servers of this host without a copy:
        `Buffer.shared`. A get that is not answered within its deadline and 5 seconds more leaves it dead (-EFAULT) until its server goes
        on or dies; registering it again says that what may still be written there does no harm. Raises TypeError, ValueError."""
        return self.core.registry.register(memory)

    def allocate(self, nbytes: int) -> Buffer:
        """New registered memory: `view`, `array` (numpy), or `torch.frombuffer(buffer.view, ...)`. Its pages are taken when touched."""
        return self.core.registry.allocate(nbytes)

    def unregister(self, buffer: Buffer) -> None:
        """Servers may no longer reach this memory."""
        self.core.registry.unregister(buffer)

    # --- blocks -----------------------------------------------------------------------------------------------------------------------

    def match(
        self,
        namespace: Namespace,
        keys: Any,
        *,
        trailing: int = 0,
        lease_ms: int = 0,
        deadline_ms: float | None = None,
    ) -> Match:
        """How much of a prefix is there: `Match.n` blocks from the first on. One request for each storage process. `trailing`: only so
        many at the end of the prefix have to be there. `lease_ms`: what is there is not evicted for so long (`Match.lease`)."""
        return drive(self.core.match(namespace, keys, trailing=trailing, lease_ms=lease_ms, deadline_ms=deadline_ms))

    def exists(self, namespace: Namespace, keys: Any, *, deadline_ms: float | None = None) -> Any:
        """Which are there: an array of bools."""
        return drive(self.core.match(namespace, keys, deadline_ms=deadline_ms)).present

    def get_into(
        self,
        namespace: Namespace,
        keys: Any,
        dsts: Any,
        *,
        ranges: Any = None,
        stop_on_miss: bool = False,
        verify: bool = True,
        deadline_ms: float | None = None,
    ) -> Statuses:
        """Blocks into memory, each verified. `dsts`: a list with a buffer, or a list of parts, for each key; or `(base, offsets, length)`.
        `ranges`: (offset, length) of the wanted part of each block, or one for all. `stop_on_miss`: what is behind the first miss is
        -ECANCELED."""
        return as_array(
            drive(
                self.core.get_into(
                    namespace,
                    keys,
                    dsts,
                    ranges=ranges,
                    stop_on_miss=stop_on_miss,
                    verify=verify,
                    deadline_ms=deadline_ms,
                )
            )
        )

    def put_from(
        self,
        namespace: Namespace,
        keys: Any,
        srcs: Any,
        *,
        depth: int | Sequence[int] = 0,
        ttl_s: int = 0,
        pin_s: int = 0,
        ack: str = "replicated",
        deadline_ms: float | None = None,
    ) -> Statuses:
        """Blocks out of memory; one that is there already is a success, and stays as it is. `depth`: how many blocks stand before the first
        one in its prefix (the others follow), or the number of each: eviction takes leaves before heads. `ttl_s`: seconds to live, `pin_s`:
        not evicted for so long. Acknowledged blocks survive the death of servers (on all replicas); with `ack="durable"` power loss."""
        return as_array(
            drive(
                self.core.put_from(
                    namespace,
                    keys,
                    srcs,
                    depth=depth,
                    ttl_s=ttl_s,
                    pin_s=pin_s,
                    ack=ack,
                    deadline_ms=deadline_ms,
                )
            )
        )

    def get(self, namespace: Namespace, key: Any, *, deadline_ms: float | None = None) -> bytes | None:
        """One block; None where it is not there."""
        return drive(self.core.get(namespace, key, deadline_ms=deadline_ms))

    def put(self, namespace: Namespace, key: Any, data: Any, **how: Any) -> int:
        """One block; its status. Options as of `put_from`."""
        return drive(self.core.put_from(namespace, [key], [data], **how))[0]

    def touch(self, namespace: Namespace, keys: Any, *, deadline_ms: float | None = None) -> Statuses:
        """As if they had been read."""
        return as_array(drive(self.core.touch(namespace, keys, deadline_ms=deadline_ms)))

    def pin(
        self, namespace: Namespace, keys: Any, seconds: int | None = None, *, deadline_ms: float | None = None
    ) -> Statuses:
        """Keep blocks from eviction for so long; None: until they are unpinned."""
        return as_array(drive(self.core.pin(namespace, keys, seconds, deadline_ms=deadline_ms)))

    def unpin(self, namespace: Namespace, keys: Any, *, deadline_ms: float | None = None) -> Statuses:
        """Let eviction take them again."""
        return as_array(drive(self.core.unpin(namespace, keys, deadline_ms=deadline_ms)))

    def set_ttl(self, namespace: Namespace, keys: Any, seconds: int, *, deadline_ms: float | None = None) -> Statuses:
        """How long blocks live from now on; 0: until they are evicted."""
        return as_array(drive(self.core.set_ttl(namespace, keys, seconds, deadline_ms=deadline_ms)))

    def prefetch(self, namespace: Namespace, keys: Any, *, deadline_ms: float | None = None) -> Statuses:
        """Have servers read blocks into their memory, in the background."""
        return as_array(drive(self.core.prefetch(namespace, keys, deadline_ms=deadline_ms)))

    def delete(self, namespace: Namespace, keys: Any, *, deadline_ms: float | None = None) -> Statuses:
        """Delete blocks: 0, or -ENOENT where there was none."""
        return as_array(drive(self.core.delete(namespace, keys, deadline_ms=deadline_ms)))

    def renew(self, lease: Lease, lease_ms: int) -> bool:
        """Whether a lease holds for so long from now on."""
        return drive(self.core.renew(lease, lease_ms))

    def release(self, lease: Lease) -> None:
        """Give a lease back."""
        drive(self.core.release(lease))

    # --- later ------------------------------------------------------------------------------------------------------------------------

    def submit_match(self, namespace: Namespace, keys: Any, **how: Any) -> Ticket:
        """`match` in the background."""
        return self._submitter.submit(self.core.match, namespace, keys, how)

    def submit_get(self, namespace: Namespace, keys: Any, dsts: Any, **how: Any) -> Ticket:
        """`get_into` in the background. The buffers are the cache's until the ticket is done."""
        return self._submitter.submit(self.core.get_into, namespace, keys, how, dsts)

    def submit_put(self, namespace: Namespace, keys: Any, srcs: Any, **how: Any) -> Ticket:
        """`put_from` in the background. The buffers are the cache's until the ticket is done."""
        return self._submitter.submit(self.core.put_from, namespace, keys, how, srcs)

    def completed(self) -> Sequence[Ticket]:
        """The tickets that were done since the last time, in the order in which they were. Never waits."""
        return self._submitter.completed()

    def fileno(self) -> int:
        """A descriptor (an eventfd) that is readable while `completed` has something."""
        return self._submitter.fileno()

    # --- looking ----------------------------------------------------------------------------------------------------------------------

    def list(self, namespace: Namespace) -> Iterator[BlockInfo]:
        """All blocks of a namespace, page by page. Raises StatusError."""
        for chain in drive(self.core.chains_of(namespace)):
            after: bytes | None = b""
            while after is not None:
                page, after = drive(self.core.list_page(namespace, chain, after))
                yield from page

    def usage(self) -> Usage:
        """What the storage servers hold, by namespace and by tenant, and the quotas."""
        return drive(self.core.usage())

    def stats(self) -> Counters:
        """What this client has done."""
        return replace(self.core.counters)

    def events(self) -> Events:
        """What this client stores and deletes from now on, as an iterator (see kvcache/events.py)."""
        return Events(self.core)

    def watch(self, namespace: Namespace, *, wait: float = 20.0) -> Iterator[Event | None]:
        """What comes and goes in a namespace from now on, whoever puts, deletes or evicts it; None after each `wait` seconds without
        anything. One of kind "lost" says that events were missed: list the blocks anew. Raises StatusError without rights to read."""
        seen: dict[int, int] = {}
        drive(self.core.block_events(namespace, seen))
        return self._watched(namespace, seen, wait)

    def _watched(self, namespace: Namespace, seen: dict[int, int], wait: float) -> Iterator[Event | None]:
        quiet_since = self.core.env.now()
        while True:
            found, lost = drive(self.core.block_events(namespace, seen))
            if events := watched(namespace, found, lost=lost):
                yield from events
                quiet_since = self.core.env.now()
            elif self.core.env.now() - quiet_since >= wait:
                yield None
                quiet_since = self.core.env.now()
            else:
                drive(self.core.env.sleep(min(WATCH_SECONDS, wait)))

    def close(self) -> None:
        """End connections and registrations; what is under way ends with -ECANCELED. When this returns no server moves bytes into memory of
        tickets any more (a server that is stopped is waited for 10 s). Doing it twice is no harm."""
        process.forget(self.core)
        self._submitter.stop()
        drive(self.core.close())
        self._submitter.close()

    def __enter__(self) -> KVCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()
