"""What a daemon's successor has to know, in shared memory that outlives it: open files, and requests that are being carried out.

    handle slot    fh, inode, flags of open(2), 1 while something was written that no flush has sent
    request slot   the kernel's number of a request, the number of the metadata change that it made

The supervisor holds the memory. A daemon that dies at any point, even in the middle of these stores, leaves slots that are either
there or not: the word that says so is written last, and taken away first.

The kernel sends a request again whose answer it has not had (`Notify.RESEND`), and that request may have been carried out. Its metadata
change then goes out under the number that it had before, which the metadata server answers as it did before. So a mkdir that had
worked does not fail with EEXIST when its daemon was killed before it could say so.

Storing costs about a microsecond, for each open, close and change of a name, and for the first write after a flush.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from .protocol import RESEND

BEAT_SECONDS = 5.0  # before scaling: so often a daemon tells its supervisor that it is at work
HANDLES_MAX = (
    65_536  # open files; of those beyond, an unlinked one is lost with the daemon, and lost writes are not told
)
REQUESTS_MAX = 2_048  # changes under way; more than the session lets in
_HANDLE = Struct("=QQII")  # fh (0: free), inode, flags, dirty
_DIRTY_AT = 20
_REQUEST = Struct("=QQ")  # unique (0: free), request id
_WORD = Struct("=Q")
_FLAG = Struct("=I")
_REQUESTS_AT = HANDLES_MAX * _HANDLE.size
BYTES = _REQUESTS_AT + REQUESTS_MAX * _REQUEST.size


def new_memory() -> int:
    """Memory for a journal; its descriptor."""
    fd = os.memfd_create("emberfs-mount", os.MFD_CLOEXEC)
    os.ftruncate(fd, BYTES)
    return fd


class OpenFile(NamedTuple):
    """A handle of a daemon that has died."""

    fh: int
    inode: int
    flags: int
    dirty: bool


class Journal:
    """The memory behind a descriptor, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, BYTES)
        self._slots: dict[int, int] = {}  # fh -> where
        self._dirty: dict[int, list[int]] = {}  # inode -> where, of the handles through which it was written
        self._untold: set[int] = set()  # where, of handles that have yet to hear what an earlier daemon lost
        self._free = list(range(0, _REQUESTS_AT, _HANDLE.size))
        self._requests: dict[int, list[int]] = {}  # unique -> where
        self._free_requests = list(range(_REQUESTS_AT, BYTES, _REQUEST.size))
        self.files = self._load_files()
        self._replays = self._load_requests()
        self._replayed: set[int] = set()
        self._free.reverse()
        self._free_requests.reverse()

    # --- open files ---------------------------------------------------------------------------------------------------------------

    def _load_files(self) -> list[OpenFile]:
        found = []
        for at in self._free:
            fh, inode, flags, dirty = _HANDLE.unpack_from(self._memory, at)
            if fh:
                found.append(OpenFile(fh, inode, flags, bool(dirty)))
                self._slots[fh] = at
                if dirty:
                    self._untold.add(at)
        taken = set(self._slots.values())
        self._free = [at for at in self._free if at not in taken]
        return found

    def opened(self, fh: int, inode: int, flags: int) -> None:
        """A file has a handle."""
        if self._free and fh not in self._slots:
            at = self._slots[fh] = self._free.pop()
            _HANDLE.pack_into(self._memory, at, 0, inode, flags, 0)
            _WORD.pack_into(self._memory, at, fh)

    def closed(self, fh: int) -> None:
        """The kernel has let go of a handle."""
        at = self._slots.pop(fh, None)
        if at is not None:
            _WORD.pack_into(self._memory, at, 0)
            self._untold.discard(at)
            places = self._dirty.get(_HANDLE.unpack_from(self._memory, at)[1], [])
            if at in places:
                places.remove(at)  # another file's handle may have this slot before the bytes are sent
            self._free.append(at)

    def written(self, fh: int, inode: int) -> None:
        """Bytes were taken that no flush has sent."""
        at = self._slots.get(fh)
        if at is None:
            return
        places = self._dirty.setdefault(inode, [])
        if at not in places:
            places.append(at)
            _FLAG.pack_into(self._memory, at + _DIRTY_AT, 1)

    def flushed(self, inode: int) -> None:
        """All bytes of the file have been sent, or the failure was told."""
        for at in self._dirty.pop(inode, ()):
            if at not in self._untold:
                _FLAG.pack_into(self._memory, at + _DIRTY_AT, 0)

    def has_lost(self, fh: int) -> bool:
        """Whether what was written through a handle died with a daemon before us, and nobody has said so yet."""
        return self._slots.get(fh) in self._untold

    def told(self, fh: int) -> None:
        """Whoever has this handle knows what was lost. Until then a daemon after us has to say it."""
        at = self._slots.get(fh)
        if at is None or at not in self._untold:
            return
        self._untold.discard(at)
        if at not in self._dirty.get(_HANDLE.unpack_from(self._memory, at)[1], ()):
            _FLAG.pack_into(self._memory, at + _DIRTY_AT, 0)

    def sweep(self, unsettled: Callable[[int], bool]) -> None:
        """Files that were sent in the background meanwhile have nothing to lose any more."""
        for inode in list(self._dirty):
            if not unsettled(inode):
                self.flushed(inode)

    # --- requests -----------------------------------------------------------------------------------------------------------------

    def _load_requests(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for at in self._free_requests:
            unique, number = _REQUEST.unpack_from(self._memory, at)
            if unique:
                found.setdefault(unique, []).append(number)
                self._requests.setdefault(unique, []).append(at)
        for numbers in found.values():
            numbers.sort()  # in the order in which they were made
        taken = {at for places in self._requests.values() for at in places}
        self._free_requests = [at for at in self._free_requests if at not in taken]
        return found

    @property
    def inherited(self) -> list[int]:
        """Numbers of changes that a daemon before us began, and that may come again."""
        return sorted(number for numbers in self._replays.values() for number in numbers)

    def begin(self, unique: int, number: int) -> None:
        """A request is about to make the change of this number."""
        if self._free_requests:
            at = self._free_requests.pop()
            self._requests.setdefault(unique, []).append(at)
            _REQUEST.pack_into(self._memory, at, 0, number)
            _WORD.pack_into(self._memory, at, unique)

    def replay(self, unique: int) -> int:
        """The number of the change that this request, which was sent again, made before us; 0 if it had made none."""
        numbers = self._replays.get(unique)
        if not numbers:
            return 0
        self._replayed.add(unique)
        return numbers.pop(0)

    def was_replayed(self, unique: int) -> bool:
        """Whether a change of this request may be one that a daemon before us made."""
        return unique & ~RESEND in self._replayed

    def end(self, unique: int) -> None:
        """A request was answered."""
        for at in self._requests.pop(unique, ()):
            _WORD.pack_into(self._memory, at, 0)
            self._free_requests.append(at)
        self._replayed.discard(unique)

    def forget_inherited(self) -> None:
        """What the kernel has not sent again by now, it will not: its callers have gone."""
        for unique in [unique for unique, numbers in self._replays.items() if numbers]:
            if unique not in self._replayed:
                self.end(unique)
        self._replays.clear()
