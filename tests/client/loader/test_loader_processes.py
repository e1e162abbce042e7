"""An epoch over real servers, while a reader, a storage process and the metadata server are killed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import emberfs_workers
import pytest

from emberfs.client.loader import Loader, open_samples, open_store
from emberfs.client.loader.record_writer import ShardedWriter

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

COUNT = 2000
BATCH = 64
SECONDS_MAX = 120.0
BLOCK = random.Random(1).randbytes(40_000)


def payload(number: int) -> bytes:
    return number.to_bytes(4, "little") + BLOCK[: 1 + number * 7919 % len(BLOCK)]


def fill(url: str) -> None:
    store = open_store(url)
    with ShardedWriter(store, shard_bytes=8 << 20) as writer:
        writer.write_all(map(payload, range(COUNT)))
    store.close()


def data_url(cluster: LocalCluster) -> str:
    return cluster.url.rstrip("/") + "/data"


def test_a_reader_that_is_killed_goes_on_where_it_was(cluster: LocalCluster, tmp_path: Path) -> None:
    url, journal = cluster.url.rstrip("/") + "/loader-killed", tmp_path / "journal"
    fill(url)
    spawn = multiprocessing.get_context("spawn")
    for batches in (3, 0, 7, 1 << 30):
        before = len(lines(journal))
        reader = spawn.Process(target=emberfs_workers.read_epoch, args=(url, str(journal), batches, BATCH))
        reader.start()
        if batches < 1 << 30:
            wait_until(lambda before=before, batches=batches: len(lines(journal)) >= before + batches)
            os.kill(reader.pid or 0, signal.SIGKILL)
        reader.join(SECONDS_MAX)
        assert reader.exitcode == (0 if batches == 1 << 30 else -signal.SIGKILL)
    seen: Counter[int] = Counter()
    for line in lines(journal):
        seen.update(line["numbers"])
        assert line["digest"] == hashlib.sha256(b"".join(map(payload, line["numbers"]))).hexdigest()
    assert seen == Counter(range(COUNT))


def test_a_writer_that_is_killed_leaves_what_it_committed(cluster: LocalCluster, tmp_path: Path) -> None:
    url, journal = cluster.url.rstrip("/") + "/loader-writer", tmp_path / "journal"
    cluster_store = open_store(url)
    cluster_store.client.mkdir("/loader-writer")  # type: ignore[attr-defined]
    spawn = multiprocessing.get_context("spawn")
    size, count = 40_000, 1000
    for kill_behind in (1, 2, 5, 1 << 30):
        before = len(commits(journal))
        writer = spawn.Process(target=emberfs_workers.write_records, args=(url, str(journal), size, count))
        writer.start()
        if kill_behind < 1 << 30:
            wait_until(lambda before=before, more=kill_behind: len(commits(journal)) >= before + more)
            os.kill(writer.pid or 0, signal.SIGKILL)  # somewhere in the commits that follow
        writer.join(SECONDS_MAX)
        assert not writer.is_alive()
        samples = open_samples(url, verify=True)
        assert len(samples) >= commits(journal)[-1]
        for begin in range(0, len(samples), 100):
            batch = samples.read(range(begin, min(begin + 100, len(samples))))
            assert all(
                bytes(one) == n.to_bytes(4, "little") * (size // 4) for one, n in zip(batch, batch.numbers.tolist())
            )
        samples.close()
        if len(samples) == count:
            break
    assert len(samples) == count
    cluster_store.close()


def commits(journal: Path) -> list[int]:
    """Samples in the shard behind each commit that its writer knew of."""
    if not journal.exists():
        return []
    return [int(line) for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")]


def lines(journal: Path) -> list[Any]:
    if not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")]


def wait_until(done: Any) -> None:
    end = time.monotonic() + SECONDS_MAX
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_servers_that_are_killed_cost_no_sample(fresh_cluster: LocalCluster) -> None:
    fill(data_url(fresh_cluster))
    samples = open_samples(data_url(fresh_cluster), options={"timeout": SECONDS_MAX}, memory=0)
    victims = {3: "storage", 11: "meta", 19: "storage"}
    seen: Counter[int] = Counter()
    for done, batch in enumerate(Loader(samples, BATCH, seed=2)):
        numbers = batch.numbers.tolist()
        assert [bytes(sample) for sample in batch] == list(map(payload, numbers))
        seen.update(numbers)
        if done in victims:
            victim = next(name for name in fresh_cluster.roles if name.startswith(victims[done]))
            fresh_cluster.kill(victim)  # with two batches on their way
            fresh_cluster.restart(victim)
    assert seen == Counter(range(COUNT))
    samples.close()


@pytest.mark.soak
def test_a_replica_that_is_killed_or_stopped_is_not_waited_for(make_cluster: Any) -> None:
    cluster = make_cluster(nodes=3, replicas=3, targets=1, kv_capacity=0)
    fill(data_url(cluster))
    samples = open_samples(data_url(cluster), options={"timeout": SECONDS_MAX})
    nodes = [name for name in cluster.roles if name.startswith("storage")]
    seen: Counter[int] = Counter()
    stopped = 0
    try:
        for done, batch in enumerate(Loader(samples, BATCH, seed=2)):
            numbers = batch.numbers.tolist()
            assert [bytes(sample) for sample in batch] == list(map(payload, numbers))
            seen.update(numbers)
            if done == 3:
                cluster.kill(nodes[0])
            if done == 8:
                stopped = cluster.servers[nodes[1]].pid() or 0
                os.kill(stopped, signal.SIGSTOP)
    finally:
        if stopped:
            os.kill(stopped, signal.SIGCONT)
    assert seen == Counter(range(COUNT))
    samples.close()
