"""What is planned: disks in, chains and figures out.

Words: a *point* is what fails and recovers as one and whose traffic is spread: a host, or a node where nodes of one host are told
apart. A *domain* is what the members of a chain may not share: the point itself, or its rack. A *seat* is a disk's place for one
member of one chain. The *pair load* of two points is the number of chains that have a member on both.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

REPLICAS_MAX = 16
DISKS_MAX = 16_384
POINTS_MAX = 4096  # pair loads are kept for each two of them: 4 bytes each
CHAINS_MAX = 100_000


class InfeasibleError(ValueError):
    """There is no such placement; the message says what is missing."""


class Domain(enum.Enum):
    """What the members of one chain may not share."""

    NODE = "node"  # a storage process: for clusters on one machine
    HOST = "host"
    RACK = "rack"


class Standing(enum.Enum):
    """What is to become of a disk's members."""

    IN = "in"  # takes members
    DRAINING = "draining"  # gives all away, and can still be copied from
    GONE = "gone"  # its members are copied from the rest of their chains


@dataclass(frozen=True, slots=True)
class Disk:
    name: str  # unique
    node: str
    capacity: int  # bytes
    host: str = ""  # "": the node's name
    rack: str = ""
    seats_max: int = CHAINS_MAX  # members that it may take at most
    standing: Standing = Standing.IN

    def point(self, domain: Domain) -> str:
        """What its recovery traffic belongs to."""
        return self.node if domain is Domain.NODE else self.host or self.node

    def place(self, domain: Domain) -> str:
        """The failure domain that it lies in."""
        return self.rack if domain is Domain.RACK else self.point(domain)


@dataclass(frozen=True, slots=True)
class Chain:
    members: tuple[str, ...]  # names of disks; the first is the head
    id: int = 0  # 0: to be made
    size: int = 0  # bytes on each member


@dataclass(frozen=True, slots=True)
class Request:
    disks: Sequence[Disk]
    replicas: int
    domain: Domain = Domain.HOST
    seats_per_disk: int = 6  # of a disk of average capacity
    chains: int = 0  # how many to make; 0: as many as `seats_per_disk` gives
    seed: int = 1

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True)
class Move:
    """A member of a chain comes to another disk; "" where there was none before."""

    chain: int
    source: str
    target: str
    size: int  # bytes to copy


@dataclass(frozen=True, slots=True)
class Figures:
    chains: int
    points: int
    seats_min: int  # members on one disk
    seats_max: int
    pair_load_max: int
    pair_load_bound: int  # no placement with these seats has less
    disk_pair_load_max: int
    heads_max: int  # chains that one disk leads
    usable: int  # bytes that fit before the first disk is full, counted once
    raw: int  # bytes of all disks that take members
    moves: int = 0
    moves_bound: int = 0  # no plan that balances these disks moves fewer
    bytes_to_move: int = 0

    @property
    def is_optimal(self) -> bool:
        return self.pair_load_max <= self.pair_load_bound


@dataclass(frozen=True, slots=True)
class Plan:
    chains: tuple[Chain, ...]
    moves: tuple[Move, ...]
    figures: Figures
    method: str  # "greedy", "search", "exact" or "replan"
    notes: tuple[str, ...] = field(default=())  # what an operator should know


def _check(request: Request) -> None:
    """Raises InfeasibleError, ValueError for what cannot be meant."""
    disks, domain = request.disks, request.domain
    if not 1 <= request.replicas <= REPLICAS_MAX:
        raise ValueError(f"{request.replicas} replicas: between 1 and {REPLICAS_MAX}")
    if (
        len(disks) > DISKS_MAX
        or request.chains > CHAINS_MAX
        or len(disks) * request.seats_per_disk > CHAINS_MAX * request.replicas
    ):
        raise ValueError(f"at most {DISKS_MAX} disks and {CHAINS_MAX} chains are planned at once")
    if len({disk.name for disk in disks}) < len(disks):
        raise ValueError("two disks have one name")
    for disk in disks:
        if disk.capacity <= 0 and disk.standing is Standing.IN:
            raise ValueError(f"disk {disk.name}: its capacity must be given")
        if domain is Domain.RACK and not disk.rack:
            raise ValueError(f"disk {disk.name}: without a rack (EMBERFS_RACK), and racks are the failure domain")
    first: dict[str, Disk] = {}
    for disk in disks:
        known = first.setdefault(disk.point(domain), disk)
        if known.rack != disk.rack:
            names = f"nodes {known.node} and {disk.node} are" if known.node != disk.node else f"node {disk.node} is"
            raise ValueError(
                f"{names} on one host, and it is said to be in two racks, {known.rack!r} and {disk.rack!r}: correct EMBERFS_RACK there"
            )
    places = {disk.place(domain) for disk in disks if disk.standing is Standing.IN}
    if len(places) < request.replicas:
        raise InfeasibleError(
            f"{'1 replica needs' if request.replicas == 1 else f'{request.replicas} replicas need'} as many failure domains "
            f"({domain.value}s), and {'there is' if len(places) == 1 else 'there are'} {len(places)}; "
            "add some, or take a smaller domain or fewer replicas"
        )
    if len({disk.point(domain) for disk in disks}) > POINTS_MAX:
        raise ValueError(f"at most {POINTS_MAX} hosts are planned at once")
