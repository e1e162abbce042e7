"""Data sets for training: samples in random order, a batch in one read.

    from emberfs.client.loader import Loader, open_samples

    samples = open_samples("ember:///data/train")            # or a local directory
    for batch in Loader(samples, batch_size=256, seed=1):
        batch[0]                                             # a numpy view of the first sample's bytes

`emberfs.client.loader.pytorch` has the same for torch's DataLoader. numpy is needed, nothing else.
"""

from __future__ import annotations

from typing import Any

# Loaded when they are used: `emberfs` itself does without numpy.
_HOMES = {
    "Batch": "batch",
    "Loader": "loader",
    "Permutation": "permutation",
    "Plan": "plan",
    "RecordWriter": "record_writer",
    "Samples": "samples",
    "Share": "plan",
    "ShardedWriter": "record_writer",
    "open_samples": "samples",
    "open_store": "store",
}

__all__ = [*_HOMES]  # noqa: PLE0604 -- names of modules that are loaded lazily


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
