"""vLLM 0.33.0 drives us: its factory of tiers, a scheduler's steps, and its tiering manager over its own shared memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ..contract import MANY, Contract, Open, opener
from .parts import attribute, require

require("vllm", "vLLM")
require("torch", "torch")

import numpy as np  # noqa: E402

from .vllm_host import (  # noqa: E402
    STEP,
    LookupResult,
    ReqContext,
    TransferJob,
    carry_out,
    keys,
    lookup_all,
    make_offload_key,
    make_tier,
    managed,
    primary,
    private_view,
    settle,
    shared_offload_region,
)

if TYPE_CHECKING:
    from emberfs_cluster import LocalCluster

    OpenTier = Callable[..., Any]

pytestmark = [pytest.mark.engines, pytest.mark.timeout(120)]

CHUNK = 256 << 10
CHUNKS = 32


@pytest.fixture
def open_tier(cluster: LocalCluster, request: pytest.FixtureRequest) -> OpenTier:
    """`with open_tier(view, revision="b", spec={"tp": 2}) as tier`, of this test's own namespace."""

    @contextmanager
    def make(view: memoryview, spec: dict[str, Any] | None = None, **settings: Any) -> Iterator[Any]:
        tier = make_tier(cluster.url, view, {"salt": request.node.name, **settings}, **(spec or {}))
        try:
            yield tier
        finally:
            tier.shutdown()

    return make


def rows_of(view: memoryview) -> Any:
    return np.frombuffer(view, np.uint8).reshape(len(view), -1)


def job(number: int, some: list[Any], chunks: list[int], *, load: bool) -> TransferJob:
    return TransferJob(number, some, np.array(chunks, np.int32), load, ReqContext(f"job {number}"))


def test_chunks_are_stored_found_and_loaded(open_tier: OpenTier) -> None:
    """From chunks anywhere in the primary tier, into others."""
    with primary(CHUNKS, CHUNK) as tier1:
        view = tier1.get_kv_memoryview()
        rows = rows_of(view)
        rows[:] = np.random.default_rng(1).integers(0, 256, rows.shape, np.uint8)
        want = rows.copy()
        some = keys(12)
        with open_tier(view) as tier:
            assert tier.shared
            assert tier.lookup(some[0], ReqContext("first")) is LookupResult.RETRY
            assert lookup_all(tier, some, ReqContext("first")) == [LookupResult.MISS] * 12
            tier.on_request_finished(ReqContext("first"))
            stored = carry_out(tier, job(1, some, list(range(20, 32)), load=False))
            assert (stored.success, stored.transfer_bytes) == (True, 12 * CHUNK)
            assert carry_out(tier, job(2, some, list(range(20, 32)), load=False)).success  # once more
            assert lookup_all(tier, [*some, *keys(1, 99)], ReqContext("second"))[-2:] == [
                LookupResult.HIT,
                LookupResult.MISS,
            ]
            rows[:] = 0
            loaded = carry_out(tier, job(3, some[::-1], list(range(12)), load=True))
            assert (loaded.success, loaded.successful_keys) == (True, None)
            assert np.array_equal(rows[:12], want[20:][::-1])
            assert not rows[12:].any()
        del rows, view


def test_a_load_that_fails_in_part_keeps_the_rest(open_tier: OpenTier) -> None:
    """And the keys that failed are misses from then on: the scheduler would ask for them for ever."""
    view = private_view(CHUNKS, CHUNK)
    rows = rows_of(view)
    rows[:] = np.arange(CHUNKS, dtype=np.uint8)[:, None]
    some, request = keys(8), ReqContext("r")
    with open_tier(view) as tier:
        assert not tier.shared
        carry_out(tier, job(1, some, list(range(8)), load=False))
        assert lookup_all(tier, some, request) == [LookupResult.HIT] * 8
        tier._kv.delete(tier._namespace, [some[2][:32], some[3][:32]])
        rows[:] = 99
        result = carry_out(tier, job(2, some, list(range(10, 18)), load=True))
        assert (result.success, list(result.successful_keys)) == (False, [key for key in some if key not in some[2:4]])
        assert result.transfer_bytes == 6 * CHUNK
        good = [0, 1, 4, 5, 6, 7]
        assert [int(rows[10 + row][0]) for row in good] == good
        assert [tier.lookup(key, request) for key in some[1:5]] == [
            LookupResult.HIT, LookupResult.MISS, LookupResult.MISS, LookupResult.HIT,
        ]  # fmt: skip
        nothing = carry_out(tier, job(3, keys(3, 500), [0, 1, 2], load=True))
        assert (nothing.success, nothing.successful_keys) == (False, None)


def test_under_the_engines_manager(open_tier: OpenTier) -> None:
    """GPU to primary to us; the primary tier is emptied; a lookup brings it all back."""
    some = keys(24)
    with primary(CHUNKS, CHUNK) as tier1:
        view = tier1.get_kv_memoryview()
        rows = rows_of(view)
        with (
            open_tier(view, spec={"events": True}, enable_kv_events=True, locality="REMOTE") as tier,
            managed(tier1, tier) as manager,
            manager.lock,
        ):
            writer = ReqContext("writer")
            manager.on_new_request(writer)
            plan = manager.prepare_store(some, writer)
            for number, chunk in enumerate(plan.store_spec.chunk_ids):
                rows[chunk] = number + 1
            manager.complete_store(plan.keys_to_store, writer)
            manager.on_schedule_end(STEP)
            manager.on_request_finished(writer)
            assert manager.has_pending_work()
            tier.drain_jobs()
            manager.on_schedule_end(STEP)
            events = list(manager.take_events())
            ours = [event for event in events if event.locality is not None]
            assert sorted(key for event in ours for key in event.keys) == sorted(some)
            assert {(event.medium.name, event.locality.name, event.removed) for event in ours} == {
                ("STORAGE", "REMOTE", False)
            }
            manager.reset_cache()
            manager.on_reset_flushed()
            rows[:] = 0
            reader = ReqContext("reader")
            manager.on_new_request(reader)
            sure = {LookupResult.HIT, LookupResult.MISS}
            settle(lambda: {manager.lookup(key, reader) for key in some} <= sure, lambda: manager.on_schedule_end(STEP))
            assert {manager.lookup(key, reader) for key in some} == {LookupResult.HIT}
            places = manager.prepare_load(some, reader)
            assert [int(rows[chunk].min()) for chunk in places.chunk_ids] == list(range(1, 25))
            assert [int(rows[chunk].max()) for chunk in places.chunk_ids] == list(range(1, 25))
            assert manager.get_load_source(some[0], reader).name == "DISK"
            manager.complete_load(some, reader)
            manager.touch(some, reader)
            manager.on_schedule_end(STEP)
            manager.on_request_finished(reader)
            del rows, view
        tier.shutdown()  # once more


def test_a_region_of_several_files_is_shared_too(open_tier: OpenTier) -> None:
    """The engine cuts large regions into files behind each other in memory."""
    with attribute(shared_offload_region, "_MIN_SEGMENT_BYTES", 1 << 20), primary(CHUNKS, CHUNK, segments=4) as tier1:
        view = tier1.get_kv_memoryview()
        rows = rows_of(view)
        rows[:] = np.arange(CHUNKS, dtype=np.uint8)[:, None]
        some = keys(CHUNKS)
        with open_tier(view) as tier:
            assert tier.shared and len(tier._arena.spans) == 4
            assert carry_out(tier, job(1, some, list(range(CHUNKS)), load=False)).success
            rows[:] = 0
            assert carry_out(tier, job(2, some, list(range(CHUNKS)), load=True)).success
            assert rows[:, 0].tolist() == rows[:, -1].tolist() == list(range(CHUNKS))
        del rows, view


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "org/other"}, {"dtype": "fp8"}, {"tp": 2}, {"tokens": 32}, {"layout": "HND"}, {"layers": ("layer.0",)},
        {"blocks": 2},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_the_same_is_not_seen(open_tier: OpenTier, changed: dict[str, Any]) -> None:
    view = private_view(4, CHUNK)
    some = keys(4)
    with open_tier(view, salt="mine") as tier, open_tier(view, salt="mine", spec=changed) as other:
        assert carry_out(tier, job(1, some, [0, 1, 2, 3], load=False)).success
        assert lookup_all(tier, some, ReqContext("a")) == [LookupResult.HIT] * 4
        assert lookup_all(other, some, ReqContext("a")) == [LookupResult.MISS] * 4
        assert lookup_all(tier, keys(4, group=1), ReqContext("b")) == [LookupResult.MISS] * 4


def test_parallelism_that_does_not_show_in_the_bytes_is_shared(open_tier: OpenTier) -> None:
    view = private_view(4, CHUNK)
    some = keys(2)
    with open_tier(view, spec={"portable": True}) as one, open_tier(view, spec={"portable": True, "tp": 2}) as two:
        assert carry_out(one, job(1, some, [0, 1], load=False)).success
        assert lookup_all(two, some, ReqContext("a")) == [LookupResult.HIT] * 2


def test_attaching_fails_loudly(open_tier: OpenTier) -> None:
    view = private_view(4, CHUNK)
    with pytest.raises(ValueError, match="revison"), open_tier(view, revison="a typo"):
        pass


# --- the contract of block stores --------------------------------------------------------------------------------------------------------


class Subject:
    """Blocks are chunks of a primary tier, stored from there and loaded into it."""

    def __init__(self, url: str, salt: str, *, small: bool, identity: dict[str, Any]) -> None:
        self.block_bytes = 512 if small else 20_000
        self.view = private_view(MANY if small else CHUNKS, self.block_bytes)
        said = {name: identity[name] for name in ("revision", "tenant", "salt") if name in identity}
        changed = {name: identity[name] for name in ("model", "dtype", "layout") if name in identity}
        if "heads" in identity:
            changed["tp"] = 2
        self.tier = make_tier(url, self.view, {"salt": salt, **said}, **changed)
        self._number = 0
        self._lock = threading.Lock()  # as the engine calls a tier: under its manager's

    def _carry_out(self, keys: Sequence[bytes], *, load: bool) -> Any:
        chunks = list(range(len(self.view) - 1, len(self.view) - 1 - len(keys), -1))
        with self._lock:
            self._number += 1
            return carry_out(
                self.tier, job(self._number, [make_offload_key(key, 0) for key in keys], chunks, load=load)
            )

    def put(self, keys: Sequence[bytes], blocks: Sequence[bytes]) -> list[bool]:
        rows = rows_of(self.view)
        for row, block in enumerate(blocks):
            rows[len(rows) - 1 - row] = np.frombuffer(block, np.uint8)
        return [self._carry_out(keys, load=False).success] * len(keys)

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        rows = rows_of(self.view)
        rows[:] = 0
        result = self._carry_out(keys, load=True)
        kept = set(keys) if result.success else {key[:32] for key in result.successful_keys or ()}
        return [rows[len(rows) - 1 - row].tobytes() if key in kept else None for row, key in enumerate(keys)]

    def exists(self, keys: Sequence[bytes]) -> list[bool]:
        self._number += 1
        request = ReqContext(f"request {self._number}")
        answers = lookup_all(self.tier, [make_offload_key(key, 0) for key in keys], request)
        self.tier.on_request_finished(request)
        return [answer is LookupResult.HIT for answer in answers]

    def close(self) -> None:
        self.tier.shutdown()


class TestContract(Contract):
    @pytest.fixture
    def open_subject(self, cluster: LocalCluster) -> Open:
        return opener(partial(Subject, cluster.url))
