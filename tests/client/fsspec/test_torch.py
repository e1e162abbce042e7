"""torch.distributed.checkpoint's own fsspec writer and reader over ember://, where torch is installed."""

import uuid

import fsspec
import pytest

torch = pytest.importorskip("torch")


@pytest.mark.filterwarnings("ignore")
def test_a_distributed_checkpoint_round_trips(cluster):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

    fs = fsspec.filesystem("ember", **cluster.storage_options)
    path = f"/dcp-{uuid.uuid4().hex}"
    fs.mkdir(path)
    url = f"ember://{cluster.authority}{path}"
    state = {"weights": torch.arange(300_000, dtype=torch.float32).reshape(300, 1000), "step": 7}
    for step in (1, 2):  # the second save replaces the first
        state["step"] = step
        dcp.save(state, storage_writer=FsspecWriter(url, sync_files=False), no_dist=True)
    loaded = {"weights": torch.zeros(300, 1000), "step": 0}
    dcp.load(loaded, storage_reader=FsspecReader(url), no_dist=True)
    assert loaded["step"] == 2
    assert torch.equal(loaded["weights"], state["weights"])
    fs.rm(path, recursive=True)


def _first_bytes(fs, path, index):
    return fs.cat_file(path, index * 100, index * 100 + 4)


class _Samples(torch.utils.data.Dataset):
    def __init__(self, fs, path, count):
        self.fs, self.path, self.count = fs, path, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return int.from_bytes(_first_bytes(self.fs, self.path, index), "big")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(cluster, method):
    fs = fsspec.filesystem("ember", **cluster.storage_options)
    path = f"/loader-{uuid.uuid4().hex}"
    fs.pipe_file(path, b"".join(i.to_bytes(4, "big") + bytes(96) for i in range(200)))
    assert fs.size(path) == 20_000
    loader = torch.utils.data.DataLoader(
        _Samples(fs, path, 200), batch_size=16, shuffle=True, num_workers=2, multiprocessing_context=method
    )
    assert sorted(int(x) for batch in loader for x in batch) == list(range(200))
    fs.rm(path)
