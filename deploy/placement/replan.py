"""Changes to existing chains: disks come, go, are drained or replaced, and as few members as possible move.

Seats are given anew with the method of seats.py, which never takes a seat from a disk because another one leaves. So what must
move is exactly: members on disks that leave, members in a domain that another member of their chain is in, and
what a disk holds beyond its seats. Each of these moves once, to a disk that has a seat free; only when no chain allows the direct
way, a second member steps aside.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence

from .figures import figures_of
from .model import Chain, InfeasibleError, Move, Plan, Request, Standing
from .seats import seats_of

SOURCES_MAX = 8  # overfull disks that are compared for one move
TARGETS_MAX = 64  # disks with free seats that are compared for one member


def replan(request: Request, chains: Sequence[Chain], *, balance: bool = True) -> Plan:
    """The moves that bring chains to `request.replicas` members on disks that stay, and (`balance`) each disk to its share.
    Raises InfeasibleError when seats or domains are missing, ValueError for chains that cannot be."""
    table = _Table(request, chains, balance)
    table.place_orphans()
    if balance:
        table.level()
    after = tuple(table.chain(number) for number in range(len(chains)))
    moves = tuple(table.moves())
    figures = figures_of(request, after, None, moves, table.moves_bound)
    return Plan(after, moves, figures, "replan", tuple(table.notes))


class _Table:
    """The chains while members move: slots of chains, each with a disk or waiting for one."""

    def __init__(self, request: Request, chains: Sequence[Chain], balance: bool) -> None:
        self.request, self.chains = request, chains
        self.disks = {disk.name: disk for disk in request.disks}
        self.place = {name: disk.place(request.domain) for name, disk in self.disks.items()}
        self.point = {name: disk.point(request.domain) for name, disk in self.disks.items()}
        self.notes: list[str] = []
        self.slots: list[list[str]] = []  # by chain: a disk, or "" for a member without one
        self.held: Counter[str] = Counter()
        self.on: dict[str, set[int]] = {name: set() for name in self.disks}  # chains of each disk
        self.pairs: Counter[tuple[str, str]] = Counter()  # of points
        for chain in chains:
            self._take(chain)
        orphans = sum(slot == "" for slots in self.slots for slot in slots)
        if balance:
            self.seats = seats_of(request, len(chains), self.held)
        else:
            self.seats = {d.name: d.seats_max for d in request.disks if d.standing is Standing.IN}
        over = sum(max(0, self.held[name] - seats) for name, seats in self.seats.items())
        self.moves_bound = orphans + (over if balance else 0)

    def _take(self, chain: Chain) -> None:
        replicas = self.request.replicas
        if len(chain.members) > replicas:
            raise ValueError(f"chain {chain.id} has {len(chain.members)} members, and {replicas} replicas are wanted")
        if len(set(chain.members)) < len(chain.members):
            raise ValueError(f"chain {chain.id} has a disk twice")
        slots: list[str] = []
        number = len(self.slots)
        self.slots.append(slots)
        used: set[str] = set()
        for name in chain.members:
            stays = name in self.disks and self.disks[name].standing is Standing.IN and self.place[name] not in used
            slots.append("")
            if stays:
                used.add(self.place[name])
                self._put(number, len(slots) - 1, name)
        slots += [""] * (replicas - len(slots))

    def _put(self, chain: int, slot: int, name: str) -> None:
        for other in self.slots[chain]:
            if other:
                self._count(name, other, 1)
        self.slots[chain][slot] = name
        self.held[name] += 1
        self.on[name].add(chain)

    def _lift(self, chain: int, slot: int) -> None:
        name = self.slots[chain][slot]
        self.slots[chain][slot] = ""
        self.held[name] -= 1
        self.on[name].discard(chain)
        for other in self.slots[chain]:
            if other:
                self._count(name, other, -1)

    def _count(self, one: str, other: str, step: int) -> None:
        a, b = self.point[one], self.point[other]
        self.pairs[min(a, b), max(a, b)] += step

    def _may(self, chain: int, slot: int, name: str) -> bool:
        place = self.place[name]
        return all(self.place[other] != place for i, other in enumerate(self.slots[chain]) if other and i != slot)

    def _cost(self, chain: int, slot: int, name: str) -> tuple[int, int]:
        """The worst and the whole pair load that this member would have."""
        mates = [other for i, other in enumerate(self.slots[chain]) if other and i != slot]
        a = self.point[name]
        loads = [self.pairs[min(a, self.point[m]), max(a, self.point[m])] for m in mates]
        return max(loads, default=0), sum(loads)

    def _free(self) -> list[str]:
        """Disks with a free seat, those that lack most first."""
        free = [name for name, seats in self.seats.items() if self.held[name] < seats]
        return sorted(free, key=lambda name: ((self.held[name] + 1) / self.disks[name].capacity, name))

    def place_orphans(self) -> None:
        """Members without a disk; those that can go to the fewest disks first."""
        orphans = [(c, s) for c, slots in enumerate(self.slots) for s, name in enumerate(slots) if not name]
        free = self._free()
        orphans.sort(key=lambda orphan: sum(self._may(orphan[0], orphan[1], name) for name in free[:TARGETS_MAX]))
        placed: set[tuple[int, int]] = set()
        for chain, slot in orphans:
            allowed = [name for name in self._free() if self._may(chain, slot, name)][:TARGETS_MAX]
            if allowed:
                self._put(
                    chain, slot, min(allowed, key=lambda name: self._cost(chain, slot, name))
                )  # of equals the emptiest
            elif not (self._make_room(chain, slot, placed) or self._make_room(chain, slot, None)):
                raise InfeasibleError(
                    f"no disk is left for a member of chain {self.chains[chain].id}: the free ones lie in failure domains that it "
                    "uses already; add disks in another one"
                )
            placed.add((chain, slot))

    def _make_room(self, chain: int, slot: int, movable: set[tuple[int, int]] | None) -> bool:
        """Put it on a full disk after one of that disk's members moved on to a free one; `movable` as in `_relieve`."""
        for name in self.seats:
            if self._may(chain, slot, name):
                self._put(chain, slot, name)
                if self.held[name] <= self.seats[name] or self._relieve(name, movable):
                    return True
                self._lift(chain, slot)
        return False

    def level(self) -> None:
        """Move what disks hold beyond their seats."""
        stuck: set[str] = set()
        while full := [n for n in self.seats if self.held[n] > self.seats[n] and n not in stuck]:
            full.sort(key=lambda name: (self.seats[name] - self.held[name], name))
            best = self._best_move(full[:SOURCES_MAX])
            if best:
                chain, slot, name = best
                self._lift(chain, slot)
                self._put(chain, slot, name)
            elif not self._relieve(full[0]):
                stuck.add(full[0])
        if stuck:
            self.notes.append(f"{', '.join(sorted(stuck))} keep more than their share: no chain of theirs may move")

    def _best_move(self, sources: Sequence[str]) -> tuple[int, int, str] | None:
        free = self._free()[:TARGETS_MAX]
        best: tuple[tuple[int, int], int, int, str] | None = None
        for source in sources:
            for chain in sorted(self.on[source]):
                slot = self.slots[chain].index(source)
                for name in free:
                    if self._may(chain, slot, name):
                        option = (self._cost(chain, slot, name), chain, slot, name)
                        best = option if best is None or option < best else best
        return best[1:] if best else None

    def _relieve(self, source: str, movable: set[tuple[int, int]] | None = None) -> bool:
        """Move one member away from a disk along the shortest row of disks, each passing one on, to one with a free seat. `movable`:
        only these (chain, slot), which move anyway; None: any."""
        came: dict[str, tuple[str, int]] = {source: ("", 0)}  # disk -> (from which disk, which chain)
        waiting = deque([source])
        while waiting:
            name = waiting.popleft()
            if name != source and self.held[name] < self.seats[name]:
                self._pass_on(name, came)
                return True
            for chain in sorted(self.on[name]):
                slot = self.slots[chain].index(name)
                used = chain in (c for _, c in self._way(name, came))  # its domains would not be those of now
                if used or (movable is not None and (chain, slot) not in movable):
                    continue
                for other in self.seats:
                    if other not in came and self._may(chain, slot, other):
                        came[other] = (name, chain)
                        waiting.append(other)
        return False

    @staticmethod
    def _way(name: str, came: dict[str, tuple[str, int]]) -> Iterator[tuple[str, int]]:
        """The steps that lead to a disk: (from which disk, which chain), last one first."""
        while came[name][0]:
            yield came[name]
            name = came[name][0]

    def _pass_on(self, name: str, came: dict[str, tuple[str, int]]) -> None:
        for source, chain in list(self._way(name, came)):
            slot = self.slots[chain].index(source)
            self._lift(chain, slot)
            self._put(chain, slot, name)
            name = source

    def chain(self, number: int) -> Chain:
        before = self.chains[number]
        return Chain(tuple(self.slots[number]), before.id, before.size)

    def moves(self) -> Iterator[Move]:
        for before, slots in zip(self.chains, self.slots, strict=True):
            olds = [*before.members, *[""] * (len(slots) - len(before.members))]
            for old, new in zip(olds, slots, strict=True):
                if old != new:
                    yield Move(before.id, old, new, before.size)
