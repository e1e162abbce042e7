"""zarr's own store tests over `FsspecStore` on ember://."""

import uuid

import fsspec
import pytest
from zarr.core.buffer import Buffer, cpu
from zarr.storage import FsspecStore
from zarr.testing.store import StoreTests

pytestmark = pytest.mark.filterwarnings("ignore:fs .* was not created with:UserWarning")


class TestEmberStore(StoreTests[FsspecStore, cpu.Buffer]):
    store_cls = FsspecStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, cluster):
        path = f"/zarr-{uuid.uuid4().hex}"
        blocking = fsspec.filesystem("ember", **cluster.storage_options)
        blocking.mkdir(path)
        fs = fsspec.filesystem("ember", asynchronous=True, auto_mkdir=True, **cluster.storage_options)
        yield {"fs": fs, "path": path}
        blocking.rm(path, recursive=True)

    @pytest.fixture
    async def store(self, store_kwargs):
        return await self.store_cls.open(**store_kwargs)

    async def set(self, store: FsspecStore, key: str, value: Buffer) -> None:
        await store.fs._pipe_file(f"{store.path}/{key}", value.to_bytes())

    async def get(self, store: FsspecStore, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(await store.fs._cat_file(f"{store.path}/{key}"))

    def test_store_repr(self, store):
        assert str(store) == f"<FsspecStore(EmberFileSystem, {store.path})>"

    def test_store_supports_writes(self, store):
        assert store.supports_writes

    def test_store_supports_listing(self, store):
        assert store.supports_listing


async def test_an_array_round_trips(cluster):
    import numpy as np
    import zarr

    url = f"ember://{cluster.authority}/zarr-array-{uuid.uuid4().hex}"
    options = {**cluster.url_options, "auto_mkdir": True}
    array = zarr.create_array(store=url, storage_options=options, shape=(64, 64), chunks=(16, 16), dtype="f4")
    array[:] = np.arange(64 * 64, dtype="f4").reshape(64, 64)
    again = zarr.open_array(store=url, storage_options=options, mode="r")
    assert (again[10:50, 7:9] == np.arange(64 * 64, dtype="f4").reshape(64, 64)[10:50, 7:9]).all()
