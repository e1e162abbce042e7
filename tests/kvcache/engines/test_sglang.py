"""SGLang 0.5.23 drives us: its factory, its controller's threads, its failure injector; and its backend for 3FS over our rings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..contract import MANY, Contract, Open, opener
from .parts import require

require("sglang", "SGLang")
require("torch", "torch")

import torch  # noqa: E402

from emberfs.kvcache.adapters.arena import view_of  # noqa: E402

from .sglang_hf3fs import hf3fs_backend, metadata_server  # noqa: E402
from .sglang_host import (  # noqa: E402
    LAYERS,
    PAGE_TOKENS,
    HostPool,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    attach,
    engine,
)

if TYPE_CHECKING:
    from emberfs_cluster import LocalCluster
    from emberfs_mount import MakeMount

    Attach = Callable[..., Any]

pytestmark = [pytest.mark.engines, pytest.mark.timeout(180)]

DYNAMIC = {
    "backend_name": "emberfs",
    "module_path": "emberfs.kvcache.adapters.sglang",
    "class_name": "EmberStorage",
    "interface_v1": 1,
    "allocator": "shm",
}
BOTH_KINDS = pytest.mark.parametrize("mla", [True, False], ids=["MLA", "MHA"])


@pytest.fixture
def attached(cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Attach]:
    """Makes backends of this test's own namespace: `attached(pool, model_name=...)`. `extra`: more of the user's JSON."""
    made = []

    def make(pool: HostPool, extra: dict[str, Any] | None = None, **changed: Any) -> Any:
        said = {**DYNAMIC, "url": cluster.url, "salt": request.node.name, **(extra or {})}
        made.append(attach("dynamic", pool, extra=said, **changed))
        return made[-1]

    yield make
    for backend in made:
        ours = getattr(backend, "_backend", backend)  # within the failure injector, which passes neither on
        if not ours._closed:
            ours.clear()  # the cluster is every test's
            ours.close()


def some_keys(count: int, start: int = 0) -> list[str]:
    return [f"{number:064x}" for number in range(start + 1, start + count + 1)]


def slots(pages: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS) for page in pages])


def scattered(pool: HostPool, count: int) -> list[int]:
    """Pages anywhere in the pool, as after hours of serving."""
    order = torch.randperm(pool.size // pool.page_size, generator=torch.Generator().manual_seed(2))
    return [int(page) for page in order[:count]]


# --- the dynamic backend ------------------------------------------------------------------------------------------------------------------


@BOTH_KINDS
@pytest.mark.parametrize("shared", [True, False], ids=["shared pool", "private pool"])
def test_a_prefix_is_backed_up_and_comes_back(attached: Attach, mla: bool, shared: bool) -> None:
    """300 pages make batches of 128, 128 and 44. One request comes back while another is stored."""
    pool = HostPool(640, mla=mla, shared=shared)
    backend = attached(pool)
    assert [span[2] for span in backend._arena.spans] == [shared]
    places = scattered(pool, 600)
    first, second = places[:300], places[300:]
    tokens, others = [1] * 300 * PAGE_TOKENS, [2] * 300 * PAGE_TOKENS
    with engine(backend, pool) as sglang:
        want = pool.bytes.clone()
        sglang.back_up(first, tokens)
        assert sglang.backed_up() == 300
        for page in first:
            pool.get_data_page(page * PAGE_TOKENS, flat=False).zero_()
        assert not torch.equal(pool.bytes, want)
        sglang.back_up(second, others)
        found = sglang.query("again", tokens + [3] * 40 * PAGE_TOKENS)  # and 40 pages that nobody has stored
        assert found.storage_hit_count == 300 * PAGE_TOKENS
        assert sglang.fetch(found, first) == 300
        assert sglang.backed_up() == 300
        assert torch.equal(pool.bytes, want)
    moved = backend.get_stats()
    assert (sum(moved.prefetch_pgs), sum(moved.backup_pgs)) == (300, 600)
    assert backend.get_stats().prefetch_pgs == []


@BOTH_KINDS
@pytest.mark.parametrize("lost", [range(5, 6), range(8, 16), range(8, 17), range(0, 1), range(31, 32)], ids=str)
def test_a_hole_costs_only_itself(attached: Attach, mla: bool, lost: range) -> None:
    """Pages that go between the query and the read: one result for each key, in order, and no page with another's bytes."""
    pool = HostPool(64, mla=mla)
    backend = attached(pool, extra={"salt": f"hole {lost} {mla}"})
    keys, pages = some_keys(32), scattered(pool, 32)
    want = [pool.page(page) for page in pages]
    assert backend.batch_set_v1(keys, slots(pages)) == [True] * 32
    assert backend.batch_set_v1(keys, slots(pages)) == [True] * 32  # they are there already: a success
    anchor = backend._pools["kv"].namespace
    backend.kv.delete(anchor, [bytes.fromhex(keys[row]) for row in lost])
    assert backend.batch_exists(keys) == lost.start
    pool.bytes.zero_()
    assert backend.batch_get_v1(keys, slots(pages)) == [row not in lost for row in range(32)]
    for row, page in enumerate(pages):
        assert row in lost or torch.equal(pool.page(page), want[row])


def test_an_empty_batch(attached: Attach) -> None:
    pool = HostPool(4, mla=True)
    backend = attached(pool)
    none = torch.empty(0, dtype=torch.int64)
    assert (backend.batch_exists([]), backend.batch_get_v1([], none), backend.batch_set_v1([], none)) == (0, [], [])


@pytest.mark.parametrize(
    "changed",
    [
        {"model_name": "org/other"}, {"tp_rank": 1, "tp_size": 2}, {"tp_size": 2}, {"extra": {"revision": "b"}},
        {"extra": {"salt": "else"}}, {"dtype": torch.float16}, {"layout": "page_head"}, {"page_size": 32}, {"layers": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_the_same_is_not_seen(attached: Attach, changed: dict[str, Any]) -> None:
    pool = HostPool(8, mla=False)
    backend = attached(pool)
    keys = some_keys(4)
    assert all(backend.batch_set_v1(keys, slots([0, 1, 2, 3])))
    assert attached(pool).batch_exists(keys) == 4
    other = HostPool(8, mla=False, dtype=changed.pop("dtype", torch.bfloat16))
    other.layout, other.page_size = changed.pop("layout", "page_first"), changed.pop("page_size", PAGE_TOKENS)  # type: ignore[misc]
    other.start_layer = changed.pop("layers", 0)  # type: ignore[misc]
    assert attached(other, **changed).batch_exists(keys) == 0


def test_ranks_of_an_mla_model_share(attached: Attach) -> None:
    """Every rank holds all of it: what the first rank writes, others read."""
    pool = HostPool(8, mla=True)
    keys = some_keys(4)
    assert all(attached(pool, tp_size=2).batch_set_v1(keys, slots([0, 1, 2, 3])))
    assert attached(pool, tp_rank=1, tp_size=2).batch_exists(keys) == 4


def test_ranks_of_an_mla_model_have_their_own_state_of_linear_attention(attached: Attach) -> None:
    """Which is sharded although all that is MLA's is the same everywhere: another rank's would be another state under the same key."""
    pool, state = HostPool(8, mla=True), HostPool(8, mla=True)
    ranks = [attached(pool, tp_rank=rank, tp_size=2) for rank in range(2)]
    for backend in ranks:
        backend.register_mem_host_pool_v2(state, PoolName.MAMBA)
    keys = some_keys(2)
    assert all(ranks[0].batch_set_v1(keys, slots([0, 1])))
    stored = PoolTransfer(PoolName.MAMBA, host_indices=slots([0, 1]), keys=keys)
    assert ranks[0].batch_set_v2([stored]) == {PoolName.MAMBA: [True, True]}
    asked = PoolTransfer(PoolName.MAMBA, hit_policy=PoolHitPolicy.ALL_PAGES)
    assert [rank.batch_exists_v2(keys, [asked]).kv_hit_pages for rank in ranks] == [2, 0]
    assert ranks[1].batch_get_v2([stored]) == {PoolName.MAMBA: [False, False]}


@BOTH_KINDS
def test_whole_pages_in_memory_of_their_own(attached: Attach, mla: bool) -> None:
    """The engine's older interface, which it takes without "interface_v1"."""
    pool = HostPool(8, mla=mla)
    backend = attached(pool, extra={"interface_v1": 0})
    keys = some_keys(3)
    pages = [pool.get_data_page(i * PAGE_TOKENS) for i in range(3)]
    assert backend.batch_set(keys[:2], pages[:2])
    assert backend.set(keys[2], pages[2])
    assert [backend.exists(key) for key in [*keys, *some_keys(1, 100)]] == [True, True, True, False]
    blank = [pool.get_dummy_flat_data_page() for _ in range(4)]
    got = backend.batch_get([*keys, *some_keys(1, 100)], blank)
    assert [page is None for page in got] == [False, False, False, True]
    for page, want in zip(got[:3], pages, strict=True):
        assert torch.equal(page.view(torch.uint8), want.contiguous().view(torch.uint8))
    assert backend.get(some_keys(1, 100)[0]) is None
    # What was stored so can be read into the pool, and the other way round.
    want = pool.page(0)
    pool.bytes.zero_()
    assert backend.batch_get_v1(keys[:1], slots([0])) == [True]
    assert torch.equal(pool.page(0), want)


def test_a_pool_that_cannot_say_where_its_pages_lie(attached: Attach, caplog: pytest.LogCaptureFixture) -> None:
    class Opaque(HostPool):
        def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
            raise NotImplementedError

    pool = Opaque(8, mla=False)
    backend = attached(pool)
    assert "copied one by one" in caplog.text
    want = [pool.page(page) for page in (5, 2)]
    keys = some_keys(2)
    assert backend.batch_set_v1(keys, slots([5, 2])) == [True, True]
    pool.bytes.zero_()
    assert backend.batch_get_v1([*keys, *some_keys(1, 50)], slots([5, 2, 3])) == [True, True, False]
    assert all(torch.equal(pool.page(page), page_want) for page, page_want in zip((5, 2), want, strict=True))


def test_a_page_of_many_pieces(attached: Attach) -> None:
    """The layer_first layout: K and V of each layer lie apart; and V may be larger than K."""

    class LayerFirst(HostPool):
        layout = "layer_first"

        def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
            row = self.piece_bytes // LAYERS // 4  # of a token in K; in V three times that
            places = []
            for first in indices.tolist()[:: self.page_size]:
                for layer in range(LAYERS):
                    start = self.kv_buffer.data_ptr() + layer * self.size * 4 * row
                    places.append((start + first * row, row * self.page_size))
                    places.append((start + (self.size + 3 * first) * row, 3 * row * self.page_size))
            return [place for place, _ in places], [length for _, length in places]

    pool = LayerFirst(16, mla=False)
    backend = attached(pool)
    assert backend._pools["kv"].parts == 2 * LAYERS and backend._pools["kv"].shared
    keys, pages = some_keys(5), [9, 3, 15, 0, 7]
    pointers, lengths = pool.get_page_buffer_meta(slots(pages))
    want = [bytes(view_of(*piece)) for piece in zip(pointers, lengths, strict=True)]
    assert backend.batch_set_v1(keys, slots(pages)) == [True] * 5
    pool.bytes.zero_()
    assert backend.batch_get_v1(keys, slots(pages)) == [True] * 5
    assert [bytes(view_of(*piece)) for piece in zip(pointers, lengths, strict=True)] == want


def test_side_pools_gate_a_prefix_by_their_policies(attached: Attach) -> None:
    """An indexer must have every page; a sliding window the last two; groups report for themselves."""
    pool, indexer, window = HostPool(16, mla=True), HostPool(16, mla=True), HostPool(16, mla=False)
    backend = attached(pool)
    backend.register_mem_host_pool_v2(indexer, PoolName.INDEXER)
    backend.register_mem_host_pool_v2(window, PoolName.SWA)
    keys = some_keys(10)
    indexed = PoolTransfer(PoolName.INDEXER, host_indices=slots(list(range(8))), keys=keys[:8])
    windowed = PoolTransfer(PoolName.SWA, host_indices=slots([2, 3, 4, 8]), keys=[keys[i] for i in (2, 3, 4, 8)])
    assert all(backend.batch_set_v1(keys, slots(list(range(10)))))
    done = backend.batch_set_v2([indexed, windowed])
    assert done == {PoolName.INDEXER: [True] * 8, PoolName.SWA: [True] * 4}

    everywhere = PoolTransfer(PoolName.INDEXER, hit_policy=PoolHitPolicy.ALL_PAGES)
    last_two = PoolTransfer(PoolName.SWA, keys=["", ""], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    groups = PoolTransfer(
        PoolName.INDEXER, keys=keys[:8], hit_policy=PoolHitPolicy.BLOCK_GROUPS, block_pages=4, group_pages=3
    )
    found = backend.batch_exists_v2(keys, [everywhere])
    assert (found.kv_hit_pages, found.extra_pool_hit_pages) == (8, {PoolName.KV: 10, PoolName.INDEXER: 8})
    found = backend.batch_exists_v2(keys, [everywhere, last_two])
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (5, [4, 5])
    found = backend.batch_exists_v2(keys, [groups])
    assert (found.kv_hit_pages, found.extra_pool_hit_pages[PoolName.INDEXER]) == (10, 8)
    assert backend.batch_exists_v2(some_keys(2, 500), [everywhere]).kv_hit_pages == 0

    want = [window.page(page) for page in (2, 3)]
    window.bytes.zero_()
    back = PoolTransfer(PoolName.SWA, host_indices=slots([2, 3, 5]), keys=[keys[2], keys[3], keys[5]])
    assert backend.batch_get_v2([back]) == {PoolName.SWA: [True, True, False]}
    assert [torch.equal(window.page(page), page_want) for page, page_want in zip((2, 3), want, strict=True)] == [
        True
    ] * 2
    short = PoolTransfer(PoolName.SWA, host_indices=slots([2]), keys=keys[:2])
    assert backend.batch_get_v2([short]) == {PoolName.SWA: [False, False]}


def test_the_engine_lives_with_failures(attached: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its injector makes calls fail and wait. A backup then ends early, a query finds less, a read brings less: never other bytes."""
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE", "0.3")
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY", "0.01")
    pool = HostPool(512, mla=False)
    backend = attached(pool)
    pages = scattered(pool, 400)
    with engine(backend, pool) as sglang:
        for turn in range(6):
            tokens = [turn] * 400 * PAGE_TOKENS
            want = pool.bytes.clone()
            sglang.back_up(pages, tokens)
            stored = sglang.backed_up()
            assert stored in (0, 128, 256, 384, 400)
            found = sglang.query(f"request {turn}", tokens)
            hits = found.storage_hit_count // PAGE_TOKENS
            assert hits in (0, 128, 256, 384, 400) and hits <= max(stored, 400)
            for page in pages:
                pool.get_data_page(page * PAGE_TOKENS, flat=False).zero_()
            if hits:
                came = sglang.fetch(found, pages)
                assert came <= hits
                assert all(torch.equal(pool.page(page), page_of(want, pool, page)) for page in pages[:came])
            pool.bytes.copy_(want)


@pytest.mark.parametrize("shared", [True, False], ids=["shared pool", "private pool"])
def test_the_engine_outlives_its_storage_server(fresh_cluster: LocalCluster, shared: bool) -> None:
    """Killed while pages are being stored and read: a backup that stops, a shorter prefix. Started again, it has what it acknowledged, and
    the engine goes on."""
    pool = HostPool(512, mla=False, shared=shared)
    backend = attach("dynamic", pool, extra={**DYNAMIC, "url": fresh_cluster.url, "deadline_ms": 3000})
    pages = scattered(pool, 400)
    first, second = [1] * 400 * PAGE_TOKENS, [2] * 400 * PAGE_TOKENS
    with engine(backend, pool) as sglang:
        want = pool.bytes.clone()
        sglang.back_up(pages, first)
        assert sglang.backed_up() == 400
        sglang.back_up(pages, second)
        fresh_cluster.kill("storage-1")
        stored = sglang.backed_up()
        assert stored in (0, 128, 256, 384, 400)
        assert sglang.query("none", first).storage_hit_count == 0  # nobody is there to ask: a miss
        fresh_cluster.restart("storage-1")
        found = sglang.query("stored", second)
        assert found.storage_hit_count >= stored * PAGE_TOKENS
        pool.bytes.zero_()
        found = sglang.query("again", first)
        assert found.storage_hit_count == 400 * PAGE_TOKENS
        assert sglang.fetch(found, pages) == 400
        assert all(torch.equal(pool.page(page), page_of(want, pool, page)) for page in pages)
        sglang.back_up(pages, second)
        assert sglang.backed_up() == 400
    backend.close()


def page_of(bytes_of_pool: torch.Tensor, pool: HostPool, page: int) -> torch.Tensor:
    """A page as it is in a copy of the pool's bytes."""
    copy = bytes_of_pool.view(pool.dtype).view(pool.kv_buffer.shape)
    slots = slice(page * pool.page_size, (page + 1) * pool.page_size)
    return (copy[slots] if pool.mla else copy[:, slots]).flatten().view(torch.uint8)


def test_clear_and_close(attached: Attach) -> None:
    pool = HostPool(8, mla=True)
    backend = attached(pool)
    keys = some_keys(4)
    assert all(backend.batch_set_v1(keys, slots([0, 1, 2, 3])))
    assert backend.clear()
    assert backend.batch_exists(keys) == 0
    assert all(backend.batch_set_v1(keys, slots([0, 1, 2, 3])))  # it goes on
    backend.close()
    backend.close()


def test_a_cache_that_was_not_cleared_is_not_said_to_be(
    fresh_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine takes every answer for success, and forgets which pages are stored: only an exception tells it better."""
    monkeypatch.setattr("emberfs.kvcache.blocking.OPERATION_SECONDS", 3.0)
    pool = HostPool(8, mla=True)
    backend = attach("dynamic", pool, extra={**DYNAMIC, "url": fresh_cluster.url, "deadline_ms": 500})
    keys = some_keys(4)
    assert all(backend.batch_set_v1(keys, slots([0, 1, 2, 3])))
    (anchor,) = backend._pools.values()
    lease = backend.kv.match(anchor.namespace, keys[1:3], lease_ms=60_000).lease
    with pytest.raises(OSError, match="2 blocks"):
        backend.clear()
    backend.kv.release(lease)
    assert backend.clear()
    assert backend.batch_exists(keys) == 0
    fresh_cluster.kill("storage-1")
    with pytest.raises(OSError, match="storage"):
        backend.clear()
    backend.close()


def test_attaching_fails_loudly(cluster: LocalCluster) -> None:
    pool = HostPool(4, mla=True)
    with pytest.raises(ValueError, match="revison"):
        attach("dynamic", pool, extra={**DYNAMIC, "url": cluster.url, "revison": "a typo"})
    with pytest.raises(OSError, match=r"(?i)no cluster|not|connect"):
        attach("dynamic", pool, extra={**DYNAMIC, "url": "ember://127.0.0.1:1/"})


# --- the contract of block stores --------------------------------------------------------------------------------------------------------

PAGES = 64
SMALL_TOKENS = 1  # of a page, where thousands of them are wanted


class Subject:
    """Blocks are pages of a pool, put and got there."""

    def __init__(self, url: str, salt: str, *, mla: bool, small: bool, identity: dict[str, Any]) -> None:
        self.pool = HostPool(
            MANY if small else PAGES, mla=mla, page_tokens=SMALL_TOKENS if small else 16,
            dtype=torch.float16 if "dtype" in identity else torch.bfloat16,
        )  # fmt: skip
        self.pool.layout = identity.get("layout", self.pool.layout)
        self.block_bytes = self.pool.page_bytes
        said = {name: identity[name] for name in ("revision", "tenant", "salt") if name in identity}
        changed: dict[str, Any] = {"model_name": identity.get("model", "org/model")}
        if "heads" in identity:  # half of them
            changed |= {"tp_size": 2}
        self.backend = attach("dynamic", self.pool, extra={**DYNAMIC, "url": url, "salt": salt, **said}, **changed)

    def _slots(self, count: int) -> torch.Tensor:
        """The last pages, the last first."""
        size, pages = self.pool.page_size, self.pool.size // self.pool.page_size
        return torch.cat(
            [torch.arange(page * size, (page + 1) * size) for page in range(pages - 1, pages - 1 - count, -1)]
        )

    def _parts(self, slots: torch.Tensor) -> list[list[memoryview]]:
        """The pieces of memory of each page."""
        pointers, lengths = self.pool.get_page_buffer_meta(slots)
        views = [view_of(pointer, length) for pointer, length in zip(pointers, lengths, strict=True)]
        return [views[i : i + self.pool.parts] for i in range(0, len(views), self.pool.parts)]

    def put(self, keys: Sequence[bytes], blocks: Sequence[bytes]) -> list[bool]:
        if not keys:
            return list(self.backend.batch_set_v1([], torch.empty(0, dtype=torch.int64)))
        slots = self._slots(len(keys))
        for parts, block in zip(self._parts(slots), blocks, strict=True):
            length = len(parts[0])
            for i, part in enumerate(parts):
                part[:] = block[i * length : (i + 1) * length]
        return list(self.backend.batch_set_v1([key.hex() for key in keys], slots))

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return list(self.backend.batch_get_v1([], torch.empty(0, dtype=torch.int64)))
        slots = self._slots(len(keys))
        self.pool.bytes.zero_()
        good = self.backend.batch_get_v1([key.hex() for key in keys], slots)
        return [b"".join(parts) if ok else None for parts, ok in zip(self._parts(slots), good, strict=True)]

    def exists(self, keys: Sequence[bytes]) -> list[bool]:
        leading = self.backend.batch_exists([key.hex() for key in keys])
        return [row < leading for row in range(len(keys))]

    def close(self) -> None:
        self.backend.close()


class TestContract(Contract):
    @pytest.fixture(params=[True, False], ids=["MLA", "MHA"])
    def open_subject(self, request: pytest.FixtureRequest, cluster: LocalCluster) -> Open:
        return opener(partial(Subject, cluster.url, mla=request.param))

    @pytest.fixture(autouse=True)
    def heads_are_of_no_matter_where_all_have_them(self, request: pytest.FixtureRequest) -> None:
        """Every rank of an MLA model has all of a page."""
        if "MLA" in request.node.name:
            self.identities = [identity for identity in Contract.identities if "heads" not in identity]


# --- 3FS's interface ----------------------------------------------------------------------------------------------------------------------


@BOTH_KINDS
def test_its_own_3fs_backend_runs_on_our_rings(make_mount: MakeMount, cluster: LocalCluster, mla: bool) -> None:
    """`HiCacheHF3FS` unchanged: one sparse file on the mount, pages through iovecs and rings, its metadata server."""
    folder = Path(make_mount(cluster.url).path) / f"hf3fs-{mla}-{time.time_ns()}"
    folder.mkdir()
    pool = HostPool(320, mla=mla)
    places = scattered(pool, 300)
    first, second = places[:150], places[150:]
    tokens = [1] * 150 * PAGE_TOKENS
    with metadata_server() as url, hf3fs_backend(folder, pool, url, pages=1024) as backend:
        assert type(backend.clients[0]).__name__ == "Hf3fsUsrBioClient"
        with engine(backend, pool) as sglang:
            want = pool.bytes.clone()
            sglang.back_up(first, tokens)
            assert sglang.backed_up() == 150
            for page in first:
                pool.get_data_page(page * PAGE_TOKENS, flat=False).zero_()
            sglang.back_up(second, [2] * 150 * PAGE_TOKENS)
            found = sglang.query("again", tokens)
            assert found.storage_hit_count == 150 * PAGE_TOKENS
            assert sglang.fetch(found, first) == 150
            assert sglang.backed_up() == 150
            assert torch.equal(pool.bytes, want)
        backend.clients[0].close()  # and once more at the end: it deregisters its descriptor twice
