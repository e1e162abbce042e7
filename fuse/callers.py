"""For whom a request is: the client core as the calling process's user sees it.

The kernel names user, group and process; the supplementary groups are in /proc/PID/status. They are believed for `GROUPS_SECONDS`, so
that a program pays for the look once a second and not with each of its requests. The metadata server checks each request with them
again, although the kernel has already (default_permissions): its caches may be a second old.

Only root may act for others. A mount of somebody else sends no caller: what is done through it, is done by who mounted.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ..client.core.acting import Acting
from ..client.core.client import Core

if TYPE_CHECKING:
    from .session import Request

GROUPS_SECONDS = 1.0  # for which the groups of a process are believed
VIEWS_MAX = 4096  # callers that are remembered; at the limit all are looked up anew
STATUS_BYTES_MAX = 65536  # of /proc/PID/status that are read


def status_of(pid: int, field: bytes) -> bytes:
    """A field of /proc/PID/status. Empty where the process or thread has gone, or where none is meant (pid 0)."""
    if pid <= 0:
        return b""
    try:
        fd = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        text = os.read(fd, STATUS_BYTES_MAX)
    except OSError:
        return b""
    finally:
        os.close(fd)
    start = text.find(b"\n" + field + b":")
    return text[start + len(field) + 2 : text.find(b"\n", start + 1)] if start >= 0 else b""


def groups_of(pid: int) -> tuple[int, ...]:
    """The supplementary groups of a process; none where it has gone."""
    return tuple(int(group) for group in status_of(pid, b"Groups").split())


class Callers:
    """Views of the core, one per caller and umask, made when first needed."""

    def __init__(self, core: Core, *, acts_for_others: bool | None = None) -> None:
        """`acts_for_others`: None for whether this process is root's."""
        self._core = core
        self._acts = os.geteuid() == 0 if acts_for_others is None else acts_for_others
        self._views: dict[tuple[int, int, int, int], tuple[float, Acting]] = {}

    def view(self, request: Request, umask: int = 0) -> Acting:
        """The core for whoever made a request; `umask` is applied to what it creates, by the server, unless a default ACL says more."""
        uid = request.uid
        # Root has all rights whatever its groups are, and who does not act for others sends none.
        pid = request.pid if self._acts and uid else 0
        key = (uid, request.gid, pid, umask)
        now = time.monotonic()
        known = self._views.get(key)
        if known is not None and now < known[0]:
            return known[1]
        if len(self._views) >= VIEWS_MAX:
            self._views.clear()
        view = Acting(self._core, uid, request.gid, groups_of(pid) if pid else (), umask)
        if not self._acts:
            view.caller = None
        self._views[key] = (now + GROUPS_SECONDS, view)
        return view
