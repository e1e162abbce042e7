"""Paths: what a caller may pass, and how they travel.

A path is absolute in the cluster. It travels as it is but for the leading slashes: the server knows what is a symlink, so it alone
can resolve "..", and what a trailing slash asks for. A name is any bytes but NUL and "/"; as `str` it is UTF-8 with surrogate escapes,
so every name that exists can be written down and found again.
"""

from __future__ import annotations

from typing import Protocol

from ...proto.errors import Status, error
from ...proto.gen.meta_pb2 import Place

PATH_BYTES_MAX = 4095


class _Fspath(Protocol):
    def __fspath__(self) -> str | bytes: ...


PathLike = str | bytes | _Fspath | Place  # a Place is as it travels: relative to an inode, or an inode itself


def encode(path: PathLike) -> bytes:
    """The bytes of a path as they are. Raises TypeError for what is no path (a `Place` is none), INVALID for a NUL."""
    if not isinstance(path, (str, bytes)):
        try:
            path = path.__fspath__()  # type: ignore[union-attr]  # whatever it is, it has one or is refused
        except AttributeError:
            raise TypeError(f"a path must be str, bytes or os.PathLike, not {type(path).__name__}") from None
    try:
        raw = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    except UnicodeEncodeError as bad:
        raise error(Status.INVALID, f"{path!r}: this text cannot be a name: {bad.reason}") from bad
    if b"\0" in raw:
        raise error(Status.INVALID, f"{text(raw)!r}: a path cannot contain a NUL byte")
    return raw


def normal(path: PathLike) -> bytes:
    """The path relative to the root; empty for the root itself.

    Raises INVALID for a relative path, NAME_TOO_LONG over 4095 bytes.
    """
    raw = encode(path)
    if raw[:1] != b"/":
        raise error(Status.INVALID, f"{text(raw)!r}: a path in the cluster starts with '/'")
    if len(raw) > PATH_BYTES_MAX:
        raise error(Status.NAME_TOO_LONG, f"a path of {len(raw)} bytes: at most {PATH_BYTES_MAX}")
    return raw.lstrip(b"/")


def place(path: PathLike) -> Place:
    """Where a path is, for a request."""
    return path if isinstance(path, Place) else Place(path=normal(path))


def at(inode: int, name: bytes = b"") -> Place:
    """The place of an inode itself, or of a name in that directory."""
    return Place(parent=inode, path=name)


def text(name: PathLike) -> str:
    """A path or name for people and for callers: `str` in any case."""
    if isinstance(name, str):
        return name
    if isinstance(name, Place):
        return f"inode {name.parent:x}" + ("/" + text(name.path) if name.path else "")
    raw = name if isinstance(name, bytes) else encode(name)
    return raw.decode("utf-8", "surrogateescape")
