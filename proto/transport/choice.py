"""Which transport to speak with whom, and what became of it. Addresses say "tcp:"; where both ends have an RDMA device, the connection
goes on over that.

`EMBERFS_TRANSPORT` is "auto" (the default), "tcp" (never RDMA), or "rdma" (never anything else over a network: an error where it cannot
be).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import Status, error
from ..region import Region

DEVICES = "/sys/class/infiniband"
_log = logging.getLogger("emberfs.rpc")

PROBE_SECONDS = 2.0  # for the first bytes to get through a new queue pair; scaled by EMBERFS_TIME_SCALE
RETRY_SECONDS = 60.0  # after RDMA failed with a server, before it is tried again


Moving = Callable[[Region], bool]  # whether a request may be moving bytes of a region now
on_forget: list[Callable[[Region, Moving], None]] = []  # of transports in use that keep something of regions


def forget(region: Region | None, moving: Moving) -> None:
    """Nobody uses the region any more: transports give up what they hold of it, as soon as nothing moves there."""
    if region is not None:
        for told in on_forget:
            told(region, moving)


def wanted() -> str:
    """EMBERFS_TRANSPORT. Raises INVALID."""
    found = os.environ.get("EMBERFS_TRANSPORT", "") or "auto"
    if found not in ("auto", "tcp", "rdma"):
        raise error(Status.INVALID, f"EMBERFS_TRANSPORT={found!r}: must be auto, tcp or rdma")
    return found


def offers_rdma() -> bool:
    """Whether this process would speak RDMA: it may, and the machine has a device. Raises INVALID."""
    return not why_not_here()


def why_not_here() -> str:
    """Why this process does not offer RDMA; "" if it does. Looks for devices only: whether they work shows when one is used. Raises
    INVALID."""
    if wanted() == "tcp":
        return "EMBERFS_TRANSPORT says tcp"
    if os.environ.get("EMBERFS_RDMA_DEVICES") == "none":
        return "EMBERFS_RDMA_DEVICES says none"
    try:
        if os.listdir(DEVICES):
            return ""
    except OSError:
        pass
    return "this machine has no RDMA device"


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a connection to a server speaks: "shm", "tcp", "rdma"; why not rdma, or over which port."""

    transport: str
    reason: str = ""


class Choices:
    """Of one environment: what is spoken with each server. What failed is not tried again for a while, and told once."""

    def __init__(self) -> None:
        self.spoken: dict[str, Spoken] = {}  # by address
        self._failed: dict[str, tuple[float, str]] = {}  # when to try again, why
        self._told: set[tuple[str, str]] = set()
        self._looking: set[str] = set()  # addresses where RDMA is tried again while TCP is spoken

    def tries(self, address: str, server_offers: bool, now: float) -> bool:
        """Whether to go on over RDMA after a hello. Raises UNAVAILABLE where nothing else is wanted and it cannot be, INVALID."""
        if address.startswith("unix:"):
            self.spoken[address] = Spoken("shm", "on this machine")
            return False
        reason = why_not_here() or ("" if server_offers else "the server does not offer it")
        if not reason:
            until, reason = self._failed.get(address, (0.0, ""))
            if now >= until:
                return True
        self._stays(address, reason)
        return False

    def moves(self, address: str) -> bool:
        """Whether RDMA was spoken with this server last."""
        spoken = self.spoken.get(address)
        return spoken is not None and spoken.transport == "rdma"

    def look_again(self, address: str, now: float) -> bool:
        """Whether who speaks TCP with this server is to see if RDMA works by now, on another connection, and say `looked` then. One does
        at a time."""
        if address not in self._failed or now < self._failed[address][0] or address in self._looking:
            return False
        self._looking.add(address)
        return True

    def looked(self, address: str, now: float) -> None:
        """That is over, whatever came of it."""
        self._looking.discard(address)
        until, reason = self._failed.get(address, (math.inf, ""))
        if until <= now:  # it did not come as far as to RDMA
            self._failed[address] = (now + RETRY_SECONDS, reason)

    def upgraded(self, address: str, port: str) -> None:
        self._failed.pop(address, None)
        self.spoken[address] = Spoken("rdma", f"over {port}")

    def failed(self, address: str, reason: str, now: float) -> None:
        """RDMA was tried in vain: said once. Raises UNAVAILABLE as `tries`."""
        self._failed[address] = (now + RETRY_SECONDS, reason)
        self._stays(address, reason)
        if (address, reason) not in self._told:
            self._told.add((address, reason))
            _log.warning("%s is spoken to over tcp, not over RDMA: %s", address, reason)

    def _stays(self, address: str, reason: str) -> None:
        self.spoken[address] = Spoken("tcp", reason)
        if wanted() == "rdma":
            raise error(
                Status.UNAVAILABLE,
                f"{address} cannot be reached over RDMA, and EMBERFS_TRANSPORT allows nothing else: {reason}",
            )
