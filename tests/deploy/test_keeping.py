"""The trash and quotas as users see them, on a real cluster."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

import emberfs
from emberfs.deploy.local import LocalCluster

from ..proto.pieces import eventually
from .command import Command


def test_trash(make_cluster: Callable[..., LocalCluster]) -> None:
    cluster = make_cluster(trash=None)
    run = Command(cluster.environment)
    content = os.urandom(2_500_000)
    run("mkdir", "-p", "/d/e")
    run("put", "-", "/d/e/f", data=content)
    run("rm", "/d/e/f")
    [row] = run("trash", "list", "--json").json
    assert (row["path"], row["size"]) == ("/d/e/f", len(content))
    assert "/d/e/f" in run("trash", "list").text
    run("trash", "restore", row["id"])
    assert run("cat", "/d/e/f").out == content
    run("rm", "-r", "/d")
    [row] = run("trash", "list", "--json").json
    run("trash", "restore", row["id"], "/back")
    assert run("cat", "/back/e/f").out == content
    run("rm", "/back/e/f")
    run("put", "-", "/back/e/f", data=b"newer")
    assert len(run("trash", "list", "--json").json) == 1
    run("trash", "purge", "--all")
    assert run("trash", "list", "--json").json == []
    run("trash", "keep", "/back", "off")
    run("mkdir", "/back/new")
    run("put", "-", "/back/new/f", data=b"x")
    run("rm", "/back/new/f")
    run("rm", "-r", "--forever", "/back/e")
    run.fail(2, "trash", "purge")
    run.fail(2, "trash", "keep", "/back", "soon")
    run.fail(1, "trash", "restore", "nonsense")


def test_quotas(make_cluster: Callable[..., LocalCluster]) -> None:
    cluster = make_cluster()
    run = Command(cluster.environment)
    run("mkdir", "/d")
    run("put", "-", "/d/before", data=bytes(1000))
    run("quota", "set", "--path", "/d", "--size", "2M", "--inodes", "4")
    run("quota", "set", "--user", "0", "--size", "1G")
    with emberfs.connect(cluster.url) as client:
        assert eventually(
            lambda: not any(quota.counting for quota in client.quotas())
        )  # what was there before counts, too
        with client.open("/d/f", "wb", buffering=0) as file:
            file.write(bytes(1 << 20))
            with pytest.raises(OSError) as refused:
                file.write(bytes(1 << 20))
            assert refused.value.errno == errno.EDQUOT
            file.seek(0)
            file.write(bytes(1 << 20))  # no growth
        with client.open("/d/g", "wb") as file:
            file.write(bytes(900_000))
        with pytest.raises(OSError) as full:
            client.mkdir("/d/one-too-many")
        assert full.value.errno == errno.EDQUOT
        client.unlink("/d/g")
        client.mkdir("/d/now")
        used = {quota.path or quota.kind: (quota.bytes_used, quota.inodes_used) for quota in client.quotas()}
        assert used["/d"] == ((1 << 20) + 1000, 4)
        assert used["user"] == ((1 << 20) + 1000, 5)
    shown = run("quota", "list").text
    assert "/d" in shown and "user root" in shown
    run("quota", "remove", "--path", "/d")
    run.fail(2, "quota", "set", "--size", "1G")
    assert run("fsck").lines == ["no problems"]
