"""Chaos over three hosts, a metadata server and clients with a network between them: cuts between any two, both ways and one way."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest

import emberfs
from emberfs.client.blocking import Client, File
from emberfs.deploy.administration import Administration
from emberfs.proto.gen.common_pb2 import TARGET_STATE_SERVING
from emberfs.proto.settings import time_scale

from .aftermath import await_whole_chains, finish
from .faults import Fault, draw_process_faults, run_round
from .hosts import CLIENT, META, NODES, HostsCluster
from .load import Load, seed_of_this_run, soak_seconds, until
from .network import Network, cannot

T = TypeVar("T")

ROUNDS = 3
TARGETS = 2  # of each host: as many chains
CUT_SECONDS_MAX = 30.0  # in a soak
SHORT_S = 3.0  # of an operation that is to fail
ATTEMPTS = 4  # where a machine that stops for a moment costs a server its place
LONG_S = 60.0
READERS = 6  # each prefers some replica
CUTS = ((0, 1, False), (1, 0, True), (1, 2, False))


@pytest.fixture
def network() -> Iterator[Network]:
    """This test's own calls come from the operator's host."""
    if why := cannot():
        pytest.skip(why)
    with Network(HostsCluster.hosts()) as made, made.inside(HostsCluster.OPERATOR):
        yield made


def begun(network: Network, folder: Path, monkeypatch: pytest.MonkeyPatch, targets: int = TARGETS) -> HostsCluster:
    cluster = HostsCluster(network, folder, targets)
    monkeypatch.setenv("EMBERFS_SECRET_FILE", str(cluster.secret))
    try:
        cluster.begin()
    except BaseException:
        cluster.abandon()
        raise
    return cluster


def draw_cut(network: Network, chance: random.Random) -> Fault:
    host, other = chance.sample([*NODES, META, CLIENT], 2)
    return network.cut(host, other, one_way=chance.random() < 0.5)


def run(cluster: HostsCluster, folder: Path, seed: int, rounds: Iterator[float]) -> None:
    """One round of faults for each of `rounds`, which says how long one lasts at most (0: as faults.py says)."""
    chance = random.Random(seed)
    load = Load(cluster.url, folder, seed, cluster.network.within(CLIENT))
    try:
        load.prepare()
        load.start()
        for seconds in rounds:
            also = draw_process_faults(cluster, chance)[:1] if chance.random() < 0.3 else []
            # The cut last, so that it ends first: a server that is started waits for the manager.
            run_round(chance, [*also, draw_cut(cluster.network, chance)], load.check, seconds)
            if chance.random() < 0.5:
                await_whole_chains(cluster.url)
        finish(cluster, load)
    finally:
        load.kill()
        cluster.abandon()


@pytest.mark.timeout(400)
def test_cut_at_random(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.2")  # a lease of one second
    cluster = begun(network, tmp_path, monkeypatch)
    run(cluster, tmp_path, seed_of_this_run(), iter([0.0] * ROUNDS))


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_cut_for_as_long_as_asked(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = begun(network, tmp_path, monkeypatch)
    end = time.monotonic() + soak_seconds()
    run(cluster, tmp_path, seed_of_this_run(), iter(lambda: CUT_SECONDS_MAX * (time.monotonic() < end), 0.0))


@pytest.mark.timeout(400)
def test_a_head_that_the_client_alone_cannot_reach(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gives its place away, as everybody else reaches it: reads go on elsewhere, writes wait, fail as maybe done, and their retry
    counts once."""
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.4")
    cluster = begun(network, tmp_path, monkeypatch, targets=1)
    try:
        with network.inside(CLIENT):
            client = emberfs.connect(cluster.url, timeout=LONG_S / time_scale())
            hasty = emberfs.connect(cluster.url, timeout=SHORT_S / time_scale())
            with client, hasty:
                assert any(cut_from_the_head(cluster, client, hasty) for _ in range(ATTEMPTS))
        cluster.stop()
    finally:
        cluster.abandon()


def all_serving(cluster: HostsCluster) -> list[str]:
    """`serving`, once all do."""
    found: list[list[str]] = []

    def whole() -> bool:
        found.append(serving(cluster))
        return len(found[-1]) == len(NODES)

    until(whole, "all members serve")
    return found[-1]


def serving(cluster: HostsCluster) -> list[str]:
    """Whose members of the only chain serve, the head first."""
    with Administration(cluster.url) as administration:
        routing = administration.status().routing
    names = {node.id: node.name for node in routing.nodes}
    (chain,) = routing.chains
    return [names[member.node] for member in chain.members if member.state == TARGET_STATE_SERVING]


def cut_from_the_head(cluster: HostsCluster, client: Client, hasty: Client) -> bool:
    """Whether the head kept its place, so that writes failed while the client could not reach it."""
    client.write_bytes("/file", b"0" * 1000)
    with client.open("/file", "r+b", buffering=0) as patient, hasty.open("/file", "r+b", buffering=0) as file:
        assert patiently(lambda: file.pread(1000, 0)) == b"0" * 1000

        def write_fails(letter: bytes) -> bool:
            try:
                file.pwrite(letter * 1000, 0)
            except TimeoutError:
                return True
            return False

        network, first = cluster.network, all_serving(cluster)[0]
        with network.cut(CLIENT, first):
            if not write_fails(b"1"):
                return False
            assert patiently(lambda: file.pread(1000, 0)) in (b"0" * 1000, b"1" * 1000)  # the others serve
            never_left = serving(cluster)[0] != first or read_once(patient) == b"0"
        assert never_left
        patiently(lambda: file.pwrite(b"1" * 1000, 0))
        assert patient.pread(1000, 0) == b"1" * 1000

        with network.cut(first, CLIENT, one_way=True):  # it hears the client, who does not hear it
            if not write_fails(b"2"):
                return False
            assert read_once(patient) in (b"1", b"2")
        patiently(lambda: file.pwrite(b"3" * 1000, 0))
        assert patient.pread(1000, 0) == b"3" * 1000  # nothing of what was given up comes behind
        patient.pwrite(b"4" * 1000, 0)
        assert patiently(lambda: file.pread(1000, 0)) == b"4" * 1000
        return serving(cluster)[0] == first


def patiently(work: Callable[[], T]) -> T:
    """Again and again, where the client is hasty."""
    end = time.monotonic() + LONG_S
    while True:
        try:
            return work()
        except TimeoutError:
            if time.monotonic() > end:
                raise


def read_once(file: File) -> bytes:
    data = file.pread(1000, 0)
    assert data == data[:1] * 1000
    return data[:1]


@pytest.mark.timeout(400)
def test_a_member_that_the_manager_cannot_reach(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loses its place and serves nothing from then on, although clients reach it that know of nothing either: no read is stale."""
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.2")
    cluster = begun(network, tmp_path, monkeypatch, targets=1)
    patience = LONG_S / time_scale()
    try:
        with ExitStack() as stack:
            write_anew(cluster, "wb", b"0" * 1000)
            stack.enter_context(network.inside(CLIENT))
            clients = [stack.enter_context(emberfs.connect(cluster.url, timeout=patience)) for _ in range(READERS)]
            readers = [stack.enter_context(client.open("/file", buffering=0)) for client in clients]
            assert [read_once(reader) for reader in readers] == [b"0"] * READERS
            with network.inside(HostsCluster.OPERATOR):
                gone = serving(cluster)[0]
            with network.cut(gone, META), network.cut(CLIENT, META):
                with network.inside(HostsCluster.OPERATOR):
                    until(lambda: gone not in serving(cluster), f"{gone} loses its place")
                    write_anew(cluster, "r+b", b"1" * 1000)
                assert [read_once(reader) for reader in readers] == [b"1"] * READERS
            with network.inside(HostsCluster.OPERATOR):
                await_whole_chains(cluster.url)
            assert [read_once(reader) for reader in readers] == [b"1"] * READERS
        cluster.stop()
    finally:
        cluster.abandon()


@pytest.mark.timeout(400)
def test_members_that_are_cut_off_from_each_other(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager and the clients reach both, so nobody's lease runs out. While the cut lasts writes are acknowledged all the same, and no
    read is older; when it is over all members serve again."""
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.2")
    cluster = begun(network, tmp_path, monkeypatch, targets=1)
    try:
        write_anew(cluster, "wb", b"0" * 1000)
        with ExitStack() as stack:
            with network.inside(CLIENT):
                patience = LONG_S / time_scale()
                clients = [stack.enter_context(emberfs.connect(cluster.url, timeout=patience)) for _ in range(READERS)]
                files = [stack.enter_context(client.open("/file", "r+b", buffering=0)) for client in clients]
            # Places in the chain, and whether only what the first one sends to the second one is lost.
            for letter, (first, second, one_way) in zip(b"123", CUTS, strict=True):
                data = bytes([letter])
                before = all_serving(cluster)
                with network.cut(before[first], before[second], one_way=one_way):
                    files[0].pwrite(data * 1000, 0)
                    assert [read_once(file) for file in files] == [data] * READERS
                    after = serving(cluster)
                    assert (before[first], before[second]) not in pairwise(after), f"{before} {after}"
                await_whole_chains(cluster.url)
                assert [read_once(file) for file in files] == [data] * READERS
        cluster.stop()
    finally:
        cluster.abandon()


def write_anew(cluster: HostsCluster, mode: str, data: bytes) -> None:
    """By a client that hears of the routing first: it goes to no member that has lost its place, and so tells it nothing."""
    with emberfs.connect(cluster.url, timeout=LONG_S / time_scale()) as client, client.open("/file", mode) as file:
        file.write(data)
