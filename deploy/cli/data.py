"""`emberfs data`: data sets for training: packed, looked at, verified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .output import Failed, complain, console, human, name_out, parse_size, progress, say, write_json
from .paths import split_url

if TYPE_CHECKING:
    from ...client.loader.samples import Samples

EXIT_DAMAGED = 4  # as for any data that are not what was written
DAMAGED_SHOWN = 20

data = typer.Typer(
    name="data",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
_Source = Annotated[str, typer.Argument(help="A directory, or one file; file:///… on the local disk.")]
_Format = Annotated[
    str,
    typer.Option("--format", help="records, ffrecord, tar, parquet or files.", show_default="by the files' endings"),
]


@data.callback()
def _group() -> None:
    """Data sets for training: many samples in few files.

    Packed records (*.records) are read in any order, a batch in one request to each server, and checked by a checksum each. FFRecord files,
    tar shards, Parquet row groups and plain files are read, too.
    """


def _place(path: str) -> str:
    """What names the place for the library."""
    if path.startswith("file://"):
        return path
    url, inside = split_url(path)
    return ((url or "ember:///") + inside.lstrip("/")).rstrip("/")


@contextmanager
def _opened(path: str, format: str) -> Iterator[Samples]:
    """The samples of a place. Raises Failed for what is no data set."""
    from ...client.loader.samples import open_samples

    try:
        samples = open_samples(_place(path), format)
    except (ValueError, EOFError) as bad:
        raise Failed(str(bad)) from bad
    try:
        yield samples
    finally:
        samples.close()


@data.command("convert")
def convert(
    source: _Source,
    target: Annotated[str, typer.Argument(help="The directory for the shards; file:///… on the local disk.")],
    format: _Format = "",
    to: Annotated[str, typer.Option("--to", help="records, or ffrecord (one file, through memory).")] = "records",
    name: Annotated[str, typer.Option("--name", help="What the files' names begin with.")] = "part",
    shard: Annotated[str, typer.Option("--shard-size", help="Of one file, about.")] = "1GiB",
) -> None:
    """Pack the samples of a data set into shards of records, in their order and as they are.

    A sample of a tar shard stays a small tar; row groups of Parquet do not stand alone, and stay where they are.
    """
    from ...client.loader.store import open_store
    from ...client.loader.whole import convert as convert_all

    if to not in ("records", "ffrecord"):
        raise Failed(f"--to {to}: there are records, ffrecord")
    with _opened(source, format) as samples:
        if samples.index.paths[0].endswith(".parquet"):
            raise Failed(f"{source}: a row group cannot be read without its file; Parquet files are read as they are")
        store = open_store(_place(target))
        try:
            with progress("packing", _bytes(samples), 1) as bar:
                paths = convert_all(samples, store, to=to, name=name, shard_bytes=parse_size(shard), progress=bar.add)
        finally:
            store.close()
        say(f"{len(samples)} samples in {len(paths)} {'file' if len(paths) == 1 else 'files'}")


@data.command("inspect")
def inspect(path: _Source, format: _Format = "", as_json: _Json = False) -> None:
    """Show what a data set holds: files, samples and their sizes, and where a writer died."""
    from rich.table import Table

    from ...client.loader.whole import describe

    with _opened(path, format) as samples:
        found = describe(samples)
    if as_json:
        write_json({**asdict(found), "size_mean": found.size_mean})
        return
    table = Table("file", "size", "samples", "commits", "", box=None)
    for shard in found.shards:
        commits = str(shard.commits) if shard.commits else ""
        table.add_row(name_out(shard.path or path), human(shard.bytes), str(shard.samples), commits, shard.problem)
    console().print(table)
    sizes = f"{human(found.size_min)} to {human(found.size_max)}, {human(found.size_mean)} on average"
    checks = "with checksums" if found.checksums else "without checksums of their own"
    say(f"{found.samples} samples ({found.format}), {human(found.bytes)}: {sizes}, {checks}")


@data.command("verify")
def verify(path: _Source, format: _Format = "", as_json: _Json = False) -> None:
    """Read every sample and compare it with its checksum. Ends with 4 if one is damaged."""
    from ...client.loader.whole import verify as verify_all

    with _opened(path, format) as samples, progress("verifying", _bytes(samples), 1) as bar:
        found = verify_all(samples, bar.add)
    if as_json:
        write_json(asdict(found))
    else:
        for number in found.damaged[:DAMAGED_SHOWN]:
            complain(f"sample {number} is damaged")
        if len(found.damaged) > DAMAGED_SHOWN:
            complain(f"and {len(found.damaged) - DAMAGED_SHOWN} more")
        say(f"{found.samples} samples, {human(found.bytes)}, {len(found.damaged) or 'none'} damaged")
    if found.damaged:
        raise Failed("", EXIT_DAMAGED)


def _bytes(samples: Samples) -> int:
    """Of all files, for a bar."""
    sizes = dict(samples.store.find())
    return sum(sizes.get(path, 0) for path in samples.index.paths)
