"""`emberfs chain plan`: from a file, from a running cluster, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emberfs.deploy.local import LocalCluster
from emberfs.deploy.placement import Chain, Domain, read_description
from emberfs.deploy.placement.description import size_of
from emberfs.deploy.placement.model import Standing
from emberfs.tests.deploy.command import Command

NODES = "\n".join(f'[[node]]\nname = "n{i}"\nrack = "r{i % 3}"\ndisks = 2\ncapacity = "15T"' for i in range(6))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text("replicas = 3\nseats_per_disk = 5\n" + NODES)
    return path


def test_new_chains(written: Path) -> None:
    run = Command()
    shown = run("chain", "plan", str(written), "--seconds", "0").text
    assert "chains: 20 of 3 over 6 hosts" in shown and "and 4 more" in shown and "Nothing was changed." in shown
    found = run("chain", "plan", str(written), "--domain", "rack", "--json").json
    assert len(found["chains"]) == 20 and found["figures"]["pair_load_max"] >= found["figures"]["pair_load_bound"]
    assert all({int(name[1]) % 3 for name in chain["members"]} == {0, 1, 2} for chain in found["chains"])


def test_a_plan_is_the_next_description(written: Path, tmp_path: Path) -> None:
    """What `--json` gives goes back in as the chains that exist, and a node is drained."""
    run = Command()
    chains = run("chain", "plan", str(written), "--json").json["chains"]
    nodes = [{"name": f"n{i}", "disks": 2, "capacity": "15T"} for i in range(6)]
    described = tmp_path / "next.json"
    described.write_text(json.dumps({"replicas": 3, "node": nodes, "chain": [c | {"size": "1T"} for c in chains]}))
    assert run("chain", "plan", str(described), "--json").json["moves"] == []
    found = run("chain", "plan", str(described), "--drain", "n4", "--json").json
    assert len(found["moves"]) == 10 == found["figures"]["moves_bound"]
    assert {move["source"] for move in found["moves"]} == {"n4/1", "n4/2"}
    shown = run("chain", "plan", str(described), "--remove", "n4/1").text
    assert "moves: 5 (at least 5), 5.0 TiB to copy" in shown


def test_wrong_usage_is_told(written: Path, tmp_path: Path) -> None:
    run = Command()
    assert "no node and no disk is called 'n9'" in run.fail(2, "chain", "plan", str(written), "--drain", "n9")
    assert "one of node, host, rack" in run.fail(2, "chain", "plan", str(written), "--domain", "continent")
    assert "need as many failure domains" in run.fail(1, "chain", "plan", str(written), "--replicas", "7")
    broken = tmp_path / "broken.toml"
    broken.write_text("replicas = = 3")
    assert "broken.toml" in run.fail(2, "chain", "plan", str(broken))
    broken.write_text("replcas = 3")
    assert "'replcas' is not known" in run.fail(2, "chain", "plan", str(broken))


def test_the_running_cluster(cluster: LocalCluster) -> None:
    run = Command(cluster.environment)
    found = run("chain", "plan", "--json").json
    status = run("status", "--json").json
    assert found["moves"] == [] and len(found["chains"]) == sum(chain["for"] == "files" for chain in status["chains"])
    assert "need as many failure domains" in run.fail(1, "chain", "plan", "--replicas", "3", "--fresh")


def test_a_description_is_read_as_its_docstring_says() -> None:
    document = {
        "replicas": 2,
        "domain": "rack",
        "node": [
            {"name": "a", "rack": "x", "disks": 2, "capacity": "15T", "standing": "draining"},
            {"name": "b", "rack": "y", "disk": [{"name": "b/nvme0", "capacity": "7.5T", "seats_max": 4}]},
            {"rack": "z", "capacity": 4096},
        ],
        "chain": [{"id": 1, "members": ["a/1", "b/nvme0"], "size": "800G"}],
    }
    request, chains = read_description(document)
    assert [(d.name, d.node, d.rack, d.standing) for d in request.disks] == [
        ("a/1", "a", "x", Standing.DRAINING),
        ("a/2", "a", "x", Standing.DRAINING),
        ("b/nvme0", "b", "y", Standing.IN),
        ("n3/1", "n3", "z", Standing.IN),
    ]
    assert request.domain is Domain.RACK and request.disks[2].seats_max == 4 and request.disks[3].capacity == 4096
    assert chains == [Chain(("a/1", "b/nvme0"), 1, 800 << 30)]


@pytest.mark.parametrize("text", ["", "many", "-1", "1.5.2", "3 X"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        size_of(text)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"node": ["n1"]}, "expected a table"),
        ({"node": [{"disks": -1}]}, "whole number"),
        ({"node": [{"colour": "red"}]}, "'colour' is not known"),
        ({"node": [{"standing": "lost", "capacity": 1}]}, "one of in, draining, gone"),
        ({"replicas": "3"}, "whole number"),
        ({"node": 5}, "expected a list"),
        ({"node": [{"disk": 5}]}, "expected a list"),
        ({"replicas": 1, "node": [{"capacity": 1}], "chain": [{"members": "n1/1"}]}, "expected a list"),
    ],
)
def test_descriptions_that_are_wrong(document: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_description(document)
