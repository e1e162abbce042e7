"""Memory of the caller's that servers fill themselves: the same bytes as with a copy, whatever happens to the servers, and never a late
one."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import pytest

import emberfs
from emberfs.proto.errors import Status, StatusError

from .test_processes import in_child

MIB = 1 << 20
SIZES = (9 * MIB + 17, 100, 2 * MIB)  # the second lies beside its inode


@pytest.fixture
def contents(cluster: Any) -> tuple[str, list[bytes]]:
    """Files of a cluster, and what is in them."""
    folder = f"/shared-{random.randrange(1 << 60):x}"
    data = [random.Random(number).randbytes(size) for number, size in enumerate(SIZES)]
    with emberfs.connect(cluster.url) as client:
        client.mkdir(folder)
        for number, content in enumerate(data):
            client.write_bytes(f"{folder}/{number}", content)
    return folder, data


def wanted_of(files: list[Any], data: list[bytes]) -> tuple[list[tuple[Any, int, int]], bytes]:
    """Ranges that run over the ends of chunks and of requests, short ones and whole files."""
    choose = random.Random(7)
    ranges = [(number, 0, len(content)) for number, content in enumerate(data)]
    for _ in range(20):
        number = choose.randrange(len(data))
        offset = choose.randrange(len(data[number]))
        ranges.append((number, offset, min(choose.choice((0, 1, 4096, 300_000)), len(data[number]) - offset)))
    expected = b"".join(data[number][offset : offset + length] for number, offset, length in ranges)
    return [(files[number], offset, length) for number, offset, length in ranges], expected


def test_it_holds_what_was_read(cluster: Any, contents: tuple[str, list[bytes]]) -> None:
    folder, data = contents
    with emberfs.connect(cluster.url) as client:
        files = [client.open(f"{folder}/{number}") for number in range(len(data))]
        wanted, expected = wanted_of(files, data)
        used = client.core.env.pool.used  # type: ignore[attr-defined]
        with client.shared_memory(len(expected) + 1000) as memory:
            views = client.read_many(wanted, memory.view[77:])
            assert b"".join(views) == expected == memory.view[77 : 77 + len(expected)]
            assert not any(memory.view[:77]) and not any(memory.view[77 + len(expected) :])
            assert client.core.env.pool.used == used  # type: ignore[attr-defined]
            with pytest.raises(StatusError, match="must be writable and hold"):
                client.read_many(wanted, memory.view[1001:])
        memory.view[:] = bytes(len(memory))
        assert b"".join(client.read_many(wanted, memory.view)) == expected, "closed, it is memory as any other"
    assert memory.view[: len(expected)] == expected, "the mapping lives as long as its views"


def test_a_forked_child_takes_it_for_any_memory(cluster: Any, contents: tuple[str, list[bytes]]) -> None:
    folder, data = contents
    with emberfs.connect(cluster.url) as client, client.shared_memory(len(data[0])) as memory:

        def work() -> None:
            with client.open(f"{folder}/0") as file:
                client.read_many([(file, 0, len(data[0]))], memory.view)

        assert client.core.shared.find(memory.view[5:9]) is not None
        assert in_child(work) == 0
        assert memory.view == data[0]


def test_a_killed_server_costs_no_byte(fresh_cluster: Any) -> None:
    data = random.Random(1).randbytes(20 * MIB)
    with emberfs.connect(fresh_cluster.url) as client, client.shared_memory(len(data)) as memory:
        client.write_bytes("/f", data)
        with client.open("/f") as file:
            client.read_many([(file, 0, len(data))], memory.view)
            for _ in range(2):
                memory.view[:] = bytes(len(data))
                fresh_cluster.kill("storage-1")
                fresh_cluster.start()
                client.read_many([(file, 0, len(data))], memory.view)
                assert memory.view == data and not memory.dead


def test_a_server_that_does_not_answer_leaves_it_dead(fresh_cluster: Any) -> None:
    """It may write there when it goes on, whoever has the memory then."""
    data = random.Random(1).randbytes(3 * MIB)
    with emberfs.connect(fresh_cluster.url) as client, client.shared_memory(len(data)) as memory:
        client.write_bytes("/f", data)
        with client.open("/f") as file:
            client.read_many([(file, 0, len(data))], memory.view)
            client.core.cluster.operation_seconds = client.core.cluster.attempt_seconds = 0.5
            pid = fresh_cluster.servers["storage-1"].pid()
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises((StatusError, TimeoutError)):
                    client.read_many([(file, 0, len(data))], memory.view)
                assert memory.dead
                with pytest.raises(StatusError) as refused:
                    client.read_many([(file, 0, len(data))], memory.view)
                assert refused.value.status is Status.REGION_DEAD
            finally:
                os.kill(pid, signal.SIGCONT)
            with client.shared_memory(len(data)) as another, emberfs.connect(fresh_cluster.url) as patient:
                with patient.open("/f") as again:
                    assert b"".join(patient.read_many([(again, 0, len(data))])) == data
                assert not another.dead


def test_what_it_refuses(cluster: Any) -> None:
    with emberfs.connect(cluster.url) as client:
        with pytest.raises(StatusError, match="no memory"):
            client.shared_memory(0)
        memory = client.shared_memory(10)
        memory.close()
        memory.close()
        assert client.core.shared.find(memory.view) is None
