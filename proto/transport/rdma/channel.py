"""Completion channels, with the descriptor that pyverbs does not give.

Its number has to be guessed from what the process has open before and after, so channels are made and closed one at a time: a thread that
took another's number for its own would wait for news that never come.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from ...errors import Status, error

_lock = threading.Lock()  # nobody else makes or closes a channel meanwhile; other descriptors come and go


def make_channel(verbs: Any, context: Any) -> tuple[Any, int]:
    """A completion channel that never blocks, and its descriptor. Raises UNSUPPORTED, OSError."""
    with _lock:
        probe = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.close(probe)
        free = not _is_channel(probe)
        channel = verbs.CompChannel(context)
        descriptor = probe  # the kernel takes the lowest number that is free
        if not free or not _is_channel(probe):  # another thread opened or closed something: compare all there is
            channel.close()
            seen = _channels()
            channel = verbs.CompChannel(context)
            new = _channels() - seen
            if len(new) != 1:
                channel.close()
                raise error(Status.UNSUPPORTED, "the completion channel's descriptor was not found; try again")
            descriptor = new.pop()
        os.set_blocking(descriptor, False)
        return channel, descriptor


def close_channel(channel: Any) -> None:
    with _lock:
        channel.close()


def _is_channel(descriptor: int) -> bool:
    try:
        return "infinibandevent" in os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return False


def _channels() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd") if _is_channel(int(name))}


os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]
