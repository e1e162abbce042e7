"""How commands write: JSON for machines, names as they are, sizes and times for people, progress on a terminal only."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ...client.core.attributes import Stat

SIZE_END = 1 << 63  # bytes, of what servers count
SIX_MONTHS_S = 182 * 86400
PIPE_COLUMNS = 10_000  # of a table that goes to no terminal: nothing in it is cut
LOG_LEVELS = ("debug", "info", "warning", "error")  # as servers know them; a test compares
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_TYPE_LETTERS = {
    "directory": "d",
    "symlink": "l",
    "fifo": "p",
    "socket": "s",
    "character device": "c",
    "block device": "b",
}


class Failed(Exception):
    """A command gives up: the sentence is told on stderr (unless it is empty: all was said), the code is the exit code."""

    def __init__(self, sentence: str = "", code: int = 1) -> None:
        super().__init__(sentence)
        self.code = code


def complain(sentence: str) -> None:
    """One line on stderr."""
    sys.stdout.flush()
    sys.stderr.write(f"emberfs: {printable(sentence)}\n")
    sys.stderr.flush()


def told(path: str, failed: OSError) -> str:
    """Why something failed for this path, which is named once. ("no such file or directory: 'a'" is of the path's last name mostly.)"""
    text = str(failed.strerror).removesuffix(f": {path.rpartition('/')[2]!r}")
    return text if path in text else f"{path}: {text}"


def say(text: str = "") -> None:
    """A line on stdout in which names keep their bytes, whatever the locale's encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")


def write_json(value: Any, *, lines: bool = False) -> None:
    """One JSON document; with `lines` one of several, each a line that is written at once. Bytes of a name that are no UTF-8 are lone
    surrogates \\udc80 … \\udcff, as os.fsdecode makes them."""
    say(json.dumps(value, indent=1 if sys.stdout.isatty() and not lines else None))
    if lines:
        sys.stdout.flush()


def printable(text: str) -> str:
    """The text with control characters and undecodable bytes escaped: a name must not move the cursor."""
    return re.sub("[^\\n -~\u00a0-\ud7ff\ue000-\U0010ffff]", lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    return (
        f"\\x{code - 0xDC00:02x}"
        if 0xDC80 <= code <= 0xDCFF
        else f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
    )


def name_out(name: str) -> str:
    """A file name for stdout: escaped for a terminal, its exact bytes for a pipe."""
    return printable(name).replace("\n", "\\n") if sys.stdout.isatty() else name


def console() -> Console:
    """For tables on stdout: as wide as the terminal, and as they need where programs read them. Names may look like markup or emoji and
    need not be UTF-8, so cells are taken as they are (see `painted`), and bytes come out as they went in."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Console(highlight=False, markup=False, emoji=False, width=width)


def painted(text: str, colour: str) -> Text:
    """A word in its colour."""
    from rich.text import Text

    return Text(text, colour)


def counted(count: int, noun: str) -> str:
    """ "1 node", "2 nodes"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def human(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in _UNITS:
        if abs(size) < 1024 or unit == _UNITS[-1]:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def parse_size(text: str) -> int:
    """ "64M", "1.5GiB", "4096" -> bytes. Raises Failed for anything else."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGTPE]?)(i?B)?\s*", text, re.IGNORECASE)
    if not match:
        raise Failed(f"{text!r} is no size: write it like 4096, 64M or 1.5GiB", 2)
    size = float(match[1]) * 1024 ** " KMGTPE".index(match[2].upper() or " ")
    if size >= SIZE_END:
        raise Failed(f"{text!r} is more than can be counted: sizes are below {human(SIZE_END)}", 2)
    return int(size)


def parse_duration(text: str) -> int:
    """ "90s", "12h", "7d", "off" -> seconds. Raises Failed for anything else."""
    if text == "off":
        return 0
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    if not match:
        raise Failed(f"{text!r} is no time: write it like 30m, 12h, 7d, or off", 2)
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}[match[2]]


def parse_level(text: str) -> str:
    """A level of a log as it is. Raises Failed for anything else."""
    if text not in LOG_LEVELS:
        raise Failed(f"{text!r} is no level of a log: they are {', '.join(LOG_LEVELS)}", 2)
    return text


def mode_text(stat: Stat) -> str:
    """ "drwxr-xr-x"."""
    import stat as bits

    text = bits.filemode(stat.mode)
    return _TYPE_LETTERS.get(stat.type, "-") + text[1:]


def time_text(ns: int, now_ns: int | None = None) -> str:
    """As `ls -l` shows it: the clock within half a year of now, else the year."""
    seconds = ns / 1e9
    age = (now_ns or time.time_ns()) / 1e9 - seconds
    form = "%b %e %H:%M" if abs(age) < SIX_MONTHS_S else "%b %e  %Y"
    return time.strftime(form, time.localtime(seconds))


def owner_text(stat: Stat) -> tuple[str, str]:
    """User and group by name where this host knows them."""
    import grp
    import pwd

    user, group = str(stat.uid), str(stat.gid)
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(stat.uid).pw_name
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(stat.gid).gr_name
    return user, group


def stat_json(path: str, stat: Stat) -> dict[str, Any]:
    """An inode's attributes for a machine: the fields of `Stat` and the path."""
    from dataclasses import asdict

    return {"path": path, **asdict(stat)}


class Progress:
    """Bytes and files that are done. `add` may be called from any thread."""

    def add(self, size: int) -> None: ...

    def file_done(self) -> None: ...


class _Bar(Progress):
    def __init__(self, bar: Any, task: Any, files: int) -> None:
        self._bar, self._task, self._files, self._done = bar, task, files, 0

    def add(self, size: int) -> None:
        self._bar.update(self._task, advance=size)

    def file_done(self) -> None:
        self._done += 1
        self._bar.update(self._task, count=f"{self._done}/{self._files}")


@contextlib.contextmanager
def progress(title: str, size: int, files: int) -> Iterator[Progress]:
    """A bar on stderr if that is a terminal, otherwise nothing."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description} {task.fields[count]}"),
        BarColumn(),
        DownloadColumn(True),
        TransferSpeedColumn(),
    )
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=size, count=f"0/{files}")
        yield _Bar(bars, task, files)
