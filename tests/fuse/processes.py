"""Mounts as users make them, with a supervisor and a daemon of their own: for what a mount within the test's process cannot do."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def mounted(url: str, *options: str) -> Iterator[Path]:
    """A directory where the cluster is mounted, as `emberfs mount -o OPTIONS` does it, until the end; or of the test's process."""
    from emberfs.deploy import mounts

    with tempfile.TemporaryDirectory(prefix="emberfs-mount-") as folder:
        Path(folder).chmod(0o755)  # other users come here, too
        path = Path(folder) / "m"
        path.mkdir()
        mounts.start(url, str(path), options, bound=True)
        try:
            yield path
        finally:
            assert mounts.end(str(path)), "it takes too long to unmount"


def details(path: Path) -> dict[str, Any]:
    """What `emberfs mount` lists about a mount: pid of the supervisor, log…"""
    from emberfs.deploy import mounts

    return next(row for row in mounts.listed() if row["path"] == os.fspath(path))


def daemon_of(supervisor: int) -> int:
    """The process that serves; 0 while there is none."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return int(children[0]) if children else 0
