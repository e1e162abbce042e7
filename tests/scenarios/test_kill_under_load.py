"""kill -9 of the servers at random moments under load: every acknowledged byte and name is there afterwards."""

import contextlib
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
DONE_MIN = 10  # operations for each kill
PATIENCE = 250.0  # seconds; restarts of servers take their time on a loaded machine


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
    with emberfs.connect(cluster.url, timeout=PATIENCE) as client:
        client.mkdir("/load")
        with nameless(client, draw) as still_there:
            outcome = under_fire(cluster, tmp_path, kills, draw, seed)
            still_there()
    return outcome


@contextlib.contextmanager
def nameless(client, draw):
    """A file that is open for reading and has no name any more: however often servers are killed, nothing frees it."""
    content = draw.randbytes(3_000_000)
    client.write_bytes("/nameless", content)
    with client.open("/nameless", "rb") as file:
        client.unlink("/nameless")

        def still_there():
            assert hashlib.sha256(file.pread(len(content), 0)).hexdigest() == hashlib.sha256(content).hexdigest()

        yield still_there


def under_fire(cluster, tmp_path, kills, draw, seed):
    stop = tmp_path / "stop"
    journals = [tmp_path / f"journal-{i}" for i in range(WORKERS)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        running = [
            pool.submit(
                acknowledge_operations, cluster.url, "/load", seed * 100 + i, str(journals[i]), str(stop), PATIENCE
            )
            for i in range(WORKERS)
        ]
        try:
            for _ in range(kills):
                # The moment is the point here: it is drawn, not waited for.
                time.sleep(draw.uniform(0.3, 1.5))
                cluster.kill(draw.choice(["meta", "storage-1", None]))
                cluster.start()
            while done(journals) < DONE_MIN * kills and not any(future.done() for future in running):
                time.sleep(0.05)
        finally:
            stop.touch()
        return [future.result() for future in running], journals


def done(journals):
    """How many operations were acknowledged so far."""
    return sum(journal.read_text().count('"done"') for journal in journals if journal.exists())


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


def test_an_unlinked_file_outlives_kills_until_its_reader_closes_it(monkeypatch, request):
    """Neither is it freed too early, because somebody forgot its reader, nor never, because somebody began to wait anew."""
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.25")  # a renewal every 2.5 s
    cluster = request.getfixturevalue("fresh_cluster")
    draw = random.Random(7)
    with emberfs.connect(cluster.url, timeout=PATIENCE) as client:
        with nameless(client, draw) as still_there:
            client.write_bytes("/other", b"")
            client.unlink("/other")
            until(cluster, draw, lambda: client.status().gc_pending <= 1)  # what nobody holds goes, kills or not
            for _ in range(3):
                kill(cluster, draw)
            still_there()
        until(cluster, draw, lambda: not client.status().gc_pending)


def until(cluster, draw, is_so, kills_max=60):
    """Kill and restart until it is so."""
    for _ in range(kills_max):
        if is_so():
            return
        kill(cluster, draw)
    raise AssertionError(f"not after {kills_max} restarts")


def kill(cluster, draw):
    # The moment is the point here: it is drawn, not waited for.
    time.sleep(draw.uniform(0.3, 0.8))
    cluster.kill("meta")
    cluster.start()


@pytest.mark.timeout(600)
def test_servers_killed_at_random_moments_lose_nothing_acknowledged(fresh_cluster, tmp_path):
    counts, journals = run_under_fire(fresh_cluster, tmp_path, kills=5, seed=random.randrange(1 << 30))
    assert sum(counts) >= 5 * DONE_MIN
    check(fresh_cluster, journals)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
def test_many_kills(fresh_cluster, tmp_path, seed):
    counts, journals = run_under_fire(fresh_cluster, tmp_path, kills=60, seed=seed)
    assert sum(counts) >= 60 * DONE_MIN
    check(fresh_cluster, journals)
