"""Copying trees between this machine and the cluster: first a plan (what goes where), then the work, several files at a time.

What cannot be read or written is noted and the rest goes on; the caller gets one sentence per failure. Directories are made first,
files are copied by threads over one client, and with `preserve` directories get their times last.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import stat as bits
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..proto.errors import Status, StatusError, error

if TYPE_CHECKING:
    from ..client.blocking import Client

JOBS_DEFAULT = 4
IN_VAIN_MAX = 8  # files in a row that got no answer in time: each further one would only wait as long
TEMPORARY_CHARACTERS_MAX = 50  # of a file's name in that of what is written beside it, which may have 255 bytes
SYMLINKS_MAX = 40  # followed from one to the next, as servers do
BLOCK_BYTES = 4 << 20  # moved at a time; each thread has one buffer of this size


@dataclass(slots=True)
class Item:
    """One thing to copy."""

    source: str
    target: str
    size: int = 0  # bytes
    mode: int = 0o644  # permission bits
    atime_ns: int = 0
    mtime_ns: int = 0
    link: str = ""  # where a symlink points


@dataclass
class Plan:
    """What a copy consists of, and what could not even be looked at."""

    directories: list[Item] = field(default_factory=list)  # parents before children
    files: list[Item] = field(default_factory=list)
    symlinks: list[Item] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.size for item in self.files)


class Progress(Protocol):
    """Told what was done; called from several threads."""

    def add(self, size: int) -> None: ...

    def file_done(self) -> None: ...


class Quiet:
    """A progress that nobody sees."""

    def add(self, size: int) -> None: ...

    def file_done(self) -> None: ...


def plan_local(plan: Plan, source: str, target: str, recursive: bool) -> None:
    """Add a local file, or with `recursive` a directory, to be put at `target`. Symlinks below a directory stay symlinks."""
    try:
        found = os.stat(source)
    except OSError as failed:
        plan.failures.append(f"{source}: {failed.strerror}")
        return
    if not bits.S_ISDIR(found.st_mode):
        _plan_local_entry(plan, source, target, found)
        return
    if not recursive:
        plan.failures.append(f"{source} is a directory: add -r to copy it and all that is in it")
        return
    plan.directories.append(_local_item(source, target, found))
    stack = [(source, target)]
    while stack:
        folder, goal = stack.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as failed:
            plan.failures.append(f"{folder}: {failed.strerror}")
            continue
        for entry in entries:
            path = posixpath.join(goal, entry.name)
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError as failed:
                plan.failures.append(f"{entry.path}: {failed.strerror}")
                continue
            if bits.S_ISDIR(found.st_mode):
                plan.directories.append(_local_item(entry.path, path, found))
                stack.append((entry.path, path))
            else:
                _plan_local_entry(plan, entry.path, path, found)


def _local_item(source: str, target: str, found: os.stat_result) -> Item:
    return Item(source, target, found.st_size, bits.S_IMODE(found.st_mode), found.st_atime_ns, found.st_mtime_ns)


def _plan_local_entry(plan: Plan, source: str, target: str, found: os.stat_result) -> None:
    if bits.S_ISREG(found.st_mode):
        plan.files.append(_local_item(source, target, found))
    elif bits.S_ISLNK(found.st_mode):
        item = _local_item(source, target, found)
        item.link = os.readlink(source)
        plan.symlinks.append(item)
    else:
        plan.failures.append(f"{source} is neither file, directory nor symlink: it was left out")


def plan_remote(plan: Plan, client: Client, source: str, target: str, recursive: bool) -> None:
    """Add a file of the cluster, or with `recursive` a directory, to be copied to `target` (local or in the cluster)."""
    try:
        top = client.stat(source)
    except OSError as failed:
        plan.failures.append(f"{source}: {failed.strerror}")
        return
    if not top.is_dir:
        _plan_remote_entry(plan, source, target, top)
        return
    if not recursive:
        plan.failures.append(f"{source} is a directory: add -r to copy it and all that is in it")
        return
    plan.directories.append(_remote_item(source, target, top))

    def denied(name: str) -> None:
        plan.failures.append(f"{posixpath.join(source, name)}: permission denied: what is in it was left out")

    try:
        for name, found in client.find(source, denied=denied):
            paths = posixpath.join(source, name), posixpath.join(target, name)
            if found.is_dir:
                plan.directories.append(_remote_item(*paths, found))
            else:
                _plan_remote_entry(plan, *paths, found)
    except OSError as failed:
        plan.failures.append(f"{source}: {failed.strerror}")


def _remote_item(source: str, target: str, found: Any) -> Item:
    return Item(source, target, found.size, found.mode, found.atime_ns, found.mtime_ns, found.target)


def _plan_remote_entry(plan: Plan, source: str, target: str, found: Any) -> None:
    if found.is_file:
        plan.files.append(_remote_item(source, target, found))
    elif found.is_symlink:
        plan.symlinks.append(_remote_item(source, target, found))
    else:
        plan.failures.append(f"{source} is a {found.type}: it was left out")


class Way:
    """One direction of copying. `exclusive` refuses existing files, `preserve` keeps modes and times."""

    title: ClassVar[str]

    def __init__(self, client: Client, *, preserve: bool = False, exclusive: bool = False) -> None:
        self.client = client
        self.preserve = preserve
        self.exclusive = exclusive
        self._buffers = threading.local()

    def buffer(self) -> memoryview:
        """This thread's block."""
        if not hasattr(self._buffers, "block"):
            self._buffers.block = memoryview(bytearray(BLOCK_BYTES))
        block: memoryview = self._buffers.block
        return block

    def directory(self, item: Item) -> None:
        raise NotImplementedError

    def file(self, item: Item, progress: Progress) -> None:
        raise NotImplementedError

    def symlink(self, item: Item) -> None:
        raise NotImplementedError

    def finish(self, item: Item) -> None:
        """Modes and times of a directory, after all in it was written."""
        raise NotImplementedError


def mounted_devices() -> set[int]:
    """The device numbers of the mounts of clusters on this machine, which are not asked (one that hangs would not answer)."""
    from ..fuse.mounting import our_mounts  # not for `--help`

    return {os.makedev(*map(int, mount.device.split(":"))) for mount in our_mounts()}


def _write_all(file: io.FileIO, block: memoryview) -> None:
    """A full disk takes a part of a block without a word, and says so only when it is given the rest. Raises OSError."""
    while block:
        block = block[file.write(block) :]


def _while_filled(item: Item) -> int:
    """The mode of a new directory: its source's, as a private one is to stay private, but we may write to it."""
    return item.mode & 0o777 | 0o700


def _in_place(path: str) -> int:
    """How to open what stays what it is and is written to: a device, a pipe, a socket, and, behind what is in it, the file of an open
    descriptor, as /dev/stdout may be. 0: what is there is replaced."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return 0
    if bits.S_ISREG(mode):
        return os.O_WRONLY | os.O_APPEND if _is_descriptor(path) else 0
    return 0 if bits.S_ISDIR(mode) else os.O_WRONLY


def _is_descriptor(path: str) -> bool:
    """Whether a path leads to a descriptor of a process. (To a file, so that symlinks do not go in circles.)"""
    while os.path.islink(path):
        folder = os.path.dirname(path)
        if os.path.realpath(folder).startswith("/proc/"):
            return True
        path = os.path.join(folder, os.readlink(path))
    return False


def _same_file() -> StatusError:
    return error(Status.INVALID, "both are the same file")


@contextlib.contextmanager
def whole_or_gone(client: Client, path: str, create: Callable[[], Any]) -> Iterator[Any]:
    """A file of the cluster to be filled, and removed when that fails: half a file looks like a whole one, and takes space. (Not where
    the cluster does not answer, and would not then either.)"""
    file = create()
    try:
        with file:
            yield file
    except BaseException as failed:
        if not isinstance(failed, TimeoutError):
            with contextlib.suppress(OSError):
                client.unlink(_led_to(client, path), forever=True)
        raise


def _led_to(client: Client, path: str) -> str:
    """The name of the file that a path of symlinks leads to. Raises OSError."""
    for _ in range(SYMLINKS_MAX):
        found = client.stat(path, follow=False)
        if not found.is_symlink:
            break
        path = posixpath.join(posixpath.dirname(path), found.target)
    return path


class _IntoCluster(Way):
    def directory(self, item: Item) -> None:
        self.client.mkdir(item.target, _while_filled(item), exist_ok=True)

    def symlink(self, item: Item) -> None:
        try:
            self.client.symlink(item.link, item.target)
        except FileExistsError:
            if self.exclusive:
                raise
            self.client.unlink(item.target)
            self.client.symlink(item.link, item.target)

    def finish(self, item: Item) -> None:
        if self.preserve:
            self.client.chmod(item.target, item.mode)
            self.client.utime(item.target, atime_ns=item.atime_ns, mtime_ns=item.mtime_ns)

    def create(self, item: Item) -> Any:
        return self.client.open(item.target, "xb" if self.exclusive else "wb", permissions=item.mode & 0o777)


class Put(_IntoCluster):
    """From this machine into the cluster."""

    title = "put"

    def __init__(self, client: Client, **ways: bool) -> None:
        super().__init__(client, **ways)
        self._mounts = mounted_devices()

    @contextlib.contextmanager
    def _another(self, source: Any, item: Item) -> Iterator[None]:
        """Raises INVALID where source and target are one file: a mount shows the numbers that the cluster's files have."""
        if (found := os.fstat(source.fileno())).st_dev in self._mounts:
            with contextlib.suppress(FileNotFoundError):
                there = self.client.stat(item.target)
                if (there.inode, there.mtime_ns) == (found.st_ino, found.st_mtime_ns):
                    raise _same_file()
        yield

    def file(self, item: Item, progress: Progress) -> None:
        block = self.buffer()
        with (
            open(item.source, "rb", buffering=0) as source,
            self._another(source, item),
            whole_or_gone(self.client, item.target, lambda: self.create(item)) as target,
        ):
            while count := source.readinto(block):
                target.write(block[:count])
                progress.add(count)
        self.finish(item)


class Copy(_IntoCluster):
    """Within the cluster."""

    title = "cp"

    def file(self, item: Item, progress: Progress) -> None:
        both = [
            found.inode for found in self.client.stat_many([item.source, item.target]) if not isinstance(found, OSError)
        ]
        if len(set(both)) < len(both):  # perhaps under another name: to create the target would cut the source
            raise _same_file()
        # The source is opened before the target is cut: what may not be read, or is gone, replaces nothing.
        with (
            self.client.open(item.source),
            whole_or_gone(self.client, item.target, lambda: self.create(item)) as made,
        ):
            made.close()  # with the source's mode; copy_file alone would give the default one
            self.client.copy_file(item.source, item.target)
        progress.add(item.size)
        self.finish(item)


class Clone(_IntoCluster):
    """Within the cluster, without moving data: both files share what they have until one of them is written."""

    title = "clone"

    def file(self, item: Item, progress: Progress) -> None:
        from ..client.core.whole import clone_file  # not for `--help`
        from ..proto.env import drive

        drive(clone_file(self.client.core, item.source, item.target, exclusive=self.exclusive, progress=progress.add))
        self.finish(item)


class Get(Way):
    """From the cluster to this machine. A file is written beside its target and renamed when it is complete; a device, a pipe or an
    open descriptor that is there stays what it is, and is written to."""

    title = "get"

    def directory(self, item: Item) -> None:
        os.makedirs(item.target, _while_filled(item), exist_ok=True)

    def file(self, item: Item, progress: Progress) -> None:
        if self.exclusive and os.path.lexists(item.target):
            raise FileExistsError(17, "the file exists", item.target)
        if flags := _in_place(item.target):
            self._fill(item, os.open(item.target, flags | os.O_CLOEXEC), progress)
            return
        folder, name = os.path.split(item.target)
        temporary = os.path.join(folder, f".{name[:TEMPORARY_CHARACTERS_MAX]}.{os.getpid()}.{threading.get_ident()}")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fill(item, os.open(temporary, flags, item.mode & 0o777), progress)
            if self.preserve:
                self._preserve(item, temporary)
            os.replace(temporary, item.target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _fill(self, item: Item, descriptor: int, progress: Progress) -> None:
        """Write the file's bytes, and close the descriptor."""
        with open(descriptor, "wb", buffering=0) as target, self.client.open(item.source) as source:
            block = self.buffer()
            while count := source.readinto(block):
                _write_all(target, block[:count])
                progress.add(count)

    def symlink(self, item: Item) -> None:
        if not self.exclusive:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(item.target)
        os.symlink(item.link, item.target)

    def finish(self, item: Item) -> None:
        if self.preserve:
            self._preserve(item, item.target)

    def _preserve(self, item: Item, path: str) -> None:
        os.chmod(path, item.mode & 0o1777)  # set-id bits would be another owner's
        os.utime(path, ns=(item.atime_ns, item.mtime_ns))


def carry_out(plan: Plan, way: Way, jobs: int = JOBS_DEFAULT, progress: Progress | None = None) -> list[str]:
    """Do it; one sentence per thing that failed. What lies below directories that could not be made is only counted."""
    told = progress or Quiet()
    failures: list[str] = []
    lost = _attempt(failures, plan.directories, way.directory)

    def wanted(items: list[Item]) -> list[Item]:
        return [item for item in items if not lost or not item.target.startswith(tuple(f"{path}/" for path in lost))]

    in_vain = 0
    within_reach = wanted(plan.files)
    if without := len(plan.files) - len(within_reach):
        failures.append(f"files that have no directory to go to: {without}")
    with contextlib.closing(_in_parallel(way, within_reach, jobs, told)) as files:
        for item, failed in files:
            in_vain = in_vain + 1 if isinstance(failed, TimeoutError) else 0
            if failed is not None:
                failures.append(_sentence(item, failed))
            if in_vain == IN_VAIN_MAX:
                return [*failures, f"no answer for {in_vain} files in a row: the rest was not tried"]
    _attempt(failures, wanted(plan.symlinks), way.symlink)
    _attempt(failures, [item for item in reversed(plan.directories) if item.target not in lost], way.finish)
    return failures


def _attempt(failures: list[str], items: list[Item], act: Any) -> list[str]:
    """Run `act` for each; the targets for which it failed."""
    lost: list[str] = []
    for item in items:
        if lost and item.target.startswith(tuple(f"{path}/" for path in lost)):
            continue
        try:
            act(item)
        except OSError as failed:
            failures.append(_sentence(item, failed))
            lost.append(item.target)
    return lost


class _StoppedError(Exception):
    """Nobody waits for this copy any more."""


class _Until:
    """A progress that ends what tells it, once it is over."""

    def __init__(self, told: Progress) -> None:
        self.told = told
        self.over = False

    def add(self, size: int) -> None:
        if self.over:
            raise _StoppedError
        self.told.add(size)

    def file_done(self) -> None:
        self.told.file_done()


def _in_parallel(
    way: Way, items: list[Item], jobs: int, progress: Progress
) -> Generator[tuple[Item, OSError | None], None, None]:
    """Copy files with several threads; each as it ends, with what it failed with. Ctrl-C ends the running ones at their next block."""
    until = _Until(progress)

    def one(item: Item) -> None:
        way.file(item, until)
        until.file_done()

    pool = ThreadPoolExecutor(max(1, min(jobs, len(items))), thread_name_prefix="copy")
    try:
        running = {pool.submit(one, item): item for item in items}
        for done in as_completed(running):
            try:
                done.result()
            except OSError as failed:
                yield running[done], failed
            else:
                yield running[done], None
    finally:
        until.over = True
        pool.shutdown(cancel_futures=True)


def _sentence(item: Item, failed: OSError) -> str:
    text = failed.strerror or str(failed)
    return f"{item.source} -> {item.target}: {text}"
