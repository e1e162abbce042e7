"""gensort and valsort, as their version 1.5 is called: the generator and the validator of the sort benchmarks.

    gensort [-a] [-c] [-bSTARTING_RECORD] [-s] [-tN] RECORDS FILE[,opts]
    valsort [-i] [-q] [-o SUMMARY_FILE] [-s] [-tN] FILE[,opts]

All they say goes to standard error, and the exit code is 1 where something is wrong. What follows a comma behind the file's name (buf, dir,
trans=, count=) chose ways to read and write, and is left out. For files that are larger, or without a mount, there is `emberfs sort`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from . import generator, keys, summary
from .generator import RECORD_BYTES
from .places import naming, read_fully, write_fully

PIECE_RECORDS = 160_000  # 16 MB, a thread's turn
THREADS_MAX = 64

GENSORT_USAGE = """\
usage: gensort [-a] [-c] [-bSTARTING_REC_NUM] [-s] [-tN] NUM_RECS FILE_NAME[,opts]
-a        ASCII records (PennySort, JouleSort); binary ones otherwise.
-c        Tell the sum of the CRC-32 of the records on standard error.
-bN       Begin with record N instead of 0.
-s        Skewed keys.
-tN       Use N threads.
"""
VALSORT_USAGE = """\
usage: valsort [-i] [-q] [-o SUMMARY_FILE] [-s] [-tN] FILE_NAME[,opts]
-i        Letters and their capitals are equal in keys.
-q        Say nothing.
-o FILE   Write a summary of the records. Summaries of parts can be put one after the other into one file and be checked with -s.
-s        The file holds summaries instead of records.
-tN       Accepted and left out.
"""


class Usage(Exception):
    """The command line is none."""


class Wrong(Exception):
    """What to say before exit code 1."""


def gensort(arguments: Sequence[str] | None = None) -> int:
    """The program: fills a file with records. Returns the exit code."""
    return _main(_gensort, GENSORT_USAGE, sys.argv[1:] if arguments is None else arguments)


def valsort(arguments: Sequence[str] | None = None) -> int:
    """The program: says whether the records of a file are in order. Returns the exit code."""
    return _main(_valsort, VALSORT_USAGE, sys.argv[1:] if arguments is None else arguments)


def _main(program: Callable[[list[str]], int], usage: str, arguments: Sequence[str]) -> int:
    try:
        return program(list(arguments))
    except Usage:
        _say(usage.rstrip())
    except Wrong as wrong:
        _say(str(wrong))
    except OSError as failed:
        _say(f"{failed.filename}: {failed.strerror}" if failed.filename else str(failed))
    return 1


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise Usage
    return int(text)


# --- gensort ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """What to generate."""

    records: int = 0
    path: str = ""
    begin: int = 0
    ascii: bool = False
    skewed: bool = False
    checksum: bool = False
    threads: int = 1


def _gensort(arguments: list[str]) -> int:
    order = _parsed(arguments)
    total = _generate(order)
    if order.checksum:
        _say(f"{total:x}")
    return 0


def _parsed(arguments: list[str]) -> Order:
    order = Order()
    while arguments and arguments[0].startswith("-"):
        option, value = arguments[0][1:2], arguments.pop(0)[2:]
        match option:
            case "a":
                order = replace(order, ascii=True)
            case "b":
                order = replace(order, begin=_number(value))
            case "c":
                order = replace(order, checksum=True)
            case "s":
                order = replace(order, skewed=True)
            case "t":
                order = replace(order, threads=max(1, min(THREADS_MAX, _number(value or "1"))))
            case _:
                raise Usage
    if len(arguments) != 2:
        raise Usage
    order = replace(order, records=_number(arguments[0]), path=arguments[1].partition(",")[0])
    if order.begin + order.records > generator.NUMBERS:
        raise Usage
    return order


def _generate(order: Order) -> int:
    """Write the records; the sum of their checksums, if it is wanted."""
    if order.path == os.devnull and not order.checksum:
        return 0
    file = os.open(order.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with ThreadPoolExecutor(order.threads) as pool:
            pieces = range(0, order.records, PIECE_RECORDS)
            return sum(pool.map(partial(_piece, order, file), pieces)) % summary.NUMBERS
    finally:
        os.close(file)


def _piece(order: Order, file: int, at: int) -> int:
    count = min(PIECE_RECORDS, order.records - at)
    made = generator.records(order.begin + at, count, ascii=order.ascii, skewed=order.skewed)
    if order.path != os.devnull:
        with naming(order.path):
            write_fully(file, made, at * RECORD_BYTES)
    return summary.checksum(made) if order.checksum else 0


# --- valsort ---------------------------------------------------------------------------------------------------------------------------


def _valsort(arguments: list[str]) -> int:
    flags, output = set[str](), ""
    while arguments and arguments[0].startswith("-"):
        option = arguments.pop(0)[1:2]
        if option == "o" and len(arguments) > 1:
            output = arguments.pop(0)
        elif option in {"i", "q", "s", "t"}:
            flags.add(option)
        else:
            raise Usage
    if len(arguments) != 1:
        raise Usage
    found = _validated(arguments[0], "s" in flags, "i" in flags)
    if output:
        Path(output).write_bytes(found.pack())
    if "q" not in flags:
        _say("\n".join(found.lines()))
    return 0 if found.ordered else 1


def _validated(name: str, of_summaries: bool, ignore_case: bool) -> summary.Summary:
    cut = name.partition(",")[0]
    path = name if os.path.exists(name) else cut  # names may have commas
    try:
        parts = iter(summary.unpack(Path(path).read_bytes())) if of_summaries else _parts(path, ignore_case)
        return summary.combine(parts, ignore_case=ignore_case)
    except ValueError as wrong:
        raise Wrong(str(wrong)) from wrong


def _parts(path: str, ignore_case: bool) -> Iterator[summary.Summary]:
    file = os.open(path, os.O_RDONLY)
    try:
        buffer = np.empty(PIECE_RECORDS * RECORD_BYTES, np.uint8)
        at = 0
        while have := read_fully(file, buffer, at):
            if have % RECORD_BYTES:
                raise ValueError("partial record found at end")
            yield summary.summarize(keys.as_records(buffer[:have]), ignore_case=ignore_case)
            at += have
    finally:
        os.close(file)


if __name__ == "__main__":
    sys.exit({"gensort": gensort, "valsort": valsort}[sys.argv[1]](sys.argv[2:]))
