"""`emberfs meta` and `emberfs fsck`: the metadata checked, repaired, dumped, loaded, backed up and restored."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .moving import administration
from .output import Failed, complain, console, counted, human, name_out, say, write_json

PROGRESS_ROWS = 10_000  # between two looks at the bar
EXIT_DAMAGED = 4

meta = typer.Typer(
    name="meta",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_KV_HELP = "The metadata store, as rocksdb:///absolute/path or postgresql://user@host/database. Default: that of this machine's cluster."
Kv = Annotated[str, typer.Option("--kv", metavar="URL", help=_KV_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]


@meta.callback()
def _group() -> None:
    """The metadata: names, attributes and the cluster's own records. Files' bytes are not in it."""


@meta.command("dump")
def dump(
    file: Annotated[str, typer.Argument(help="Where to; '-' is standard output. A name in .gz is compressed.")],
    kv: Kv = "",
    resume: Annotated[bool, typer.Option(help="Go on with a dump that was interrupted.")] = False,
    as_json: Json = False,
) -> None:
    """Write all metadata as JSON lines. A running cluster goes on meanwhile: what is dumped is a copy."""
    from ..metadata import dump_to, readable_engine

    with readable_engine(kv) as url, _counted("dumping") as progress:
        summary = dump_to(url, file, resume=resume, progress=progress)
    _done({"file": file, "rows": summary.rows}, f"{summary.rows} rows in {file}", as_json, quiet=file == "-")


@meta.command("load")
def load(
    file: Annotated[str, typer.Argument(help="A dump, compressed or not; '-' is standard input.")],
    kv: Annotated[str, typer.Option("--kv", metavar="URL", help="The empty store to load it into.")],
    as_json: Json = False,
) -> None:
    """Load a dump into an empty store, or go on with a load that was interrupted: so metadata moves to another engine.

    Start the metadata server on it with --kv URL afterwards."""
    from ..metadata import load_from

    with _counted("loading") as progress:
        summary = load_from(kv, file, progress)
    _done({"kv": kv, "rows": summary.rows}, f"{summary.rows} rows loaded", as_json)


@meta.command("backup")
def backup(as_json: Json = False) -> None:
    """Copy the metadata into the chunks, now. (The server does so every hour, and keeps the copies for a week.)"""
    from ..metadata import backup_name

    with administration() as connection:
        made = connection.back_up_metadata()
    found = {"number": made.number, "bytes": made.bytes, "chain": made.chain}
    _done(found, f"copy {made.number} ({backup_name(made.number)}): {human(made.bytes)} in chain {made.chain}", as_json)


def _left_out(target: Path, why: OSError) -> None:
    complain(f"target {target} cannot be read, and is left out: {why.strerror or why}")


@meta.command("backups")
def backups(as_json: Json = False) -> None:
    """List the copies of the metadata that the targets of this machine hold. The cluster must be stopped."""
    from ..metadata import backup_name, copies_in

    found = copies_in(_data(), _left_out)
    rows: list[dict[str, Any]] = [
        {"number": copy.manifest.number, "bytes": copy.manifest.length, "target": str(copy.target)} for copy in found
    ]
    if as_json:
        write_json(rows)
        return
    from rich.table import Table

    table = Table("number", "made", "size", "target", box=None)
    for row in rows:
        table.add_row(str(row["number"]), backup_name(row["number"]), human(row["bytes"]), name_out(row["target"]))
    console().print(table)


@meta.command("restore")
def restore(
    number: Annotated[int, typer.Argument(help="Of the copy. Default: the newest.", show_default=False)] = 0,
    as_json: Json = False,
) -> None:
    """Make the metadata of this machine's stopped cluster anew from a copy in its targets, after it was lost.

    Files that were made after the copy are gone, those deleted after it come back without their bytes. Start with 'emberfs up' then."""
    from ..metadata import backup_name
    from ..metadata import restore as restored

    with _counted("restoring") as progress:
        manifest = restored(_data(), number, progress, _left_out)
    text = f"restored as of {backup_name(manifest.number)}; start the cluster with 'emberfs up'"
    _done({"number": manifest.number, "bytes": manifest.length}, text, as_json)


def fsck(
    kv: Kv = "",
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is found. The cluster must be stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Check every invariant of the metadata, of a running cluster too. Exit code 4 when something is wrong (and was not mended)."""
    from ..metadata import check_engine, existing, own_engine, readable_engine, repair_engine

    if repair:
        mended: list[str] = []

        def report(problem: object) -> None:
            mended.append(str(problem))
            if not as_json:
                say(f"mended: {problem}")

        outcome = repair_engine(existing(kv) if kv else own_engine(), report)
        left = outcome.left
    else:
        mended = []
        with readable_engine(kv) as url:
            left = check_engine(url)
    if as_json:
        write_json({"mended": mended, "problems": [{"kind": p.kind, "detail": p.detail} for p in left]})
    else:
        for problem in left:
            say(str(problem))
        say(_verdict(len(left), len(mended), repair))
    if left:
        raise Failed("", EXIT_DAMAGED)


def _verdict(left: int, mended: int, repaired: bool) -> str:
    if repaired:
        return f"{mended} mended, {left} left" if mended or left else "nothing to mend"
    return f"{counted(left, 'problem')}: stop the cluster and run 'emberfs fsck --repair'" if left else "no problems"


def _data() -> Path:
    from ...proto.settings import default_data_dir

    return Path(default_data_dir()).absolute()


def _done(found: dict[str, Any], text: str, as_json: bool, *, quiet: bool = False) -> None:
    if as_json and not quiet:
        write_json(found)
    elif not quiet:
        say(text)


@contextlib.contextmanager
def _counted(title: str) -> Iterator[Callable[[int], None] | None]:
    """Rows on a terminal, while they pass."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status(title) as status:

        def progress(rows: int) -> None:
            if rows % PROGRESS_ROWS == 0:
                status.update(f"{title}: {rows} rows")

        yield progress
