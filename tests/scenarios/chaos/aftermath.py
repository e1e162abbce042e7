"""What must be so when the faults are over: every chain has all its members back, and they hold the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from emberfs.deploy.administration import Administration
from emberfs.proto.errors import StatusError
from emberfs.proto.gen.cluster_pb2 import StatusReply
from emberfs.proto.gen.common_pb2 import TARGET_STATE_SERVING, Chain
from emberfs.storage.engine.target import open_target, read_format
from emberfs.tests.storage.members import holdings

from .load import Load, until

REPLICAS = 3


def status(url: str) -> StatusReply | None:
    """The manager's view; None while it does not answer."""
    try:
        with Administration(url, patience=1.0) as administration:
            return administration.status()
    except StatusError:
        return None


def is_whole(chain: Chain) -> bool:
    return len(chain.members) == REPLICAS and all(m.state == TARGET_STATE_SERVING for m in chain.members)


def answered(url: str) -> StatusReply:
    """The manager's view, once it answers."""
    found: list[StatusReply | None] = []

    def answers() -> bool:
        found.append(status(url))
        return found[-1] is not None

    until(answers, "the manager answers")
    assert found[-1] is not None
    return found[-1]


def await_whole_chains(url: str) -> StatusReply:
    """Until every chain has all its members SERVING. The manager's view of that."""
    last: list[StatusReply | None] = [None]

    def whole() -> bool:
        last[0] = status(url)
        return last[0] is not None and all(is_whole(chain) for chain in last[0].routing.chains)

    try:
        until(whole, "all chains SERVING with all members")
    except AssertionError as late:
        raise AssertionError(f"{late}: {last[0].routing.chains if last[0] else 'no manager'}") from None
    assert last[0] is not None
    return last[0]


def await_no_garbage(url: str) -> None:
    """Until nothing is left to be removed: what runs down the chains then is over."""

    def clean() -> bool:
        found = status(url)
        return found is not None and not found.gc_pending

    until(clean, "no chunks of removed files")


def assert_replicas_equal(chains: Iterable[Chain], folders: Iterable[Path], cluster: str) -> int:
    """Compare all that the members of each chain hold, over the stopped targets in `folders`; how many chunks there are."""
    places = {found.incarnation: str(folder) for folder in folders if (found := read_format(str(folder)))}
    chunks = 0
    for chain in chains:
        found = []
        for member in chain.members:
            engine, _ = open_target(places[member.incarnation], cluster=cluster)
            found.append(holdings(engine))
            engine.close()
        for other in found[1:]:
            assert other["chunks"].keys() == found[0]["chunks"].keys(), f"chain {chain.id}"
            for chunk, held in found[0]["chunks"].items():
                assert other["chunks"][chunk] == held, f"chain {chain.id}, chunk {chunk.hex()}"
            assert other["receipts"] == found[0]["receipts"], f"chain {chain.id}"
            assert other["floors"] == found[0]["floors"], f"chain {chain.id}"
        chunks += len(found[0]["chunks"])
    return chunks


class Cluster(Protocol):
    """What is asked of a cluster at the end."""

    @property
    def url(self) -> str: ...
    @property
    def cluster_id(self) -> str: ...
    def target_folders(self) -> list[Path]: ...
    def stop(self) -> object: ...


def finish(cluster: Cluster, load: Load) -> None:
    """The faults are over: everything serves again, and every byte is where it should be."""
    await_whole_chains(cluster.url)
    load.advance()
    reads, writes = load.end()
    print(f"{reads} reads, {writes} writes")
    await_no_garbage(cluster.url)
    seen = await_whole_chains(cluster.url)  # on a busy machine a place may be lost for want of time alone
    identity, folders = cluster.cluster_id, cluster.target_folders()
    cluster.stop()
    assert assert_replicas_equal(seen.routing.chains, folders, identity)
