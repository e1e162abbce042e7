"""Which RDMA devices, ports and addresses this machine has, as the kernel's sysfs tells; no verbs, so that it costs nothing to ask.

A port is reached by its GID. RoCE v2 ports have one per IP address of their network interface: an IPv4 one is preferred, then a routable
IPv6 one. InfiniBand ports have the subnet's and a LID.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import Status, error

SYSFS = Path("/sys/class/infiniband")
DEVICES_MAX = 16  # ports of one process; more are not looked at
GIDS_MAX = 256  # entries of a port's table that are looked at: it may have a thousand, in use are the first few
GIDS_UNUSED_MAX = 8  # one after the other: then no more follow
LOOK_SECONDS = 10.0  # between two looks at the machine's ports, where connections are made
PREFIX_BITS_MAX = 120  # two GIDs that have so much in common are as near as can be
_V4_MAPPED = bytes(10) + b"\xff\xff"
_LINK_LOCAL = b"\xfe\x80"


@dataclass(frozen=True, slots=True)
class Port:
    """One active port, and the address that is used of it."""

    device: str
    number: int  # of the port, from 1
    infiniband: bool  # otherwise RoCE v2
    gid: bytes  # 16 bytes
    gid_index: int
    lid: int  # InfiniBand; 0 on RoCE
    interface: str = ""  # its network interface, on RoCE
    rate: str = ""  # as the kernel says it: "200 Gb/sec (4X HDR)"

    @property
    def name(self) -> str:
        return f"{self.device}:{self.number}"

    @property
    def gid_text(self) -> str:
        return gid_text(self.gid)


@dataclass(frozen=True, slots=True)
class Found:
    """A port of this machine; `port` is None where it cannot be used, and `reason` says why."""

    name: str
    port: Port | None
    reason: str = ""


def gid_text(gid: bytes) -> str:
    """Eight groups of four digits, as sysfs and pyverbs write it."""
    return ":".join(gid[i : i + 2].hex() for i in range(0, 16, 2))


def survey(root: Path = SYSFS, wanted: str | None = None) -> list[Found]:
    """All ports of this machine. `wanted`: EMBERFS_RDMA_DEVICES, "mlx5_0,mlx5_1:2" (a device, or one port of it; "none": no device at
    all); others are found, and not used. Raises INVALID for a name that this machine does not have."""
    if wanted is None:
        wanted = os.environ.get("EMBERFS_RDMA_DEVICES", "")
    names = {name.strip() for name in wanted.split(",") if name.strip()}
    found = []
    known = set()
    for device in _names(root):
        known.add(device)
        for number in sorted(int(name) for name in _names(root / device / "ports") if name.isdigit()):
            name = f"{device}:{number}"
            known.add(name)
            if names and device not in names and name not in names:
                found.append(Found(name, None, "EMBERFS_RDMA_DEVICES does not name it"))
            else:
                found.append(_look(root / device / "ports" / str(number), device, number))
    unknown = names - known - {"none"}
    if unknown:
        raise error(
            Status.INVALID,
            f"EMBERFS_RDMA_DEVICES names {', '.join(sorted(unknown))}, which this machine does not have;"
            f" it has {', '.join(sorted(known)) or 'no RDMA device'}",
        )
    return found[:DEVICES_MAX]


_looked: tuple[float, list[Port]] = (-LOOK_SECONDS, [])  # when, and what was there


def ports() -> list[Port]:
    """The ports that can be used, as they were lately. Raises INVALID as `survey`."""
    global _looked  # noqa: PLW0603 - the machine's ports are one and the same for everybody
    now = time.monotonic()
    if now - _looked[0] >= LOOK_SECONDS:
        _looked = (now, [found.port for found in survey() if found.port is not None])
    return _looked[1]


def _look(folder: Path, device: str, number: int) -> Found:
    name = f"{device}:{number}"
    state = _read(folder / "state")
    if not state.startswith("4"):  # "4: ACTIVE"
        return Found(
            name, None, f"the port is {state.partition(': ')[2].lower() or 'in an unknown state'}; is the link up?"
        )
    infiniband = _read(folder / "link_layer") == "InfiniBand"
    candidates = _addresses(folder, infiniband)
    if not candidates:
        reason = (
            "it has no GID" if infiniband else "it has no RoCE v2 address: give its network interface an IP address"
        )
        return Found(name, None, reason)
    _, index, gid = min(candidates)
    lid = int(_read(folder / "lid") or "0", 16)
    interface = "" if infiniband else _read(folder / "gid_attrs" / "ndevs" / str(index))
    return Found(name, Port(device, number, infiniband, gid, index, lid, interface, _read(folder / "rate")))


def _addresses(folder: Path, infiniband: bool) -> list[tuple[int, int, bytes]]:
    """(rank, index, GID) of those that can be used, best rank first."""
    candidates = []
    unused = 0
    for index in range(GIDS_MAX):
        gid = bytes.fromhex(_read(folder / "gids" / str(index)).replace(":", ""))
        if len(gid) != 16 or not any(gid):
            unused += 1
            if unused >= GIDS_UNUSED_MAX:
                break
            continue
        unused = 0
        if infiniband or _read(folder / "gid_attrs" / "types" / str(index)) == "RoCE v2":
            candidates.append((_rank(gid, infiniband), index, gid))
    return candidates


def _rank(gid: bytes, infiniband: bool) -> int:
    if infiniband or gid.startswith(_V4_MAPPED):
        return 0
    return 2 if gid.startswith(_LINK_LOCAL) else 1


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # an entry of the GID table that is not in use cannot be read
        return ""


def nearness(one: bytes, other: bytes) -> int:
    """How many leading bits two GIDs have in common, 120 at most."""
    differ = int.from_bytes(one) ^ int.from_bytes(other)
    return min(128 - differ.bit_length(), PREFIX_BITS_MAX)


def in_order(own: Sequence[Port], address: bytes, turn: int) -> list[Port]:
    """The ports, best first, to reach a peer at this IP address (16 bytes, IPv4 mapped; b"" if not known). Those that are equally near
    take turns."""
    rotated = [own[(turn + i) % len(own)] for i in range(len(own))]
    if not address:
        return rotated
    return sorted(rotated, key=lambda port: -1 if port.infiniband else nearness(port.gid, address), reverse=True)


def partner(own: Sequence[Port], gid: bytes, infiniband: bool, turn: int) -> Port | None:
    """The port to answer a peer's with: of the same kind and, on InfiniBand, the same subnet; the nearest, or one after the other."""
    fitting = [port for port in own if port.infiniband == infiniband and (not infiniband or port.gid[:8] == gid[:8])]
    return in_order(fitting, b"" if infiniband else gid, turn)[0] if fitting else None
