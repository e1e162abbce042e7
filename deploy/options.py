"""What `emberfs up` can be asked for, and what of it can change later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..meta.kv.open import is_shared
from ..proto.errors import Status, error
from .placement.model import REPLICAS_MAX

NODES_MAX = 64  # storage processes on one machine
TRASH_SECONDS_MAX = (1 << 32) - 2
TARGETS_MAX = 64  # of one of them
METAS_MAX = 16  # metadata servers on one machine
CAPACITY_BYTES_MIN = 64 << 20
DISK_PART = 0.9  # of the disk's free space that all targets together may take, where nothing else is said


@dataclass(frozen=True)
class ClusterOptions:
    """They are kept in cluster.json: a later `up` without options uses the same. Raises INVALID for what cannot be."""

    port: int | None = None  # serve TCP on it too; 0: any free one; None: Unix sockets only
    host: str = "127.0.0.1"
    capacity: int | None = None  # bytes a target may hold; None: its part of what the disk has
    direct: bool = False  # O_DIRECT
    grpc: str = ""  # host:port to serve gRPC for other tools on; empty: not at all
    tcp_only: bool = False  # storage listens on TCP alone, so that local clients take the way that remote ones take
    nodes: int = 0  # storage processes; 0: as many as replicas
    replicas: int = 1  # members of each chain, on as many nodes
    trash: int | None = None  # seconds that what is removed is kept; None: the server's default
    metas: int = 1  # metadata servers; more than one needs a `kv` that they can share
    kv: str = ""  # URL of the metadata's store; empty: an embedded one in the data directory
    targets: int = 0  # of a new node; 0: as many as replicas, so that each node leads one chain and all share the work
    kv_capacity: int | None = (
        None  # bytes that a target for KV blocks may hold; 0: there are none; None: their part of the disk
    )
    kv_replicas: int = 1  # members of each chain of KV blocks, on as many nodes; each node has as many targets for them
    kv_memory: int | None = (
        None  # bytes of the page cache for KV blocks, of all nodes; None: a quarter of this machine's memory
    )

    def __post_init__(self) -> None:
        if self.port is not None and not 0 <= self.port <= 65535:
            raise error(Status.INVALID, f"port {self.port}: must be from 0 to 65535")
        if self.tcp_only and self.port is None:
            raise error(Status.INVALID, "tcp_only needs a port (0: any free one)")
        if self.capacity is not None and self.capacity < CAPACITY_BYTES_MIN:
            raise error(Status.INVALID, f"capacity of {self.capacity} bytes: a target needs at least 64 MiB")
        if self.kv_capacity and self.kv_capacity < CAPACITY_BYTES_MIN:
            raise error(Status.INVALID, f"kv_capacity of {self.kv_capacity} bytes: a target needs at least 64 MiB")
        if min(self.kv_capacity or 0, self.kv_memory or 0) < 0:
            raise error(Status.INVALID, "kv_capacity and kv_memory are not negative")
        if self.trash is not None and not 0 <= self.trash <= TRASH_SECONDS_MAX:
            raise error(Status.INVALID, f"a trash of {self.trash} seconds: must be from 0 to {TRASH_SECONDS_MAX}")
        for replicas in (self.replicas, self.kv_replicas):
            if not 1 <= replicas <= REPLICAS_MAX:
                raise error(Status.INVALID, f"{replicas} replicas: must be from 1 to {REPLICAS_MAX}")
        if not 0 <= self.nodes <= NODES_MAX or not 0 <= self.targets <= TARGETS_MAX:
            raise error(Status.INVALID, f"at most {NODES_MAX} nodes of {TARGETS_MAX} targets run on one machine")
        if not 1 <= self.metas <= METAS_MAX:
            raise error(Status.INVALID, f"{self.metas} metadata servers: must be from 1 to {METAS_MAX}")
        if 0 < self.nodes < self.replicas:
            raise error(
                Status.INVALID,
                f"{self.replicas} replicas need {self.replicas} nodes, and {self.nodes} is asked for: each copy of a chunk lies "
                "on another node. Take more with --nodes, or fewer --replicas",
            )

        if 0 < self.nodes < self.kv_replicas and self.kv_capacity != 0:
            raise error(
                Status.INVALID,
                f"{self.kv_replicas} copies of each KV block need {self.kv_replicas} nodes, and {self.nodes} is asked for: take more "
                "with --nodes, or fewer --kv-replicas",
            )

    @property
    def node_count(self) -> int:
        return self.nodes or max(self.replicas, self.kv_replicas if self.kv_target_count else 1)

    @property
    def target_count(self) -> int:
        """Targets that a new node begins with."""
        return self.targets or self.replicas

    @property
    def kv_target_count(self) -> int:
        """Targets for KV blocks that a node begins with."""
        return 0 if self.kv_capacity == 0 else self.kv_replicas

    @property
    def replicated(self) -> bool:
        """Whether chains have several members, so that new targets wait until they are put into chains."""
        return self.replicas > 1

    @property
    def kv_replicated(self) -> bool:
        """The same of chains of KV blocks."""
        return self.kv_target_count > 0 and self.kv_replicas > 1


def merged(kept: Mapping[str, Any] | None, nodes: int, asked: Mapping[str, Any]) -> ClusterOptions:
    """The options of a cluster after `up` was asked for these: those kept with what was asked over them. `kept`: None for a new
    cluster; `nodes`: how many it has. Raises INVALID for what an existing cluster cannot become."""
    if kept is None:
        made = ClusterOptions(**asked)
    else:
        before = ClusterOptions(**kept)
        # A cluster.json from before there were KV blocks says nothing of them.
        _check_changes(before, nodes, asked, has_blocks="kv_replicas" in kept and before.kv_target_count > 0)
        made = replace(before, **{"nodes": nodes, **asked})
    if made.metas > 1 and not is_shared(made.kv):
        raise error(
            Status.INVALID,
            f"{made.metas} metadata servers need a store that they can share: name one with --kv, as in "
            "--kv postgresql://user@host/database",
        )
    return made


def _check_changes(before: ClusterOptions, nodes: int, asked: Mapping[str, Any], *, has_blocks: bool) -> None:
    replicas, targets = asked.get("replicas", before.replicas), asked.get("targets", 0)
    if asked.get("kv", before.kv) != before.kv:
        raise error(
            Status.INVALID,
            f"the cluster keeps its metadata in {before.kv or 'its data directory'}; 'emberfs meta dump' and 'load' move them",
        )
    if replicas != before.replicas:
        raise error(
            Status.INVALID,
            f"the cluster keeps {_copies(before.replicas)} of each chunk, which cannot change: make another cluster with "
            f"--data DIR --replicas {replicas}, and copy the files there",
        )
    kv_replicas = asked.get("kv_replicas", before.kv_replicas)
    if has_blocks and asked.get("kv_capacity") == 0:
        raise error(
            Status.INVALID,
            "the storage nodes have targets for KV blocks, and go on with them: 'emberfs kv drop' gives back the space of a namespace",
        )
    if kv_replicas != before.kv_replicas and has_blocks:
        raise error(
            Status.INVALID,
            f"the cluster keeps {_copies(before.kv_replicas)} of each KV block, which cannot change: make another cluster with "
            f"--data DIR --kv-replicas {kv_replicas}",
        )
    if 0 < asked.get("nodes", 0) < nodes:
        raise error(
            Status.INVALID,
            f"the cluster has {nodes} storage nodes, and chunks lie on all of them: empty one with 'emberfs node drain storage-{nodes}', "
            "then take it out with 'emberfs node remove'",
        )
    if targets and targets != before.target_count:
        raise error(
            Status.INVALID,
            f"each node began with {before.target_count} targets: 'emberfs chain apply' makes more where they are needed",
        )


def differences(before: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What of the options asked for a running server cannot take over, as "--name value, …" of the values it runs with."""
    kept = {**asdict(ClusterOptions()), **before}
    return ", ".join(
        f"--{name.replace('_', '-')} {'not set' if kept[name] in (None, '') else kept[name]}"
        for name, value in asked.items()
        if name not in {"nodes", "metas"} and kept[name] != value
    )


def _copies(replicas: int) -> str:
    return "one copy" if replicas == 1 else f"{replicas} copies"
