"""What all adapters take from an engine's configuration, and how an engine's names of blocks become our keys."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from ...proto.blocks import KEY_BYTES

logger = logging.getLogger("emberfs.kvcache.adapters")

COMPLAINT_SECONDS = 30.0

_HEX_DIGITS = 2 * KEY_BYTES


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """Our part of an engine's configuration. What changes the bytes of a block, and the engine does not tell us, belongs to `revision`
    (weights, adapters, quantization) or `salt`: both separate namespaces."""

    url: str = "ember:///"  # of the cluster; this one: as `emberfs up` left it
    tenant: str = ""  # whose quota counts
    revision: str = ""  # of the model's weights
    salt: str = ""  # anything else that must be equal
    ttl_s: int = 0  # seconds that blocks live; 0: until they are evicted
    mode: int = 0o600  # who may read and write the blocks, as of a file
    durable: bool = False  # acknowledge puts when they survive power loss
    deadline_ms: int | None = None  # of one batch; None: the client's default
    kv_events: str = ""  # where to publish what is stored: "tcp://*:5557" (see events.py). vLLM does it itself

    @classmethod
    def of(cls, given: Mapping[str, Any], ignore: Iterable[str] = ()) -> Self:
        """From an engine's mapping, in which `ignore` are the engine's own keys. Raises ValueError for keys that nobody knows (a typo
        would silently share or separate caches) and for values of the wrong type."""
        kinds: dict[str, tuple[type, ...]] = {
            "url": (str,), "tenant": (str,), "revision": (str,), "salt": (str,), "ttl_s": (int,), "mode": (int, str),
            "durable": (bool,), "deadline_ms": (int, type(None)), "kv_events": (str,),
        }  # fmt: skip
        known = {field.name for field in fields(cls)}
        unknown = set(given) - known - set(ignore)
        if unknown:
            raise ValueError(f"emberfs does not know {sorted(unknown)}; its settings are {sorted(known)}")
        chosen = {name: given[name] for name in known if name in given}
        for name, value in chosen.items():
            if not isinstance(value, kinds[name]):
                raise ValueError(f"{name} cannot be {value!r}")
        if isinstance(chosen.get("mode"), str):  # JSON has no octal numbers: "0640"
            chosen["mode"] = int(chosen["mode"], 8)
        return cls(**chosen)


def key_of(name: str | bytes) -> bytes:
    """The key of a block that an engine calls `name`: a SHA-256 digest is the key itself, in hex or as bytes; anything else is hashed."""
    if isinstance(name, bytes):
        return name if len(name) == KEY_BYTES else hashlib.sha256(name).digest()
    if len(name) == _HEX_DIGITS:
        try:
            digest = bytes.fromhex(name)
        except ValueError:
            digest = b""
        if len(digest) == KEY_BYTES:  # `fromhex` passes over blanks
            return digest
    return hashlib.sha256(name.encode()).digest()


def succeeded(statuses: Iterable[int], doing: str = "") -> list[bool]:
    """Which keys have a status of success (bytes moved, not a negative errno). `doing`: what is said in the log of failures that are no
    plain misses; the same one at most once in COMPLAINT_SECONDS."""
    found = [int(status) for status in statuses]
    if doing and found and min(found) < 0:
        _complain(doing, Counter(status for status in found if status < 0 and status != -errno.ENOENT), len(found))
    return [status >= 0 for status in found]


_MEANINGS = {
    errno.EAGAIN: "the servers are away, busy or full",
    errno.EDQUOT: "the tenant's quota is used up",
    errno.EBADMSG: "damaged; the servers know",
    errno.EMSGSIZE: "of another length than the namespace's or the buffer's",
    errno.EFAULT: "a server has not answered, and may still write to this memory: until it goes on or dies",
}
_complained: dict[tuple[str, int], float] = {}


def _complain(doing: str, failures: Counter[int], count: int) -> None:
    now = time.monotonic()
    for status, times in failures.items():
        if now - _complained.get((doing, status), -COMPLAINT_SECONDS) >= COMPLAINT_SECONDS:
            _complained[doing, status] = now
            logger.warning(
                "%s: %d of %d blocks failed (%s)", doing, times, count, _MEANINGS.get(-status, os.strerror(-status))
            )
