"""Planted faults: what the simulator must find. Each replaces a piece of the real code for the time of a run; product code has no switches.

    with planted("commit_before_ack"): ...

`tests/sim/test_planted.py` replays the seeds that found them; `python -m emberfs.tests.sim --plant NAME` looks for new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from emberfs.meta.cluster import nodes
from emberfs.meta.cluster.chain import Lease as ChainLease
from emberfs.meta.cluster.election import Term
from emberfs.proto.errors import Status
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_UPTODATE
from emberfs.storage import craq, exchange, forwarding
from emberfs.storage.craq import Replica
from emberfs.storage.engine.checkpoint import Checkpoint
from emberfs.storage.engine.engine import ChunkEngine
from emberfs.storage.events import Discard, Forward
from emberfs.storage.lease import Lease
from emberfs.storage.lines import Work
from emberfs.storage.resyncer import Resyncer
from emberfs.storage.service import StorageService
from emberfs.storage.sessions import Receiving
from emberfs.storage.target import Target

from .disks import Platters

Plant = Callable[[], Any]  # a context manager
PLANTS: dict[str, Plant] = {}


def plant(function: Callable[[], Iterator[None]]) -> Callable[[], Any]:
    made = contextmanager(function)
    PLANTS[function.__name__] = made
    return made


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Nothing for an empty name."""
    if not name:
        yield
        return
    with PLANTS[name]():
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# The replica.


@plant
def no_chain_version_check() -> Iterator[None]:
    """Requests that name another chain version are served: a client's, and what comes late from a predecessor."""

    def of_any_version(asked: Callable[..., Any]) -> Callable[..., Any]:
        def ask(self: Replica, chain_version: int, *rest: Any) -> Any:
            return asked(self, self.chain.version if self.chain is not None else chain_version, *rest)

        return ask

    with ExitStack() as stack:
        for name in ("may_read", "_gate"):
            stack.enter_context(replaced(Replica, name, of_any_version(getattr(Replica, name))))
        yield


@plant
def no_version_check() -> Iterator[None]:
    """A member takes whatever its predecessor sends, also what it has already or what does not follow."""

    def careless(update: Any, *_: Any) -> Any:
        return update.version

    with replaced(craq, "decide_forwarded", careless):
        yield


@plant
def commit_before_ack() -> Iterator[None]:
    """Committed and acknowledged as soon as it was sent on."""
    resolve = Replica._resolve

    def hasty(self: Replica, batch: Any) -> Any:
        batch.whole = True  # the payload is gone when the answer is
        effects = resolve(self, batch)
        if effects and isinstance(effects[0], Forward) and batch.work is Work.UPDATES:
            return [*effects, *self._commit(batch)]
        return effects

    with replaced(Replica, "_resolve", hasty):
        yield


@plant
def serve_while_syncing() -> Iterator[None]:
    may_read = Replica.may_read

    def eager(self: Replica, chain_version: int, now: float) -> Status:
        status = may_read(self, chain_version, now)
        return Status.OK if status is Status.TARGET_OFFLINE and self.syncing else status

    with replaced(Replica, "may_read", eager):
        yield


@plant
def pendings_discarded_on_revival() -> Iterator[None]:
    """Who begins to serve forgets what is pending, instead of resolving it forward."""
    changed = Replica._routing_changed

    def forgetful(self: Replica, event: Any) -> Any:
        served = self.serving
        with replaced(self, "_adopt", lambda: None):
            effects = changed(self, event)
        return [Discard(), *effects] if self.serving and not served else effects

    with ExitStack() as stack:
        # The machine's table of handlers is made with it, from the class.
        stack.enter_context(replaced(Replica, "_routing_changed", forgetful))
        yield


@plant
def late_forwards_taken() -> Iterator[None]:
    """A forward that was given up and comes late is taken: a chunk that was removed comes back."""
    with replaced(Receiving, "takes", lambda self, session, number: True):
        yield


@plant
def pending_read_without_asking() -> Iterator[None]:
    """A member with a pending version answers with its committed one, although the tail may have committed the newer."""

    async def nobody(self: StorageService, *_: Any) -> dict[bytes, int]:
        return {}

    with replaced(StorageService, "_ask_tail", nobody):
        yield


# Leases.


@plant
def no_lease() -> Iterator[None]:
    """Members serve without one."""
    with replaced(Lease, "holds", lambda self, now: True):
        yield


@plant
def lease_asked_before_the_read_only() -> Iterator[None]:
    """Bytes that were read before a stop are sent after it."""
    read_group = StorageService._read_group
    over = (Status.FENCED, Status.STALE_CHAIN_VERSION, Status.TARGET_OFFLINE)

    class Deaf(dict[int, Status]):
        def update(self, statuses: Any) -> None:  # type: ignore[override]
            super().update({place: status for place, status in dict(statuses).items() if status not in over})

    async def once(
        self: Any, target: Any, version: Any, places: Any, reads: Any, plans: Any, refused: Any, moving: Any
    ) -> None:
        heard = Deaf(refused)
        await read_group(self, target, version, places, reads, plans, heard, moving)
        refused.update(heard)

    with replaced(StorageService, "_read_group", once):
        yield


@plant
def manager_does_not_wait() -> Iterator[None]:
    """A node that is overdue loses its places at once."""
    lease = nodes.Nodes.lease

    def impatient(self: Any, node: int, now: float) -> Any:
        found = lease(self, node, now)
        return ChainLease.OVER if found is ChainLease.OVERDUE else found

    with replaced(nodes.Nodes, "lease", impatient):
        yield


@plant
def stopped_manager_goes_on() -> Iterator[None]:
    """A manager that was elected once writes although another one leads by now."""

    async def nothing(self: Term, txn: Any) -> None:
        return None

    with replaced(Term, "guard", nothing), replaced(Term, "holds", property(lambda self: True)):
        yield


# The chain.


@plant
def old_sync_counts() -> Iterator[None]:
    """A member that was brought everything under an older version of its chain says UPTODATE under this one."""
    local_state = Target._local_state

    def stale(self: Any) -> Any:
        self.was_synced = getattr(self, "was_synced", False) or bool(self.synced)
        return LOCAL_STATE_UPTODATE if self.was_synced and self.replica.syncing else local_state(self)

    with replaced(Target, "_local_state", stale):
        yield


@plant
def wiped_disk_keeps_its_incarnation() -> Iterator[None]:
    """A disk that was formatted anew is taken for the one that it was."""
    replace = Platters.replace

    def same(self: Platters) -> None:
        incarnation = self.incarnation
        replace(self)
        self.incarnation = incarnation

    with replaced(Platters, "replace", same):
        yield


# Recovery and disks.


@plant
def dedupe_forgotten_over_restart() -> Iterator[None]:
    """What makes retries exactly-once is in memory only."""
    opened = ChunkEngine.__init__

    def forgetful(self: ChunkEngine, *arguments: Any, **named: Any) -> None:
        opened(self, *arguments, **named)
        self._write(self._receipts.forget(list(self.receipts())))

    with replaced(ChunkEngine, "__init__", forgetful):
        yield


@plant
def resync_without_receipts() -> Iterator[None]:
    """A member that was copied to does not know what clients have done."""

    async def nothing(self: Resyncer, under: Any, after: bytes) -> None:
        return None

    with replaced(Resyncer, "_put_records", nothing):
        yield


@plant
def records_forgotten_by_an_older_sync() -> Iterator[None]:
    """A member that drops its records for a sync goes on with that when the next sync has brought new ones."""

    async def stubborn(target: Any, chain_version: int) -> None:
        if target.replica.serving or target.records_of == chain_version:
            return
        while (page := await target.blocking(target.engine.records)).receipts or page.floors:
            target.engine.forget_records(page)
        target.records_of = chain_version

    with replaced(exchange, "forget_records", stubborn), replaced(forwarding, "forget_records", stubborn):
        yield


@plant
def sync_without_fdatasync() -> Iterator[None]:
    """A sync writes the index's log and forgets the block files."""
    run = Checkpoint.run

    def careless(self: Checkpoint, *beside: Any) -> None:
        self.handles = []
        run(self, *beside)

    with replaced(Checkpoint, "run", careless):
        yield
