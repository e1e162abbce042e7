"""`emberfs events`: what happens in a directory, as it happens."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from .output import name_out, say, write_json
from .paths import cluster_of


def events(
    path: Annotated[str, typer.Argument(help="A directory: what happens in it and below.")] = "/",
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines, a line an event.")] = False,
) -> None:
    """Show what happens to names and files, in order, until interrupted. For root and the servers' own user.

    A file that is written or whose attributes change is known by its inode alone."""
    with cluster_of([path]) as (client, [wanted]):
        for event in client.events(wanted):
            if event is None:
                continue
            if as_json:
                write_json(asdict(event), lines=True)
                continue
            if event.kind == "lost":
                say("some events were lost: look at everything anew")
                continue
            when = time.strftime("%H:%M:%S", time.localtime(event.time_ns / 1e9))
            where = event.path or f"inode {event.inode:x}"
            say(f"{when} {event.kind:8} {name_out(where)}{f' -> {name_out(event.target)}' if event.target else ''}")
