"""From a cluster as it is to one as it should be, one safe step at a time: a pure function of what the manager says.

    decide(view, wish) -> what to do next, what is under way, what is left, what stands in the way

A member moves in four steps: a target is made on the disk that it moves to (unless an empty one waits there), it joins the chain, which
copies to it while clients work, then the old member leaves, and its target is dropped. Nothing is remembered between two
steps. Each decision reads the state anew, so whoever is interrupted starts again anywhere, and several may even run at once: a step that
another one has made impossible is refused under the chain's version.

Rules:
1. A chain never has fewer members that serve because of us: a member leaves when all those that stay serve, and they are as many
   as there should be. The exception: one that was given up, and can only be replaced in its own process, leaves first.
2. One change of a chain at a time: what joined has to serve before the next step.
3. A chain that nobody serves is left alone. So is one with a member that is away and may come back, unless it is given up as lost.
4. What is lost or drained is moved first, to any disk, and targets are made for it. Only when nothing of that is left, and only when
   asked, are the seats levelled; that moves members to targets that wait empty, and makes none: how many targets a disk has is
   its owner's decision.
5. Of KV blocks with one copy nothing is copied. A chain whose member is lost or drained leaves the chain table, by the manager's hand:
   keys go around it. Then its member leaves it, and it stays empty for ever.
"""

from __future__ import annotations

import contextlib
import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ...proto.errors import Status, error
from .model import CHAINS_MAX, Chain, Disk, Domain, InfeasibleError, Plan, Request, Standing
from .replan import replan
from .seats import seats_of
from .view import ChainView, ClusterView, MemberView, NodeView, TargetView


@dataclass(frozen=True, slots=True)
class AddTarget:
    """Make an empty target in a folder of a node."""

    node: int
    folder: str
    size: int  # bytes that it will have to hold


@dataclass(frozen=True, slots=True)
class Join:
    chain: int
    version: int
    target: int
    size: int  # bytes that are copied to it


@dataclass(frozen=True, slots=True)
class Leave:
    chain: int
    version: int
    target: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete a target that is in no chain."""

    node: int
    target: int


Step = AddTarget | Join | Leave | Drop


@dataclass(frozen=True)
class Wish:
    """What the administrator wants."""

    lost: frozenset[int] = frozenset()  # targets that will not come back, or shall not
    balance: bool = False  # level the seats too
    domain: Domain | None = None  # that members may not share; None: the widest that there are enough of


@dataclass(frozen=True, slots=True)
class Moving:
    """A chain that copies to a member of its."""

    chain: int
    target: int  # that is copied to
    size: int  # bytes
    done: int  # chunks compared so far
    total: int


@dataclass
class Decision:
    finish: list[Step] = field(default_factory=list)  # carries on or cleans up what has begun: always allowed
    begin: list[Step] = field(default_factory=list)  # each begins one more move; the most urgent first
    moving: list[Moving] = field(default_factory=list)
    moves: int = 0  # that are left to begin
    bytes_left: int = 0  # to copy, of moves under way (all of their bytes) and of those left
    retiring: list[int] = field(default_factory=list)  # chains that are to leave their table first
    blocked: list[str] = field(default_factory=list)  # sentences: what cannot be done, and why

    @property
    def is_done(self) -> bool:
        return not (self.finish or self.begin or self.moving or self.moves or self.retiring or self.blocked)


def decide(view: ClusterView, wish: Wish) -> Decision:
    """The next steps. Raises INVALID for a cluster that cannot be planned with (two racks said of one host)."""
    with _refused():
        return _Round(view, wish).decide()


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except ValueError as wrong:
        raise error(Status.INVALID, str(wrong)) from wrong


def plan_of(view: ClusterView, wish: Wish) -> Plan | None:
    """Where all members are to be in the end, with the moves that are left and figures; disks are called "node:folder". None when there
    is nothing to move, or no such place. Raises INVALID as `decide` does."""
    with _refused():
        return _Round(view, wish).plan() if view.chains and view.targets and not view.is_cache else None


class _Room(enum.Enum):
    """How many members a disk may get."""

    SPARE = "spare"  # one for each of its empty targets
    MAKE = "make"  # any number: targets are made
    AGAIN = "again"  # the same, and also where all that it had was given up although it works


class _Round:
    """One look at the cluster."""

    def __init__(self, view: ClusterView, wish: Wish) -> None:
        self.view, self.wish = view, wish
        self.domain = wish.domain or view.widest_domain()
        self.members = view.members()
        self.on: dict[str, list[TargetView]] = {}  # disk -> its targets
        for target in view.targets.values():
            self.on.setdefault(self._disk(target.id), []).append(target)
        self.held = Counter(self._disk(target) for target in self.members if target in view.targets)
        self.kept = {chain.id: self._stay(chain) for chain in view.chains}
        self._chains = [
            Chain(tuple(self._disk(m.target) for m in self.kept[chain.id]), chain.id, view.size(chain))
            for chain in view.chains
        ]
        self.busy: set[int] = set()  # nodes that are being copied to
        self.spare = self._spare()
        self.found = Decision()

    # --- disks --------------------------------------------------------------------------------------------------------------------

    def _disk(self, target: int) -> str:
        found = self.view.targets[target]
        return f"{found.node}:{found.folder}"

    def _is_lost(self, target: int) -> bool:
        return target in self.wish.lost or target not in self.view.targets

    def _weight(self, disk: str) -> int:
        """What its share goes by: nothing that our own steps change. A disk that has just got a target would weigh more, and be given
        the next one too."""
        targets = self.on[disk]
        return max(1, max(target.disk for target in targets) or max(target.capacity for target in targets))

    def _spare(self) -> dict[str, list[TargetView]]:
        """Empty targets that could take a member, by disk."""
        found: dict[str, list[TargetView]] = {}
        for target in sorted(self.view.targets.values(), key=lambda t: t.id):
            if target.id in self.members or target.id in self.wish.lost or target.chunks:
                continue
            if self._works(target):
                found.setdefault(self._disk(target.id), []).append(target)
        return found

    def _works(self, target: TargetView) -> bool:
        """Whether its disk is good for members."""
        node = self.view.nodes[target.node]
        return target.up and target.takes and node.up and not node.draining

    def _disks(self, room: _Room) -> list[Disk]:
        """Each folder of each node, with the members that it may have."""
        return [self._as_disk(name, targets, room) for name, targets in sorted(self.on.items())]

    def _as_disk(self, name: str, targets: list[TargetView], room: _Room) -> Disk:
        node = self.view.nodes[targets[0].node]
        held = sum(target.id in self.members and target.id not in self.wish.lost for target in targets)
        more = len(self.spare.get(name, ())) if room is _Room.SPARE else CHAINS_MAX
        works = [target for target in targets if self._works(target)]
        if room is not _Room.AGAIN:
            works = [target for target in works if target.id not in self.wish.lost]
        return Disk(
            name=name,
            node=str(node.id),
            capacity=self._weight(name),
            host=node.host or f"node {node.id}",
            rack=node.rack,
            seats_max=min(CHAINS_MAX, held + (more if works else 0)),
            standing=Standing.DRAINING if node.draining else Standing.IN,
        )

    # --- who stays, who comes -----------------------------------------------------------------------------------------------------

    def _stay(self, chain: ChainView) -> tuple[MemberView, ...]:
        """The members without those that are lost, and without one for each that came to take its place."""
        stay = [member for member in chain.members if not self._is_lost(member.target)]
        while len(stay) > self.view.replicas:
            leaver = max(stay, key=lambda member: (self._urge(member, stay), -stay.index(member)))
            stay.remove(leaver)
            self.held[self._disk(leaver.target)] -= 1  # the next chain to choose counts it as gone
        return tuple(stay)

    def _urge(self, member: MemberView, members: list[MemberView]) -> tuple[bool, bool, bool, bool, float]:
        """How much a member should leave: a drained one first; one that is away; then of those that serve one that would fail together
        with another, and the one on the fullest disk."""
        disk = self._disk(member.target)
        found = self.view.targets[member.target]
        draining = self.view.nodes[found.node].draining
        place = self._place(member)
        together = member.serves and sum(self._place(other) == place for other in members) > 1
        return draining, not found.up, together, member.serves, self.held[disk] / self._weight(disk)

    def _place(self, member: MemberView) -> str:
        """The failure domain that a member is in."""
        node = self.view.node_of(member.target)
        if self.domain is Domain.NODE:
            return str(node.id)
        return node.rack if self.domain is Domain.RACK else node.host or f"node {node.id}"

    def plan(self) -> Plan | None:
        """Where members should be; the seats are levelled only when nothing is urgent."""
        urgent = any(not self._is_whole(chain) for chain in self.view.chains)
        return self._plan(balance=self.wish.balance and not urgent)

    def _plan(self, *, balance: bool) -> Plan | None:
        """Where members should be. For those that must move, targets are made only where the empty ones are not enough; then each disk
        gets its share of them. Others make room, and a disk gets again what was given up on it, only when there is no other way."""
        spare, made = self._disks(_Room.SPARE), self._disks(_Room.MAKE)
        try:
            if balance:
                return replan(self._request(spare), self._chains)
        except InfeasibleError:
            return None  # they cannot be levelled better: that is nobody's concern
        for shares in (False, True):
            try:
                found = replan(self._request(self._shares(made) if shares else spare), self._chains, balance=False)
            except InfeasibleError:
                continue
            if len(found.moves) <= found.figures.moves_bound:
                return found
        reason = ""
        for disks in (made, self._disks(_Room.AGAIN)):
            try:
                return replan(self._request(disks), self._chains, balance=False)
            except InfeasibleError as impossible:
                reason = reason or str(impossible)
        if any(not self._is_whole(chain) for chain in self.view.chains):
            self._block(reason)
        return None

    def _request(self, disks: list[Disk]) -> Request:
        return Request(disks, self.view.replicas, self.domain)

    def _shares(self, disks: list[Disk]) -> list[Disk]:
        """The disks with their share of all members as the most that they take. Raises InfeasibleError."""
        held = Counter(name for chain in self._chains for name in chain.members)
        seats = seats_of(self._request(disks), len(self._chains), held)
        return [replace(disk, seats_max=max(held[disk.name], seats.get(disk.name, 0))) for disk in disks]

    def _is_whole(self, chain: ChainView) -> bool:
        """Whether nobody has to come: as many members as there should be, none of them lost or on a drained node."""
        kept = self.kept[chain.id]
        drained = any(self.view.node_of(member.target).draining for member in kept)
        return len(kept) == self.view.replicas and not drained

    # --- steps --------------------------------------------------------------------------------------------------------------------

    def decide(self) -> Decision:
        if self.view.is_cache:
            self._retire()
        elif self.view.chains and self.view.targets:
            plan = self.plan()
            goals = {chain.id: chain.members for chain in plan.chains} if plan else {}
            for chain in self.view.chains:
                self._under_way(chain)
            for chain in sorted(self.view.chains, key=lambda chain: (chain.serving, chain.id)):
                self._toward(chain, goals.get(chain.id, ()))
        self.found.finish += self._drops()
        return self.found

    def _retire(self) -> None:
        """Rule 5."""
        going = [c for c in self.view.chains if all(self._is_lost(m.target) or self._is_drained(m) for m in c.members)]
        staying = self.view.placed.intersection(chain.id for chain in self.view.chains) - {chain.id for chain in going}
        for chain in going:
            if chain.id in self.view.placed and staying:
                self.found.retiring.append(chain.id)
            else:
                self.found.finish += [Leave(chain.id, chain.version, member.target) for member in chain.members[:1]]

    def _is_drained(self, member: MemberView) -> bool:
        return self.view.node_of(member.target).draining

    def _under_way(self, chain: ChainView) -> None:
        """Note which members are being copied to, and where."""
        for member in self.kept[chain.id]:
            target = self.view.targets[member.target]
            if not member.serves and target.up and chain.serving:
                self.busy.add(target.node)
                source = self.view.targets.get(self._copier(chain))
                done, total = (source.sync_done, source.sync_total) if source else (0, 0)
                self.found.moving.append(Moving(chain.id, member.target, self.view.size(chain), done, total))
                self.found.bytes_left += self.view.size(chain)

    @staticmethod
    def _copier(chain: ChainView) -> int:
        """The member that copies to its successor: the last one that serves."""
        return [member.target for member in chain.members if member.serves][-1]

    def _toward(self, chain: ChainView, goal: tuple[str, ...]) -> None:
        kept = self.kept[chain.id]
        stay = {member.target for member in kept}
        leaving = [member for member in chain.members if member.target not in stay]
        disks = {self._disk(member.target) for member in kept}
        coming = [disk for disk in goal if disk not in disks]
        if not leaving and not coming:
            return
        self.found.moves += len(coming)
        self.found.bytes_left += self.view.size(chain) * len(coming)
        if not chain.serving:
            self._block(
                f"chain {chain.id} has no member that serves, so nothing can be copied from it (see: emberfs chain revive)"
            )
        elif away := [m.target for m in kept if not m.serves and not self.view.targets[m.target].up]:
            self._block(f"chain {chain.id} waits for target {away[0]}, which is away (see: emberfs target replace)")
        elif all(member.serves for member in kept):  # otherwise it is being copied to, and that comes first
            if leaving and len(kept) >= self.view.replicas:
                self.found.finish.append(Leave(chain.id, chain.version, leaving[0].target))
            elif coming:
                self._come(chain, coming)

    def _come(self, chain: ChainView, disks: list[str]) -> None:
        size = self.view.size(chain)
        number, _, folder = disks[0].partition(":")
        node = int(number)
        if there := [
            m for m in chain.members if m.target in self.view.targets and self.view.targets[m.target].node == node
        ]:
            # Two members of a chain cannot be in one process: what was given up there goes first, if others serve.
            if self._is_lost(there[0].target) and chain.serving > there[0].serves:
                self.found.finish.append(Leave(chain.id, chain.version, there[0].target))
            else:
                self._block(
                    f"target {there[0].target} is the only one that serves chain {chain.id}: add a node to move it to"
                )
            return
        if node in self.busy:
            return  # one copy at a time to each node; the next one when this is done
        self.busy.add(node)
        spare = self.spare.get(disks[0], [])
        fits = [target for target in spare if target.capacity > size]
        if fits:
            spare.remove(fits[0])
            self.found.begin.append(Join(chain.id, chain.version, fits[0].id, size))
        elif any(target.capacity > size for target in self.on[disks[0]]):
            self.found.begin.append(AddTarget(node, folder, size))
        else:
            self._block(f"chain {chain.id} holds {size} bytes, more than a target of node {node} may take")

    def _drops(self) -> Iterator[Step]:
        """Targets in no chain that hold what nobody needs any more, or that are to go."""
        for target in sorted(self.view.targets.values(), key=lambda target: target.id):
            node = self.view.nodes[target.node]
            if target.id in self.members or not ((node.up and target.up) or (target.id in self.wish.lost and node.up)):
                continue
            left = bool(target.chunks) and not target.disabled
            if left or node.draining or target.id in self.wish.lost:
                yield Drop(target.node, target.id)

    def _block(self, sentence: str) -> None:
        if sentence not in self.found.blocked:
            self.found.blocked.append(sentence)


def text_of(step: Step, view: ClusterView) -> str:
    """A step for people."""
    if isinstance(step, AddTarget):
        return f"make a target on {name_of(view.nodes[step.node])}"
    if isinstance(step, Drop):
        return f"drop target {step.target} on {name_of(view.nodes[step.node])}"
    word = "joins" if isinstance(step, Join) else "leaves"
    return f"target {step.target} on {name_of(view.node_of(step.target))} {word} chain {step.chain}"


def name_of(node: NodeView) -> str:
    return node.name or f"node {node.id}"
