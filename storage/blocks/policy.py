"""Which blocks to evict: S3-FIFO with a small queue that finds its own share, queues for each tenant, leaves before heads. Pure.

A new block enters its tenant's *small* queue. What was hit there by the time it is the oldest moves on to *main*; what was not leaves. Main
is a clock: its oldest block leaves unless it was hit, each hit (at most HITS_MAX) is worth one more round. So a scan passes through small
and does not touch main. A hit is one addition in one byte: nothing is moved, so that reads pay nothing for the order.

*Ghosts* are fingerprints of the keys that were evicted lately. Who comes back as a ghost goes to main at once. It also tells which of
the two queues was too short: as in ARC, a ghost of small makes small's share greater, one of main makes it less. A fixed tenth, as in
the paper on S3-FIFO, loses on conversations: their next turn comes after minutes, when a tenth of the cache was written anew already.

*Leaves before heads*: a block is useless without those before it in its prefix. Blocks are put in the order of their prefix; each is linked
in front of the one before it, so that what was put together leaves from its end. Across turns hits do the same: no block of a prefix is hit
more often than those before it.

*Tenants*: who wants space gives up its own when asked by its number (a quota). Without a number the tenant gives that holds most, so that
nobody is driven below an equal share by what others write; one that neither wrote nor hit anything while the whole capacity was written
anew gives first.

Blocks are numbers of directory slots: small, and used again. All that is known of them lies in columns, 23 bytes a block, and 16 to 32 for
ghosts. The caller says what happens to blocks (`inserted`, `touched`, `removed`); it asks for `victims`, and removes them or does not.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from .ghosts import Ghosts

VICTIMS_MAX: Final = 1024  # of one call
LOOKS_MAX: Final = 8 * VICTIMS_MAX  # blocks that one call looks at: a few milliseconds
HITS_MAX: Final = 3  # that are remembered of a block
RUN_MAX: Final = 4096  # blocks that are linked leaves first: those of one request
RUN_GAP_MAX: Final = 64  # depths between two neighbours of a run: those between them are on other chains
SMALL_SHARE: Final = 0.5  # of a tenant's bytes, to begin with
SMALL_SHARE_MIN: Final = 0.1
SMALL_SHARE_MAX: Final = 0.9
LEARNING: Final = (
    0.3  # of its own bytes, by which a ghost moves the border between the queues: one burst must not settle it
)
GHOST_WEIGHT_MAX: Final = 8.0  # how much more a ghost counts whose queue has few of them
TURNS_PART: Final = 64  # tenants that hold about the same take turns in pieces of this part of the capacity
COLUMNS_MIN: Final = 1024
TENANTS_MAX: Final = 8192  # at once: twice as many as there are namespaces

_NIL: Final = 0xFFFFFFFF
_HITS: Final = 3  # of a state: the lowest bits
_NOWHERE: Final = 0  # the rest: which queue the block is in
_SMALL: Final = 4
_MAIN: Final = 8
_LEAVING: Final = 12
_QUEUE: Final = 12


class _Queue:
    """One list through the columns. Blocks enter at the youngest end."""

    __slots__ = ("bytes", "count", "oldest", "run", "run_depth", "run_length", "youngest")

    def __init__(self) -> None:
        self.oldest = _NIL
        self.youngest = _NIL
        self.bytes = 0
        self.count = 0
        self.run = _NIL  # the block that was inserted last, if its successor in the prefix may follow
        self.run_depth = 0
        self.run_length = 0


class _Tenant:
    __slots__ = ("active", "bytes", "evicted_main", "evicted_small", "main", "share", "small")

    def __init__(self) -> None:
        self.small = _Queue()
        self.main = _Queue()
        self.bytes = 0  # those of victims that are still there included
        self.share = SMALL_SHARE
        self.evicted_small = 0  # lately: how many ghosts each queue has, about
        self.evicted_main = 0
        self.active = 0  # how many bytes all had inserted when it last inserted, or was found to have hit something

    @property
    def held(self) -> int:
        """Bytes in its queues."""
        return self.small.bytes + self.main.bytes


class Policy:
    """What to evict from one target. `capacity`: bytes for blocks, of the slots that they take."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._younger = array("I")  # columns, by block: its neighbours in its queue,
        self._older = array("I")
        self._size = array("I")
        self._state = bytearray()  # queue and hits,
        self._tenant = array("H")  # position of its tenant,
        self._print = array("Q")  # fingerprint of its key
        self._tenants: list[_Tenant] = []
        self._positions: dict[int, int] = {}  # tenant -> position
        self._leaving = _Queue()  # victims that are not removed yet
        self._ghosts = Ghosts(COLUMNS_MIN)
        self._count = 0
        self._inserted = 0  # bytes, ever

    # --- what happens to blocks ---

    def inserted(self, block: int, key: bytes, size: int, depth: int, tenant: int) -> None:
        """A new block. `key`: its first 8 bytes count, evenly spread; `size`: of its slot; `depth`: blocks before it in its prefix."""
        if block >= len(self._state):
            self._grow(block + 1)
        elif self._state[block]:
            self.removed(block)
        position = self._position(tenant)
        owner = self._tenants[position]
        fingerprint = int.from_bytes(key[:8], "little")
        self._size[block] = size
        self._tenant[block] = position
        self._print[block] = fingerprint
        self._count += 1
        self._inserted += size
        owner.bytes += size
        owner.active = self._inserted
        was_evicted, of_main = self._ghosts.take(fingerprint, self._count)
        if was_evicted:
            _learn(owner, size, of_main)
            self._enter_in_order(owner.main, block, depth)
            self._state[block] = _MAIN
        else:
            self._enter_in_order(owner.small, block, depth)
            self._state[block] = _SMALL

    def inserted_many(
        self, blocks: Sequence[int], keys: Sequence[bytes], sizes: Sequence[int], depths: Sequence[int], tenant: int
    ) -> None:
        """New blocks of one tenant, all of a put: as so many calls of `inserted`, but cheaper where they are what is usual, a prefix in its
        order of which nothing was evicted lately."""
        if not blocks:
            return
        if max(blocks) >= len(self._state):
            self._grow(max(blocks) + 1)
        prints = [int.from_bytes(key[:8], "little") for key in keys]
        state = self._state
        usual = _is_run(depths) and not self._ghosts.may_know(prints) and not any(map(state.__getitem__, blocks))
        if not usual:
            for block, key, size, depth in zip(blocks, keys, sizes, depths, strict=True):
                self.inserted(block, key, size, depth, tenant)
            return
        position = self._position(tenant)
        owner = self._tenants[position]
        queue = owner.small
        # As one link: the first by the rules, each of the others in front of the one before it.
        self._size[blocks[0]] = sizes[0]
        self._enter_in_order(queue, blocks[0], depths[0])
        older, younger, size_of, tenant_of, print_of = self._older, self._younger, self._size, self._tenant, self._print
        before = behind = blocks[0]
        last = older[before]
        for block, size, fingerprint in zip(blocks, sizes, prints, strict=True):
            size_of[block] = size
            tenant_of[block] = position
            print_of[block] = fingerprint
            state[block] = _SMALL
            if block != behind:
                older[before] = block
                younger[block] = before
                before = block
        older[before] = last
        if last == _NIL:
            queue.oldest = before
        else:
            younger[last] = before
        queue.run, queue.run_depth = before, depths[-1]
        queue.run_length += len(blocks) - 1
        queue.count += len(blocks) - 1
        total = sum(sizes)
        queue.bytes += total - sizes[0]
        self._count += len(blocks)
        self._inserted += total
        owner.bytes += total
        owner.active = self._inserted

    def _position(self, tenant: int) -> int:
        position = self._positions.get(tenant)
        if position is None:
            position = self._positions[tenant] = self._vacant()
        return position

    def _vacant(self) -> int:
        """A position for one more tenant. Tenants come and go with their namespaces: of many, one that holds nothing gives its own away."""
        if len(self._tenants) < TENANTS_MAX:
            self._tenants.append(_Tenant())
            return len(self._tenants) - 1
        gone = next((known for known, at in self._positions.items() if not self._tenants[at].bytes), None)
        if gone is None:
            return 0
        position = self._positions.pop(gone)
        self._tenants[position] = _Tenant()
        return position

    def touched(self, block: int) -> None:
        """A hit of a block that is here."""
        state = self._state[block]
        if state & _HITS != HITS_MAX:
            self._state[block] = state + 1

    def removed(self, block: int) -> None:
        """It is not here any more: deleted, expired or evicted. A block that is not known is none."""
        state = self._state[block] if block < len(self._state) else _NOWHERE
        if not state & _QUEUE:
            return
        owner = self._tenants[self._tenant[block]]
        self._unlink(self._queue(owner, state), block)
        owner.bytes -= self._size[block]
        self._count -= 1
        self._state[block] = _NOWHERE

    def bytes_of(self, tenant: int) -> int:
        """Of a tenant's blocks."""
        position = self._positions.get(tenant)
        return 0 if position is None else self._tenants[position].bytes

    # --- what is to go ---

    def victims(self, bytes_wanted: int, protected: Callable[[int], bool], tenant: int | None = None) -> list[int]:
        """Blocks to evict, best first, `bytes_wanted` or a little more; less where fewer are there that are not protected, or one call does
        not find them (VICTIMS_MAX, LOOKS_MAX). A victim of an earlier call that is still here begins a new life in main."""
        self._keep_leaving()
        search = _Search(bytes_wanted, protected)
        if tenant is not None:
            position = self._positions.get(tenant)
            if position is not None:
                self._collect(self._tenants[position], bytes_wanted, search)
        else:
            self._collect_in_turns(search)
        for block in search.aside:
            owner = self._tenants[self._tenant[block]]
            self._enter(self._queue(owner, self._state[block]), block)
        return search.found

    def _keep_leaving(self) -> None:
        leaving = self._leaving
        while leaving.count:
            block = leaving.oldest
            self._unlink(leaving, block)
            self._enter(self._tenants[self._tenant[block]].main, block)
            self._state[block] = _MAIN

    def _collect_in_turns(self, search: _Search) -> None:
        """Take victims of whoever shall give."""
        barren: set[int] = set()
        while not search.over:
            owner, bytes_max, idle = self._giver(barren)
            if owner is None:
                return
            before = len(search.found)
            self._collect(owner, bytes_max, search, idle=idle)
            was_awake = idle and owner.active == self._inserted  # it gives as all others do, in its turn
            if len(search.found) == before and not was_awake:
                barren.add(id(owner))

    def _giver(self, barren: set[int]) -> tuple[_Tenant | None, int, bool]:
        """The tenant that gives next, how many bytes until it is another one's turn, whether because it is idle."""
        most: _Tenant | None = None
        most_held = next_held = 0
        for owner in self._tenants:
            held = owner.held
            if not held or id(owner) in barren:
                continue
            if self._inserted - owner.active > self.capacity:
                return owner, held, True
            if held > most_held:
                most, most_held, next_held = owner, held, most_held
            elif held > next_held:
                next_held = held
        return most, most_held - next_held + max(1, self.capacity // TURNS_PART), False

    def _collect(self, owner: _Tenant, bytes_max: int, search: _Search, *, idle: bool = False) -> None:
        """Take victims out of one tenant's queues; of an idle one until something is found that it hit."""
        small, main, state = owner.small, owner.main, self._state
        left = bytes_max
        while left > 0 and not search.over:
            search.looks -= 1
            of_main = small.bytes <= owner.share * owner.held and main.count > 0
            queue = main if of_main else small
            block = queue.oldest
            if block == _NIL:
                return
            self._unlink(queue, block)
            hits = state[block] & _HITS
            if hits:
                self._enter(main, block)
                state[block] = _MAIN | (hits - 1 if of_main else 0)
                owner.active = self._inserted
                if idle:
                    return
            elif search.protected(block):
                search.aside.append(block)
            else:
                self._enter(self._leaving, block)
                state[block] = _LEAVING
                self._remember(owner, block, of_main)
                left -= self._size[block]
                search.take(block, self._size[block])

    def _remember(self, owner: _Tenant, block: int, of_main: bool) -> None:
        self._ghosts.add(self._print[block], of_main=of_main)
        if of_main:
            owner.evicted_main += 1
        else:
            owner.evicted_small += 1
        if owner.evicted_main + owner.evicted_small > 2 * self._count:
            owner.evicted_main //= 2
            owner.evicted_small //= 2

    # --- columns ---

    def _grow(self, blocks: int) -> None:
        """Make the columns longer, and the ghosts as many, which begin anew: that is while the target fills for the first time."""
        more = max(COLUMNS_MIN, 2 * len(self._state), blocks) - len(self._state)
        for column in (self._younger, self._older, self._size, self._tenant, self._print):
            column.frombytes(bytes(more * column.itemsize))
        self._state.extend(bytes(more))
        self._ghosts = Ghosts(len(self._state))

    def _queue(self, owner: _Tenant, state: int) -> _Queue:
        where = state & _QUEUE
        return owner.small if where == _SMALL else owner.main if where == _MAIN else self._leaving

    def _enter_in_order(self, queue: _Queue, block: int, depth: int) -> None:
        """In front of the block before it in its prefix if that was inserted just now, otherwise at the youngest end."""
        run = queue.run
        if run != _NIL and 0 < depth - queue.run_depth <= RUN_GAP_MAX and queue.run_length < RUN_MAX:
            self._enter(queue, block, run)
            queue.run_length += 1
        else:
            self._enter(queue, block)
            queue.run_length = 1
        queue.run = block
        queue.run_depth = depth

    def _enter(self, queue: _Queue, block: int, before: int = _NIL) -> None:
        """Link a block as the next older neighbour of `before`, or as the youngest."""
        older = queue.youngest if before == _NIL else self._older[before]
        self._older[block] = older
        self._younger[block] = before
        if older == _NIL:
            queue.oldest = block
        else:
            self._younger[older] = block
        if before == _NIL:
            queue.youngest = block
        else:
            self._older[before] = block
        queue.bytes += self._size[block]
        queue.count += 1

    def _unlink(self, queue: _Queue, block: int) -> None:
        older, younger = self._older[block], self._younger[block]
        if older == _NIL:
            queue.oldest = younger
        else:
            self._younger[older] = younger
        if younger == _NIL:
            queue.youngest = older
        else:
            self._older[younger] = older
        if queue.run == block:
            queue.run = _NIL
        queue.bytes -= self._size[block]
        queue.count -= 1


class _Search:
    """What one call still looks for, and what it found."""

    __slots__ = ("aside", "bytes", "found", "looks", "protected")

    def __init__(self, bytes_wanted: int, protected: Callable[[int], bool]) -> None:
        self.bytes = bytes_wanted
        self.looks = LOOKS_MAX
        self.protected = protected
        self.found: list[int] = []
        self.aside: list[int] = []  # protected: out of their queues until the call ends

    def take(self, block: int, size: int) -> None:
        self.found.append(block)
        self.bytes -= size

    @property
    def over(self) -> bool:
        return self.bytes <= 0 or self.looks <= 0 or len(self.found) >= VICTIMS_MAX


def _is_run(depths: Sequence[int]) -> bool:
    """Whether each comes behind the one before it, close enough."""
    if len(depths) > RUN_MAX:
        return False
    if isinstance(depths, range):
        return 0 < depths.step <= RUN_GAP_MAX
    return all(0 < depth - before <= RUN_GAP_MAX for before, depth in pairwise(depths))


def _learn(owner: _Tenant, size: int, of_main: bool) -> None:
    """A ghost came back: its queue should have been longer by it. The fewer ghosts a queue has, the more each says."""
    mine, others = owner.evicted_small, owner.evicted_main
    if of_main:
        mine, others = others, mine
    weight = min(max(1.0, others / max(1, mine)), GHOST_WEIGHT_MAX)
    step = LEARNING * weight * size / max(owner.held, size)
    share = owner.share - step if of_main else owner.share + step
    owner.share = min(max(share, SMALL_SHARE_MIN), SMALL_SHARE_MAX)
