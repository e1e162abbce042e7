"""The metadata as an administrator handles it: dumped, loaded, checked, repaired, and restored from its copies in the chunks."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import shutil
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar, cast
from urllib.parse import unquote, urlsplit

from crc32c import crc32c

from ..meta import dump
from ..meta.backup import MANIFEST, Manifest
from ..meta.cluster import restored
from ..meta.dump import Progress, Summary
from ..meta.kv.engine import Engine
from ..meta.kv.open import open_engine
from ..meta.namespace import repair
from ..meta.namespace.check import Problem, check
from ..meta.server import DATA_FORMAT
from ..proto.datadir import open_data_directory
from ..proto.errors import Status, StatusError, error
from ..proto.hello import SOFTWARE
from ..proto.ids import CHUNK_INDEX_MAX, SYSTEM_TENANT, ChunkId, chunk_key
from ..proto.settings import default_data_dir
from ..storage.engine.engine import ChunkEngine
from ..storage.engine.target import open_target, read_format
from .administration import Administration
from .directory import METADATA_STORE, alone, storage_names
from .local import META, LocalCluster

CHUNKS_PER_PAGE = 1000
CHECKS = 3  # of a store that changes meanwhile

_Result = TypeVar("_Result")
LeftOut = Callable[[Path, OSError], None]  # is told of a target, and why it cannot be read


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of a coroutine, for commands."""
    return asyncio.run(work)


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Engine]:
    """An engine, closed at the end."""
    engine = open_engine(url)
    try:
        yield engine
    finally:
        await engine.close()


def own_engine(data: Path | None = None) -> str:
    """The URL of the embedded engine of the cluster in a data directory. Raises NOT_FOUND."""
    place = (data or Path(default_data_dir()).absolute()) / METADATA_STORE
    if not place.is_dir():
        raise error(Status.NOT_FOUND, f"there is no metadata in {place}: name a data directory, or an engine with --kv")
    return f"rocksdb://{place}"


def existing(url: str) -> str:
    """The URL of a store that is not to be made by opening it. Raises NOT_FOUND where an embedded one is not there."""
    place = urlsplit(url).path if url.startswith("rocksdb://") else ""
    if place and not Path(unquote(place)).is_dir():
        raise error(Status.NOT_FOUND, f"there is no metadata store in {unquote(place)}")
    return url


@contextlib.contextmanager
def readable_engine(kv: str) -> Iterator[str]:
    """The URL of an engine that stands still: the named one; or that of this machine's cluster, a copy of it while it runs.

    Raises BUSY_RESOURCE when a named one is in use (as it is opened), NOT_FOUND where no cluster is, and the server's refusals."""
    cluster = LocalCluster()
    if kv or cluster.servers[META].pid() is None:
        yield existing(kv) if kv else own_engine()
        return
    with Administration(cluster.url) as connection:
        frozen = connection.freeze_metadata()
    try:
        yield f"rocksdb://{frozen}"
    finally:
        shutil.rmtree(frozen, ignore_errors=True)


# --- dump and load ------------------------------------------------------------------------------------------------------------------


def dump_to(url: str, path: str, *, resume: bool = False, progress: Progress | None = None) -> Summary:
    """Dump an engine into a file that has its name when it is complete; "-": standard output. ".gz": compressed (and cannot be resumed).

    Raises CONFLICT when the engine changed meanwhile, NOT_FOUND when there is nothing to resume, and what files and engines raise."""
    if path == "-":
        return run(_dump(url, sys.stdout.buffer, None, progress))
    unfinished = f"{path}.unfinished"
    begun = None
    if resume:
        if not os.path.exists(unfinished):
            raise error(Status.NOT_FOUND, f"there is no {unfinished} to go on with")
        with open(unfinished, "rb") as found:
            begun = dump.begun_dump(found)
    # It holds a key of the cluster, and the names of everybody's files: it is nobody else's to read.
    with open(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as raw:
        os.fchmod(raw.fileno(), 0o600)
        raw.truncate(begun.length if begun is not None else 0)
        raw.seek(0, os.SEEK_END)
        if path.endswith(".gz"):
            with gzip.open(raw, "wb") as packed:
                summary = run(_dump(url, cast(IO[bytes], packed), None, progress))
        else:
            summary = run(_dump(url, raw, begun, progress))
        raw.flush()
        os.fsync(raw.fileno())
    os.replace(unfinished, path)
    return summary


async def _dump(url: str, out: IO[bytes], begun: dump.Begun | None, progress: Progress | None) -> Summary:
    async with opened(url) as engine:
        return await dump.dump(engine, out, begun, progress)


def load_from(url: str, path: str, progress: Progress | None = None) -> Summary:
    """Load a dump ("-": from standard input; compressed or not) into an empty engine, or go on with a load that was interrupted. Raises
    EXISTS, BAD_FORMAT."""

    async def work() -> Summary:
        async with opened(url) as engine:
            with _lines_of(path) as lines:
                return await dump.load(engine, lines, progress)

    return run(work())


@contextlib.contextmanager
def _lines_of(path: str) -> Iterator[Iterator[bytes]]:
    with contextlib.ExitStack() as stack:
        raw: Any = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))
        magic = raw.peek(2)[:2]
        source = stack.enter_context(gzip.open(raw, "rb")) if magic == b"\x1f\x8b" else raw
        yield _limited(cast(IO[bytes], source), path)


def _limited(source: IO[bytes], path: str) -> Iterator[bytes]:
    """Lines, of which none may be longer than we write them."""
    try:
        while line := source.readline(dump.LINE_BYTES_MAX):
            yield line
    except (OSError, EOFError, zlib.error) as bad:
        raise error(Status.BAD_FORMAT, f"{path} cannot be read to its end: {bad}") from bad


# --- check and repair ---------------------------------------------------------------------------------------------------------------


def check_engine(url: str) -> list[Problem]:
    """Every broken invariant of the key space. Raises CONFLICT where servers change it meanwhile, so that what was found may be nothing."""

    async def work() -> list[Problem]:
        async with opened(url) as engine:
            for _ in range(CHECKS):
                moment = await engine.begin().commit()
                found = await check(engine)
                if not found or await engine.begin().commit() == moment:
                    return found
        raise error(
            Status.CONFLICT, "the metadata changes while it is checked: stop the metadata servers, and check again"
        )

    return run(work())


def repair_engine(url: str, report: Callable[[Problem], None]) -> repair.Outcome:
    """Mend what can be mended."""

    async def work() -> repair.Outcome:
        async with opened(url) as engine:
            return await repair.repair(engine, time.time_ns(), report)

    return run(work())


# --- copies in the chunks -----------------------------------------------------------------------------------------------------------


class Copy(NamedTuple):
    """A whole copy of the metadata, in one target."""

    manifest: Manifest
    target: Path


def _unreadable(target: Path, why: OSError) -> None:
    raise why


def copies_in(data: Path, left_out: LeftOut = _unreadable) -> list[Copy]:
    """The copies that the targets of a stopped cluster hold, newest first. `left_out` is told of targets that cannot be read. Raises
    BUSY_RESOURCE while its servers run."""
    _require_stopped(LocalCluster(data))
    return find_copies(targets_of(data), left_out)


def targets_of(data: Path) -> list[Path]:
    """The targets below a data directory."""
    found = []
    for name in storage_names(data):
        found += [place.parent for place in sorted((data / name).glob("*/format.json"))]
    return found


def find_copies(targets: Sequence[Path], left_out: LeftOut = _unreadable) -> list[Copy]:
    """The copies that targets hold, newest first, one of each. Nobody may serve the targets. Raises BUSY_RESOURCE, BAD_FORMAT."""
    found: dict[int, Copy] = {}
    for copies in _of_each(targets, _copies, left_out):
        for copy in copies:
            found.setdefault(copy.manifest.number, copy)
    return [found[number] for number in sorted(found, reverse=True)]


def _of_each(targets: Sequence[Path], look: Callable[[Path, ChunkEngine], _Result], left_out: LeftOut) -> list[_Result]:
    """What each target says that can be read: another one may have all that is needed."""
    found = []
    for target in targets:
        try:
            with _chunks_of(target) as chunks:
                said = look(target, chunks)
            found.append(said)
        except OSError as broken:
            if isinstance(broken, StatusError) and broken.status is Status.BUSY_RESOURCE:
                raise
            left_out(target, broken)
    return found


def _copies(target: Path, chunks: ChunkEngine) -> list[Copy]:
    return [Copy(manifest, target) for manifest in _manifests(chunks)]


@contextlib.contextmanager
def _chunks_of(target: Path) -> Iterator[ChunkEngine]:
    form = read_format(str(target))
    if form is None:
        raise error(Status.NOT_FOUND, f"{target} is no target")
    chunks, _ = open_target(str(target), cluster=form.cluster)
    try:
        yield chunks
    finally:
        chunks.close()


def _manifests(chunks: ChunkEngine) -> Iterator[Manifest]:
    first, end = chunk_key(0, 0, SYSTEM_TENANT), chunk_key((1 << 64) - 1, CHUNK_INDEX_MAX, SYSTEM_TENANT)
    while page := chunks.chunks(first, end, 1):
        number = ChunkId.unpack(page[0].chunk).inode
        with contextlib.suppress(StatusError):  # not there: the copy was not finished; or damaged
            yield Manifest.unpack(bytes(chunks.read(chunk_key(number, MANIFEST, SYSTEM_TENANT))))
        first = chunk_key(number + 1, 0, SYSTEM_TENANT)


def extract(copy: Copy, out: IO[bytes]) -> None:
    """Write the compressed dump of a copy. Raises CHECKSUM, LOST_DATA."""
    number, pieces, expected = copy.manifest.number, copy.manifest.pieces, copy.manifest.crc32c
    checksum = 0
    with _chunks_of(copy.target) as chunks:
        for index in range(pieces):
            data = bytes(chunks.read(chunk_key(number, index, SYSTEM_TENANT)))
            checksum = crc32c(data, checksum)
            out.write(data)
    if checksum != expected:
        raise error(Status.CHECKSUM, f"the copy of {backup_name(number)} in {copy.target} is damaged: take another one")


def backup_name(number: int) -> str:
    """When it was made, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(number))


def restore(data: Path, number: int = 0, progress: Progress | None = None, left_out: LeftOut = _unreadable) -> Manifest:
    """Make the metadata of a cluster anew from the newest copy (or the one of this number) that its targets on this machine hold.
    `left_out` is told of targets that cannot be read.

    Raises BUSY_RESOURCE while its servers run, EXISTS where metadata lies, NOT_FOUND without a copy, or where no target has all
    of it, CHECKSUM where it is damaged in every one.
    """
    (data / "run").mkdir(exist_ok=True)
    with alone(data):
        cluster = LocalCluster(data)
        _require_stopped(cluster)
        place = data / METADATA_STORE
        if place.exists():
            raise error(Status.EXISTS, f"there is metadata in {place}: move it away first, if it is of no use any more")
        targets = targets_of(data)
        looked = _of_each(targets, lambda *opened: (_copies(*opened), _newest_chunk(*opened)), left_out)
        copies = [copy for held, _ in looked for copy in held if number in (0, copy.manifest.number)]
        newest = max((copy.manifest.number for copy in copies), default=0)
        if not copies:
            wanted = f"copy {number}" if number else "a copy of the metadata"
            raise error(Status.NOT_FOUND, f"none of {len(targets)} targets in {data} holds {wanted}")
        copies = [copy for copy in copies if copy.manifest.number == newest]
        return _restore(copies, place, dict(chunk for _, chunk in looked), progress)


def _require_stopped(cluster: LocalCluster) -> None:
    if any(server.pid() is not None for server in cluster.servers.values()):
        raise error(Status.BUSY_RESOURCE, f"the cluster in {cluster.data} runs: stop it with 'emberfs down' first")


def _restore(copies: Sequence[Copy], place: Path, newest: dict[int, int], progress: Progress | None) -> Manifest:
    """From the first of these copies of one moment that is whole."""
    open_data_directory(place.parent, META, DATA_FORMAT, SOFTWARE).close()
    unfinished = place.with_suffix(".restoring")
    shutil.rmtree(unfinished, ignore_errors=True)
    packed = place.with_suffix(".copy.gz")
    try:
        manifest = _extract_whole(copies, packed)
        load_from(f"rocksdb://{unfinished}", str(packed), progress)
    finally:
        packed.unlink(missing_ok=True)

    async def take_up() -> None:
        async with opened(f"rocksdb://{unfinished}") as engine:
            await restored.take_up(engine, newest)

    run(take_up())
    os.rename(unfinished, place)
    return manifest


def _extract_whole(copies: Sequence[Copy], packed: Path) -> Manifest:
    """The first copy that is whole, written to a file. Raises what is wrong with the first one where none is."""
    failures: list[StatusError] = []
    for copy in copies:
        try:
            with open(packed, "wb") as out:
                extract(copy, out)
            return copy.manifest
        except StatusError as damaged:
            failures.append(damaged)
    raise failures[0]


def _newest_chunk(target: Path, chunks: ChunkEngine) -> tuple[int, int]:
    """The incarnation of a target, and the highest chain version under which one of its chunks was written."""
    form = read_format(str(target))
    assert form is not None
    return form.incarnation, max(_chain_versions(chunks), default=0)


def _chain_versions(chunks: ChunkEngine) -> Iterator[int]:
    first, end = bytes(16), b"\xff" * 17
    while page := chunks.chunks(first, end, CHUNKS_PER_PAGE):
        yield from (info.chain_version for info in page)
        first = page[-1].chunk + b"\0"
