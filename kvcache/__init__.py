"""The KV cache: blocks of attention state for inference workers. Start with README.md.

    from emberfs.kvcache import KVCache, NamespaceSpec

Everything is imported on first use: an engine that only names a class here pays nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio import AsyncKVCache
    from .blocking import KVCache
    from .buffers import Buffer
    from .core.results import BlockInfo, Counters, Lease, Match, Usage
    from .events import Event, Events
    from .namespace import Namespace, NamespaceSpec
    from .tickets import Ticket

_HOMES = {
    "AsyncKVCache": "aio",
    "BlockInfo": "core.results",
    "Buffer": "buffers",
    "Counters": "core.results",
    "Event": "events",
    "Events": "events",
    "KVCache": "blocking",
    "Lease": "core.results",
    "Match": "core.results",
    "Namespace": "namespace",
    "NamespaceSpec": "namespace",
    "Ticket": "tickets",
    "Usage": "core.results",
}

__all__ = [
    "AsyncKVCache",
    "BlockInfo",
    "Buffer",
    "Counters",
    "Event",
    "Events",
    "KVCache",
    "Lease",
    "Match",
    "Namespace",
    "NamespaceSpec",
    "Ticket",
    "Usage",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'emberfs.kvcache' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{home}", __name__), name)
