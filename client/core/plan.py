"""Which replica reads which rows of a batch, and the request that asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...proto.gen.storage_pb2 import ReadRequest
from ...proto.routing import Replica
from .cluster import Cluster
from .columns import Columns

OPERATIONS_MAX = 4096  # of one request
REQUEST_BYTES_MAX = (
    8 << 20
)  # of one request: its reply needs one contiguous slice (or one whole chunk, if that is more)
STEP_BYTES = 2 << 20  # so much of a chain goes to one replica before the next one: a request costs something, too
STEP_OPERATIONS = 256

Assignment = Mapping[int, tuple[Sequence[int], Sequence[int]]]  # node -> rows, and the target of each


@dataclass(slots=True)
class Attempts:
    """What was tried for one row that did not come at once."""

    tried: set[int] = field(default_factory=set)  # targets that have failed since we last waited
    damaged: set[int] = field(default_factory=set)  # targets whose bytes were wrong twice
    short: set[int] = field(default_factory=set)  # targets that have less of the chunk than there should be
    again: int = 0  # a target whose bytes were wrong once: once more from there
    tail: bool = False  # a write is on its way: the tail knows what counts

    def candidates(self, serving: Sequence[Replica]) -> Sequence[Replica]:
        """Those to choose from; all of them if none is left."""
        if self.again and (pinned := [r for r in serving if r.target == self.again]):
            return pinned
        if self.tail and serving and serving[-1].target not in self.tried:
            return serving[-1:]
        return self.untried(serving) or [r for r in serving if r.target not in self.damaged] or serving

    def untried(self, serving: Sequence[Replica]) -> list[Replica]:
        return [r for r in serving if r.target not in self.tried and r.target not in self.damaged]


def assign(cluster: Cluster, columns: Columns, rows: Sequence[int], attempts: Mapping[int, Attempts]) -> Assignment:
    """Spread rows over the replicas of their chains. Raises STALE_ROUTING, and UNAVAILABLE for a chain that nobody serves."""
    if not attempts and len(columns.files) == 1 and len(columns.files[0].chains) == 1:
        serving = cluster.table.route(columns.files[0].chains[0]).serving
        if len(serving) == 1 or (len(rows) <= STEP_OPERATIONS and sum(columns.length) <= STEP_BYTES):
            replica = serving[0] if len(serving) == 1 else cluster.replicas.choose(serving, columns.index[rows[0]])
            return {replica.node: (rows, [replica.target] * len(rows))}
    if not attempts:
        chains = columns.chains()
        alone = {chain: cluster.table.route(chain).serving for chain in set(chains)}
        if all(len(serving) == 1 for serving in alone.values()):
            return _only(alone, chains, rows)
    return _spread(cluster, columns, rows, attempts)


def _only(alone: Mapping[int, Sequence[Replica]], chains: Sequence[int], rows: Sequence[int]) -> Assignment:
    """Where each chain has one replica that serves, there is nothing to choose."""
    targets = {chain: serving[0].target for chain, serving in alone.items()}
    nodes = {chain: serving[0].node for chain, serving in alone.items()}
    every = len(rows) == len(chains)
    if len(set(nodes.values())) == 1:
        mine = chains if every else [chains[row] for row in rows]
        return {next(iter(nodes.values())): (rows, [targets[chain] for chain in mine])}
    plan: dict[int, tuple[list[int], list[int]]] = {node: ([], []) for node in nodes.values()}
    for row in rows:
        chain = chains[row]
        chosen, their = plan[nodes[chain]]
        chosen.append(row)
        their.append(targets[chain])
    return {node: share for node, share in plan.items() if share[0]}


class _Run:
    """Rows of one chain that go to one replica, until it has its share."""

    __slots__ = ("bytes", "operations", "replica")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.bytes = STEP_BYTES
        self.operations = STEP_OPERATIONS


def _spread(cluster: Cluster, columns: Columns, rows: Sequence[int], attempts: Mapping[int, Attempts]) -> Assignment:
    plan: dict[int, tuple[list[int], list[int]]] = {}
    runs: dict[int, _Run] = {}  # by chain
    planned: dict[
        int, int
    ] = {}  # by node: full shares, -1 while the first one has room: one request is better than two
    chains = columns.chains()
    for row in rows:
        chain = chains[row]
        run = runs.get(chain)
        if attempts and (tries := attempts.get(row)) is not None:
            candidates = tries.candidates(cluster.table.route(chain).serving)
            replica = cluster.replicas.choose(candidates, columns.index[row])
        elif run is not None and run.bytes > 0 and run.operations > 0:
            replica = run.replica
        else:
            if run is not None:
                planned[run.replica.node] = max(planned[run.replica.node], 0) + 1
            serving = cluster.table.route(chain).serving
            replica = serving[0] if len(serving) == 1 else cluster.replicas.choose(serving, columns.index[row], planned)
            planned.setdefault(replica.node, -1)
            run = runs[chain] = _Run(replica)
        if run is not None:
            run.bytes -= columns.length[row]
            run.operations -= 1
        chosen, targets = plan.setdefault(replica.node, ([], []))
        chosen.append(row)
        targets.append(replica.target)
    return plan


def request_of(cluster: Cluster, columns: Columns, rows: Sequence[int]) -> tuple[ReadRequest, int]:
    """The request for these rows, and how many bytes it asks for."""
    table, index = cluster.table, columns.index
    whole = len(rows) == len(index)
    lengths = columns.length if whole else [columns.length[row] for row in rows]
    capability: list[int] = []
    if len(columns.files) == 1:
        file = columns.files[0]
        stripe = file.chains
        width = len(stripe)
        chains = [stripe[0]] * len(rows) if width == 1 else [stripe[index[row] % width] for row in rows]
        inodes = [file.id] * len(rows)
        capabilities = [file.capability_read]
    else:
        every = columns.chains()
        chains = every if whole else [every[row] for row in rows]
        files = columns.file if whole else [columns.file[row] for row in rows]
        ids = [file.id for file in columns.files]
        inodes = [ids[file] for file in files]
        places = {file: i for i, file in enumerate(dict.fromkeys(files))}
        capabilities = [columns.files[file].capability_read for file in places]
        capability = [places[file] for file in files]
    versions = {chain: table.route(chain).version for chain in set(chains)}
    request = ReadRequest(
        chain=chains,
        chain_version=[versions[chain] for chain in chains],
        inode=inodes,
        index=index if whole else [index[row] for row in rows],
        offset=columns.offset if whole else [columns.offset[row] for row in rows],
        length=lengths,
        capabilities=capabilities,
        capability=capability,
    )
    return request, sum(lengths)


def portions(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut rows of these lengths into requests within the limits."""
    if len(lengths) <= OPERATIONS_MAX and sum(lengths) <= REQUEST_BYTES_MAX:
        yield 0, len(lengths)
        return
    begin = total = 0
    for i, length in enumerate(lengths):
        if i > begin and (total + length > REQUEST_BYTES_MAX or i - begin == OPERATIONS_MAX):
            yield begin, i
            begin, total = i, 0
        total += length
    yield begin, len(lengths)
