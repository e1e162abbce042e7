"""torch's DataLoader and torchdata's StatefulDataLoader over our data sets: without workers, with forked ones, with spawned ones."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not here: ./deploy/test --training")

import torch
from torch.utils.data import DataLoader

from emberfs.client.loader import Samples, Share, open_samples, open_store
from emberfs.client.loader.pytorch import EpochBatches, EpochSampler, SampleMap, as_is
from emberfs.client.loader.record_writer import ShardedWriter

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

pytestmark = pytest.mark.training

COUNT = 500
SIZE = 64


def payload(number: int) -> bytes:
    return np.full(SIZE // 8, number, "<i8").tobytes()


def fill(where: str) -> Samples:
    store = open_store(where)
    with ShardedWriter(store, shard_bytes=20_000) as writer:
        writer.write_all(map(payload, range(COUNT)))
    return open_samples(store)


@pytest.fixture(params=["directory", "cluster"])
def samples(request: pytest.FixtureRequest, tmp_path: Path) -> Samples:
    if request.param == "directory":
        return fill(str(tmp_path))
    cluster: LocalCluster = request.getfixturevalue("cluster")
    return fill(cluster.url.rstrip("/") + f"/torch/{tmp_path.name}")


def numbers_of(batches: Any) -> list[list[int]]:
    found = []
    for batch in batches:
        tensor = batch.tensor(torch.int64)
        assert tensor.shape == (len(batch), SIZE // 8)
        assert (tensor == torch.from_numpy(batch.numbers)[:, None]).all()
        found.append(batch.numbers.tolist())
    return found


def stateful_loader() -> Any:
    reason = "torchdata is not here: ./deploy/test --training"
    return pytest.importorskip("torchdata.stateful_dataloader", reason=reason).StatefulDataLoader


HOWS = [{"num_workers": 0}, {"num_workers": 2, "multiprocessing_context": "fork"}]


@pytest.mark.parametrize("how", HOWS, ids=["alone", "fork"])
def test_an_epoch_is_the_same_whoever_reads_it(samples: Samples, how: dict[str, Any]) -> None:
    batches = EpochBatches(samples, 32, seed=1)
    expected = numbers_of(batches)
    batches.set_epoch(0)
    loader = DataLoader(batches, batch_size=None, **how)
    assert len(loader) == 16
    assert numbers_of(loader) == expected
    assert Counter(number for batch in expected for number in batch) == Counter(range(COUNT))
    batches.set_epoch(1)
    again = numbers_of(loader)
    assert again != expected and sorted(chain.from_iterable(again)) == list(range(COUNT))


@pytest.mark.timeout(600)  # a spawned worker imports torch, which takes a minute where much else goes on
def test_spawned_workers_read_and_go_on(cluster: LocalCluster) -> None:
    stateful = stateful_loader()
    batches = EpochBatches(fill(cluster.url.rstrip("/") + "/torch/spawned"), 32, seed=1)
    expected = numbers_of(batches)
    batches.set_epoch(0)
    loader = stateful(batches, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    found = iter(loader)
    begun = numbers_of(next(found) for _ in range(3))
    state = loader.state_dict()
    assert begun + numbers_of(found) == expected
    loader.load_state_dict(state)
    assert begun + numbers_of(loader) == expected


def test_persistent_workers_go_on_by_themselves(samples: Samples) -> None:
    loader = DataLoader(EpochBatches(samples, 32, seed=1), batch_size=None, num_workers=2, persistent_workers=True)
    first, second = numbers_of(loader), numbers_of(loader)
    assert first != second and sorted(chain.from_iterable(second)) == list(range(COUNT))


def test_map_style_reads_a_batch_at_once(samples: Samples) -> None:
    data = SampleMap(samples)
    assert len(data) == COUNT and bytes(data[7]) == payload(7)
    loader = DataLoader(data, batch_sampler=EpochSampler(COUNT, 64, seed=1), collate_fn=as_is, num_workers=2)
    assert numbers_of(loader) == numbers_of(EpochBatches(samples, 64, seed=1))
    usual = DataLoader(data, batch_size=50, shuffle=True)  # torch's own collation stacks, which copies
    assert [batch.shape for batch in usual] == [(50, SIZE)] * 10


def test_decoded_samples_are_what_comes(samples: Samples) -> None:
    decoded = open_samples(samples.store, decode=lambda sample: int(sample.view("<i8")[0]))
    batches = list(DataLoader(EpochBatches(decoded, 100, shuffle=False), batch_size=None, num_workers=1))
    assert batches == [list(range(i, i + 100)) for i in range(0, COUNT, 100)]


def test_ranks_share_an_epoch(samples: Samples) -> None:
    seen: Counter[int] = Counter()
    for rank in range(3):
        batches = EpochBatches(samples, 32, seed=1, rank=rank, ranks=3)
        assert len(batches) == 6
        for batch in numbers_of(DataLoader(batches, batch_size=None, num_workers=2)):
            seen.update(batch)
    assert seen == Counter(range(COUNT))


def test_a_tensor_keeps_its_memory(samples: Samples) -> None:
    batch = samples.read(range(100))
    tensor, parts = batch.tensor(torch.int64), batch.tensors()
    del batch
    for _ in range(20):
        samples.read(range(100, 200))
    assert tensor[:, 0].tolist() == list(range(100))
    assert parts[7].numpy().tobytes() == payload(7)


@pytest.mark.parametrize("how", HOWS, ids=["alone", "fork"])
@pytest.mark.parametrize("taken", [0, 7, 16])
def test_stateful_loaders_go_on_where_they_were(samples: Samples, how: dict[str, Any], taken: int) -> None:
    stateful = stateful_loader()
    expected = numbers_of(EpochBatches(samples, 32, seed=1))
    loader = stateful(EpochBatches(samples, 32, seed=1), batch_size=None, **how)
    batches = iter(loader)
    begun = numbers_of(next(batches) for _ in range(taken))
    state = loader.state_dict()
    other = stateful(EpochBatches(samples, 32, seed=1), batch_size=None, **how)
    other.load_state_dict(state)
    assert begun + numbers_of(other) == expected


@pytest.mark.timeout(600)
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_worker_that_is_killed_is_told_and_costs_no_sample(cluster: LocalCluster, context: str) -> None:
    stateful = stateful_loader()
    samples = fill(cluster.url.rstrip("/") + f"/torch/killed-{context}")

    def make() -> Any:
        batches = EpochBatches(samples, 8, seed=1)
        return stateful(batches, batch_size=None, num_workers=2, multiprocessing_context=context)

    done = killed_at(10, make())
    assert 10 <= len(done) < 63  # what had come before the worker died is still given out, if anything
    seen, state = [numbers for numbers, _ in done], done[-1][1]
    other = make()
    other.load_state_dict(state)
    seen += numbers_of(other)
    assert Counter(chain.from_iterable(seen)) == Counter(range(COUNT))
    assert seen == numbers_of(EpochBatches(samples, 8, seed=1))  # in the same order, too


def killed_at(count: int, loader: Any) -> list[tuple[list[int], Any]]:
    """Read until a worker that is killed behind so many batches is missed: each batch, and the state behind it."""
    done: list[tuple[list[int], Any]] = []  # torch tells at any moment: one step for a batch and its state
    batches = iter(loader)
    try:
        while True:
            done.append((numbers_of([next(batches)])[0], loader.state_dict()))
            if len(done) == count:
                os.kill(batches._workers[0].pid, signal.SIGKILL)
    except (RuntimeError, OSError, EOFError):
        pass  # that a worker was killed, or that what it had sent cannot be fetched from it any more
    for rest in (batches._workers[0].join, batches._shutdown_workers):
        with suppress(RuntimeError):  # or the news comes now
            rest()
    return done


def test_a_stateful_loader_over_a_map_goes_on(samples: Samples) -> None:
    stateful = stateful_loader()

    def make() -> Any:
        return stateful(
            SampleMap(samples), batch_sampler=EpochSampler(COUNT, 32, seed=1), collate_fn=as_is, num_workers=2
        )

    expected = numbers_of(make())
    loader = make()
    batches = iter(loader)
    begun = numbers_of(next(batches) for _ in range(5))
    other = make()
    other.load_state_dict(loader.state_dict())
    assert begun + numbers_of(other) == expected


def test_the_share_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    from emberfs.client.loader import pytorch

    assert pytorch.share_of() == Share()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    assert pytorch.share_of() == Share(2, 4)
