"""`emberfs mount`, `emberfs umount`, and the program that mount(8) calls for `mount -t emberfs` and lines of fstab."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .output import Failed, complain, console, parse_level, say, write_json

_PLACES_HELP = "What to mount (default: the default cluster), and the directory to mount it on. None: list the mounts."
_OPTIONS_HELP = "Options, separated by commas; may be repeated."
HELPER_USAGE = "usage: mount.emberfs SOURCE DIRECTORY [-fnsv] [-o OPTIONS]"


def mount(
    places: Annotated[list[str] | None, typer.Argument(metavar="[ember://...] DIRECTORY", help=_PLACES_HELP)] = None,
    options: Annotated[list[str] | None, typer.Option("-o", "--options", help=_OPTIONS_HELP)] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Stay in the foreground, log to the terminal; Ctrl-C unmounts.")
    ] = False,
    log_level: Annotated[str, typer.Option(help="Of the log: debug, info, warning or error.")] = "info",
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """Mount a cluster, or a directory of it, so that every program can use it; without arguments, list what is mounted.

    emberfs mount /mnt/data: the default cluster. emberfs mount ember://host:9440/sets /mnt/sets: a directory of another one.

    It returns when the mount answers, and goes on in the background until 'emberfs umount DIRECTORY'. Anybody may mount on a directory
    of his own (with fusermount3, Debian package fuse3); what root mounts is for all users.

    Options: ro, noatime, allow_other, allow_root, uid=N and gid=N (who is shown as the owner of everything), dev, suid, noexec,
    strict (the kernel caches no names or attributes: every look asks), attr_timeout=S, entry_timeout=S, negative_timeout=S (for how
    long it does; 1, 1, 0), readahead=SIZE (4M), timeout=S (of one operation, 30), memory=SIZE (of buffers, 256M),
    secret_file=PATH (of a cluster over TCP; secrets themselves belong neither into options nor URLs), nocontrol (no .ember/).

    In /etc/fstab, with mount.emberfs linked into /sbin: ember://host:9440/sets /mnt/sets emberfs
    _netdev,nofail,secret_file=/etc/emberfs/secret 0 0
    """
    if not places:
        _list(as_json)
        return
    if len(places) > 2:
        raise Failed("one URL at most, and one directory", 2)
    url, path = ("", places[0]) if len(places) == 1 else (places[0], places[1])
    if path.startswith("ember://"):
        raise Failed(f"which directory is {path} to be mounted on? emberfs mount {path} DIRECTORY", 2)
    if len(places) == 2 and not url.startswith("ember://"):
        raise Failed(f"{url}: what is mounted is named by its URL, as in ember:///{url.lstrip('/')}", 2)
    from .. import mounts

    texts = options or []
    parse_level(log_level)
    if foreground:
        _stay(mounts.full_url(url), path, texts, log_level)
    found = mounts.start(url, path, texts, log_level=log_level)
    if as_json:
        write_json(found)
    else:
        say(f"{found['source']} is mounted on {found['path']} (pid {found['pid']}, log {found['log']}).")
        say(f"  emberfs umount {path}")


def _stay(url: str, path: str, texts: list[str], log_level: str) -> None:
    """Become the supervisor: this process has loaded what only a command line needs."""
    arguments = [sys.executable, "-P", "-m", "emberfs.fuse.supervisor", url, path, "--log-level", log_level]
    for text in texts:
        arguments += ["-o", text]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)  # noqa: S606


def _list(as_json: bool) -> None:
    from .. import mounts
    from .status import mount_table

    found = mounts.listed()
    if as_json:
        write_json(found)
    else:
        console().print(mount_table(found) if found else "nothing is mounted: emberfs mount DIRECTORY")


def umount(
    path: Annotated[str, typer.Argument(help="The directory that it is mounted on.")],
    lazy: Annotated[
        bool, typer.Option("--lazy", "-l", help="Take it out of the directory tree now; it ends with its last user.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="What waits for a mount that does not answer fails first. Only root may.")
    ] = False,
) -> None:
    """Unmount. All that was written is at the cluster when it returns; a mount that 'emberfs up --mount' remembered is forgotten.

    While programs use it, it stays, and the complaint names them.
    """
    from .. import mounts

    mounts.forget(path)
    if unsure := mounts.stop(path, lazy=lazy, force=force):
        complain(unsure)


def helper() -> None:
    """Entry point `mount.emberfs`: what mount(8) calls as `mount.emberfs SOURCE DIRECTORY [-sfnv] [-o OPTIONS]`. Exit codes as
    mount(8) says: 0, 1 for wrong usage, 32 when it failed."""
    from ...proto.errors import StatusError

    try:
        source, path, texts, fake = _parse_helper(sys.argv[1:])
    except ValueError as wrong:
        complain(str(wrong))
        raise SystemExit(1) from wrong
    from .. import mounts

    try:
        if not fake:
            mounts.start(source, path, texts)
    except (StatusError, OSError) as failed:
        complain(str(failed.strerror or failed))
        raise SystemExit(32) from failed


def _parse_helper(arguments: list[str]) -> tuple[str, str, list[str], bool]:
    places: list[str] = []
    texts: list[str] = []
    fake = False
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-o", "-t", "-N"):
            value = next(rest, "")
            texts += [value] if argument == "-o" else []
        elif argument.startswith("-"):
            if set(argument[1:]) - set("sfnv"):
                raise ValueError(f"unknown option {argument}. {HELPER_USAGE}")
            fake = fake or "f" in argument
        else:
            places.append(argument)
    if len(places) != 2:
        raise ValueError(HELPER_USAGE)
    source, path = places
    return ("" if source in ("none", "emberfs") else source), path, texts, fake
