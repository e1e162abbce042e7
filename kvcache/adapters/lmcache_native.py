"""LMCache's smallest plug-in (`--l2-adapter '{"type": "native_plugin", ...}'`): batches of string keys and buffers, one event descriptor.

LMCache keeps locks and accounting itself and asks nothing of its package here. Its arena is not announced to us, so blocks are found in
shared memory only if it is registered by somebody else; the `plugin` in `lmcache.py` registers it.

Keys come as `model@rank@group@hash[@salt]`: the model is the namespace's, the rest is hashed to our key.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..blocking import KVCache
from ..namespace import Namespace, NamespaceSpec
from .settings import AdapterSettings, key_of, logger, succeeded

THREADS = 4  # batches that are moved at once
CHUNK_TOKENS = 256  # of LMCache, unless it is told otherwise

Completion = tuple[int, bool, str, list[bool] | None]  # task, whether it worked at all, why not, per key


class Spaces:
    """The namespaces of the objects that an LMCache holds, made as they are met: one for each model, so that a batch is one request
    although it has objects of all ranks."""

    def __init__(self, kv: KVCache, settings: AdapterSettings, dtype: str, layout: str, chunk_tokens: int) -> None:
        if not dtype:
            raise ValueError(
                'emberfs needs "dtype" (of the KV cache, as "bfloat16"): LMCache\'s names do not say it, and blocks of another one '
                "would be taken for ours"
            )
        self._kv, self._settings = kv, settings
        self._dtype, self._layout, self._chunk_tokens = dtype, layout or "lmcache", chunk_tokens
        self._known: dict[str, Namespace] = {}
        self._lock = threading.Lock()

    def of(self, model: str) -> Namespace:
        """Raises StatusError where it cannot be made."""
        known = self._known.get(model)
        if known is not None:
            return known
        spec = NamespaceSpec(
            engine="lmcache", model=model, revision=self._settings.revision, dtype=self._dtype, page_tokens=self._chunk_tokens,
            layout=self._layout, salt=self._settings.salt, tenant=self._settings.tenant,
        )  # fmt: skip
        with self._lock:
            made = self._kv.namespace(spec, ttl_s=self._settings.ttl_s, mode=self._settings.mode)
            return self._known.setdefault(model, made)

    def batches(self, named: Iterable[tuple[str, str]]) -> list[tuple[Namespace, list[int], list[bytes]]]:
        """The batches that objects (model, rest of the name) make: for each model which of them, and their keys."""
        found: dict[str, tuple[list[int], list[bytes]]] = {}
        for i, (model, rest) in enumerate(named):
            rows, keys = found.setdefault(model, ([], []))
            rows.append(i)
            keys.append(key_of(rest))
        return [(self.of(model), rows, keys) for model, (rows, keys) in found.items()]


def split(name: str) -> tuple[str, str]:
    """A string key as model and rest. Raises ValueError for another form."""
    model, separator, rest = name.partition("@")
    if not separator or rest.count("@") not in (2, 3):
        raise ValueError(f"{name!r} is no key of LMCache's (model@rank@group@hash[@salt])")
    return model, rest


class EmberNative:
    """The client object that LMCache drives. Thread-safe. Settings: those of all adapters, and `dtype` (required), `layout`,
    `chunk_tokens`."""

    def __init__(self, dtype: str = "", layout: str = "", chunk_tokens: int = CHUNK_TOKENS, **settings: Any) -> None:
        self._settings = AdapterSettings.of(settings)
        self._kv = KVCache(self._settings.url)
        try:
            self._spaces = Spaces(self._kv, self._settings, dtype, layout, chunk_tokens)
        except ValueError:
            self._kv.close()
            raise
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._tasks = itertools.count(1)
        self._done: list[Completion] = []
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "emberfs-lmcache")
        self._closed = False

    def event_fd(self) -> int:
        """Readable while there are completions to drain."""
        return self._event

    def submit_batch_set(self, keys: list[str], buffers: list[memoryview]) -> int:
        """Store objects. The task has failed if any of them is not stored afterwards."""
        return self._submit(keys, lambda ns, names, rows: self._put(ns, names, [buffers[i] for i in rows]), whole=True)

    def submit_batch_get(self, keys: list[str], buffers: list[memoryview]) -> int:
        """Fill buffers; per key whether it is all there. An object of another length is a miss."""
        return self._submit(
            keys,
            lambda ns, names, rows: succeeded(
                self._kv.get_into(ns, names, [buffers[i] for i in rows], deadline_ms=self._settings.deadline_ms),
                "reading objects for LMCache",
            ),
        )

    def submit_batch_exists(self, keys: list[str]) -> int:
        deadline_ms = self._settings.deadline_ms
        return self._submit(
            keys,
            lambda ns, names, rows: [bool(here) for here in self._kv.exists(ns, names, deadline_ms=deadline_ms)],
        )

    def submit_batch_delete(self, keys: list[str]) -> int:
        deadline_ms = self._settings.deadline_ms
        return self._submit(
            keys, lambda ns, names, rows: succeeded(self._kv.delete(ns, names, deadline_ms=deadline_ms))
        )

    def _put(self, namespace: Namespace, keys: list[bytes], buffers: list[memoryview]) -> list[bool]:
        ack = "durable" if self._settings.durable else "replicated"
        statuses = self._kv.put_from(namespace, keys, buffers, ack=ack, deadline_ms=self._settings.deadline_ms)
        return succeeded(statuses, "storing objects of LMCache")

    def _submit(
        self, keys: list[str], work: Callable[[Namespace, list[bytes], list[int]], list[bool]], whole: bool = False
    ) -> int:
        task = next(self._tasks)
        self._threads.submit(self._run, task, list(keys), work, whole)
        return task

    def _run(
        self, task: int, keys: list[str], work: Callable[[Namespace, list[bytes], list[int]], list[bool]], whole: bool
    ) -> None:
        """Always posts a result: LMCache would wait for it until its time is out."""
        good = [False] * len(keys)
        try:
            for namespace, rows, names in self._spaces.batches([split(key) for key in keys]):
                for row, ok in zip(rows, work(namespace, names, rows), strict=True):
                    good[row] = ok
            failure = "" if all(good) or not whole else f"{good.count(False)} of {len(good)} objects were not stored"
            completion: Completion = (task, not failure, failure, good)
        except Exception as broken:
            logger.warning("a batch of %d objects failed: %s", len(keys), broken)
            completion = (task, False, str(broken), None)
        with self._lock:
            self._done.append(completion)
            if not self._closed:
                os.eventfd_write(self._event, 1)

    def drain_completions(self) -> list[Completion]:
        """What has ended since the last call."""
        with self._lock:
            if not self._closed:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._event)
            taken, self._done = self._done, []
        return taken

    def close(self) -> None:
        """Wait for what is on its way, and give everything back. A second time it does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._threads.shutdown()
        os.close(self._event)
        self._kv.close()
