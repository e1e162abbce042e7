"""Looking at the namespace: ls, tree, stat, du, df."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...proto.errors import StatusError
from .output import (
    Failed,
    complain,
    counted,
    human,
    mode_text,
    name_out,
    owner_text,
    say,
    stat_json,
    time_text,
    told,
    write_json,
)
from .paths import cluster_of, connected, expand

if TYPE_CHECKING:
    from ...client.blocking import Client
    from ...client.core.attributes import Stat

_Paths = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="Paths or patterns; default: /", show_default=False)
]
_Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]


def ls(
    paths: _Paths = [],  # noqa: B006
    long: Annotated[bool, typer.Option("-l", "--long", help="Mode, owner, size and time.")] = False,
    recursive: Annotated[bool, typer.Option("-R", "--recursive", help="All that is below.")] = False,
    directory: Annotated[
        bool, typer.Option("-d", "--directory", help="Directories themselves, not what is in them.")
    ] = False,
    human_sizes: Annotated[bool, typer.Option("--human", help="Sizes like 1.5 MiB.")] = False,
    as_json: _Json = False,
) -> None:
    """List files and directories (names with a leading dot too)."""
    failures = 0
    denied = _Denied()
    with cluster_of(paths or ["/"]) as (client, wanted):
        shown = expand(client, wanted)
        listed: list[dict[str, Any]] = []
        for path in shown:
            try:
                entries = list(_entries(client, path, recursive, directory, denied.below(path)))
            except StatusError as failed:
                complain(told(path, failed))
                failures += 1
                continue
            if as_json:
                listed += [stat_json(posixpath.join(path, name) if name else path, stat) for name, stat in entries]
                continue
            if len(shown) > 1 and not directory:
                say(f"{name_out(path)}:")
            _print_entries([(name or path, stat) for name, stat in entries], long, human_sizes)
        if as_json:
            write_json(listed)
    if failures or denied.paths:
        raise Failed()


class _Denied:
    """Directories that the caller may not read: told as they are met, and what is in them is not shown."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def below(self, top: str) -> Callable[[str], object]:
        """Hears of paths relative to this one."""

        def denied(name: str) -> None:
            self.paths.append(posixpath.join(top, name))
            complain(f"{self.paths[-1]}: permission denied")

        return denied


def _entries(
    client: Client, path: str, recursive: bool, directory: bool, denied: Callable[[str], object]
) -> Iterable[tuple[str, Stat]]:
    """(name relative to the path, attributes); the empty name is the path itself."""
    stat = client.stat(path, follow=not directory)
    if directory or not stat.is_dir:
        return [("", client.stat(path, follow=False))]
    return client.find(path, denied=denied) if recursive else client.scandir(path)


def _print_entries(entries: list[tuple[str, Stat]], long: bool, human_sizes: bool) -> None:
    if not long:
        for name, stat in entries:
            say(name_out(name) + ("/" if stat.is_dir else ""))
        return
    rows = []
    for name, stat in entries:
        arrow = f" -> {name_out(stat.target)}" if stat.is_symlink else ""
        size = human(stat.size) if human_sizes else str(stat.size)
        rows.append(
            (
                mode_text(stat),
                str(stat.nlink),
                *owner_text(stat),
                size,
                time_text(stat.mtime_ns),
                name_out(name) + arrow,
            )
        )
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(6)]
    for mode, links, user, group, size, when, name in rows:
        who = f"{user:<{widths[2]}} {group:<{widths[3]}}"
        say(f"{mode} {links:>{widths[1]}} {who} {size:>{widths[4]}} {when:<{widths[5]}} {name}")


def tree(
    path: Annotated[str, typer.Argument()] = "/",
    level: Annotated[
        int | None, typer.Option("-L", "--level", min=1, help="Levels to descend.", show_default=False)
    ] = None,
    directories: Annotated[bool, typer.Option("-d", "--directories", help="Only directories.")] = False,
    as_json: _Json = False,
) -> None:
    """Show a directory as a tree."""
    denied = _Denied()
    with cluster_of([path]) as (client, [top]):
        if not client.stat(top).is_dir:
            raise Failed(f"{top}: not a directory")
        below = client.find(top, level, denied=denied.below(top))
        found = [(name, stat) for name, stat in below if stat.is_dir or not directories]
    if as_json:
        write_json([stat_json(posixpath.join(top, name), stat) for name, stat in found])
    else:
        _print_tree(top, found)
    if denied.paths:
        raise Failed()


def _print_tree(top: str, found: list[tuple[str, Stat]]) -> None:
    say(name_out(top))
    _print_branches(found)
    count = sum(stat.is_dir for _, stat in found)
    say(f"\n{count} {'directory' if count == 1 else 'directories'}, {counted(len(found) - count, 'file')}")


def _print_branches(found: list[tuple[str, Stat]]) -> None:
    children: dict[str, list[tuple[str, Stat]]] = {}
    for name, stat in found:
        children.setdefault(posixpath.dirname(name), []).append((name, stat))
    stack = [(name, stat, "", i == 0) for i, (name, stat) in enumerate(reversed(children.get("", [])))]
    while stack:  # not recursion: a tree may be deeper than Python's stack
        name, stat, indent, last = stack.pop()
        arrow = f" -> {name_out(stat.target)}" if stat.is_symlink else "/" if stat.is_dir else ""
        say(f"{indent}{'└── ' if last else '├── '}{name_out(posixpath.basename(name))}{arrow}")
        below = indent + ("    " if last else "│   ")
        stack += [(n, s, below, i == 0) for i, (n, s) in enumerate(reversed(children.get(name, [])))]


def stat(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...")],
    follow: Annotated[bool, typer.Option("-L", "--follow", help="Where a symlink leads, not the symlink.")] = False,
    as_json: _Json = False,
) -> None:
    """Show all attributes of files."""
    failures, documents = 0, []
    with cluster_of(paths) as (client, wanted):
        names = expand(client, wanted)
        for name, found in zip(names, client.stat_many(names, follow=follow), strict=True):
            if isinstance(found, StatusError):
                complain(told(name, found))
                failures += 1
            elif as_json:
                documents.append(stat_json(name, found))
            else:
                _print_stat(name, found)
    if as_json:
        write_json(documents)
    if failures:
        raise Failed()


def _print_stat(name: str, found: Stat) -> None:
    import datetime

    def moment(ns: int) -> str:
        when = datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC).astimezone()
        return f"{when:%Y-%m-%d %H:%M:%S}.{ns % 10**9:09d} {when:%z}"

    user, group = owner_text(found)
    say(f"  path: {name_out(name)}" + (f" -> {name_out(found.target)}" if found.is_symlink else ""))
    say(f"  type: {found.type}    inode: {found.inode}    links: {found.nlink}")
    say(
        f"  size: {found.size} ({human(found.size)})    chunk size: {human(found.chunk_size)}    change: {found.change}"
    )
    say(f"access: {found.mode:04o} {mode_text(found)}    owner: {user} ({found.uid})    group: {group} ({found.gid})")
    for label, ns in (
        ("  read", found.atime_ns),
        ("modified", found.mtime_ns),
        ("changed", found.ctime_ns),
        ("created", found.birth_ns),
    ):
        say(f"{label:>8}: {moment(ns)}")


def du(
    paths: _Paths = [],  # noqa: B006
    summary: Annotated[bool, typer.Option("-s", "--summary", help="Only the sum of each path.")] = False,
    depth: Annotated[
        int | None, typer.Option("-d", "--depth", min=0, help="Directories down to this level.", show_default=False)
    ] = None,
    exact: Annotated[bool, typer.Option("-b", "--bytes", help="Sizes in bytes.")] = False,
    as_json: _Json = False,
) -> None:
    """Sum up the sizes of files, per directory."""
    documents: list[dict[str, Any]] = []
    deepest = 0 if summary else depth
    denied = _Denied()
    with cluster_of(paths or ["/"]) as (client, wanted):
        for path in expand(client, wanted):
            for directory, (size, files) in _usage(client, path, denied.below(path)).items():
                level = directory.count("/") + 1 if directory else 0
                if deepest is not None and deepest < level:
                    continue
                full = posixpath.join(path, directory) if directory else path
                documents.append({"path": full, "bytes": size, "files": files})
                if not as_json:
                    say(f"{size if exact else human(size)}\t{name_out(full)}")
    if as_json:
        write_json(documents)
    if denied.paths:
        raise Failed()


def _usage(client: Client, path: str, denied: Callable[[str], object]) -> dict[str, tuple[int, int]]:
    """Directory relative to the path -> (bytes, files) of all that is below; the path itself ("") comes last. A file with several
    names counts once."""
    top = client.stat(path, follow=False)
    if not top.is_dir:
        return {"": (top.size, 1)}
    sums: dict[str, list[int]] = {"": [0, 0]}
    seen: set[int] = set()
    for name, stat in client.find(path, denied=denied):
        if stat.is_dir:
            sums.setdefault(name, [0, 0])
            continue
        if stat.nlink > 1:
            if stat.inode in seen:
                continue
            seen.add(stat.inode)
        above = name
        while above:
            above = posixpath.dirname(above)
            entry = sums.setdefault(above, [0, 0])
            entry[0] += stat.size
            entry[1] += 1
    return {name: (size, files) for name, (size, files) in sorted(sums.items(), reverse=True)}


def df(as_json: _Json = False) -> None:
    """Show how much space the cluster has."""
    with connected() as client:
        space = client.statfs()
        cluster = client.cluster_id
    if as_json:
        write_json(
            {"cluster": cluster, "total": space.total, "used": space.used, "free": space.free, "inodes": space.inodes}
        )
        return
    from rich.table import Table

    from .output import console

    table = Table("cluster", "size", "used", "free", "use", "inodes", box=None)
    share = f"{100 * space.used / space.total:.0f} %" if space.total else "-"
    table.add_row(cluster, human(space.total), human(space.used), human(space.free), share, str(space.inodes))
    console().print(table)
