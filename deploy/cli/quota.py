"""`emberfs quota`: limits for directories, users and groups."""

from __future__ import annotations

import contextlib
import grp
import pwd
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Failed, console, human, name_out, painted, parse_size, write_json
from .paths import cluster_of

if TYPE_CHECKING:
    from ...client.core.keeping import Quota

quota = typer.Typer(
    name="quota",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_Path = Annotated[str, typer.Option("--path", "-p", help="A directory: all that is below it.", show_default=False)]
_User = Annotated[str, typer.Option("--user", "-u", help="A user, by name or number.", show_default=False)]
_Group = Annotated[str, typer.Option("--group", "-g", help="A group, by name or number.", show_default=False)]


@quota.callback()
def _group() -> None:
    """Limits on bytes and on the number of files and directories. Only root sets them."""


@quota.command("set")
def set_(
    path: _Path = "",
    user: _User = "",
    group: _Group = "",
    size: Annotated[str, typer.Option(help="Bytes, as 10G. Default: no limit.", show_default=False)] = "0",
    inodes: Annotated[int, typer.Option(help="Files and directories. Default: no limit.", min=0)] = 0,
) -> None:
    """Limit a directory, a user or a group. What is there already counts, too, and is counted in the background."""
    with cluster_of([path or "/"]) as (client, [wanted]):
        client.set_quota(**_whose(path and wanted, user, group), bytes_max=parse_size(size), inodes_max=inodes)


@quota.command("remove")
def remove(path: _Path = "", user: _User = "", group: _Group = "") -> None:
    """Take the limits away."""
    with cluster_of([path or "/"]) as (client, [wanted]):
        client.remove_quota(**_whose(path and wanted, user, group))


@quota.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False) -> None:
    """Show the quotas and what is used of them: yours, or as root everybody's."""
    with cluster_of(["/"]) as (client, _):
        found = client.quotas()
    if as_json:
        from dataclasses import asdict

        write_json([asdict(each) for each in found])
        return
    from rich.table import Table

    table = Table("quota", "bytes", "of", "files", "of", "", box=None)
    for each in found:
        table.add_row(
            name_out(_name(each)),
            human(each.bytes_used),
            human(each.bytes_max) if each.bytes_max else "-",
            str(each.inodes_used),
            str(each.inodes_max or "-"),
            painted("counting", "yellow") if each.counting else "",
        )
    console().print(table)


def _name(each: Quota) -> str:
    name = each.path or str(each.id)
    with contextlib.suppress(KeyError):
        if each.kind == "user":
            name = pwd.getpwuid(each.id).pw_name
        elif each.kind == "group":
            name = grp.getgrgid(each.id).gr_name
    return name if each.kind == "directory" else f"{each.kind} {name}"


def _whose(path: str, user: str, group: str) -> dict[str, Any]:
    if sum(map(bool, (path, user, group))) != 1:
        raise Failed("name one of --path, --user and --group", 2)
    if path:
        return {"path": path}
    try:
        if user:
            return {"user": int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid}
        return {"group": int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid}
    except KeyError as unknown:
        raise Failed(
            f"there is no {'user' if user else 'group'} {user or group} on this machine: give its number"
        ) from unknown
