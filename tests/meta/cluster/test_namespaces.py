"""The KV cache's namespaces and quotas: one for one descriptor, whoever asks; what is refused; and how they follow the table of blocks."""

from __future__ import annotations

import json
import random
from hashlib import blake2b

import pytest

from emberfs.meta.cluster import namespaces, routing
from emberfs.meta.cluster.namespaces import drop_namespace, follow, put_namespace, set_quota, still_needed
from emberfs.meta.cluster.routing import Book, Draft, Kind, State
from emberfs.meta.cluster.table import append_to_table
from emberfs.proto.blocks import BLOCK_BYTES_MAX, TABLE_OF_BLOCKS, chain_of
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import KvNamespace, TenantQuota
from emberfs.proto.routing import RoutingTable
from emberfs.proto.rpc import Identity

ALICE, BOB, ROOT = Identity(1000, 100), Identity(1001, 100), Identity(0, 0, trusted=True)


@pytest.fixture
def book() -> Book:
    return Book(State("c", b"k" * 32))


def described(name: str = "acme/llama@1", **fields: object) -> KvNamespace:
    descriptor = json.dumps({"model": name, "dtype": "bf16"}, sort_keys=True)
    return KvNamespace(**{"name": name, "tenant": "acme", "descriptor": descriptor, "block_bytes": 4 << 20, **fields})  # type: ignore[arg-type]


def put(book: Book, wanted: KvNamespace, user: Identity = ALICE) -> KvNamespace:
    draft, made = put_namespace(book, wanted, user)
    if draft:
        book.apply(draft)
    return made


def more_chains(book: Book, *chains: int, now_s: int = 5000) -> None:
    draft = Draft(book)
    append_to_table(book, draft, chains, table=TABLE_OF_BLOCKS)
    follow(book, draft, now_s)
    book.apply(draft)


def refused(work: object, *arguments: object) -> Status:
    with pytest.raises(StatusError) as raised:
        work(*arguments)  # type: ignore[operator]
    return Status(raised.value.status)


def test_one_descriptor_is_one_namespace_whoever_asks(book: Book) -> None:
    first = put(book, described())
    assert (first.id, first.uid, first.gid, first.mode) == (1, 1000, 100, 0o600)
    assert first.digest == blake2b(first.descriptor.encode(), digest_size=32).digest()
    version = book.state.version
    assert put(book, described(mode=0o666, ttl_s=9), BOB) == first
    assert book.state.version == version, "found again, not made"


def test_who_is_first_does_not_decide_that_others_share(book: Book) -> None:
    trap = put(book, described(mode=0o666), BOB)
    assert trap.mode == 0o666
    assert refused(put_namespace, book, described(), ALICE) is Status.PERMISSION_DENIED
    assert refused(put_namespace, book, described(mode=0o660), ROOT) is Status.PERMISSION_DENIED
    assert put(book, described(mode=0o666), ALICE) == trap
    assert put(book, described(), BOB) == trap, "its owner knows what it did"
    assert put(book, described("acme/llama@2"), BOB).id == 2


def test_what_the_caller_says_of_id_digest_and_tables_is_not_believed(book: Book) -> None:
    made = put(book, described(id=77, digest=b"x", uid=5, table_version=3, older_versions=[2], changed_s=1))
    assert (made.id, made.uid, made.table_version, list(made.older_versions), made.changed_s) == (1, 1000, 0, [], 0)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"name": ""}, Status.INVALID),
        ({"name": "a\nb"}, Status.INVALID),
        ({"tenant": "\x07"}, Status.INVALID),
        ({"name": "ü" * 2100}, Status.TOO_LARGE),
        ({"tenant": "t" * 1025}, Status.TOO_LARGE),
        ({"descriptor": "[]"}, Status.INVALID),
        ({"descriptor": "{"}, Status.INVALID),
        ({"descriptor": json.dumps({"x": "y" * (16 << 10)})}, Status.TOO_LARGE),
        ({"block_bytes": BLOCK_BYTES_MAX + 1}, Status.TOO_LARGE),
        ({"mode": 0o4600}, Status.INVALID),
    ],
)
def test_what_cannot_be_is_refused(book: Book, fields: dict[str, object], status: Status) -> None:
    assert refused(put_namespace, book, described(**fields), ALICE) is status  # type: ignore[arg-type]


def test_a_name_is_one_namespaces_and_a_descriptor_means_one_thing(book: Book) -> None:
    put(book, described())
    other = described(descriptor='{"model":"another"}')
    assert refused(put_namespace, book, other, ALICE) is Status.EXISTS
    assert refused(put_namespace, book, described(block_bytes=1), ALICE) is Status.EXISTS
    assert refused(put_namespace, book, described(tenant="b"), ALICE) is Status.EXISTS


def test_there_are_not_too_many(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "NAMESPACES_OF_USER_MAX", 2)
    monkeypatch.setattr(namespaces, "NAMESPACES_MAX", 4)
    for user in (ALICE, BOB):
        put(book, described(f"{user.uid}/1"), user)
    put(book, described("1000/2"), ALICE)
    assert refused(put_namespace, book, described("1000/3"), ALICE) is Status.QUOTA_EXCEEDED
    put(book, described("0/1"), ROOT)
    assert refused(put_namespace, book, described("0/2"), ROOT) is Status.QUOTA_EXCEEDED


def test_a_namespace_is_dropped_by_its_owner_and_its_number_is_never_used_again(book: Book) -> None:
    put(book, described())
    follower = RoutingTable()
    follower.apply(_routing(book))
    assert refused(drop_namespace, book, 1, BOB) is Status.PERMISSION_DENIED
    assert refused(drop_namespace, book, 2, ROOT) is Status.NOT_FOUND
    book.apply(drop_namespace(book, 1, ALICE))
    assert follower.namespaces and follower.apply(_routing(book, follower.version)).namespaces == {1}
    assert not follower.namespaces and not book.namespaces
    assert put(book, described()).id == 2, "what the old one held is not the new one's"


def test_quotas_come_and_go(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "QUOTAS_MAX", 2)
    follower = RoutingTable()
    follower.apply(_routing(book))
    for tenant, size in (("a", 5), ("b", 6), ("a", 7)):
        book.apply(set_quota(book, TenantQuota(tenant=tenant, bytes=size), ROOT))
    assert refused(set_quota, book, TenantQuota(tenant="c", bytes=1), ROOT) is Status.QUOTA_EXCEEDED
    assert refused(set_quota, book, TenantQuota(tenant="\x07", bytes=1), ROOT) is Status.INVALID
    follower.apply(_routing(book, follower.version))
    assert follower.quotas == sizes(book) == {"a": 7, "b": 6}
    book.apply(set_quota(book, TenantQuota(tenant="a"), ROOT))
    assert not set_quota(book, TenantQuota(tenant="a"), ROOT), "none already"
    assert follower.apply(_routing(book, follower.version)).tenants == {"a"}
    whole = RoutingTable()
    whole.apply(_routing(book))
    assert follower.quotas == whole.quotas == sizes(book) == {"b": 6}


def sizes(book: Book) -> dict[str, int]:
    return {tenant: quota.bytes for tenant, quota in book.quotas.items()}


def test_a_tenant_with_a_quota_is_for_whom_the_quota_names(book: Book) -> None:
    put(book, described("acme/old", tenant=""), BOB)
    book.apply(set_quota(book, TenantQuota(tenant="acme", bytes=9, uids=[ALICE.uid], gids=[7]), ROOT))
    put(book, described("acme/1"), ALICE)
    put(book, described("acme/2"), Identity(1002, 100, (5, 7)))
    put(book, described("acme/3"), ROOT)
    assert refused(put_namespace, book, described("acme/4"), BOB) is Status.PERMISSION_DENIED, (
        "it would be charged to acme"
    )
    for tenant in ("", "another"):
        wanted = described("acme/5", tenant=tenant)
        assert refused(put_namespace, book, wanted, ALICE) is Status.PERMISSION_DENIED, (
            "and so does not leave its quota"
        )
    put(book, described("other/1", tenant="other"), BOB)
    assert put(book, described("acme/1", mode=0o666), BOB).tenant == "acme", (
        "found, not made: its mode says who uses it"
    )
    book.apply(set_quota(book, TenantQuota(tenant="acme", bytes=20), ROOT))
    assert list(book.quotas["acme"].uids) == [ALICE.uid] and list(book.quotas["acme"].gids) == [7], "as before"
    book.apply(set_quota(book, TenantQuota(tenant="acme"), ROOT))
    put(book, described("acme/6"), BOB)


def test_who_was_there_before_a_quota_is_named_or_goes(book: Book) -> None:
    put(book, described("acme/1"), BOB)
    put(book, described("acme/2"), ROOT)
    assert refused(set_quota, book, TenantQuota(tenant="acme", bytes=9), ROOT) is Status.EXISTS
    assert refused(set_quota, book, TenantQuota(tenant="acme", bytes=9, uids=[ALICE.uid]), ROOT) is Status.EXISTS
    book.apply(set_quota(book, TenantQuota(tenant="acme", bytes=9, gids=[BOB.gid]), ROOT))
    put(book, described("none/1", tenant=""), Identity(1003, 103))
    book.apply(set_quota(book, TenantQuota(tenant="", bytes=9), ROOT))
    put(book, described("none/2", tenant=""), Identity(1003, 103))


def test_who_missed_too_many_removals_gets_everything(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "REMOVED_MAX", 3)
    follower = RoutingTable()
    for number in range(1, 9):
        put(book, described(f"n{number}"))
        if number == 2:
            follower.apply(_routing(book))
    for number in range(1, 7):
        book.apply(drop_namespace(book, number, ALICE))
    follower.apply(_routing(book, follower.version))
    assert set(follower.namespaces) == set(book.namespaces) == {7, 8}


def test_namespaces_follow_the_table_and_remember_where_blocks_may_lie(book: Book) -> None:
    made = put(book, described())
    assert made.table_version == 0, "there is no target for blocks yet"
    more_chains(book, 1, 2)
    first = book.namespaces[1]
    assert (first.table_version, list(first.older_versions), first.changed_s) == (1, [], 5000)
    more_chains(book, 3, now_s=6000)
    second = book.namespaces[1]
    assert (second.table_version, list(second.older_versions), second.changed_s) == (2, [1], 6000)
    assert put(book, described("new")).table_version == 2
    assert list(book.namespaces[2].older_versions) == [], "nothing of it can lie elsewhere"


def test_a_change_of_something_else_leaves_namespaces_alone(book: Book) -> None:
    put(book, described())
    draft = Draft(book)
    append_to_table(book, draft, [1])
    follow(book, draft, 5000)
    assert [key[0] for key in draft.rows] == [Kind.TABLE]


def test_of_versions_that_place_keys_alike_only_one_is_looked_in() -> None:
    tables = {1: [1, 2, 3], 2: [1, 2], 3: [3, 1, 2], 4: [2, 1]}
    assert still_needed([4, 3, 2, 1], [3, 2, 1], tables) == [4]
    key = random.Random(7).randbytes(32)
    assert chain_of(key, tables[2]) == chain_of(key, tables[4])


def test_a_chain_that_ever_had_blocks_stays_reachable_for_deletes() -> None:
    """However often the table changes: a chain may come back with what it held."""
    rng = random.Random(1)
    tables: dict[int, list[int]] = {}
    remembered: list[int] = []
    for version in range(1, 201):
        newest = sorted(rng.sample(range(1, 12), rng.randint(1, 10)))
        remembered = still_needed([version - 1, *remembered] if tables else [], newest, tables)
        tables[version] = newest
        ever = {chain for chains in tables.values() for chain in chains}
        assert ever == {*newest, *(chain for old in remembered for chain in tables[old])}
        assert remembered == sorted(remembered, reverse=True)
        assert len(remembered) <= namespaces.OLDER_VERSIONS_KEPT + 11


def _routing(book: Book, since: int = 0):  # type: ignore[no-untyped-def]
    found = book.routing(since)
    assert found is not None
    return found
