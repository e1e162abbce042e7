"""Which members of its chain a member gets no answer from, although the manager hears both: links that are cut, disks that hang.

Rules:
1. A forward that has waited for 1.5 leases, and was sent again meanwhile, makes its receiver unreached. A process that is gone, or that the
   manager cannot hear either, has lost its place before. Of one that is SYNCING, and has none to lose, it is said sooner.
2. Before that is said everybody is asked something that needs no disk and no successor. Whoever gets no answer from several is cut off
   itself, and the manager moves that one (meta/cluster/nodes.py). A receiver that does answer may be waiting for its own successor: so
   the wait is longer for each member behind it, and whoever is nearest to the fault speaks first.
3. The last member that serves asks those that are WAITING from time to time. Copying to one that it does not reach would hold up writes.
4. Time during which this process was stopped, and could not have heard an answer, does not count.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from ..proto.env import Environment
from ..proto.errors import StatusError
from ..proto.gen.common_pb2 import (
    TARGET_STATE_OFFLINE,
    TARGET_STATE_SERVING,
    TARGET_STATE_SYNCING,
    TARGET_STATE_WAITING,
    Chain,
)
from .craq import Replica
from .lease import Lease

SILENT_LEASES = 1.5  # that a forward waits before its receiver is said to be unreached
BEHIND_LEASES = 0.5  # longer for each member behind a receiver that answers when it is asked
SYNCING_LEASES = 0.8  # for a SYNCING one that does not
DOUBTFUL_LEASES = 0.75  # before everybody is asked
DOUBTFUL_SYNCING_LEASES = 0.25  # before a SYNCING receiver is asked
LOOKS_PER_LEASE = 8
PROBE_LEASES = 0.5  # that an answer may take
PROBE_AGAIN_LEASES = 0.6

# (target, chain, seconds): raises StatusError where there is no answer.
Ask = Callable[[int, Chain, float], Awaitable[Any]]


class Reach:
    """Of one target. `changed` is told when `unreached` has something else to say."""

    def __init__(
        self, replica: Callable[[], Replica], lease: Lease, env: Environment, ask: Ask, changed: Callable[[], None]
    ) -> None:
        self.closed = False
        self._replica = replica
        self._lease = lease
        self._env = env
        self._ask = ask
        self._changed = changed
        self._version = 0  # of the chain, that all of this is about
        self._since: dict[int, float] = {}  # batch -> when the first forward without an answer began
        self._looked = env.now()
        self._asked: dict[int, float] = {}  # target -> when
        self._failed: set[int] = set()  # targets that did not answer when they were asked
        self._said: tuple[int, ...] = ()

    def sent(self, batch: int, version: int) -> None:
        """A forward of this batch goes out under this version of the chain."""
        chain = self._replica().chain
        if chain is not None and chain.version == version:
            self._begin(version)
            self._since.setdefault(batch, self._env.now())

    def answered(self, batch: int) -> None:
        """With whatever result."""
        self._since.pop(batch, None)

    def unreached(self) -> tuple[int, ...]:
        """Targets that the manager should hear of, under the machine's present version of the chain."""
        replica, now = self._replica(), self._env.now()
        self._begin(replica.chain.version if replica.chain is not None else 0)
        if not replica.serving or not self._lease.holds(now):
            return ()
        found = self._failed - {replica.successor}
        if replica.successor and self._waited(now) >= self._patience(replica):
            found.add(replica.successor)
        return tuple(sorted(found))

    def _patience(self, replica: Replica) -> float:
        """For how many leases the receiver may keep us waiting."""
        states = _behind(replica)
        if replica.successor in self._failed:
            return SYNCING_LEASES if states[0] == TARGET_STATE_SYNCING else SILENT_LEASES
        return SILENT_LEASES + BEHIND_LEASES * (len(states) - 1)

    def _begin(self, version: int) -> None:
        if version != self._version:
            self._version = version
            self._since.clear()
            self._asked.clear()
            self._failed.clear()

    def _waited(self, now: float) -> float:
        """For how many leases the longest of all has waited."""
        return (now - min(self._since.values(), default=now)) / self._lease.seconds

    async def keep(self) -> None:
        """Background: look, ask, and tell."""
        while not self.closed:
            await self._env.sleep(self._lease.seconds / LOOKS_PER_LEASE)
            self._look(self._env.now())

    def _look(self, now: float) -> None:
        lease = self._lease.seconds
        if now - self._looked > 2 * lease / LOOKS_PER_LEASE:
            self._since = dict.fromkeys(self._since, now)
        self._looked = now
        replica = self._replica()
        if replica.chain is not None and replica.serving:
            doubtful = self._doubtful(replica, replica.chain, now)
            self._failed.intersection_update(doubtful)
            for target in doubtful:
                if now - self._asked.get(target, float("-inf")) >= PROBE_AGAIN_LEASES * lease:
                    self._asked[target] = now
                    self._env.spawn(partial(self._probe, target, replica.chain), "probe")
        found = self.unreached()
        if found != self._said:
            self._said = found
            self._changed()

    def _doubtful(self, replica: Replica, chain: Chain, now: float) -> list[int]:
        """Whom to ask."""
        waited = self._waited(now)
        if waited >= DOUBTFUL_LEASES:
            others = [m.target for m in chain.members if m.state != TARGET_STATE_OFFLINE]
            return [target for target in others if target != replica.target]
        if not replica.tail:
            return []
        found = [m.target for m in chain.members if m.state == TARGET_STATE_WAITING]
        return [*found, replica.successor] if replica.successor and waited >= DOUBTFUL_SYNCING_LEASES else found

    async def _probe(self, target: int, chain: Chain) -> None:
        try:
            await self._ask(target, chain, PROBE_LEASES * self._lease.seconds)
        except StatusError:
            answered = False
        else:
            answered = True
        if chain.version == self._version:
            (self._failed.discard if answered else self._failed.add)(target)


def _behind(replica: Replica) -> list[int]:
    """States of the members behind this one that it sends to, the successor first."""
    members = replica.chain.members if replica.chain is not None else ()
    line = [m for m in members if m.state in (TARGET_STATE_SERVING, TARGET_STATE_SYNCING)]
    here = next((i for i, m in enumerate(line) if m.target == replica.target), len(line))
    return [m.state for m in line[here + 1 :]]
