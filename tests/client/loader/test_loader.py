"""Epochs over bytes: in order, prefetched, resumed; memory that comes back, and memory that runs out."""

from __future__ import annotations

import gc
import json
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberfs.client.loader import Loader, Samples, Share, open_samples, open_store
from emberfs.client.loader.record_writer import ShardedWriter
from emberfs.client.loader.store import ClusterStore, DirectoryStore, Store

from ..world import World

COUNT = 300


def payload(number: int) -> bytes:
    return number.to_bytes(4, "little") * (1 + number % 50)


def fill(store: Store, count: int = COUNT) -> Samples:
    with ShardedWriter(store, shard_bytes=10_000) as writer:
        writer.write_all(map(payload, range(count)))
    return open_samples(store)


def checked(batches: Any) -> list[list[int]]:
    found = []
    for batch in batches:
        assert [bytes(sample) for sample in batch] == [payload(number) for number in batch.numbers.tolist()]
        found.append(batch.numbers.tolist())
    return found


def test_an_epoch_has_every_sample_once_and_the_next_one_another_order(store: Store) -> None:
    loader = Loader(fill(store), 32, seed=1)
    first, second = checked(loader), checked(loader)
    assert len(first) == 10 == len(loader)
    for epoch in (first, second):
        assert sorted(number for batch in epoch for number in batch) == list(range(COUNT))
    assert first != second
    loader.set_epoch(0)
    assert checked(loader) == first


@pytest.mark.parametrize("memory", [0, 1 << 20])
@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_what_is_asked_for_ahead_changes_nothing(tmp_path: Path, memory: int, prefetch: int) -> None:
    store = open_store(tmp_path)
    expected = checked(Loader(fill(store), 17, seed=4))
    samples = open_samples(store, memory=memory)
    assert samples.index.slow == (memory == 0)
    assert checked(Loader(samples, 17, seed=4, prefetch=prefetch)) == expected


def test_a_state_goes_on_behind_the_last_batch_that_was_given_out(store: Store) -> None:
    samples = fill(store)
    whole = checked(Loader(samples, 16, seed=2))
    for taken in range(len(whole) + 1):
        loader = Loader(samples, 16, seed=2, prefetch=3)
        batches = iter(loader)
        begun = [next(batches).numbers.tolist() for _ in range(taken)]
        state = json.loads(json.dumps(loader.state_dict()))
        other = Loader(pickle.loads(pickle.dumps(samples)) if isinstance(store, DirectoryStore) else samples, 16)
        other.load_state_dict(state)
        assert begun + checked(other) == whole
        assert other.epoch == 1


def test_breaking_off_and_iterating_again_goes_on(tmp_path: Path) -> None:
    loader = Loader(fill(open_store(tmp_path)), 16, seed=2)
    seen = [next(iter(loader)).numbers.tolist() for _ in range(3)]
    old = iter(loader)
    seen.append(next(old).numbers.tolist())
    seen += checked(loader)
    assert Counter(number for batch in seen for number in batch) == Counter(range(COUNT))
    with pytest.raises(RuntimeError, match="another iteration"):
        next(old)


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.integers(1, 4),
    workers=st.integers(1, 3),
    batch=st.integers(1, 70),
    cuts=st.lists(st.integers(0, 6), max_size=3),
)
def test_bytes_exactly_once_over_ranks_workers_and_resumes(
    ranks: int, workers: int, batch: int, cuts: list[int]
) -> None:
    samples = memoized()
    seen: Counter[int] = Counter()
    for rank in range(ranks):
        for worker in range(workers):
            share, state = Share(rank, ranks, worker, workers), None
            for cut in [*cuts, 1 << 30]:
                loader = Loader(samples, batch, seed=7, share=share)
                if state is not None:
                    loader.load_state_dict(state)
                for taken, found in enumerate(iter(loader)):
                    seen.update(checked([found])[0])
                    if taken == cut:
                        break
                if loader.epoch:
                    break
                state = loader.state_dict()
    assert seen == Counter(range(COUNT))


_MADE: list[Samples] = []


def memoized() -> Samples:
    import tempfile

    if not _MADE:
        _MADE.append(fill(open_store(tempfile.mkdtemp(prefix="emberfs-"))))
    return _MADE[0]


def test_memory_comes_back_when_the_last_view_is_gone(world: World) -> None:
    client = world.client()
    store = ClusterStore("ember:///data", client=client)
    samples = fill(store)
    pool = client.core.env.pool
    batch = samples.read(range(100))
    view, tensor = batch[3], memoryview(batch[5])
    held = pool.used
    assert held
    del batch
    gc.collect()
    samples.read([0])
    assert pool.used >= held  # two views are left
    del view, tensor
    store._pieces.give_back()
    store.close()
    assert pool.used == 0


def test_batches_that_are_kept_cost_a_copy_and_not_the_epoch(world: World) -> None:
    client = world.client(memory=16 << 20)
    store = ClusterStore("ember:///data", client=client)
    block = os.urandom(1 << 20)
    with ShardedWriter(store) as writer:
        writer.write_all(number.to_bytes(4, "little") + block for number in range(40))
    kept = list(Loader(open_samples(store), 4, seed=1))  # 40 MiB of a pool of 16
    for batch in kept:
        assert [bytes(sample) for sample in batch] == [n.to_bytes(4, "little") + block for n in batch.numbers.tolist()]
    large = open_samples(store).read(range(40))  # more than the pool will ever hold
    assert np.array_equal(large[39][4:], np.frombuffer(block, "u1"))


def test_more_files_than_may_be_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from emberfs.client.loader import store as module

    monkeypatch.setattr(module, "FILES_OPEN_MAX", 3)
    samples = fill(store)
    assert len(samples.index.paths) > 3
    assert len(checked(Loader(samples, 50))) == 6
    assert len(checked(Loader(samples, 2))) == COUNT // 2


def test_threads_read_at_once_though_few_files_may_be_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from emberfs.client.loader import store as module

    monkeypatch.setattr(module, "FILES_OPEN_MAX", 1)
    samples = fill(store)
    choose = random.Random(1)
    wanted = [[choose.randrange(COUNT) for _ in range(20)] for _ in range(80)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(samples.read, wanted))
    for numbers, batch in zip(wanted, found, strict=True):
        assert batch.numbers.tolist() == numbers
        checked([batch])


def test_a_parent_and_its_children_read_at_once(world: World) -> None:
    samples = fill(ClusterStore("ember:///data", client=world.client()))
    loader = Loader(samples, 32, seed=1)
    batches = iter(loader)
    first = next(batches)
    child = os.fork()
    if child == 0:
        try:
            checked([first])
            assert len(samples.index) == COUNT
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    checked([first, *batches])


def test_nothing_here_needs_torch(tmp_path: Path) -> None:
    fill(open_store(tmp_path))
    program = (
        "import pickle, sys; sys.modules['torch'] = None\n"
        "from emberfs.client.loader import Loader, open_samples\n"
        "batches = [pickle.loads(pickle.dumps(batch)) for batch in Loader(open_samples(sys.argv[1]), 32, seed=1)]\n"
        "print(sorted(number for batch in batches for number in batch.numbers.tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(list(range(COUNT)))
