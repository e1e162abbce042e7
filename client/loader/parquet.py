"""Parquet files: a sample is a row group. The footers are read once; a row group, or what lies between the first and the last of the wanted
columns, is one range of the file, and pyarrow decodes it from memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .index import Table
from .memory import Bytes
from .store import Store
from .window import Window


def open_parquet(store: Store, paths: Sequence[str], columns: Sequence[str] | None) -> tuple[Table, Tables]:
    """The row groups of these files, and what makes tables of them. Raises ImportError without pyarrow, ValueError for what is no Parquet,
    KeyError for columns that a file does not have."""
    from pyarrow import parquet

    rows: list[tuple[int, int, int]] = []
    metadata = []
    for number, path in enumerate(paths):
        with store.open(path, "rb") as file:
            found = parquet.read_metadata(file)
        metadata.append(found)
        rows += [(number, *_span(found.row_group(group), columns, path)) for group in range(found.num_row_groups)]
    file_, offset, length = zip(*rows, strict=True) if rows else ((), (), ())
    return Table(paths, file_, offset, length), Tables(metadata, list(offset), columns)


def _span(group: Any, columns: Sequence[str] | None, path: str) -> tuple[int, int]:
    """Offset and length of the wanted columns of a row group: whole ones, or fields of nested ones as "a.b". (Dots also stand in names.)"""
    wanted = [group.column(i) for i in range(group.num_columns)]
    if columns is not None:
        paths = [f"{one.path_in_schema}." for one in wanted]
        if missing := [name for name in columns if not any(each.startswith(f"{name}.") for each in paths)]:
            raise KeyError(f"{path} has no column {', '.join(missing)}")
        prefixes = tuple(f"{name}." for name in columns)
        wanted = [one for one, each in zip(wanted, paths, strict=True) if each.startswith(prefixes)]
    if not wanted:
        raise KeyError(f"{path}: no columns")
    begins = [
        one.dictionary_page_offset if one.has_dictionary_page and one.dictionary_page_offset else one.data_page_offset
        for one in wanted
    ]
    ends = [begin + one.total_compressed_size for begin, one in zip(begins, wanted, strict=True)]
    return min(begins), max(ends) - min(begins)


class Tables:
    """What a row group's bytes become."""

    def __init__(self, metadata: list[Any], offsets: list[int], columns: Sequence[str] | None) -> None:
        self._metadata = metadata
        self._offsets = offsets
        self._columns = list(columns) if columns is not None else None
        self._starts = np.concatenate([[0], np.cumsum([one.num_row_groups for one in metadata])])

    def numbered(self, sample: Bytes, number: int) -> Any:
        """The pyarrow table of row group `number` of the data set."""
        from pyarrow import parquet

        file = int(np.searchsorted(self._starts, number, "right")) - 1
        window = Window(sample.data, self._offsets[number])
        opened = parquet.ParquetFile(window, metadata=self._metadata[file], pre_buffer=False)
        return opened.read_row_group(number - int(self._starts[file]), columns=self._columns)

    def __call__(self, sample: Bytes) -> Any:
        raise TypeError("a row group is decoded by its number")
