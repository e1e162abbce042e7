"""LMCache 0.5.6 drives us: adapters from its factory, its own benchmark with verification, and its checks of storage backends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..contract import MANY, Contract, Open, opener
from .parts import require

require("lmcache", "LMCache")
require("torch", "torch")

import torch  # noqa: E402

from emberfs.kvcache.adapters import hf3fs  # noqa: E402
from emberfs.kvcache.adapters.settings import key_of  # noqa: E402

from .lmcache_host import (  # noqa: E402
    NATIVE,
    PLUGIN,
    Arena,
    CacheEngineKey,
    EmberConnector,
    LMCacheEngineConfig,
    LMCacheMetadata,
    MemoryObjMetadata,
    ObjectKey,
    TensorMemoryObj,
    content,
    load,
    lookup,
    make_adapter,
    store,
)

if TYPE_CHECKING:
    from emberfs_cluster import LocalCluster
    from emberfs_mount import MakeMount

    OpenAdapter = Callable[..., Any]

pytestmark = [pytest.mark.engines, pytest.mark.timeout(180)]

LENGTH = 100_000
KINDS = pytest.mark.parametrize("kind", ["plugin", "native_plugin"])
QUIET = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "LMCACHE_LOG_LEVEL": "WARNING"}


@pytest.fixture
def open_adapter(cluster: LocalCluster, request: pytest.FixtureRequest) -> OpenAdapter:
    """`with open_adapter("plugin", arena) as adapter`, in a namespace of this test's own."""

    @contextmanager
    def make(kind: str, arena: Arena, **params: Any) -> Iterator[Any]:
        said = {"url": cluster.url, "salt": request.node.name, "dtype": "bfloat16", **params}
        adapter = make_adapter(kind, arena, **said)
        try:
            yield adapter
        finally:
            adapter.close()

    return make


def key(number: int, **changed: Any) -> ObjectKey:
    said = {"chunk_hash": number.to_bytes(32, "big"), "model_name": "org/model", "kv_rank": 0x01000100, **changed}
    return ObjectKey(**said)


# --- adapters of the multi-process server -------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("shared", [True, False], ids=["shared arena", "private arena"])
def test_objects_are_stored_found_and_loaded(open_adapter: OpenAdapter, kind: str, shared: bool) -> None:
    arena = Arena(64 * LENGTH, shared=shared)
    keys = [key(number) for number in range(10)]
    said = [os.urandom(LENGTH - number) for number in range(10)]  # objects may have any length
    with open_adapter(kind, arena) as adapter:
        assert lookup(adapter, keys) == [False] * 10
        assert store(adapter, keys, [arena.object(len(one), one) for one in said]).is_successful()
        assert lookup(adapter, [*keys, key(77)]) == [True] * 10 + [False]
        targets = [arena.object(len(one)) for one in said]
        assert load(adapter, keys[::-1], targets[::-1]) == [True] * 10
        assert [content(one) for one in targets] == said
        adapter.submit_unlock([*keys, key(77)])
        if kind == "plugin":
            assert adapter.report_status()["arena_is_shared"] is shared
            assert adapter.report_status()["objects_locked"] == 0


@KINDS
def test_what_is_not_there_or_not_as_long_is_a_miss(open_adapter: OpenAdapter, kind: str) -> None:
    arena = Arena(64 * LENGTH, shared=True)
    keys = [key(number) for number in range(4)]
    with open_adapter(kind, arena) as adapter:
        assert store(adapter, keys[:3], [arena.object(LENGTH, bytes([7]) * LENGTH) for _ in range(3)]).is_successful()
        targets = [arena.object(LENGTH), arena.object(LENGTH - 1), arena.object(LENGTH), arena.object(LENGTH)]
        assert load(adapter, keys, targets) == [True, False, True, False]
        assert content(targets[2]) == bytes([7]) * LENGTH


@KINDS
def test_names_are_told_apart(open_adapter: OpenAdapter, kind: str) -> None:
    """By model, rank, group, salt of the user, and by what the names do not say: revision, dtype, layout."""
    arena = Arena(16 * LENGTH, shared=True)
    mine = key(1, cache_salt="alice")
    others = [key(1), key(1, cache_salt="bob"), key(1, cache_salt="alice", model_name="org/other"), key(2, cache_salt="alice"),
              key(1, cache_salt="alice", kv_rank=0x01000101), key(1, cache_salt="alice", object_group_id=1)]  # fmt: skip
    with open_adapter(kind, arena) as adapter:
        assert store(adapter, [mine], [arena.object(9, b"attention")]).is_successful()
        assert lookup(adapter, [mine, *others]) == [True] + [False] * len(others)
        for changed in ({"dtype": "float8_e4m3fn"}, {"revision": "b"}, {"layout": "other"}, {"chunk_tokens": 128}):
            with open_adapter(kind, arena, **changed) as stranger:
                assert lookup(stranger, [mine]) == [False]


def test_both_plug_ins_see_the_same_objects(open_adapter: OpenAdapter) -> None:
    arena = Arena(4 * LENGTH, shared=True)
    with open_adapter("plugin", arena) as one, open_adapter("native_plugin", arena) as other:
        assert store(one, [key(5, cache_salt="alice")], [arena.object(5, b"bytes")]).is_successful()
        target = arena.object(5)
        assert load(other, [key(5, cache_salt="alice")], [target]) == [True]
        assert content(target) == b"bytes"


@KINDS
def test_deleting_and_accounting(open_adapter: OpenAdapter, kind: str) -> None:
    arena = Arena(32 * LENGTH, shared=True)
    keys = [key(number) for number in range(4)]
    with open_adapter(kind, arena) as adapter:
        assert store(adapter, keys, [arena.object(LENGTH) for _ in keys]).bytes_transferred() == 4 * LENGTH
        assert store(adapter, keys, [arena.object(LENGTH) for _ in keys]).bytes_transferred() == 0
        assert adapter.get_usage().total_bytes_used == 4 * LENGTH
        adapter.delete(keys[:2])
        assert adapter.get_usage().total_bytes_used == 2 * LENGTH
        assert lookup(adapter, keys) == [False, False, True, True]
        adapter.delete([])


def test_a_lookup_locks(open_adapter: OpenAdapter) -> None:
    """What was found stays while it is locked, twice if it was found twice; and then may go."""
    arena = Arena(8 * LENGTH, shared=True)
    keys = [key(number) for number in range(3)]
    with open_adapter("plugin", arena) as adapter:
        store(adapter, keys, [arena.object(LENGTH) for _ in keys])
        assert lookup(adapter, keys) == lookup(adapter, keys) == [True] * 3
        adapter.submit_unlock(keys)
        adapter.delete(keys)
        assert lookup(adapter, keys) == [True] * 3
        adapter.submit_unlock(keys)
        adapter.submit_unlock(keys)
        adapter.delete(keys)
        assert lookup(adapter, keys) == [False] * 3


def test_locks_that_nobody_gives_back_end(open_adapter: OpenAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """An LMCache that stops waiting for a lookup does not unlock what it found: that can be deleted all the same, later."""
    monkeypatch.setattr("emberfs.kvcache.adapters.lmcache.LOCK_MS", 1)
    arena = Arena(8 * LENGTH, shared=True)
    keys = [key(number) for number in range(3)]
    with open_adapter("plugin", arena) as adapter:
        store(adapter, keys, [arena.object(LENGTH) for _ in keys])
        assert lookup(adapter, keys) == [True] * 3
        deadline = time.monotonic() + 60
        while adapter.report_status()["objects_locked"]:
            assert time.monotonic() < deadline
            adapter.delete(keys)
        assert lookup(adapter, keys) == [False] * 3


def test_what_emberfs_evicted_leaves_the_accounts(open_adapter: OpenAdapter) -> None:
    arena = Arena(8 * LENGTH, shared=True)
    keys = [key(number) for number in range(3)]
    with open_adapter("plugin", arena) as adapter, open_adapter("plugin", arena) as other:
        store(adapter, keys, [arena.object(LENGTH) for _ in keys])
        other.delete(keys[:1])
        assert load(adapter, keys, [arena.object(LENGTH) for _ in keys]) == [False, True, True]
        assert adapter.get_usage().total_bytes_used == 2 * LENGTH


def test_the_accounts_do_not_grow_without_end(open_adapter: OpenAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether emberfs has evicted them nobody says: the oldest leave the accounts."""
    monkeypatch.setattr("emberfs.kvcache.adapters.lmcache.OBJECTS_MAX", 3)
    arena = Arena(16 * LENGTH, shared=True)
    with open_adapter("plugin", arena) as adapter:
        for number in range(6):
            assert store(adapter, [key(number)], [arena.object(LENGTH)]).is_successful()
        assert adapter.get_usage().total_bytes_used == 3 * LENGTH
        assert lookup(adapter, [key(number) for number in range(6)]) == [True] * 6, "they are there all the same"


@KINDS
def test_configuration_fails_loudly(open_adapter: OpenAdapter, kind: str) -> None:
    arena = Arena(LENGTH, shared=True)
    with pytest.raises(ValueError, match="dtype"), open_adapter(kind, arena, dtype=""):
        pass
    with pytest.raises(ValueError, match="revison"), open_adapter(kind, arena, revison="a typo"):
        pass


def run(arguments: list[str], folder: Path, **environment: str) -> str:
    """A program of LMCache's; what it printed."""
    done = subprocess.run(
        arguments, check=False, capture_output=True, text=True, cwd=folder, env={**os.environ, **QUIET, **environment}, timeout=150
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@KINDS
def test_its_benchmark_verifies_what_comes_back(cluster: LocalCluster, tmp_path: Path, kind: str) -> None:
    """`lmcache bench l2`: batches of 32 objects, a byte pattern for each key, half of the lookups hits."""
    params = {"url": cluster.url, "dtype": "bfloat16", "salt": f"bench {kind}"}
    adapter = {"type": kind, **(PLUGIN if kind == "plugin" else NATIVE), "adapter_params": params}
    options = [
        "--num-keys",
        "32",
        "--data-size-kb",
        "256",
        "--rounds",
        "2",
        "--lookup-max-hit-rate",
        "0.5",
        "--no-skip-verify",
    ]
    command = [
        str(Path(sys.executable).parent / "lmcache"),
        "bench",
        "l2",
        "--l2-adapter",
        json.dumps(adapter),
        *options,
    ]
    said = run(command, tmp_path)
    assert "All 32 keys data verified OK" in said
    totals = [int(line.split()[-1]) for line in said.splitlines() if line.startswith("Total success:")]
    assert totals == [64, 32, 64]  # stored, found, loaded


# --- inside an engine's process -----------------------------------------------------------------------------------------------------------


def configuration(folder: Path, lines: str) -> str:
    file = folder / "lmcache.yaml"
    file.write_text(f"chunk_size: 256\nlocal_cpu: false\nmax_local_cpu_size: 0.5\nremote_serde: naive\n{lines}")
    return str(file)


def connector(cluster: LocalCluster, salt: str) -> str:
    return f"""remote_url: "plugin://emberfs"
remote_storage_plugins: [emberfs]
extra_config:
  remote_storage_plugin.emberfs.module_path: emberfs.kvcache.adapters.lmcache_remote
  remote_storage_plugin.emberfs.class_name: EmberConnector
  emberfs.url: "{cluster.url}"
  emberfs.salt: "{salt}"
"""


def check(mode: str, folder: Path, lines: str, *options: str, **environment: str) -> str:
    command = [
        sys.executable,
        "-m",
        "emberfs.tests.kvcache.engines.lmcache_check",
        "--mode",
        mode,
        "--num-keys",
        "20",
        *options,
    ]
    return run(command, folder, LMCACHE_CONFIG_FILE=configuration(folder, lines), **environment)


@pytest.mark.parametrize("mode", ["test_remote", "test_storage_manager"])
@pytest.mark.parametrize("elements", ["1024", "262144"])
def test_its_checks_of_a_connector(cluster: LocalCluster, tmp_path: Path, mode: str, elements: str) -> None:
    """Objects that are no full chunks, too: what comes back is what was put."""
    said = check(mode, tmp_path, connector(cluster, f"{mode} {elements}"), "--obj-size", elements)
    assert "Validation (content correct): 20/20 passed" in said, said


def test_its_check_of_an_adapter(cluster: LocalCluster, tmp_path: Path) -> None:
    adapter = {"type": "plugin", **PLUGIN, "adapter_params": {"url": cluster.url, "dtype": "bfloat16", "salt": "check"}}
    said = check("test_l2_adapter", tmp_path, "", "--l2-adapter", json.dumps(adapter))
    assert "Validation (content): 20/20" in said, said


@pytest.mark.parametrize("mode", ["test_remote", "test_storage_manager"])
def test_its_own_3fs_connector_runs_on_our_rings(
    make_mount: MakeMount, cluster: LocalCluster, tmp_path: Path, mode: str
) -> None:
    """`hf3fs://` unchanged: a file for each chunk on the mount, through iovecs and rings."""
    mount = make_mount(cluster.url).path
    folder = mount / f"lmcache-{mode}"
    folder.mkdir()
    lines = f"""remote_url: "hf3fs://{folder}"
extra_config:
  hf3fs_mount_point: "{mount}"
  hf3fs_iov_size: 104857600
  hf3fs_io_thread_num: 2
"""
    said = check(mode, tmp_path, lines, "--obj-size", "512", PYTHONPATH=hf3fs.folder())
    assert "Validation (content correct): 20/20 passed" in said, said
    assert any(folder.iterdir())


# --- the contract of block stores --------------------------------------------------------------------------------------------------------


class Subject:
    """Blocks are objects in an arena."""

    def __init__(self, kind: str, url: str, salt: str, *, small: bool, identity: dict[str, Any]) -> None:
        self.block_bytes = 512 if small else 20_000
        self.arena = Arena((MANY if small else 64) * self.block_bytes, shared=True)
        said = {name: identity[name] for name in ("revision", "tenant", "salt", "dtype", "layout") if name in identity}
        self._named = {"model_name": identity.get("model", "org/model"), "kv_rank": 0x01000100 + ("heads" in identity)}
        self.adapter = make_adapter(kind, self.arena, **{"url": url, "salt": salt, "dtype": "bfloat16", **said})
        self._closed = False

    def _keys(self, keys: Sequence[bytes]) -> list[ObjectKey]:
        return [ObjectKey(chunk_hash=key, **self._named) for key in keys]

    def put(self, keys: Sequence[bytes], blocks: Sequence[bytes]) -> list[bool]:
        objects = [self.arena.object(self.block_bytes, block) for block in blocks]
        return [store(self.adapter, self._keys(keys), objects).is_successful()] * len(keys)

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        targets = [self.arena.object(self.block_bytes) for _ in keys]
        good = load(self.adapter, self._keys(keys), targets)
        return [content(target) if ok else None for target, ok in zip(targets, good, strict=True)]

    def exists(self, keys: Sequence[bytes]) -> list[bool]:
        found = lookup(self.adapter, self._keys(keys))
        self.adapter.submit_unlock([key for key, here in zip(self._keys(keys), found, strict=True) if here])
        return found

    def close(self) -> None:
        """LMCache's own wrapper of native plug-ins closes its descriptors again if it is asked twice."""
        if not self._closed or type(self.adapter).__name__ == "EmberL2Adapter":
            self.adapter.close()
        self._closed = True


class Pool:
    """What a connector uses of LMCache's pool of host memory."""

    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata
        self.lent: list[Any] = []

    def allocate(self, shapes: Any, dtypes: Any, fmt: Any) -> Any:
        nbytes = sum(shape.numel() * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True))
        said = MemoryObjMetadata(
            shape=shapes[0], dtype=dtypes[0], address=0, phy_size=nbytes, ref_count=1, fmt=fmt, shapes=shapes, dtypes=dtypes
        )  # fmt: skip
        made = TensorMemoryObj(torch.zeros(nbytes, dtype=torch.uint8), said, parent_allocator=None)
        self.lent.append(made)
        return made


class ConnectorSubject:
    """Blocks are full chunks of an LMCache inside an engine's process, on its event loop."""

    def __init__(self, url: str, salt: str, *, small: bool, identity: dict[str, Any]) -> None:
        tokens = 2 if small else 128
        metadata = LMCacheMetadata(
            model_name=identity.get("model", "org/model"), world_size=2 if "heads" in identity else 1, local_world_size=1, worker_id=0,
            local_worker_id=0, kv_dtype=torch.float16 if "dtype" in identity else torch.bfloat16,
            kv_shape=(1, 2, tokens, 2 if "layout" in identity else 1, 20 if "layout" in identity else 40), chunk_size=tokens,
        )  # fmt: skip
        self._metadata, self.pool = metadata, Pool(metadata)
        said = {name: identity[name] for name in ("revision", "tenant", "salt") if name in identity}
        config = LMCacheEngineConfig.from_defaults(
            extra_config={f"emberfs.{name}": value for name, value in {"url": url, "salt": salt, **said}.items()}
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.connector = EmberConnector(self._loop, self.pool, config)
        self.block_bytes = self.connector.full_chunk_size_bytes

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _keys(self, keys: Sequence[bytes]) -> list[CacheEngineKey]:
        said = self._metadata
        return [
            CacheEngineKey(said.model_name, said.world_size, 0, int.from_bytes(key, "big"), said.kv_dtype)
            for key in keys
        ]

    def put(self, keys: Sequence[bytes], blocks: Sequence[bytes]) -> list[bool]:
        shapes, dtypes = self._metadata.get_shapes(), self._metadata.get_dtypes()
        objects = [self.pool.allocate(shapes, dtypes, self.connector.meta_fmt) for _ in keys]
        for one, block in zip(objects, blocks, strict=True):
            memoryview(one.byte_array).cast("B")[:] = block
        try:
            self._run(self.connector.batched_put(self._keys(keys), objects))
        except OSError:
            return [False] * len(keys)
        return [True] * len(keys)

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.pool.lent.clear()
        found = self._run(self.connector.batched_get(self._keys(keys)))
        kept = [one for one in found if one is not None]
        assert all((one.get_ref_count() == 1) == any(one is other for other in kept) for one in self.pool.lent)
        return [None if one is None else content(one) for one in found]

    def exists(self, keys: Sequence[bytes]) -> list[bool]:
        named = self._keys(keys)
        leading = self.connector.batched_contains(named)
        assert self._run(self.connector.batched_async_contains("lookup", named)) == leading
        found = [self.connector.exists_sync(key) for key in named[:32]]
        return [*found, *(row < leading for row in range(len(found), len(named)))]

    def close(self) -> None:
        self._run(self.connector.close())

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class TestConnectorContract(Contract):
    @pytest.fixture
    def open_subject(self, cluster: LocalCluster) -> Open:
        return opener(partial(ConnectorSubject, cluster.url), ConnectorSubject.end)


def test_a_connector_has_more(cluster: LocalCluster) -> None:
    """Prefixes without waiting, single objects, listing, removing, pinging; and a short chunk keeps its shape."""
    subject = ConnectorSubject(cluster.url, f"{time.time_ns()}", small=False, identity={})
    connector, run_on = subject.connector, subject._run
    keys = [bytes([number]) * 32 for number in range(1, 6)]
    blocks = [bytes([number]) * subject.block_bytes for number in range(1, 6)]
    assert subject.put(keys[:2] + keys[3:], blocks[:2] + blocks[3:]) == [True] * 4
    named = subject._keys(keys)
    found = run_on(connector.batched_get_non_blocking("lookup", named))
    assert [content(one) for one in found] == blocks[:2], "up to the first that is missing"
    assert run_on(connector.get(named[2])) is None
    assert content(run_on(connector.get(named[3]))) == blocks[3]
    assert (run_on(connector.exists(named[0])), run_on(connector.exists(named[2]))) == (True, False)
    short = subject.pool.allocate([torch.Size([2, 1, 7, 40])], [torch.bfloat16], connector.meta_fmt)
    memoryview(short.byte_array).cast("B")[:] = bytes(range(256))[:16] * (short.get_size() // 16)
    run_on(connector.put(named[2], short))
    back = run_on(connector.get(named[2]))
    assert (back.get_shapes(), content(back)) == ([torch.Size([2, 1, 7, 40])], content(short))
    assert len(run_on(connector.list())) == 5
    assert connector.remove_sync(named[0]) and not connector.exists_sync(named[0])
    assert run_on(connector.ping()) == 0
    subject.close()
    subject.close()
    subject.end()


def test_an_object_that_cannot_be_read_costs_only_itself(cluster: LocalCluster) -> None:
    """Of another version of LMCache, say. What came with it is handed out, and no memory of the pool is lost."""
    subject = ConnectorSubject(cluster.url, f"{time.time_ns()}", small=False, identity={})
    connector = subject.connector
    keys = [bytes([number]) * 32 for number in range(1, 4)]
    blocks = [bytes([number]) * subject.block_bytes for number in range(1, 4)]
    assert subject.put(keys[:1] + keys[2:], blocks[:1] + blocks[2:]) == [True] * 2
    for strange in (b"\xff" * (connector.remote_metadata_bytes + subject.block_bytes), b"\xff" * 100):
        name = key_of(subject._keys(keys)[1].to_string())
        assert connector._kv.put(connector._namespace, name, strange) == len(strange)
        assert subject.get(keys) == [blocks[0], None, blocks[2]]
        assert connector._kv.delete(connector._namespace, [name])[0] == 0
    subject.close()
    subject.end()


def test_a_put_that_is_cancelled_ends_with_its_bytes(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMCache has its memory back as soon as the put ends, and fills it with something else. The block is what it was meant to be."""
    subject = ConnectorSubject(cluster.url, f"{time.time_ns()}", small=False, identity={})
    connector, begun, go_on = subject.connector, threading.Event(), threading.Event()
    (named,) = subject._keys([bytes([1]) * 32])
    block = subject.pool.allocate(connector.meta_shapes, connector.meta_dtypes, connector.meta_fmt)
    memory = memoryview(block.byte_array).cast("B")
    meant = bytes([7]) * subject.block_bytes
    memory[:] = meant
    put_from = connector._kv.put_from

    def late(*args: Any, **how: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return put_from(*args, **how)

    monkeypatch.setattr(connector._kv, "put_from", late)

    async def cancelled() -> None:
        task = asyncio.ensure_future(connector.batched_put([named], [block]))
        await asyncio.to_thread(begun.wait, 60)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        await asyncio.wait([task])
        assert task.cancelled()
        memory[:] = bytes(len(memory))

    subject._run(cancelled())
    go_on.set()
    subject.close()  # behind all that is on its way
    again = ConnectorSubject(cluster.url, connector._settings.salt, small=False, identity={})
    assert content(again._run(again.connector.get(named))) == meant
    again.close()
    for one in (subject, again):
        one.end()


class TestContract(Contract):
    @pytest.fixture(params=["plugin", "native_plugin"])
    def open_subject(self, request: pytest.FixtureRequest, cluster: LocalCluster) -> Open:
        return opener(partial(Subject, request.param, cluster.url))
