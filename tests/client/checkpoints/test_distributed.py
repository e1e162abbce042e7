"""torch.distributed.checkpoint over the cluster and the local disk: what is saved is loaded, by torch's own reader too, and no kill in the
middle of a save costs a checkpoint."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from emberfs.client.checkpoints import catalog
from emberfs.client.checkpoints.folders import Folder, folder_of
from emberfs.proto.errors import StatusError

from .dying import DyingFolder, lived
from .power import MemoryFolder, PowerLoss

torch = pytest.importorskip("torch", reason="torch is not here: ./deploy/test --training")

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402

from emberfs.client.checkpoints.dcp import StorageReader, StorageWriter, framed  # noqa: E402

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]


def state(version: int) -> dict[str, Any]:
    torch.manual_seed(version)
    return {
        "weight": torch.randn(37, 53),
        "half": torch.randn(100).bfloat16(),
        "turned": torch.randn(8, 9).t(),
        "scalar": torch.tensor(float(version)),
        "empty": torch.empty(0, 3),
        "view": torch.randn(100)[10:20],
        "eight": torch.randn(16).to(torch.float8_e4m3fn),
        "conjugate": torch.randn(4, dtype=torch.complex64).conj(),
        "optimizer": {"lr": 0.1 * version, "betas": [0.9, version]},
    }


def blank() -> dict[str, Any]:
    return {
        name: {"lr": 0.0, "betas": [0, 0]} if name == "optimizer" else torch.zeros(value.shape).to(value.dtype)
        for name, value in state(0).items()
    }


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype
            plain = torch.complex128 if value.is_complex() else torch.float64
            assert torch.equal(found[name].to(plain), value.to(plain)), name
        else:
            assert found[name] == value


def small(version: int) -> dict[str, Any]:
    return {name: value for name, value in state(version).items() if name in ("weight", "scalar", "optimizer")}


def loaded(reader: Any, names: Any = None) -> dict[str, Any]:
    found = {name: value for name, value in blank().items() if names is None or name in names}
    dcp.load(found, storage_reader=reader)
    return found


def test_what_is_saved_is_loaded(where: str) -> None:
    dcp.save(state(1), storage_writer=StorageWriter(where))
    same(loaded(StorageReader(where)), state(1))
    dcp.async_save(state(2), storage_writer=StorageWriter(where)).result()
    same(loaded(StorageReader(where)), state(2))
    [found] = catalog.checkpoints(folder_of(where))
    assert found.whole and found.sums and found.tensors == 10
    assert catalog.verify(found) == []
    names = folder_of(where).entries()
    assert len([name for name in names if name.endswith(".distcp")]) == 4
    assert len(names) == 6, "files of the first save were left"


def test_torch_reads_ours_and_we_read_theirs(tmp_path: Path, cluster: Any) -> None:
    dcp.save(state(1), storage_writer=StorageWriter(tmp_path / "ours"))
    same(loaded(FileSystemReader(tmp_path / "ours")), state(1))
    dcp.save(state(2), storage_writer=FileSystemWriter(tmp_path / "theirs"))
    same(loaded(StorageReader(tmp_path / "theirs")), state(2))
    dcp.save(state(3), storage_writer=StorageWriter(tmp_path / "theirs"))  # which it replaces
    same(loaded(FileSystemReader(tmp_path / "theirs")), state(3))
    assert not [name for name in os.listdir(tmp_path / "theirs") if name.startswith("__0_")]
    fsspec_files = pytest.importorskip("torch.distributed.checkpoint._fsspec_filesystem")
    url = f"{cluster.url}ours-by-fsspec"
    dcp.save(state(4), storage_writer=StorageWriter(url))
    same(loaded(fsspec_files.FsspecReader(url)), state(4))


@pytest.mark.parametrize("name", list(state(1)))
def test_a_frame_is_what_torch_writes(name: str) -> None:
    import io

    value = state(1)[name]
    if not isinstance(value, torch.Tensor):
        return
    parts, data = framed(value)
    whole = b"".join(parts)
    again = torch.load(io.BytesIO(whole), weights_only=True)
    same({name: again}, {name: value})
    assert (data is None) == (value.numel() == 0)
    if data is not None:
        straight = value.contiguous().resolve_conj()
        assert whole[data : data + value.nbytes] == bytes(straight.reshape(-1).view(torch.uint8).numpy())


@pytest.mark.timeout(300)  # each rank imports torch
def test_ranks_save_rows_and_load_columns(cluster: Any, tmp_path: Path) -> None:
    import emberfs_training

    world, where = 2, f"{cluster.url}sharded"
    torch.multiprocessing.spawn(
        emberfs_training.save_and_load_sharded, (world, str(tmp_path / "meeting"), where), nprocs=world
    )
    whole = {"weight": torch.zeros(emberfs_training.ROWS, emberfs_training.COLUMNS)}
    dcp.load(whole, storage_reader=StorageReader(where))
    assert torch.equal(whole["weight"], emberfs_training.whole_weight(2))
    [found] = catalog.checkpoints(folder_of(where))
    assert found.whole and catalog.verify(found) == []


@pytest.mark.soak
@pytest.mark.timeout(300)  # two processes import torch, one after the other
def test_async_save_from_another_process(where: str, tmp_path: Path) -> None:
    import emberfs_training

    torch.multiprocessing.spawn(
        emberfs_training.save_from_another_process, (1, str(tmp_path / "meeting"), where), nprocs=1
    )
    [found] = catalog.checkpoints(folder_of(where))
    assert found.whole and catalog.verify(found) == []


def test_a_save_that_is_killed_leaves_the_old_or_the_new_checkpoint(where: str) -> None:
    def save(version: int, folder: Folder) -> None:
        torch.set_num_threads(1)  # the pool of the process that was forked is not here
        writer = StorageWriter(where, threads=1)
        writer.folder = folder
        dcp.save(small(version), storage_writer=writer)

    save(1, folder_of(where))
    old, steps, seen = 1, 0, set()
    while True:
        new = old + 1
        ended = lived(lambda n=new, left=steps: save(n, DyingFolder(folder_of(where), left)))
        found = loaded(StorageReader(where), small(0))
        came = int(found["scalar"])
        assert came in (old, new)
        same(found, small(came))
        [seen_by_others] = catalog.checkpoints(folder_of(where))
        assert seen_by_others.whole and seen_by_others.sums
        assert catalog.verify(seen_by_others) == []
        seen.add(came == new)
        old = came
        if ended:
            assert came == new
            break
        steps += 1
    assert steps > 12 and seen == {True, False}
    save(old, folder_of(where))
    assert len(folder_of(where).entries()) == 3, "leftovers"


def test_a_loss_of_power_leaves_the_old_or_the_new_checkpoint() -> None:
    def save(version: int, folder: Folder) -> None:
        writer = StorageWriter("/nowhere", threads=1)
        writer.folder = folder
        dcp.save(small(version), storage_writer=writer)

    def load(folder: Folder) -> int:
        reader = StorageReader("/nowhere", threads=1)
        reader.folder = folder
        found = loaded(reader, small(0))
        same(found, small(int(found["scalar"])))
        [seen] = catalog.checkpoints(folder)
        assert seen.whole and seen.sums and catalog.verify(seen, threads=1) == []
        return int(found["scalar"])

    old = MemoryFolder()
    save(1, old)
    came, steps, ended = set(), 0, False
    while not ended:
        for seed in range(4):
            folder = MemoryFolder(steps)
            folder.names = dict(old.names)
            try:
                save(2, folder)
                ended = True
            except (PowerLoss, CheckpointException) as lost:
                assert "PowerLoss" in repr(lost)
            survivor = folder.after_power_loss(random.Random(seed))
            version = load(survivor)
            assert version in ((2,) if ended else (1, 2)), f"step {steps}, seed {seed}"
            came.add(version)
            save(3, survivor)
            assert load(survivor) == 3 and len(survivor.names) == 3
        steps += 1
    assert came == {1, 2} and steps > 12


def test_a_first_save_that_is_killed_is_no_checkpoint(where: str) -> None:
    writer = StorageWriter(where)
    writer.folder = DyingFolder(folder_of(where), 9)
    assert not lived(lambda: (torch.set_num_threads(1), dcp.save(state(1), storage_writer=writer)))
    assert not any(found.whole for found in catalog.checkpoints(folder_of(where)))
    with pytest.raises(CheckpointException, match="metadata"):
        loaded(StorageReader(where))
    dcp.save(state(1), storage_writer=StorageWriter(where))
    same(loaded(StorageReader(where)), state(1))


def test_ranks_that_do_not_coordinate(tmp_path: Path) -> None:
    with pytest.raises(StatusError, match="no rank would know"):
        dcp.save(state(1), storage_writer=StorageWriter(tmp_path / "ours"), use_collectives=False)
    dcp.save(state(1), storage_writer=FileSystemWriter(tmp_path / "theirs"), use_collectives=False)
    same(loaded(StorageReader(tmp_path / "theirs")), state(1))


def test_the_writer_can_be_pickled(where: str) -> None:
    writer = pickle.loads(pickle.dumps(StorageWriter(where)))
    dcp.save(state(1), storage_writer=writer)
    same(loaded(pickle.loads(pickle.dumps(StorageReader(where)))), state(1))


def test_a_failing_save_says_so_and_leaves_nothing(where: str) -> None:
    class Full:
        def __init__(self, draft: Any) -> None:
            self.draft = draft

        def write(self, data: Any, offset: int) -> None:
            raise OSError(28, "no space left")

        def fsync(self) -> None: ...

        def discard(self) -> None:
            self.draft.discard()

    dcp.save(state(1), storage_writer=StorageWriter(where))
    before = set(folder_of(where).entries())
    writer = StorageWriter(where)
    real = writer.folder
    writer.folder = type("FullFolder", (), {
        "url": real.url, "make": real.make, "entries": real.entries,
        "draft": lambda self, large=True: Full(real.draft(large=large)),
    })()  # fmt: skip
    with pytest.raises(CheckpointException, match="no space left"):
        dcp.save(state(2), storage_writer=writer)
    assert set(folder_of(where).entries()) == before
    same(loaded(StorageReader(where)), state(1))
