"""Clones while servers and clients are killed: three storage processes, one chain."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

import emberfs

from ..storage.replicas import Watcher, assert_replicas_equal

CHUNK = 64 << 10
FILES = 12


@pytest.mark.timeout(400)
def test_every_member_is_killed_while_files_are_cloned(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster(nodes=3, replicas=3, targets=1, kv_capacity=0)
    watcher = Watcher(cluster)
    data = random.Random(1).randbytes(40 * CHUNK + 5)
    failures: list[BaseException] = []

    def clone() -> None:
        try:
            with emberfs.connect(cluster.url, timeout=60) as client:
                for n in range(1, FILES):
                    client.clone(f"/{n - 1}", f"/{n}")
                    with client.open(f"/{n - 1}", "r+b") as file:
                        file.write(b"changed since")
        except BaseException as failure:
            failures.append(failure)

    with emberfs.connect(cluster.url, timeout=60) as client:
        with client.open("/0", "wb", chunk_size=CHUNK) as file:
            file.write(data)
        worker = threading.Thread(target=clone)
        worker.start()
        for _ in range(2):
            cluster.kill(watcher.role_of(watcher.chain.members[0].target))
            watcher.serving(2)
            cluster.start()
            watcher.serving(3)
        worker.join()
        assert not failures
        for n in range(FILES):
            head = b"changed since" if n < FILES - 1 else b""
            assert client.read_bytes(f"/{n}") == head + data[len(head) :]
    watcher.close()
    assert assert_replicas_equal(cluster) == FILES * 41


@pytest.mark.timeout(400)
def test_a_client_that_is_killed_leaves_the_source_and_the_old_target(cluster: Any) -> None:
    data = os.urandom(CHUNK) * 600
    name = f"/killed-{random.randrange(1 << 60):x}"
    with emberfs.connect(cluster.url) as client:
        client.mkdir(name)
        with client.open(f"{name}/a", "wb", chunk_size=CHUNK) as file:
            file.write(data)
        client.write_bytes(f"{name}/b", b"old")
        begun, done = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                with emberfs.connect(cluster.url) as other:
                    while True:
                        os.write(done, b".")
                        other.clone(f"{name}/a", f"{name}/b")
                        other.write_bytes(f"{name}/b", b"old")
            finally:
                os._exit(1)
        assert os.read(begun, 1) == b"."
        threading.Event().wait(0.05)  # somewhere in it
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert client.read_bytes(f"{name}/a") == data
        assert client.read_bytes(f"{name}/b") in (b"old", b"", data)
        client.clone(f"{name}/a", f"{name}/b")
        assert client.read_bytes(f"{name}/b") == data
        client.remove_tree(name)
