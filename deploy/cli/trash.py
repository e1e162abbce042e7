"""`emberfs trash`: what was removed, back again or gone for good."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from .output import Failed, complain, console, human, name_out, parse_duration, say, time_text, write_json
from .paths import cluster_of

trash = typer.Typer(
    name="trash",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@trash.callback()
def _group() -> None:
    """What was removed is kept for a day, or as long as its directory says, and can come back with all its bytes."""


@trash.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False) -> None:
    """Show what is in the trash, soonest to go first: yours, or as root everybody's."""
    with cluster_of(["/"]) as (client, _):
        found = client.trash()
    rows = [
        {
            "id": entry.id,
            "path": f"{entry.directory.rstrip('/')}/{entry.name}",
            "type": entry.stat.type,
            "size": entry.stat.size,
            "removed_ns": entry.removed_ns,
            "remover": entry.remover,
            "expires": entry.expires,
        }
        for entry in found
    ]
    if as_json:
        write_json(rows)
        return
    from rich.table import Table

    table = Table("id", "path", "size", "removed", "goes", box=None)
    for row, entry in zip(rows, found, strict=True):
        size = "directory" if entry.stat.is_dir else human(entry.stat.size)
        goes = time_text(entry.expires * 10**9)
        table.add_row(entry.id, name_out(str(row["path"])), size, time_text(entry.removed_ns), goes)
    console().print(table)


@trash.command("restore")
def restore(
    entry: Annotated[str, typer.Argument(help="The id that 'emberfs trash list' shows.")],
    path: Annotated[str, typer.Argument(help="Where to. Default: where it was.", show_default=False)] = "",
) -> None:
    """Bring something back, with all that is below it."""
    with cluster_of([path or "/"]) as (client, [wanted]):
        client.restore(entry, wanted if path else None)


@trash.command("purge")
def purge(
    entries: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Entries; none with --all.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that 'emberfs trash list' shows.")] = False,
) -> None:
    """Let entries go now. Their space is freed in the background."""
    if bool(entries) == everything:
        raise Failed("name entries, or say --all", 2)
    with cluster_of(["/"]) as (client, _):
        wanted = entries or [entry.id for entry in client.trash()]
        failures = [(name, why) for name, why in zip(wanted, client.purge(wanted), strict=True) if why is not None]
    for name, why in failures:
        complain(f"{name}: {why.strerror}")
    if failures:
        raise Failed()


@trash.command("keep")
def keep(
    path: Annotated[str, typer.Argument(help="A directory.")],
    how_long: Annotated[str, typer.Argument(help="As 12h or 7d; 'off': not at all; 'default': as the cluster says.")],
) -> None:
    """Say how long the trash keeps what is removed from a directory, and from directories that are made in it later."""
    seconds = None if how_long == "default" else parse_duration(how_long)
    with cluster_of([path]) as (client, [wanted]):
        client.keep_removed(wanted, seconds)
    if seconds:
        say(f"kept until {time.strftime('%Y-%m-%d %H:%M', time.localtime(time.time() + seconds))} if removed now")
