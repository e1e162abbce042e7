"""The formats of data sets, by name and by ending.

| format | files | a sample | beside |
|---|---|---|---|
| records | `*.records` | a record | `memory`: bytes of index to keep (64 MiB) |
| ffrecord | `*.ffr` | a record of a FFRecord file | |
| tar | `*.tar` | the members that share a name up to its first dot, as a dict of extension -> view (as webdataset has it) | |
| parquet | `*.parquet` | a row group, as a pyarrow table | `columns` |
| files | any | a whole file | `suffix`: only those whose names end so |

All of them take `paths`: those files, in this order, instead of all there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .index import Index, RecordIndex, Table
from .store import Store

Opened = tuple[
    Index, Callable[[Any], Any] | None
]  # where samples are, and what they become unless something else is asked for

ENDINGS = {".records": "records", ".ffr": "ffrecord", ".tar": "tar", ".parquet": "parquet"}


def open_index(store: Store, format: str, how: dict[str, Any]) -> Opened:
    """Raises FileNotFoundError, ValueError, TypeError for a keyword that the format does not know."""
    found = list(how.pop("paths", None) or ())
    sizes: dict[str, int] = {}
    if not found or format in ("", "files"):
        sizes = dict(store.find(how.pop("suffix", "") if format == "files" else ""))
        format = format or _guessed(store, list(sizes))
        ending = next((ending for ending, name in ENDINGS.items() if name == format), "")
        found = found or [path for path in sizes if (path or store.url).endswith(ending)]
    if not found:
        raise FileNotFoundError(f"{store.url}: there is no file for a data set of format {format!r}")
    if format not in _OPENERS:
        raise ValueError(f"format {format!r}: there are {', '.join(_OPENERS)}")
    if format == "files":
        return WholeFiles(found, sizes), None
    return _OPENERS[format](store, found, **how)


def _guessed(store: Store, paths: list[str]) -> str:
    for path in paths:
        for ending, name in ENDINGS.items():
            if (path or store.url).endswith(ending):
                return name
    raise FileNotFoundError(
        f'{store.url}: no file ends in {", ".join(ENDINGS)}; the format "files" takes every file for a sample'
    )


class WholeFiles(Table):
    """Files as samples. Paths are kept in memory (some 100 bytes a sample)."""

    whole = True

    def __init__(self, paths: Sequence[str], sizes: dict[str, int]) -> None:
        lengths = [min(sizes.get(path, 0), (1 << 32) - 1) for path in paths]
        super().__init__(paths, np.arange(len(paths)), np.zeros(len(paths)), lengths)


def _records(store: Store, paths: Sequence[str], **how: Any) -> Opened:
    return RecordIndex(store, paths, **how), None


def _ffrecord(store: Store, paths: Sequence[str]) -> Opened:
    from .ffrecord import open_ffrecord

    return open_ffrecord(store, paths), None


def _tar(store: Store, paths: Sequence[str]) -> Opened:
    from .tar import members, open_tar

    return open_tar(store, paths), members


def _parquet(store: Store, paths: Sequence[str], columns: Sequence[str] | None = None) -> Opened:
    from .parquet import open_parquet

    return open_parquet(store, paths, columns)


def _files(store: Store, paths: Sequence[str]) -> Opened:
    return WholeFiles(paths, {}), None


_OPENERS: dict[str, Callable[..., Opened]] = {
    "records": _records,
    "ffrecord": _ffrecord,
    "tar": _tar,
    "parquet": _parquet,
    "files": _files,
}
