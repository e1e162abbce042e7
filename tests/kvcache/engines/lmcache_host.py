"""LMCache's side of its plug-ins: adapters as its factory makes them, objects in an arena, waiting as its controllers do."""

from __future__ import annotations

import importlib.util
import mmap
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .parts import stand_in

# Before it is imported: it would report to its makers, and print a banner.
os.environ.update(LMCACHE_TRACK_USAGE="false", LMCACHE_DISABLE_BANNER="1", LMCACHE_LOG_LEVEL="WARNING")
if importlib.util.find_spec("transformers") is None:
    stand_in("transformers", AutoTokenizer=None, AutoConfig=None)  # which compressors import that are not used here

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.native_plugin_l2_adapter import NativePluginL2AdapterConfig
from lmcache.v1.distributed.l2_adapters.plugin_l2_adapter import PluginL2AdapterConfig
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.metadata import LMCacheMetadata

from emberfs.kvcache.adapters.lmcache_remote import EmberConnector

__all__ = [
    "CacheEngineKey",
    "EmberConnector",
    "LMCacheEngineConfig",
    "LMCacheMetadata",
    "MemoryObjMetadata",
    "ObjectKey",
    "TensorMemoryObj",
]

WAIT_SECONDS = 30.0
POLL_MS = 50
PLUGIN = {"module_path": "emberfs.kvcache.adapters.lmcache", "class_name": "EmberL2Adapter"}
NATIVE = {"module_path": "emberfs.kvcache.adapters.lmcache_native", "class_name": "EmberNative"}


_stored: weakref.WeakKeyDictionary[Any, dict[int, Any]] = (
    weakref.WeakKeyDictionary()
)  # results that were popped, by adapter


class Arena:
    """Memory for objects: shared (a memfd, as an engine with huge pools may have it) or LMCache's own, which is private."""

    def __init__(self, nbytes: int, *, shared: bool) -> None:
        if shared:
            descriptor = os.memfd_create("arena")  # stays open, as the engines' do: by it we find what the memory is
            os.ftruncate(descriptor, nbytes)
            self._memory = mmap.mmap(descriptor, nbytes)
            weakref.finalize(self, os.close, descriptor)
            self.tensor = torch.frombuffer(self._memory, dtype=torch.uint8)
        else:
            self.tensor = torch.zeros(nbytes, dtype=torch.uint8)
        self._next = 0
        self._lock = threading.Lock()

    @property
    def description(self) -> L1MemoryDesc:
        return L1MemoryDesc(self.tensor.data_ptr(), self.tensor.numel(), 1)

    def object(self, length: int, content: bytes = b"") -> TensorMemoryObj:
        """An object at the next place (from the start again behind the end)."""
        with self._lock:
            start = self._next if self._next + length <= self.tensor.numel() else 0
            self._next = start + length
        place = self.tensor[start : start + length]
        place.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros_like(place))
        said = MemoryObjMetadata(
            shape=torch.Size([length]), dtype=torch.uint8, address=start, phy_size=length, ref_count=1, fmt=MemoryFormat.KV_2LTD
        )  # fmt: skip
        return TensorMemoryObj(raw_data=place, metadata=said, parent_allocator=None)


def content(one: TensorMemoryObj) -> bytes:
    return bytes(one.byte_array)


def make_adapter(kind: str, arena: Arena, **params: Any) -> Any:
    """An adapter of ours as LMCache makes it from its configuration."""
    if kind == "plugin":
        config = PluginL2AdapterConfig.from_dict({**PLUGIN, "adapter_params": params})
    else:
        config = NativePluginL2AdapterConfig.from_dict({**NATIVE, "adapter_params": params})
    return create_l2_adapter(config, l1_memory_desc=arena.description)


def _await(fd: int, ask: Callable[[], Any]) -> Any:
    """What a task has ended with, as the controllers wait: poll the descriptor, then ask."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + WAIT_SECONDS
    while (found := ask()) is None:
        assert time.monotonic() < deadline, "no completion"
        if poller.poll(POLL_MS):  # another thread may have read it meanwhile
            with suppress(BlockingIOError):
                os.eventfd_read(fd)
    return found


def store(adapter: Any, keys: Sequence[ObjectKey], objects: Sequence[TensorMemoryObj]) -> Any:
    task = adapter.submit_store_task(list(keys), list(objects))
    ended = _stored.setdefault(adapter, {})

    def ask() -> Any:
        ended.update(adapter.pop_completed_store_tasks())  # also those of other threads
        return ended.pop(task, None)

    return _await(adapter.get_store_event_fd(), ask)


def lookup(adapter: Any, keys: Sequence[ObjectKey]) -> list[bool]:
    """And lock what is there."""
    task = adapter.submit_lookup_and_lock_task(list(keys), {})
    found = _await(adapter.get_lookup_and_lock_event_fd(), lambda: adapter.query_lookup_and_lock_result(task))
    assert adapter.query_lookup_and_lock_result(task) is None, "a result is given once"
    return [found.test(i) for i in range(len(keys))]


def load(adapter: Any, keys: Sequence[ObjectKey], objects: Sequence[TensorMemoryObj]) -> list[bool]:
    task = adapter.submit_load_task(list(keys), list(objects))
    found = _await(adapter.get_load_event_fd(), lambda: adapter.query_load_result(task))
    return [found.test(i) for i in range(len(keys))]
