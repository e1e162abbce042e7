"""Changing the namespace: mkdir, mv, rm."""

from __future__ import annotations

import posixpath
from typing import Annotated

import typer

from ...proto.errors import StatusError
from .output import Failed, complain, name_out, say, told
from .paths import cluster_of, destination, expand, is_directory, once


def mkdir(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...")],
    parents: Annotated[
        bool, typer.Option("-p", "--parents", help="Missing ones on the way too; existing ones are no error.")
    ] = False,
    mode: Annotated[
        str, typer.Option("-m", "--mode", help="Permission bits, in octal (default: 777 less the umask).")
    ] = "",
) -> None:
    """Make directories."""
    try:
        bits = int(mode, 8) if mode else 0o777
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o7777:
        raise Failed(f"--mode {mode}: write it in octal, as 750", 2)
    failures = 0
    with cluster_of(paths) as (client, wanted):
        for path in wanted:
            try:
                client.mkdir(path, bits, parents=parents, exist_ok=parents)
                if mode:
                    client.chmod(path, bits)
            except StatusError as failed:
                complain(told(path, failed))
                failures += 1
    if failures:
        raise Failed()


def mv(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The new name, or a directory to move into.")],
    keep: Annotated[bool, typer.Option("-n", "--no-replace", help="Fail when the target exists.")] = False,
    exchange: Annotated[bool, typer.Option("--exchange", help="Swap source and target.")] = False,
) -> None:
    """Rename or move. Each move is atomic: others see the old name or the new one."""
    with cluster_of([*sources, target]) as (client, [*typed, goal]):
        wanted = once(expand(client, typed))
        goals = [goal] if exchange else destination(wanted, goal, is_directory(client, goal))
        if exchange and len(wanted) > 1:
            raise Failed("--exchange takes one source and one target", 2)
        for source, name in zip(wanted, goals, strict=True):
            client.rename(source, name, replace=not keep, exchange=exchange)


def rm(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Paths or patterns.")],
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Directories and all that is below them.")
    ] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="What does not exist is no error.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    forever: Annotated[bool, typer.Option("--forever", help="Not into the trash.")] = False,
) -> None:
    """Remove files (with -r directories). They are gone at once, and in the trash for a while (see 'emberfs trash')."""
    failures = 0
    with cluster_of(paths) as (client, wanted):
        for pattern in wanted:
            try:
                matches = expand(client, [pattern])
            except Failed:
                if force:
                    continue
                raise
            for path in matches:
                if not posixpath.normpath(path).strip("/"):
                    raise Failed("refusing to remove /: name what is in it, as '/*'")
                if dry_run:
                    say(name_out(path))
                    continue
                try:
                    client.remove_tree(path, forever=forever) if recursive else client.unlink(path, forever=forever)
                except FileNotFoundError as failed:
                    if not force:
                        complain(told(path, failed))
                        failures += 1
                except IsADirectoryError:
                    complain(f"{path} is a directory: add -r to remove it and all that is in it")
                    failures += 1
                except StatusError as failed:
                    complain(told(path, failed))
                    failures += 1
    if failures:
        raise Failed()
