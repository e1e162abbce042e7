"""Replicated clusters of real processes: they come up, grow, give nodes and targets up while clients work, and come back after kills."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import emberfs
from emberfs.deploy.administration import Administration
from emberfs.deploy.local import LocalCluster
from emberfs.deploy.mover import Limits, Mover
from emberfs.deploy.placement.moves import Wish
from emberfs.deploy.placement.view import ClusterView, view_of
from emberfs.proto.errors import Status, StatusError

from .command import Command

MakeCluster = Callable[..., LocalCluster]
WAIT_SECONDS_MAX = 100.0
PATIENCE_SECONDS = 300.0  # of clients, before the time scale


def look(cluster: LocalCluster) -> ClusterView:
    with Administration(cluster.url) as administration:
        return view_of(administration.status())


def wait(cluster: LocalCluster, until: Callable[[ClusterView], bool]) -> ClusterView:
    """Look until it is so."""
    with Administration(cluster.url) as administration:
        end = administration.now() + WAIT_SECONDS_MAX
        while True:
            view = view_of(administration.status())
            if until(view):
                return view
            assert administration.now() < end, view
            administration.sleep(0.05)


def is_well(view: ClusterView) -> bool:
    return bool(view.chains) and all(chain.serving == view.replicas == len(chain.members) for chain in view.chains)


@contextlib.contextmanager
def writing(cluster: LocalCluster) -> Iterator[dict[str, bytes]]:
    """A client that writes and overwrites files meanwhile; what it was told is durable is in the result, complete at the end."""
    acknowledged: dict[str, bytes] = {}
    failures: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            with emberfs.connect(cluster.url, timeout=PATIENCE_SECONDS) as client:
                number = 0
                while not stop.is_set():
                    data = os.urandom(1000 + 90_000 * (number % 17))
                    client.write_bytes(f"/w{number % 30}", data)
                    acknowledged[f"/w{number % 30}"] = data
                    number += 1
        except BaseException as failed:
            failures.append(failed)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield acknowledged
    finally:
        stop.set()
        thread.join(2 * WAIT_SECONDS_MAX)
    assert not failures and acknowledged, failures


def check(cluster: LocalCluster, content: dict[str, bytes]) -> None:
    with emberfs.connect(cluster.url, timeout=PATIENCE_SECONDS) as client:
        for path, data in content.items():
            assert client.read_bytes(path) == data, path


def test_every_node_leads_a_chain_and_a_lost_record_is_found_again(make_cluster: MakeCluster) -> None:
    """By default each node has as many targets as there are replicas."""
    cluster = make_cluster(nodes=3, replicas=2)
    view = wait(cluster, is_well)
    assert len(view.chains) == 3 and len(view.targets) == 6
    heads = [view.node_of(chain.members[0].target).name for chain in view.chains]
    assert sorted(heads) == ["storage-1", "storage-2", "storage-3"]
    pairs = {frozenset(view.targets[m.target].node for m in chain.members) for chain in view.chains}
    assert len(pairs) == 3, "who fails leaves each of the others as much to copy"
    options = cluster.record["options"]
    (cluster.data / "cluster.json").unlink()
    LocalCluster(cluster.data).start()
    found = cluster.record["options"]
    assert (found["nodes"], found["replicas"]) == (3, options["replicas"]), "the chains say what it was"


def fill(cluster: LocalCluster, files: int = 5) -> dict[str, bytes]:
    """Files that are in the cluster whatever becomes of it."""
    content = {f"/f{i}": os.urandom(1 + 1_300_000 * (i % 3) + i) for i in range(files)}
    with emberfs.connect(cluster.url, timeout=PATIENCE_SECONDS) as client:
        for path, data in content.items():
            client.write_bytes(path, data)
    return content


def test_a_node_is_drained_while_a_client_writes(make_cluster: MakeCluster) -> None:
    """Two nodes, then three, then two others, which come back after a kill of all."""
    cluster = make_cluster(nodes=2, replicas=2, targets=1)
    run, content = Command(cluster.environment), fill(cluster)
    for options, message in (
        ({"nodes": 1}, "node drain"),
        ({"replicas": 1}, "cannot change"),
        ({"targets": 5}, "began"),
    ):
        with pytest.raises(StatusError, match=message) as raised:
            LocalCluster(cluster.data, **options).start()  # type: ignore[arg-type]
        assert raised.value.status is Status.INVALID
    assert "Started storage-3" in run("node", "add", "--data", str(cluster.data)).text
    assert [t.chunks for t in look(cluster).targets.values() if t.node == _node(cluster, 3)] == [0], "not by magic"
    planned = run("chain", "plan", "--drain", "storage-1", "--json").json
    assert [(move["source"], move["target"]) for move in planned["moves"]] == [("storage-1", "storage-3")]
    with writing(cluster) as acknowledged:
        said = run("node", "drain", "storage-1").text
    first = _node(cluster, 1)
    view = wait(cluster, is_well)
    assert f"joins chain {view.chains[0].id}" in said and "storage-1: empty" in said
    assert view.nodes[first].draining and first not in {t.node for t in view.targets.values()}
    check(cluster, content | acknowledged)

    assert "holds 2 members" in run.fail(1, "node", "remove", "storage-2")
    assert "removed" in run("node", "remove", "storage-1").text
    for name in ("storage-2", "storage-3", "meta"):
        cluster.kill(name)
    again = LocalCluster(cluster.data)
    assert again.start() is True and again.nodes == ["storage-2", "storage-3"], "who was removed does not come back"
    check(cluster, content | acknowledged)
    assert {node.name for node in wait(cluster, is_well).nodes.values()} == {"storage-2", "storage-3"}
    assert LocalCluster(cluster.data, nodes=2, replicas=2).start() is False


def test_single_targets(make_cluster: MakeCluster) -> None:
    """One is replaced, on the same node, as there is no other one; one is out of service for a while."""
    cluster = make_cluster(nodes=2, replicas=2, targets=1)
    run, content = Command(cluster.environment), fill(cluster)
    found = run("status", "--json").json
    assert found["running"] and [len(c["members"]) for c in found["chains"] if c["for"] == "files"] == [2]
    assert {member["state"] for chain in found["chains"] for member in chain["members"]} == {"SERVING"}

    old = look(cluster).chains[0].members[0].target
    assert "Nobody is there to ask" in run.fail(2, "target", "replace", str(old))
    assert "make a target" in run("target", "replace", str(old), "--yes").text
    view = wait(cluster, is_well)
    assert old not in view.targets
    check(cluster, content)

    out = view.chains[0].members[0].target
    run("target", "offline", str(out))
    wait(cluster, lambda view: view.chains[0].serving == 1)
    shown = run("status").text
    assert "1 short of a member" in shown and "disabled" in shown
    with emberfs.connect(cluster.url, timeout=PATIENCE_SECONDS) as client:
        client.write_bytes("/meanwhile", b"x" * 100_000)
    run("target", "online", str(out))
    view = wait(cluster, is_well)
    check(cluster, content | {"/meanwhile": b"x" * 100_000})


def test_the_last_member_that_served_is_gone(make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one missed writes: it serves only when an administrator says so, and what it has is there again."""
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.3")
    cluster = make_cluster(nodes=2, replicas=2, targets=1)
    run, content = Command({**cluster.environment, "EMBERFS_TIME_SCALE": "1"}), fill(cluster)
    left, last = (cluster.servers[name] for name in cluster.nodes)
    left.stop(kill=True)
    node = _node(cluster, 1)
    view = wait(cluster, lambda view: view.chains[0].serving == 1)
    [survivor] = [target.id for target in view.targets.values() if target.node == node]
    last.stop(kill=True)
    wait(cluster, lambda view: view.chains[0].serving == 0)
    cluster.start("storage-1")
    wait(cluster, lambda view: view.nodes[node].up and view.targets[survivor].up)
    revive = ("chain", "revive", str(view.chains[0].id), str(survivor))
    assert "Nobody is there to ask" in run.fail(2, *revive)
    assert f"served by target {survivor}" in run(*revive, "--yes").text
    check(cluster, content)
    assert "is being served" in run.fail(1, *revive)


def _node(cluster: LocalCluster, number: int) -> int:
    return int(cluster.record["servers"][f"storage-{number}"]["node"])


def test_a_lost_node_heals_onto_the_others(make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory is gone, and it will not come back: what it held is copied from the others to a node with room."""
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.3")
    cluster = make_cluster(nodes=3, replicas=2, targets=2)
    content = fill(cluster)
    cluster.kill("storage-2")
    gone = _node(cluster, 2)
    wait(cluster, lambda view: not view.nodes[gone].up and all(chain.serving for chain in view.chains))
    run = Command({**cluster.environment, "EMBERFS_TIME_SCALE": "1"})
    said = run("node", "remove", "storage-2", "--yes", "--at-once", "3").text
    assert "joins chain" in said and "storage-2: removed" in said
    view = wait(cluster, is_well)
    assert len(view.chains) == 3 and len(view.nodes) == 2
    check(cluster, content)
    assert not (Path(cluster.data) / "storage-2").exists()


def test_a_disk_that_cannot_be_opened_any_more_is_given_up(make_cluster: MakeCluster) -> None:
    """Its server goes on with the others; replacing it copies from the chain and forgets it for good."""
    cluster = make_cluster(nodes=3, replicas=2, targets=2)
    content = fill(cluster)
    broken = cluster.data / "storage-1" / "target-1"
    paths = {t["target"]: t["path"] for t in Command(cluster.environment)("status", "--json").json["targets"]}
    number = next(target for target, path in paths.items() if path == str(broken))
    cluster.servers["storage-1"].stop()
    shutil.rmtree(broken)
    broken.write_text("a disk that is none")
    cluster.start()
    wait(cluster, lambda view: not view.targets[number].up and view.nodes[view.targets[number].node].up)
    with Administration(cluster.url) as administration:
        assert Mover(administration, Limits()).run(Wish(lost=frozenset({number}))).is_done
    view = wait(cluster, is_well)
    assert number not in view.targets
    check(cluster, content)
    cluster.restart("storage-1")
    assert number not in look(cluster).targets and is_well(wait(cluster, is_well))


def test_moves_go_on_where_they_were_interrupted(make_cluster: MakeCluster) -> None:
    """Two movers with one step each, and a third to the end: none of them knows of the others."""
    cluster = make_cluster(nodes=3, replicas=1, targets=1)
    content = fill(cluster)
    with Administration(cluster.url) as administration:
        administration.set_node(_node(cluster, 3), draining=True)
        for _ in range(2):
            _, decision, moved = Mover(administration, Limits()).look(Wish())
            assert moved and not decision.is_done
        assert Mover(administration, Limits()).run(Wish()).is_done
    view = wait(cluster, is_well)
    assert sorted(target.node for target in view.targets.values()).count(_node(cluster, 3)) == 0
    assert len(view.targets) == 3, "one of the others has two now"
    check(cluster, content)


def test_a_removal_that_was_interrupted_does_not_keep_the_others_from_starting(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager knows the node no more, and half of its directory is left."""
    cluster = make_cluster(nodes=2, replicas=1, targets=1, kv_capacity=0)
    with Administration(cluster.url) as administration:
        administration.set_node(_node(cluster, 2), draining=True)
        assert Mover(administration, Limits()).run(Wish()).is_done
        number = _node(cluster, 2)
        cluster.servers["storage-2"].stop()
        administration.remove_node(number)

    class Interrupted(BaseException):
        pass

    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(Interrupted):
            cluster.forget("storage-2")
    assert (cluster.data / "storage-2").exists() or list(cluster.data.glob("storage-2.*"))
    cluster.stop()
    again = LocalCluster(cluster.data)
    assert again.start() is True and again.nodes == ["storage-1"]
    assert not list(cluster.data.glob("storage-2*"))
