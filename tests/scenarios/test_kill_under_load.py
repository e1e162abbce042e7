"""kill -9 of the servers at random moments under load: every acknowledged byte and name is there afterwards."""

import hashlib
import json
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
from emberfs_workers import acknowledge_operations

import emberfs

WORKERS = 3


def expected(journal):
    """From a worker's journal: the digest of every file that must be there, and what the last, unfinished operation may have done."""
    files, last = {}, None
    for line in journal.read_text().splitlines():
        last = json.loads(line)
        if last["state"] == "done":
            files.pop(last["name"], None)
            if last["sha256"]:
                files[last.get("to", last["name"])] = last["sha256"]
    return files, last if last and last["state"] == "try" else None


def run_under_fire(cluster, tmp_path, kills, seed):
    draw = random.Random(seed)
    with emberfs.connect(cluster.url) as client:
        client.mkdir("/load")
    stop = tmp_path / "stop"
    journals = [tmp_path / f"journal-{i}" for i in range(WORKERS)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        running = [
            pool.submit(acknowledge_operations, cluster.url, "/load", seed * 100 + i, str(journals[i]), str(stop))
            for i in range(WORKERS)
        ]
        try:
            for _ in range(kills):
                # The moment is the point here: it is drawn, not waited for.
                time.sleep(draw.uniform(0.3, 1.5))
                cluster.kill(draw.choice(["meta", "storage-1", None]))
                cluster.start()
        finally:
            stop.touch()
        return [future.result() for future in running], journals


def check(cluster, journals):
    wanted = {}
    uncertain = set()
    for journal in journals:
        files, unfinished = expected(journal)
        wanted |= files
        if unfinished:
            uncertain |= {unfinished["name"], unfinished.get("to")}
    with emberfs.connect(cluster.url) as client:
        found = {f"/load/{name}" for name in client.listdir("/load")}
        assert found - uncertain == set(wanted) - uncertain
        for name in set(wanted) - uncertain:
            assert hashlib.sha256(client.read_bytes(name)).hexdigest() == wanted[name], name


def test_servers_killed_at_random_moments_lose_nothing_acknowledged(fresh_cluster, tmp_path):
    counts, journals = run_under_fire(fresh_cluster, tmp_path, kills=5, seed=random.randrange(1 << 30))
    assert sum(counts) > 50
    check(fresh_cluster, journals)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
def test_many_kills(fresh_cluster, tmp_path, seed):
    counts, journals = run_under_fire(fresh_cluster, tmp_path, kills=60, seed=seed)
    assert sum(counts) > 500
    check(fresh_cluster, journals)
