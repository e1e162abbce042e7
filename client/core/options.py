"""What a client may be told at `connect`, and what the mode string of `open` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from ...proto.errors import Status, error
from ...proto.settings import own_rack, time_scale

# Flags of open(2) on Linux x86-64, as they travel in OpenRequest.
O_RDONLY = 0
O_WRONLY = 0o1
O_RDWR = 0o2
O_CREAT = 0o100
O_EXCL = 0o200
O_TRUNC = 0o1000
O_APPEND = 0o2000
O_ONCE = O_CREAT | O_EXCL | O_TRUNC  # what concerns only the first open, not a reopening of the same inode


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of one client. Times are seconds before the time scale is applied, sizes bytes."""

    timeout: float = 30.0  # for one operation, with all its retries
    connect_timeout: float = 2.0  # for the first contact, where nobody listens: longer than a restart takes
    readahead: int = 4 << 20  # of one file read in sequence; 0: none. More does not fit the caches
    write_back: int = 16 << 20  # of one file that is not acknowledged yet; 0: every write waits for storage
    memory: int = 256 << 20  # all transfer buffers of this client together
    atime: bool = True  # tell the server which files were read (relatime)
    name: str = ""  # for people, in `emberfs status`
    rack: str = field(default_factory=own_rack)  # where this machine is, as storage servers say with --rack

    def __post_init__(self) -> None:
        for name in ("timeout", "connect_timeout"):
            if not 0 < getattr(self, name) <= 3600:
                raise error(Status.INVALID, f"{name}={getattr(self, name)!r}: must be seconds up to 3600")
        for name in ("readahead", "write_back"):
            if not 0 <= getattr(self, name) <= 1 << 30:
                raise error(Status.INVALID, f"{name}={getattr(self, name)!r}: must be bytes up to 1 GiB")
        if self.memory < 16 << 20 or self.memory & (self.memory - 1):
            raise error(Status.INVALID, f"memory={self.memory!r}: must be a power of two of at least 16 MiB")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Options:
        """Options from keywords. Raises INVALID for an unknown one or a value out of range."""
        known = [f.name for f in fields(cls)]
        if unknown := set(options) - set(known):
            raise error(Status.INVALID, f"unknown option {', '.join(sorted(unknown))}: there are {', '.join(known)}")
        return cls(**options)

    def scaled(self, seconds: float) -> float:
        """A time-out with EMBERFS_TIME_SCALE applied."""
        return seconds * time_scale()


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode string, understood."""

    flags: int  # of open(2)
    binary: str  # the mode as a binary file shows it: "rb", "rb+", "wb", "ab", "xb"…
    text: bool


_FLAGS = {
    "r": (O_RDONLY, 0),
    "w": (O_WRONLY, O_CREAT | O_TRUNC),
    "x": (O_WRONLY, O_CREAT | O_EXCL),
    "a": (O_WRONLY, O_CREAT | O_APPEND),
}


@cache
def parse_mode(mode: str, *, as_text: bool = False) -> Mode:
    """The flags of a mode string: one of r, w, x, a, with "+", "b" or "t" behind it. Raises ValueError as the built-in open does."""
    letters = set(mode)
    kinds = letters & set("rwxa")
    if len(letters) != len(mode) or len(kinds) != 1 or letters - set("rwxabt+") or {"b", "t"} <= letters:
        raise ValueError(f"invalid mode: {mode!r}")
    if as_text and "b" in letters:
        raise ValueError("binary mode doesn't take an encoding argument")
    kind = kinds.pop()
    access, extra = _FLAGS[kind]
    plus = "+" in letters
    return Mode((O_RDWR if plus else access) | extra, f"{kind}b{'+' if plus else ''}", as_text or "t" in letters)
