"""What a client has seen of the storage nodes lately: whom to read from, whom to leave alone, and how long to wait for an answer.

A chunk lies on several nodes, and any SERVING one answers. Reads go to the same host first, then to the same rack, then to the node with
the least to do. Where nothing speaks against it, a chunk is asked of the same replica by every client, so that the page caches of the
nodes do not all hold the same. Replicas on the client's own machine share one cache: there each client has a favourite, which is awake
when it asks again.

Who did not answer is left alone for a while, longer each time. And whoever takes much longer than usual gets a rival (a hedge): the
same is asked of another replica, and the first answer counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...proto.env import Environment
from ...proto.errors import Status
from ...proto.routing import Replica, choose_replica
from .options import Options

HEDGE_SECONDS_MIN = 0.02  # a read waits at least so long before another replica is asked as well
HEDGE_SECONDS_MAX = (
    0.05  # and at most so long, as a replica that stops may cost it 0.1 s in all; longer only where that is usual
)
HEDGE_FACTOR = 4.0  # times the p99 of the waits for that node
HEDGE_FACTOR_MIN = 1.5  # or so many times at least, so that what is usual gets no rival
WAITS_KEPT = 128  # for each node, to take the p99 of
WAITS_PER_LOOK = 32  # after so many more it is taken anew
HEDGE_SHARE = 0.1  # of the reads may have a rival, so that an overloaded cluster does not get twice the load;
HEDGES_SAVED_MAX = 64.0  # so many may come at once, when a node stops under many readers
AVOID_SECONDS_MIN = 0.5  # a node or target that failed is not asked for so long if there is another; doubling
AVOID_SECONDS_MAX = 8.0
CONNECT_SECONDS = 0.05  # for a new connection, where another replica may be asked instead
FAVOURITES = 5040  # a multiple of all usual numbers of replicas
REQUESTS_PER_STEP = 4  # so many requests in flight at a node make it one step less attractive than another

# A process with which a request ended so, or a target which refused an operation so, is left alone.
_OF_NODE = frozenset({Status.UNAVAILABLE, Status.MAYBE_COMMITTED, Status.DEADLINE, Status.FENCED, Status.PROTOCOL})
_OF_TARGET = frozenset(
    {Status.UNAVAILABLE, Status.MAYBE_COMMITTED, Status.TARGET_OFFLINE, Status.IO_ERROR, Status.BAD_FORMAT}
)
# Another replica may do better after these.
ELSEWHERE = frozenset(
    {
        *_OF_NODE,
        *_OF_TARGET,
        Status.BUSY,
        Status.INTERNAL,
        Status.NOT_COMMITTED,
        Status.STALE_CHAIN_VERSION,
        Status.STALE_ROUTING,
    }
)


class _Waits:
    """How long answers of one node took lately, in seconds."""

    __slots__ = ("count", "limit", "seconds")

    def __init__(self, limit: float) -> None:
        self.seconds: list[float] = []  # a ring, once it is full
        self.count = 0
        self.limit = limit  # for a rival


class Replicas:
    """Of one client, for all its threads or tasks: one operation on a container each, so none needs a lock."""

    def __init__(self, env: Environment, options: Options) -> None:
        self._env = env
        self._hedge_min = options.scaled(HEDGE_SECONDS_MIN)
        self._hedge_max = options.scaled(HEDGE_SECONDS_MAX)
        self._avoid_min = options.scaled(AVOID_SECONDS_MIN)
        self._avoid_max = options.scaled(AVOID_SECONDS_MAX)
        self.connect_seconds = options.scaled(CONNECT_SECONDS)
        self.local: frozenset[int] = frozenset()  # nodes on this machine
        self.near: frozenset[int] = frozenset()  # nodes in this machine's rack
        self._favourite = int(env.random() * FAVOURITES)
        self._avoided: dict[int, tuple[float, float]] = {}  # node, or minus target -> until when, and for how long
        self._waits: dict[int, _Waits] = {}
        self._in_flight: dict[int, set[object]] = {}  # node -> requests
        self._hedges = HEDGES_SAVED_MAX

    # --- choosing -------------------------------------------------------------------------------------------------------------------

    def choose(self, replicas: Sequence[Replica], first: int, planned: Mapping[int, int] | None = None) -> Replica:
        """The one to read from. `first`: a number of the chunk; `planned`: what each node is already to do in the same batch, in steps.
        Raises UNAVAILABLE when there is none."""
        if self.local and any(replica.node in self.local for replica in replicas):
            first = self._favourite
        load = dict(planned) if planned else {}
        for replica in replicas:
            if requests := self._in_flight.get(replica.node):
                load[replica.node] = load.get(replica.node, 0) + len(requests) // REQUESTS_PER_STEP
        avoid = [r.target for r in replicas if self.is_avoided(r)] if self._avoided else ()
        return choose_replica(replicas, local=self.local, near=self.near, load=load, avoid=avoid, first=first)

    def is_avoided(self, replica: Replica) -> bool:
        """Whether it failed a short time ago."""
        if not self._avoided:
            return False
        now, never = self._env.now(), (0.0, 0.0)
        avoided = self._avoided
        return avoided.get(replica.node, never)[0] > now or avoided.get(-replica.target, never)[0] > now

    def failed(self, replica: Replica, status: Status) -> None:
        """A whole request came to nothing: leave the process alone for a while."""
        if status in _OF_NODE:
            self._avoid(replica.node)

    def refused(self, replica: Replica, status: Status) -> None:
        """An operation was refused: leave the target alone for a while, or the process if it has lost its lease."""
        if status is Status.FENCED:
            self._avoid(replica.node)
        elif status in _OF_TARGET:
            self._avoid(-replica.target)

    def _avoid(self, key: int) -> None:
        now = self._env.now()
        until, last = self._avoided.get(key, (0.0, 0.0))
        if until > now:
            return  # others ran into the same failure
        seconds = min(2 * last, self._avoid_max) if last and now - until < self._avoid_max else self._avoid_min
        self._avoided[key] = (now + seconds, seconds)

    def is_silent(self, node: int) -> bool:
        """Whether it has failed, and has not answered since."""
        return node in self._avoided

    def spoke(self, node: int) -> None:
        """A node has answered."""
        if self._avoided:
            self._avoided.pop(node, None)

    # --- waiting --------------------------------------------------------------------------------------------------------------------

    def sent(self, node: int, request: object) -> None:
        """A request is on its way."""
        requests = self._in_flight.get(node)
        if requests is None:
            requests = self._in_flight.setdefault(node, set())
        requests.add(request)

    def ended(self, node: int, request: object) -> None:
        """It was answered, failed or was given up."""
        if (requests := self._in_flight.get(node)) is not None:
            requests.discard(request)

    def answered(self, node: int, waited: float) -> None:
        """A node has answered after somebody waited so many seconds."""
        self.spoke(node)
        waits = self._waits.get(node)
        if waits is None:
            waits = self._waits.setdefault(node, _Waits(self._hedge_min))
        if len(waits.seconds) < WAITS_KEPT:
            waits.seconds.append(waited)
        else:
            waits.seconds[waits.count % WAITS_KEPT] = waited
        waits.count += 1
        if waits.count % WAITS_PER_LOOK == 0:
            ordered = sorted(waits.seconds)
            usual = ordered[int(0.99 * (len(ordered) - 1))]
            soon = min(max(HEDGE_FACTOR * usual, self._hedge_min), self._hedge_max)
            waits.limit = max(soon, HEDGE_FACTOR_MIN * usual)
        if self._hedges < HEDGES_SAVED_MAX:
            self._hedges += HEDGE_SHARE

    def hedge_seconds(self, replica: Replica) -> float:
        """How long to wait for a node before another one is asked as well: not at all if it failed just now, and not long if it has not
        answered since."""
        if self.is_avoided(replica):
            return 0.0
        if replica.node in self._avoided:
            return self._hedge_min
        waits = self._waits.get(replica.node)
        return self._hedge_min if waits is None else waits.limit

    def take_hedge(self) -> bool:
        """Whether one more read may have a rival now."""
        if self._hedges < 1:
            return False
        self._hedges -= 1
        return True
