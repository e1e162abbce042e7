"""From what was typed to a connected client and paths in the cluster: URLs, globs, "into that directory or under that name"."""

from __future__ import annotations

import contextlib
import fnmatch
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ...proto.errors import Status, StatusError
from .output import Failed

if TYPE_CHECKING:
    from ...client.blocking import Client

_MAGIC = re.compile(r"[*?\[]")
MATCHES_MAX = 1_000_000  # of one pattern


def split_url(text: str) -> tuple[str, str]:
    """("ember://host:port/" or "" for the default cluster, absolute path). A path without "/" in front is below the root."""
    if text.startswith("ember://"):
        host, _, path = text.removeprefix("ember://").partition("/")
        return (f"ember://{host}/" if host else ""), "/" + path
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        raise Failed(f"{text}: only ember:// URLs are known here", 2)
    return "", "/" + text.lstrip("/")


@contextlib.contextmanager
def cluster_of(arguments: Sequence[str]) -> Iterator[tuple[Client, list[str]]]:
    """A client of the one cluster that all arguments name, and their paths in it."""
    split = [split_url(argument) for argument in arguments]
    urls = sorted({url for url, _ in split})
    if len(urls) > 1:
        raise Failed(
            f"all paths must be in one cluster, these are in {len(urls)}: {', '.join(u or 'the default' for u in urls)}",
            2,
        )
    with connected(urls[0] if urls else "") as client:
        yield client, [path for _, path in split]


@contextlib.contextmanager
def connected(url: str = "") -> Iterator[Client]:
    """A client, closed at the end. Failing to connect is exit code 3."""
    from ...client.blocking import connect

    try:
        client = connect(url or "ember:///")
    except StatusError as failed:
        raise Failed(str(failed.strerror), 2 if failed.status is Status.INVALID else 3) from failed
    with client:
        yield client


def expand(client: Client, paths: Sequence[str]) -> list[str]:
    """Patterns replaced by what they match, in order. One that matches nothing is an error; a name that exists literally is itself."""
    found: list[str] = []
    for path in paths:
        if not _MAGIC.search(path) or _there(client, path):
            found.append(path)
            continue
        matches = sorted(glob(client, path))
        if not matches:
            raise Failed(f"{path}: nothing matches")
        found += matches
    return found


def once(paths: Sequence[str]) -> list[str]:
    """Each path once, in order: what several patterns match is still one source."""
    return list(dict.fromkeys(paths))


def glob(client: Client, pattern: str) -> Iterator[str]:
    """Paths that match; "*", "?", "[...]" within a component, "**" for any number of directories. Names with a leading dot only match
    a pattern that has one."""
    parts = [part for part in pattern.split("/") if part]
    seen: set[str] = set()
    for path in _glob(client, "/", parts):
        if path not in seen:
            seen.add(path)
            yield path
        if len(seen) > MATCHES_MAX:
            raise Failed(f"{pattern}: more than {MATCHES_MAX} matches")


def _glob(client: Client, base: str, parts: list[str]) -> Iterator[str]:
    if not parts:
        yield base
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _glob(client, base, rest)
        for name, stat in client.find(base):
            if stat.is_dir and not any(p.startswith(".") for p in name.split("/")):
                yield from _glob(client, posixpath.join(base, name), rest)
    elif not _MAGIC.search(part):
        path = posixpath.join(base, part)
        if rest or _there(client, path):
            yield from _glob(client, path, rest)
    else:
        for name in _names(client, base):
            if fnmatch.fnmatchcase(name, part) and (part.startswith(".") or not name.startswith(".")):
                yield from _glob(client, posixpath.join(base, name), rest)


def _there(client: Client, path: str) -> bool:
    try:
        client.stat(path, follow=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _names(client: Client, path: str) -> list[str]:
    try:
        return client.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_directory(client: Client, path: str) -> bool:
    try:
        return client.stat(path).is_dir
    except (FileNotFoundError, NotADirectoryError):
        return False


def destination(sources: Sequence[str], target: str, target_is_directory: bool) -> list[str]:
    """Per source where it goes: into `target` if that is a directory (or ends in "/"), else under that very name. Raises Failed where two
    would go under one name: what came first would be lost."""
    if target_is_directory or target.endswith("/"):
        names = [posixpath.basename(posixpath.normpath(source)) for source in sources]
        if "" in names or ".." in names or "." in names:
            raise Failed(f"{sources[0]} has no name of its own to go under in {target}: name the target in full", 2)
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise Failed(f"{len(sources)} sources, and more than one would be {posixpath.join(target, twice[0])}", 2)
        return [posixpath.join(target, name) for name in names]
    if len(sources) > 1:
        raise Failed(f"{target} is not a directory, and {len(sources)} sources cannot all go there", 2)
    return [target]
