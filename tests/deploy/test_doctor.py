"""What `emberfs doctor` makes of a cluster's status: a function of the JSON that `emberfs status` writes."""

from __future__ import annotations

from typing import Any

from emberfs.deploy.cli.doctor import cluster_findings


def chain(number: int, *states: str, kind: str = "files", wanted: int = 0) -> dict[str, Any]:
    members = [{"target": 10 * number + i, "node": i, "name": "", "state": s} for i, s in enumerate(states)]
    return {"chain": number, "version": 1, "for": kind, "wanted": wanted or len(states), "members": members}


def target(number: int, state: str = "UPTODATE", *marks: str) -> dict[str, Any]:
    return {"target": number, "node": 2, "name": "storage-2", "state": state, "marks": list(marks)}


def status(**other: Any) -> dict[str, Any]:
    return {
        "error": "",
        "servers": [{"name": "meta", "pid": 7}],
        "nodes": [{"node": 2, "name": "storage-2", "state": "up"}],
        "targets": [target(1)],
        "chains": [chain(1, "SERVING", "SERVING")],
        "transports": [],
        "space": {"total": 100, "used": 10, "free": 90},
        **other,
    }


def told(found: dict[str, Any] | None) -> dict[str, tuple[str, str]]:
    findings = list(cluster_findings(found))
    assert all(finding.advice for finding in findings if finding.state != "ok")
    return {f"{finding.check}: {finding.found}": (finding.state, finding.advice) for finding in findings}


def test_what_peers_speak_is_told_with_the_reason() -> None:
    rows = [
        {"from": "here", "to": name, "address": f"tcp:{name}:1", "transport": "rdma", "reason": "over mlx5_0:1"}
        for name in ("storage-2", "storage-3")
    ]
    rows.append({**rows[0], "from": "storage-2", "transport": "tcp", "reason": "the server does not offer it"})
    found = told(status(transports=rows))
    assert found["transport: rdma (over mlx5_0:1): here to storage-2, here to storage-3"][0] == "ok"
    assert found["transport: tcp (the server does not offer it): storage-2 to storage-2"][0] == "ok"


def test_all_is_well() -> None:
    assert {state for state, _ in told(status()).values()} == {"ok"}
    assert told(None) == {}, "no cluster yet"


def test_chains_that_lack_members_are_named_with_what_to_do() -> None:
    chains = [
        chain(1, "SERVING", "SERVING"),
        chain(2, "SERVING", "OFFLINE"),
        chain(3, "SERVING", "SYNCING"),
        chain(4, "LASTSRV", "OFFLINE"),
        chain(5, "SERVING", "WAITING"),
    ]
    found = told(status(chains=chains))
    assert found["chains: 2 of 5 short of a member: 2, 5"][0] == "warning"
    assert found["chains: 1 of 5 copying: 3"][0] == "warning"
    state, advice = found["chains: 1 of 5 not served: 4"]
    assert state == "error" and "chain revive" in advice
    many = told(status(chains=[chain(number, "LASTSRV") for number in range(1, 20)]))
    assert "chains: 19 of 19 not served: 1, 2, 3, 4, 5, 6, 7, 8 ..." in many


def test_chains_of_blocks_are_told_apart_and_no_disaster() -> None:
    """Keys go around them: the cache is smaller for a while."""
    well = [chain(1, "SERVING"), chain(2, "SERVING", kind="kv")]
    assert {state for state, _ in told(status(chains=well)).values()} == {"ok"}
    found = told(status(chains=[*well, chain(3, "LASTSRV", kind="kv")]))
    assert found["chains: 1, all well"][0] == "ok"
    assert found["chains of KV blocks: 1 of 2 not served: 3"][0] == "warning"


def test_targets_nodes_servers_and_space() -> None:
    found = told(
        status(
            servers=[{"name": "meta", "pid": 7}, {"name": "storage-2", "pid": 0}],
            nodes=[{"node": 2, "name": "storage-2", "state": "silent"}],
            targets=[target(1, "OFFLINE"), target(2, "OFFLINE", "disabled"), target(3, "UPTODATE", "full", "damaged")],
            space={"total": 100, "used": 97, "free": 3},
        )
    )
    assert found["servers: down: storage-2"] == ("warning", "emberfs up")
    assert found["nodes: silent: storage-2"][0] == "warning"
    assert "replace 1" in found["target 1 on storage-2: offline"][1]
    assert "online 2" in found["target 2 on storage-2: disabled"][1]
    assert "target 2 on storage-2: offline" not in found, "an administrator wants it so"
    assert (
        "nodes" in found["target 3 on storage-2: full"][1] and "replace 3" in found["target 3 on storage-2: damaged"][1]
    )
    assert found["space: 3 B free (3%)"][0] == "warning"


def test_a_cluster_that_does_not_answer() -> None:
    found = told(status(error="nobody answers", nodes=[], targets=[], chains=[]))
    assert found["cluster: nobody answers"][0] == "error" and len(found) == 2


def test_a_chain_that_gave_up_a_member_and_got_no_other_is_not_well() -> None:
    """As where 'target replace' was interrupted between the two: each member that it has serves, and there is one copy less."""
    found = told(status(chains=[chain(1, "SERVING", "SERVING"), chain(2, "SERVING", wanted=2)]))
    assert found["chains: 1 of 2 short of a member: 2"][0] == "warning"
