"""What adapters to engines are made of, and the one of them that needs no engine's package."""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from emberfs.kvcache import KVCache
from emberfs.kvcache.adapters.arena import Arena, view_of
from emberfs.kvcache.adapters.lmcache_native import EmberNative, split
from emberfs.kvcache.adapters.settings import AdapterSettings, key_of, succeeded

from .contract import Contract, Open, opener
from .faces import keys_of, spec_of

DEADLINE_MS = 60_000


# --- settings and keys ------------------------------------------------------------------------------------------------------------------


def test_settings_come_from_an_engines_mapping() -> None:
    given = {"url": "ember://host:1/", "mode": "0640", "ttl_s": 60, "interface_v1": 1}
    settings = AdapterSettings.of(given, ignore=("interface_v1", "backend_name"))
    assert (settings.url, settings.mode, settings.ttl_s, settings.revision) == ("ember://host:1/", 0o640, 60, "")


@pytest.mark.parametrize(
    "given", [{"revison": "typo"}, {"ttl_s": "60"}, {"durable": "yes"}, {"url": None}, {"mode": "rw"}], ids=str
)
def test_settings_that_are_wrong_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        AdapterSettings.of(given)


def test_a_digest_is_a_key_and_anything_else_is_hashed() -> None:
    digest = os.urandom(32)
    assert key_of(digest) == key_of(digest.hex()) == digest
    assert key_of("model@1") == hashlib.sha256(b"model@1").digest()
    assert key_of("z" * 64) == hashlib.sha256(b"z" * 64).digest()
    assert key_of(digest + b"\0\0\0\1") != digest
    blanks = "ab " * 21 + "a"
    assert key_of(blanks) == hashlib.sha256(blanks.encode()).digest(), "as long as a digest, but none"


def test_failures_are_said_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    doing = f"testing {time.time_ns()}"
    assert succeeded([7, -2, 0, -11], doing) == [True, False, True, False]
    assert succeeded([-11, -11], doing) == [False, False]
    assert [record.getMessage() for record in caplog.records if doing in record.getMessage()] == [
        f"{doing}: 1 of 4 blocks failed (the servers are away, busy or full)"
    ]


def test_importing_the_cache_loads_no_engine() -> None:
    code = (
        "import sys, emberfs.kvcache, emberfs.kvcache.adapters, emberfs.kvcache.adapters.hf3fs;"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'sglang', 'vllm', 'lmcache', 'zmq', 'msgspec'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


# --- an engine's memory -----------------------------------------------------------------------------------------------------------------


def test_memory_is_registered_once_and_found_by_address(kv: KVCache) -> None:
    shared = kv.allocate(1 << 20)  # stands for an engine's memfd
    private = bytearray(1 << 16)
    arena = Arena(kv)
    assert arena.add(shared.address, shared.nbytes, "a pool")
    assert arena.add(shared.address + 4096, 4096, "part of it")
    assert len(arena.spans) == 1
    base, rows, length = arena.places([shared.address + 10, shared.address + 500], [100, 100], 1)
    assert (base.address, rows, length) == (shared.address, [10, 500], 100)
    base, rows, length = arena.places([shared.address + n for n in (0, 1000, 100, 1100)], [100] * 4, 2)
    assert (rows, length) == ([[0, 1000], [100, 1100]], 100)
    # Pieces of several lengths, or of memory that was not registered, go one by one.
    [[first, second]] = arena.places([shared.address, shared.address + 64], [64, 32], 2)
    assert (first.nbytes, second.nbytes) == (64, 32)
    view = memoryview(private)
    outside = kv.register(view).address
    [piece] = arena.places([outside], [16], 1)
    piece[:] = bytes(range(16))
    assert private[:16] == bytes(range(16)) and arena.places([], [], 1) == []
    arena.close()
    assert arena.spans == []


def test_memory_that_cannot_be_shared_is_said_loudly(kv: KVCache, caplog: pytest.LogCaptureFixture) -> None:
    memory = kv.register(bytearray(1 << 20))
    assert not Arena(kv).add(memory.address, memory.nbytes, "the engine's pool")
    assert "the engine's pool: 0.0 GB cannot be shared" in caplog.text


def test_pieces_of_blocks_move_through_an_arena(kv: KVCache) -> None:
    """K and V half a pool apart, and once as pieces of different lengths."""
    pool, arena, namespace = kv.allocate(1 << 16), Arena(kv), kv.namespace(spec_of(300))
    arena.add(pool.address, pool.nbytes, "a pool")
    keys = keys_of(2)
    pool.view[:] = os.urandom(pool.nbytes)
    want = bytes(pool.view)
    starts = [pool.address + n for n in (0, 8000, 1000, 9000)]
    assert list(kv.put_from(namespace, keys, arena.places(starts, [150] * 4, 2))) == [300, 300]
    pool.view[:] = bytes(pool.nbytes)
    uneven = [pool.address + n for n in (20_000, 20_100, 30_000, 30_100)]
    assert list(kv.get_into(namespace, keys, arena.places(uneven, [100, 200, 100, 200], 2))) == [300, 300]
    assert bytes(view_of(pool.address + 20_000, 300)) == want[:150] + want[8000:8150]
    assert bytes(view_of(pool.address + 30_000, 300)) == want[1000:1150] + want[9000:9150]


# --- LMCache's native plug-in -----------------------------------------------------------------------------------------------------------


class Subject:
    """Blocks are buffers of LMCache's, named by its string keys."""

    def __init__(self, url: str, salt: str, *, small: bool, identity: dict[str, Any]) -> None:
        self.block_bytes = 512 if small else 20_000
        said = {name: identity[name] for name in ("revision", "tenant", "salt", "dtype", "layout") if name in identity}
        self.client = EmberNative(**{"url": url, "salt": salt, "dtype": "bfloat16", "deadline_ms": DEADLINE_MS, **said})
        self._model = identity.get("model", "org/model")
        self._rank = "01000101" if "heads" in identity else "01000100"
        self._ended: dict[int, Any] = {}

    def _names(self, keys: Sequence[bytes]) -> list[str]:
        return [f"{self._model}@{self._rank}@0@{key.hex()}" for key in keys]

    def _await(self, task: int) -> Any:
        poller = select.poll()
        poller.register(self.client.event_fd(), select.POLLIN)
        while task not in self._ended:
            poller.poll(50)  # another thread may drain what we wait for
            self._ended.update((number, rest) for number, *rest in self.client.drain_completions())
        return self._ended.pop(task)

    def put(self, keys: Sequence[bytes], blocks: Sequence[bytes]) -> list[bool]:
        _, _, good = self._await(
            self.client.submit_batch_set(self._names(keys), [memoryview(block) for block in blocks])
        )
        return list(good)

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        targets = [bytearray(self.block_bytes) for _ in keys]
        _, _, good = self._await(self.client.submit_batch_get(self._names(keys), [memoryview(one) for one in targets]))
        return [bytes(target) if ok else None for target, ok in zip(targets, good, strict=True)]

    def exists(self, keys: Sequence[bytes]) -> list[bool]:
        return list(self._await(self.client.submit_batch_exists(self._names(keys)))[2])

    def close(self) -> None:
        self.client.close()


class TestNativePlugin(Contract):
    @pytest.fixture
    def open_subject(self, cluster: Any) -> Open:
        return opener(partial(Subject, cluster.url))

    def test_deleting(self, subject: Subject) -> None:
        keys = keys_of(3)
        subject.put(keys, [bytes(subject.block_bytes)] * 3)
        ok, failure, gone = subject._await(subject.client.submit_batch_delete(subject._names([*keys[:2], *keys_of(1)])))
        assert (ok, failure, gone) == (True, "", [True, True, False])
        assert subject.exists(keys) == [False, False, True]

    def test_a_batch_that_makes_no_sense_ends_too(self, subject: Subject) -> None:
        """LMCache would wait for it until its time is out."""
        ok, failure, good = subject._await(subject.client.submit_batch_exists(["no key of theirs"]))
        assert (ok, good) == (False, None) and "model@rank@group@hash" in failure

    def test_a_store_says_what_failed(self, subject: Subject) -> None:
        names = subject._names(keys_of(2))
        blocks = [memoryview(bytes(1)), memoryview(bytes((64 << 20) + 1))]  # no block is that large
        ok, failure, good = subject._await(subject.client.submit_batch_set(names, blocks))
        assert not ok and (good is None or good == [True, False]) and failure


def test_names_of_lmcache() -> None:
    assert split("org/model@01000100@0@ab") == ("org/model", "01000100@0@ab")
    assert split("m@1@0@ab@alice") == ("m", "1@0@ab@alice")
    for wrong in ("", "m", "m@1@2", "m@1@2@3@4@5"):
        with pytest.raises(ValueError, match="no key of LMCache's"):
            split(wrong)


def test_a_native_plug_in_needs_the_dtype(cluster: Any) -> None:
    with pytest.raises(ValueError, match="dtype"):
        EmberNative(url=cluster.url)
