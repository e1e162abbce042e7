"""Whole files in one call: read, write, copy and clone them by their paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...proto.errors import Status, StatusError, error
from ...proto.gen.meta_pb2 import Place, SetAttributesRequest
from ...proto.rpc import META
from .attributes import Stat
from .clone import Progress, copy_range
from .namespace import with_path
from .options import O_TRUNC, O_WRONLY, Mode, parse_mode
from .paths import PathLike, encode, text

if TYPE_CHECKING:
    from .client import Core

_READ = parse_mode("rb")
_WRITE = parse_mode("wb")
_CREATE = parse_mode("xb")
_OVERWRITE = Mode(_WRITE.flags & ~O_TRUNC, "wb", False)
_UNNAMED = Mode(O_WRONLY, "wb", False)


async def read_bytes(core: Core, path: PathLike, start: int | None = None, end: int | None = None) -> bytes:
    """The content, or its range [start, end); negative positions count from the end. Raises StatusError."""
    handle = await core.open(path, _READ)
    try:
        first, last, _ = slice(start, end).indices(handle.size)
        return await handle.pread(max(0, last - first), first)
    finally:
        await handle.close()


async def write_bytes(core: Core, path: PathLike, data: Any, *, exclusive: bool = False) -> Stat:
    """Make a buffer the content of a file, which is created or emptied. Raises StatusError; EXISTS if it is there (`exclusive`)."""
    handle = await core.open(path, _CREATE if exclusive else _WRITE)
    try:
        await handle.write(data)
    except BaseException:
        await handle.discard()
        raise
    return await handle.close_with_stat()


async def copy_file(core: Core, source: PathLike, target: PathLike) -> Stat:
    """Copy the content of a file to `target`, which is created or emptied. Raises INVALID (one file), StatusError."""
    reader = await core.open(source, _READ)
    try:
        # Emptying the target would destroy the source if they were one file.
        writer = await core.open(target, _OVERWRITE, permissions=0o666)
        try:
            if writer.file.id == reader.file.id:
                raise _one_file(source, target)
            if writer.size:
                await writer.truncate(0)
            await copy_range(reader, 0, writer, 0, reader.size)
        except BaseException:
            await writer.discard()
            raise
        return await writer.close_with_stat()
    finally:
        await reader.close()


async def clone_file(
    core: Core, source: PathLike, target: PathLike, *, exclusive: bool = False, progress: Progress | None = None
) -> Stat:
    """Make `target` a file with the content of `source`, which shares its chunks, in one step: an old target stays until the new one is
    complete, and gives it its permission bits; otherwise these are the source's. Raises EXISTS (`exclusive`), INVALID (one file),
    StatusError."""
    try:
        return await _clone_file(core, source, target, exclusive=exclusive, progress=progress)
    except StatusError as failure:
        raise failure if failure.filename else with_path(failure, target) from None


async def _clone_file(
    core: Core, source: PathLike, target: PathLike, *, exclusive: bool, progress: Progress | None
) -> Stat:
    reader = await core.open(source, _READ)
    try:
        found = await reader.stat()
        there = await _existing(core, target)
        if there is not None and exclusive:
            raise error(Status.EXISTS, "", text(target))
        if there is not None and there.inode == found.inode:
            raise _one_file(source, target)
        mode = (there or found).mode & 0o777
        writer = await core.open(_directory_of(target), _UNNAMED, permissions=mode, unnamed=True)
        try:
            await copy_range(reader, 0, writer, 0, reader.size, progress, any_layout=True)
            if there is not None and mode & core.umask:
                request = SetAttributesRequest(place=Place(parent=writer.file.id), mode=mode)
                await core.cluster.change(META.SetAttributes, request)
            await core.publish([writer], [target], exclusive=exclusive)
        except BaseException:
            await writer.discard()
            raise
        return await core.stat(target, follow=False)
    finally:
        await reader.close()


async def _existing(core: Core, target: PathLike) -> Stat | None:
    """The file that would be replaced; None where there is none, or a symlink, which is replaced itself."""
    try:
        found = await core.stat(target, follow=False)
    except FileNotFoundError:
        return None
    return None if found.is_symlink else found


def _directory_of(path: PathLike) -> bytes:
    return encode(path).rpartition(b"/")[0] or b"/"


def _one_file(source: PathLike, target: PathLike) -> StatusError:
    return error(Status.INVALID, f"{text(source)} and {text(target)} are the same file", text(target))
