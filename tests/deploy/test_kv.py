"""Targets for KV blocks of a cluster on one machine, and the commands over what lies in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

import emberfs
from emberfs.deploy.administration import Administration
from emberfs.deploy.local import LocalCluster
from emberfs.deploy.placement.view import ClusterView, view_of
from emberfs.kvcache import KVCache, Namespace, NamespaceSpec
from emberfs.proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from emberfs.proto.datadir import read_json, write_json
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.settings import CLUSTER_FILE

from .command import Command

MakeCluster = Callable[..., LocalCluster]
BLOCK = 64 << 10
PATIENCE_SECONDS = 60.0


def look(cluster: LocalCluster, table: int = TABLE_OF_BLOCKS) -> ClusterView:
    with Administration(cluster.url) as administration:
        return view_of(administration.status(), table)


def node_of(cluster: LocalCluster, name: str) -> int:
    return int(cluster.record["servers"][name]["node"])


def keys(count: int) -> list[bytes]:
    return [os.urandom(32) for _ in range(count)]


def spec(model: str, tenant: str = "") -> NamespaceSpec:
    return NamespaceSpec("test", model, "1", "bf16", 64, "page_first", object_bytes=BLOCK, tenant=tenant)


def patient(cluster: LocalCluster) -> KVCache:
    """A client that takes a machine that stops for a moment for no miss."""
    return KVCache(cluster.url, timeout=PATIENCE_SECONDS)


def put(kv: KVCache, namespace: Namespace, wanted: list[bytes]) -> None:
    data = [os.urandom(BLOCK) for _ in wanted]
    assert [int(code) for code in kv.put_from(namespace, wanted, data)] == [BLOCK] * len(wanted)


def found(kv: KVCache, namespace: Namespace, wanted: list[bytes]) -> int:
    return sum(bool(there) for there in kv.exists(namespace, wanted))


# --- up -------------------------------------------------------------------------------------------------------------------------------


def test_each_node_has_a_target_for_blocks_a_quarter_as_large(make_cluster: MakeCluster) -> None:
    """Chains of one even where files have two copies; files do not see their space."""
    cluster = make_cluster(nodes=2, replicas=2, targets=1)
    files, blocks = look(cluster, TABLE_OF_FILES), look(cluster)
    assert len(files.chains) == 1 and files.replicas == 2
    assert len(blocks.chains) == 2 and blocks.replicas == 1 and blocks.placed == {c.id for c in blocks.chains}
    assert {t.capacity for t in files.targets.values()} == {2 << 30}
    assert {t.capacity for t in blocks.targets.values()} == {512 << 20}
    assert sorted(p.parent.name for p in cluster.data.glob("storage-*/kv-1")) == ["storage-1", "storage-2"]
    with emberfs.connect(cluster.url) as client:
        assert client.statfs().total == 2 << 30
    status = Command(cluster.environment)("status", "--json").json
    assert sorted(target["for"] for target in status["targets"]) == ["files", "files", "kv", "kv"]


def test_copies_of_blocks_lie_in_different_processes(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=3, kv_replicas=2, kv_capacity=128 << 20)
    blocks = look(cluster)
    assert len(blocks.chains) == 3 and blocks.replicas == 2 and len(blocks.targets) == 6
    assert all(len({blocks.targets[m.target].node for m in c.members}) == 2 for c in blocks.chains)
    assert len(look(cluster, TABLE_OF_FILES).chains) == 3
    with pytest.raises(StatusError, match="need 4 nodes") as raised:
        LocalCluster(cluster.data, nodes=3, kv_replicas=4)
    assert raised.value.status is Status.INVALID


def test_an_older_cluster_gets_them_with_its_next_start(fresh_cluster: LocalCluster) -> None:
    """One whose directory was made without any, and whose cluster.json does not know of them."""
    with patient(fresh_cluster) as kv:
        namespace, wanted = kv.namespace(spec("before")), keys(3)
        put(kv, namespace, wanted)
    fresh_cluster.stop()
    file = fresh_cluster.data / CLUSTER_FILE
    record = {name: value for name, value in read_json(file).items() if not name.startswith("kv_")}
    record["options"] = {n: v for n, v in record["options"].items() if not n.startswith("kv_")}
    write_json(file, record)
    fresh_cluster.start()
    assert len(look(fresh_cluster).chains) == 1
    assert fresh_cluster.record["kv_target_capacity"] == 512 << 20
    with patient(fresh_cluster) as kv:
        assert found(kv, kv.namespace(spec("before")), wanted) == 3, "what was there is found again"


def test_none_are_made_where_none_are_wanted(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(kv_capacity=0)
    assert not look(cluster).targets and not list(cluster.data.glob("storage-*/kv-*"))
    with patient(cluster) as kv:
        namespace = kv.namespace(spec("m"))
        assert all(int(code) < 0 for code in kv.put_from(namespace, keys(2), [bytes(BLOCK)] * 2))
    assert "no namespace yet" not in Command(cluster.environment)("kv", "ns").text


# --- nodes and targets go ---------------------------------------------------------------------------------------------------------------


def test_a_drained_node_gives_its_only_copies_away(make_cluster: MakeCluster) -> None:
    """Keys go around it at once, and what it held is gone; everything else is found. Drained no more, it has an empty target again."""
    cluster = make_cluster(nodes=2, targets=1)
    run, wanted = Command(cluster.environment), keys(60)
    drained = node_of(cluster, "storage-2")
    with patient(cluster) as kv:
        namespace = kv.namespace(spec("m"))
        put(kv, namespace, wanted)
        assert found(kv, namespace, wanted) == 60
        said = run("node", "drain", "storage-2").text
        assert "storage-2: empty" in said and "leaves chain" in said
        view = look(cluster)
        assert {target.node for target in view.targets.values()} == {node_of(cluster, "storage-1")}
        assert len(view.chains) == 1 and view.placed == {view.chains[0].id}
        assert 0 < found(kv, namespace, wanted) < 60
        put(kv, namespace, keys(20))
        run("node", "undrain", "storage-2")
        assert {target.node for target in look(cluster).targets.values()} == {node_of(cluster, "storage-1"), drained}
        assert len(look(cluster).chains) == 2, "the one that lost its last member is no chain any more"
        put(kv, namespace, more := keys(40))
        assert found(kv, namespace, more) == 40
    assert run("doctor", "--json", "--data", str(cluster.data)).json


def test_copies_of_blocks_move_like_those_of_files(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=3, targets=1, kv_replicas=2, kv_capacity=128 << 20)
    run, wanted = Command(cluster.environment), keys(60)
    with patient(cluster) as kv:
        namespace = kv.namespace(spec("m"))
        put(kv, namespace, wanted)
        run("node", "drain", "storage-3")
        blocks = look(cluster)
        while any(chain.serving != 2 for chain in blocks.chains):  # where it lost its place for a moment
            blocks = look(cluster)
        gone = node_of(cluster, "storage-3")
        assert gone not in {blocks.targets[m.target].node for chain in blocks.chains for m in chain.members}
        assert len(blocks.chains) == 3
        files = look(cluster, TABLE_OF_FILES)
        assert files.members().isdisjoint(blocks.members()), "neither kind takes the other's targets"
        assert found(kv, namespace, wanted) == 60


# --- emberfs kv -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kv(cluster: LocalCluster) -> Iterator[KVCache]:
    with patient(cluster) as made:
        yield made


@pytest.fixture
def run(cluster: LocalCluster) -> Command:
    return Command(cluster.environment)


def row_of(rows: list[dict[str, object]], name: str) -> dict[str, object]:
    return next(row for row in rows if row["name"] == name)


def test_namespaces_with_what_they_hold(kv: KVCache, run: Command) -> None:
    namespace, wanted = kv.namespace(spec("seen", "acme")), keys(5)
    put(kv, namespace, wanted)
    into = [bytearray(BLOCK) for _ in range(7)]
    kv.get_into(namespace, [*wanted, *keys(2)], into)
    row = row_of(run("kv", "ns", "--json").json, namespace.name)
    assert (row["namespace"], row["blocks"], row["bytes"]) == (namespace.id, 5, 5 * BLOCK)
    assert (row["hits"], row["misses"], row["uid"], row["mode"]) == (5, 2, os.getuid(), 0o600)
    assert row["digest"] == namespace.digest.hex() and row["tenant"] == "acme"
    shown = run("kv", "ns").text
    assert namespace.name in shown and "71.4%" in shown and "64.0 KiB" in shown
    stats = run("kv", "stats", "seen", "--json").json
    assert [entry["puts"] for entry in stats["namespaces"]] == [5]
    everything = run("kv", "stats").text
    assert "used of" in everything and "acme" in everything
    assert "no namespace is called" in run.fail(1, "kv", "stats", "nothing-of-that-name")


def test_blocks_are_listed_and_thrown_away(kv: KVCache, run: Command) -> None:
    namespace, wanted = kv.namespace(spec("listed")), sorted(keys(9))
    put(kv, namespace, wanted)
    lines = run("kv", "ls", "listed", "--json").lines
    assert len(lines) == 9
    assert [line.split()[0] for line in run("kv", "ls", str(namespace.id)).lines] == [key.hex() for key in wanted]
    assert len(run("kv", "ls", "listed", "-n", "4").lines) == 4
    gone, missing = wanted[0].hex(), keys(1)[0].hex()
    assert run("kv", "evict", "listed", gone, missing, "--json").json == {
        "evicted": 1,
        "missing": 1,
        "leased": 0,
        "failed": 0,
    }
    assert "64 hexadecimal digits" in run.fail(2, "kv", "evict", "listed", "abc")
    assert "say --yes" in run.fail(2, "kv", "evict", "listed")
    assert "blocks thrown away: 8" in run("kv", "evict", "listed", "--yes").text
    assert not run("kv", "ls", "listed").lines and not found(kv, namespace, wanted)


def test_a_namespace_is_dropped(kv: KVCache, run: Command) -> None:
    namespace, wanted = kv.namespace(spec("dropped")), keys(4)
    put(kv, namespace, wanted)
    assert "say --yes" in run.fail(2, "kv", "drop", namespace.name)
    assert "dropped" in run("kv", "drop", namespace.name, "--yes").text
    assert namespace.name not in run("kv", "ns").text
    again = kv.namespace(spec("dropped"))
    assert again.id != namespace.id and not found(kv, again, wanted)


def test_quotas_of_tenants(kv: KVCache, run: Command) -> None:
    put(kv, kv.namespace(spec("limited", "poor")), keys(2))
    run("kv", "quota", "poor", "10M")
    run("kv", "quota", "-", "5M")
    rows = {row["tenant"]: row for row in run("kv", "quota", "--json").json}
    assert rows["poor"] == {"tenant": "poor", "bytes": 2 * BLOCK, "quota": 10 << 20}
    assert rows[""]["quota"] == 5 << 20
    assert "10.0 MiB" in run("kv", "quota").text
    for tenant in ("poor", "-"):
        run("kv", "quota", tenant, "none")
    assert {row["quota"] for row in run("kv", "quota", "--json").json} == {0}
    assert "say how much" in run.fail(2, "kv", "quota", "poor")
