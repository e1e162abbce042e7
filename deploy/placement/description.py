"""What a planner's input looks like in a file (TOML or JSON).

replicas = 3                  # and seats_per_disk, domain ("node", "host" or "rack"), chains
[[node]]
name = "n1"                   # and host, rack
disks = 4                     # n1/1 … n1/4, each with this
capacity = "15T"
standing = "in"               # or "draining", "gone"
[[node]]
name = "n2"
disk = [{ name = "n2/nvme0", capacity = "7.5T", seats_max = 4 }]
[[chain]]                     # chains that exist: then members move, otherwise new chains are made
id = 1
members = ["n1/1", "n2/nvme0"]
size = "800G"                 # bytes on each member
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from .model import CHAINS_MAX, Chain, Disk, Domain, Request, Standing

_Choice = TypeVar("_Choice", Domain, Standing)
_UNITS = " KMGTPE"
_KEYS = {
    "": {"replicas", "seats_per_disk", "domain", "chains", "seed", "node", "chain"},
    "node": {"name", "host", "rack", "disks", "disk", "capacity", "standing", "seats_max"},
    "disk": {"name", "capacity", "standing", "seats_max"},
    "chain": {"id", "members", "size"},
}


def read_description(document: Mapping[str, Any]) -> tuple[Request, list[Chain]]:
    """The request, and the chains that exist. Raises ValueError, InfeasibleError."""
    _check_keys("", document)
    disks = [disk for number, node in enumerate(_list(document, "node")) for disk in _disks(node, number)]
    request = Request(
        disks=disks,
        replicas=_number(document, "replicas", 3),
        domain=_choice(Domain, document.get("domain", "host"), "domain"),
        seats_per_disk=_number(document, "seats_per_disk", 6),
        chains=_number(document, "chains", 0),
        seed=_number(document, "seed", 1),
    )
    return request, [_chain(entry) for entry in _list(document, "chain")]


def _disks(node: Mapping[str, Any], number: int) -> list[Disk]:
    _check_keys("node", node)
    name = str(node.get("name") or f"n{number + 1}")
    entries: Sequence[Mapping[str, Any]] = _list(node, "disk")
    if not entries:
        entries = [{"name": f"{name}/{i + 1}"} for i in range(_number(node, "disks", 1))]
    found = []
    for place, entry in enumerate(entries):
        _check_keys("disk", entry)
        merged = {**node, **entry}
        found.append(
            Disk(
                name=str(entry.get("name") or f"{name}/{place + 1}"),
                node=name,
                capacity=size_of(merged.get("capacity", 0)),
                host=str(node.get("host", "")),
                rack=str(node.get("rack", "")),
                seats_max=_number(merged, "seats_max", CHAINS_MAX),
                standing=_choice(Standing, merged.get("standing", "in"), "standing"),
            )
        )
    return found


def _chain(entry: Mapping[str, Any]) -> Chain:
    _check_keys("chain", entry)
    return Chain(tuple(map(str, _list(entry, "members"))), _number(entry, "id", 0), size_of(entry.get("size", 0)))


def _check_keys(what: str, entry: Mapping[str, Any]) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{what or 'the description'}: expected a table, not {entry!r}")
    if unknown := sorted(set(entry) - _KEYS[what]):
        raise ValueError(
            f"{what or 'the description'}: {unknown[0]!r} is not known; there are {', '.join(sorted(_KEYS[what]))}"
        )


def _list(entry: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = entry.get(name, ())
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} = {value!r}: expected a list")
    return value


def _number(entry: Mapping[str, Any], name: str, default: int) -> int:
    value = entry.get(name, default)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} = {value!r}: expected a whole number")
    return value


def _choice(kind: type[_Choice], value: Any, name: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} = {value!r}: one of {', '.join(item.value for item in kind)}") from None


def size_of(value: Any) -> int:
    """ "15T", "7.5TiB", 4096 -> bytes (units of 1024). Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGTPE]?)(i?B)?\s*", str(value), re.IGNORECASE)
    if not match:
        raise ValueError(f"{value!r} is no size: write it like 4096, 64M or 1.5TiB")
    return int(float(match[1]) * 1024 ** _UNITS.index(match[2].upper() or " "))
