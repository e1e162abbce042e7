"""What is evicted first: against a model, and what the policy promises, one promise a test."""

from __future__ import annotations

from hashlib import blake2b

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from emberfs.storage.blocks.ghosts import Ghosts
from emberfs.storage.blocks.policy import LOOKS_MAX, RUN_GAP_MAX, TENANTS_MAX, VICTIMS_MAX, Policy

MIB = 1 << 20


def nobody(_: int) -> bool:
    return False


def key_of(name: object) -> bytes:
    return blake2b(str(name).encode(), digest_size=16).digest()


class Cache:
    """A policy, and the blocks that are there: evicts down to `blocks` of them after each insert."""

    def __init__(self, blocks: int) -> None:
        self.policy = Policy(blocks)
        self.blocks = blocks
        self.slots: dict[object, int] = {}
        self.names: dict[int, object] = {}
        self.free = list(range(blocks, -1, -1))
        self.evicted: list[object] = []

    def __contains__(self, name: object) -> bool:
        return name in self.slots

    def put(self, name: object, depth: int = 0, tenant: int = 0) -> None:
        if name in self.slots:
            self.policy.touched(self.slots[name])
            return
        slot = self.slots[name] = self.free.pop()
        self.names[slot] = name
        self.policy.inserted(slot, key_of(name), 1, depth, tenant)
        while len(self.slots) > self.blocks:
            self.evict(1)

    def evict(self, count: int, tenant: int | None = None) -> list[object]:
        gone = [self.names[slot] for slot in self.policy.victims(count, nobody, tenant)]
        for name in gone:
            self.remove(name)
        self.evicted += gone
        return gone

    def remove(self, name: object) -> None:
        slot = self.slots.pop(name)
        self.policy.removed(slot)
        del self.names[slot]
        self.free.append(slot)


# --- against a model ---


class PolicyAndModel(RuleBasedStateMachine):
    """The model knows what is there; the policy may choose freely among it."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = Policy(64)
        self.there: dict[int, tuple[int, int]] = {}  # slot -> (size, tenant)
        self.pinned: set[int] = set()

    @rule(
        slot=st.integers(0, 40),
        name=st.integers(0, 30),
        size=st.integers(1, 9),
        depth=st.integers(0, 9),
        tenant=st.integers(0, 3),
    )
    def insert(self, slot: int, name: int, size: int, depth: int, tenant: int) -> None:
        self.policy.inserted(slot, key_of(name), size, depth, tenant)
        self.there[slot] = (size, tenant)

    @precondition(lambda self: self.there)
    @rule(choice=st.randoms(use_true_random=False), times=st.integers(1, 5))
    def touch(self, choice, times: int) -> None:
        slot = choice.choice(sorted(self.there))
        for _ in range(times):
            self.policy.touched(slot)

    @rule(slot=st.integers(0, 60))
    def remove(self, slot: int) -> None:
        if slot in self.there or slot <= 40:
            self.policy.removed(slot)
            self.there.pop(slot, None)

    @rule(slots=st.sets(st.integers(0, 40)))
    def pin(self, slots: set[int]) -> None:
        self.pinned = slots

    @rule(wanted=st.integers(-1, 80), tenant=st.none() | st.integers(0, 4), refused=st.integers(0, 3))
    def evict(self, wanted: int, tenant: int | None, refused: int) -> None:
        victims = self.policy.victims(wanted, self.pinned.__contains__, tenant)
        assert len(set(victims)) == len(victims)
        assert not self.pinned.intersection(victims)
        eligible = {slot for slot, (_, owner) in self.there.items() if tenant in (None, owner)} - self.pinned
        assert set(victims) <= eligible
        sizes = [self.there[slot][0] for slot in victims]
        assert sum(sizes) >= wanted or set(victims) == eligible, "so many blocks fit into one call"
        assert sum(sizes[:-1]) < max(wanted, 1), "no more than was wanted"
        for slot in victims[refused:]:  # the first ones were leased meanwhile
            self.policy.removed(slot)
            del self.there[slot]

    @invariant()
    def counts_bytes(self) -> None:
        for tenant in range(5):
            assert self.policy.bytes_of(tenant) == sum(size for size, owner in self.there.values() if owner == tenant)

    def teardown(self) -> None:
        assert set(self.policy.victims(1 << 30, nobody)) == set(self.there), "nothing got lost in the queues"


TestPolicyAndModel = PolicyAndModel.TestCase
TestPolicyAndModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 200), min_size=1, max_size=12, unique=True), st.booleans()), max_size=8),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_many_at_once_are_as_one_by_one(puts: list[tuple[list[int], bool]], data: st.DataObject) -> None:
    single, many = Policy(60), Policy(60)
    for blocks, rising in puts:
        depth = data.draw(st.integers(0, 5))
        depths = range(depth, depth + len(blocks)) if rising else [data.draw(st.integers(0, 9)) for _ in blocks]
        sizes = [data.draw(st.integers(1, 3)) for _ in blocks]
        keys = [key_of(block % 50) for block in blocks]
        tenant = data.draw(st.integers(0, 1))
        for block, key, size, depth in zip(blocks, keys, sizes, depths, strict=True):
            single.inserted(block, key, size, depth, tenant)
        many.inserted_many(blocks, keys, sizes, depths, tenant)
        assert single.bytes_of(tenant) == many.bytes_of(tenant)
        wanted = data.draw(st.integers(0, 20))
        gone = single.victims(wanted, nobody)
        assert many.victims(wanted, nobody) == gone
        for block in gone:
            single.removed(block)
            many.removed(block)
    assert many.victims(1000, nobody) == single.victims(1000, nobody)


# --- promises ---


def test_leaves_go_before_heads() -> None:
    cache = Cache(300)
    for prefix in range(3):
        for depth in range(100):
            cache.put((prefix, depth), depth)
    gone = [cache.evict(1)[0] for _ in range(300)]
    for prefix in range(3):
        assert [depth for of, depth in gone if of == prefix] == list(reversed(range(100)))
    assert [of for of, _ in gone[::100]] == [0, 1, 2], "the oldest prefix first"


def test_leaves_go_before_heads_where_a_target_has_only_some_of_the_prefix() -> None:
    cache = Cache(40)
    for depth in range(0, 40 * RUN_GAP_MAX, RUN_GAP_MAX):
        cache.put(depth, depth)
    assert cache.evict(40) == list(reversed(range(0, 40 * RUN_GAP_MAX, RUN_GAP_MAX)))


def test_leaves_of_later_turns_go_before_heads() -> None:
    cache = Cache(100)
    for turn in range(1, 5):
        for depth in range(10 * turn):  # each turn meets what the turns before put
            cache.put(depth, depth)
    gone = [cache.evict(1)[0] for _ in range(40)]
    assert gone[:10] == list(reversed(range(30, 40))), "what nobody met again"
    assert sorted(gone[30:]) == list(range(10)), "what every turn met"


def test_what_comes_back_after_its_eviction_leaves_in_order_too() -> None:
    cache = Cache(50)
    for _ in range(2):
        for depth in range(40):
            cache.put(depth, depth)
        gone = cache.evict(40)
        assert gone == list(reversed(range(40)))


def test_a_scan_does_not_evict_what_is_used() -> None:
    cache = Cache(200)
    used = [("used", name) for name in range(50)]
    for _ in range(3):
        for name in used:
            cache.put(name)
    for number in range(5_000):
        cache.put(("scan", number))
    assert all(name in cache for name in used)


def test_what_is_not_used_any_more_goes_in_the_end() -> None:
    cache = Cache(100)
    for _ in range(9):
        for name in range(50):
            cache.put(("once", name))
    for round_ in range(40):  # others come into use
        for _ in range(2):
            for name in range(60):
                cache.put(("now", name))
        for name in range(50):
            cache.put(("scan", round_, name))
    assert not any(("once", name) in cache for name in range(50))
    assert all(("now", name) in cache for name in range(60))


def test_who_comes_back_soon_goes_to_main() -> None:
    cache = Cache(100)
    for name in range(30):
        cache.put(("early", name))
    for name in range(150):
        cache.put(("scan", name))
    assert ("early", 0) not in cache
    for name in range(30):
        cache.put(("early", name))
    for name in range(1_000):
        cache.put(("scan", "again", name))
    assert all(("early", name) in cache for name in range(30)), "met again after its eviction: worth keeping"


def test_tenants_do_not_evict_below_an_equal_share() -> None:
    cache = Cache(90)
    for name in range(30):
        cache.put(("quiet", name), tenant=1)
    for name in range(30):
        cache.put(("other", name), tenant=2)
    for number in range(60):
        cache.put(("loud", number), tenant=3)
    assert all(("quiet", name) in cache and ("other", name) in cache for name in range(30))
    assert cache.policy.bytes_of(3) == 30


def test_a_tenant_that_holds_more_gives_to_one_that_comes() -> None:
    cache = Cache(100)
    for name in range(100):
        cache.put(("first", name), tenant=1)
    for name in range(80):
        cache.put(("second", name), tenant=2)
    assert abs(cache.policy.bytes_of(1) - cache.policy.bytes_of(2)) <= 4


def test_what_an_idle_tenant_holds_goes_first() -> None:
    cache = Cache(100)
    for name in range(30):
        cache.put(("gone", name), tenant=1)
    for number in range(230):
        cache.put(("busy", number), tenant=2)
    assert cache.policy.bytes_of(1) == 0


def test_a_tenant_that_reads_is_not_idle() -> None:
    cache = Cache(100)
    for name in range(30):
        cache.put(("read", name), tenant=1)
    for number in range(1_000):
        cache.put(("written", number), tenant=2)
        if number % 50 == 0:
            for name in range(30):
                cache.put(("read", name), tenant=1)
    assert cache.policy.bytes_of(1) == 30


def test_a_quota_takes_only_from_its_tenant() -> None:
    cache = Cache(100)
    for name in range(40):
        cache.put(("mine", name), tenant=1)
        cache.put(("theirs", name), tenant=2)
    assert [of for of, _ in cache.evict(60, tenant=1)] == ["mine"] * 40
    assert cache.policy.victims(10, nobody, tenant=7) == []


def test_everything_protected_ends_with_nothing() -> None:
    looks = 0

    def all_of_them(_: int) -> bool:
        nonlocal looks
        looks += 1
        return True

    policy = Policy(10 * LOOKS_MAX)
    for block in range(2 * LOOKS_MAX):
        policy.inserted(block, key_of(block), 1, 0, block % 3)
    for _ in range(5):
        assert policy.victims(100, all_of_them) == []
    assert looks <= 5 * LOOKS_MAX, "a call looks at no more than it may"
    found = []
    for _ in range(10):
        found += policy.victims(100, nobody)
    assert len(found) == 1000, "they are still known"


def test_protected_ones_are_passed_over() -> None:
    policy = Policy(100)
    for block in range(20):
        policy.inserted(block, key_of(block), 1, 0, 0)
    assert set(policy.victims(100, lambda block: block % 2 == 0)) == set(range(1, 20, 2))


def test_a_call_returns_no_more_than_it_may() -> None:
    policy = Policy(4 * VICTIMS_MAX * MIB)
    for block in range(3 * VICTIMS_MAX):
        policy.inserted(block, key_of(block), MIB, 0, 0)
    first = policy.victims(1 << 60, nobody)
    assert len(first) == VICTIMS_MAX
    for block in first:
        policy.removed(block)
    assert not set(first) & set(policy.victims(1 << 60, nobody))


def test_a_victim_that_was_kept_is_not_lost() -> None:
    policy = Policy(100)
    for block in range(10):
        policy.inserted(block, key_of(block), 1, 0, 0)
    assert policy.victims(3, nobody) == [0, 1, 2]
    assert policy.bytes_of(0) == 10
    assert sorted(policy.victims(10, nobody)) == list(range(10))


def test_small_finds_its_share() -> None:
    """Pairs that come a fixed distance apart: with too small a queue each is missed, and its ghost says so."""
    cache = Cache(1000)
    for name in range(200):  # main is full of what was met twice and never again
        cache.put(("old", name))
        cache.put(("old", name))
    before = cache.policy._tenants[0].share
    for number in range(6_000):
        cache.put(("pair", number))
        if number >= 700:
            cache.put(("pair", number - 700))
    assert cache.policy._tenants[0].share > before
    hits = sum(1 for number in range(6_000 - 700, 6_000) if ("pair", number) in cache)
    assert hits > 600


def test_memory_of_a_block() -> None:
    blocks = 1 << 16
    policy = Policy(blocks)
    for block in range(blocks):
        policy.inserted(block, key_of(block), 1, 0, 0)
    columns = [policy._younger, policy._older, policy._size, policy._tenant, policy._print]
    total = sum(len(column) * column.itemsize for column in columns) + len(policy._state) + policy._ghosts.bytes
    assert total / blocks <= 40


# --- ghosts ---


def test_a_ghost_is_met_once_and_not_for_ever() -> None:
    ghosts = Ghosts(100)
    ghosts.add(7 << 32 | 5, of_main=True)
    ghosts.add(8 << 32 | 5, of_main=False)
    assert ghosts.take(7 << 32 | 5, 100) == (True, True)
    assert ghosts.take(7 << 32 | 5, 100) == (False, False)
    for other in range(10):
        ghosts.add(other << 32 | 6, of_main=False)
    assert ghosts.take(8 << 32 | 5, 9)[0] is False, "too long ago"


def test_ghosts_forget_the_oldest_first() -> None:
    ghosts = Ghosts(1000)
    prints = [int.from_bytes(key_of(name)[:8], "little") for name in range(20_000)]
    for one in prints:
        ghosts.add(one, of_main=False)
    met = sum(ghosts.take(one, 1000)[0] for one in prints[-1000:])
    assert met > 900
    assert not any(ghosts.take(one, 1000)[0] for one in prints[:-1001])


def test_tenants_come_and_go_without_end() -> None:
    policy = Policy(1 << 30)
    policy.inserted(0, key_of("stays"), 1000, 0, tenant=0)
    for tenant in range(1, 70_000):
        policy.inserted(1, key_of(tenant), 1000, 0, tenant)
        policy.removed(1)
    policy.inserted(2, key_of("last"), 500, 0, 70_000)
    assert len(policy._tenants) <= TENANTS_MAX
    assert (policy.bytes_of(0), policy.bytes_of(70_000), policy.bytes_of(5)) == (1000, 500, 0)
    assert sorted(policy.victims(2000, nobody)) == [0, 2]


def test_who_was_idle_and_is_met_gives_in_its_turn() -> None:
    policy = Policy(10)
    policy.inserted(0, key_of("idle"), 1, 0, tenant=0)
    policy.touched(0)
    for block in range(1, 13):
        policy.inserted(block, key_of(block), 1, 0, tenant=1)
    assert sorted(policy.victims(100, nobody)) == list(range(13))
