"""The KV cache's namespaces and its tenants' quotas: plans of their changes. Pure; blocks are the storage servers' alone.

A namespace is found by the digest of its descriptor, so whoever describes the same model in the same way shares its blocks, and nobody
else does. What it is called, and who may use it, is decided by whoever was first.

Keys are placed by one version of the table of blocks. When a newer one appears, every namespace follows in the same change (`follow`) and
remembers the older ones: blocks may still lie where those place them, and what is deleted must be deleted there too, since a chain may come
back with all that it held.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b

from ...proto.blocks import BLOCK_BYTES_MAX, TABLE_OF_BLOCKS
from ...proto.errors import Status, error
from ...proto.gen.cluster_pb2 import ChainTable, KvNamespace, TenantQuota
from ...proto.rpc import Identity
from .routing import Book, Draft, Kind

NAMESPACES_MAX = 4096
NAMESPACES_OF_USER_MAX = 1024  # one who is not trusted
QUOTAS_MAX = 4096
MEMBERS_MAX = 1024  # users and groups that a quota names
DESCRIPTOR_BYTES_MAX = 16 << 10
NAME_BYTES_MAX = 4096
TENANT_BYTES_MAX = 1024
MODE_DEFAULT = 0o600
MODE_BITS = 0o777
OTHERS = 0o077  # of a mode: who is not the owner
OLDER_VERSIONS_KEPT = 8  # of the table, that a namespace remembers in any case

_DIGEST_BYTES = 32


def digest_of(descriptor: str) -> bytes:
    """What a namespace is known by: the canonical form is the client's business (kvcache/namespace.py). Raises INVALID for a descriptor
    that is no JSON object."""
    try:
        fields = json.loads(descriptor)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise error(Status.INVALID, "a namespace's descriptor is a JSON object")
    return blake2b(descriptor.encode(), digest_size=_DIGEST_BYTES).digest()


def put_namespace(book: Book, wanted: KvNamespace, user: Identity) -> tuple[Draft, KvNamespace]:
    """The change that makes a namespace (none where it is known), and how it stands then. Raises INVALID, TOO_LARGE, EXISTS for a name
    that another one has, and for a known descriptor that is said to mean something else, PERMISSION_DENIED for one that is open to more
    than the user wants to share with or whose tenant is not the user's, QUOTA_EXCEEDED when there are too many."""
    _check(wanted)
    digest = digest_of(wanted.descriptor)
    draft = Draft(book)
    known = next((each for each in book.namespaces.values() if each.digest == digest), None)
    if known is not None:
        if (known.block_bytes, known.tenant) != (wanted.block_bytes, wanted.tenant):
            raise error(
                Status.EXISTS,
                f"namespace {known.name!r} has the same descriptor, and blocks of {known.block_bytes} bytes of tenant {known.tenant!r}",
            )
        _check_sharing(known, wanted, user)
        return draft, known
    _check_room(book, wanted, user)
    _check_tenant(book, wanted.tenant, user)
    made = KvNamespace()
    made.CopyFrom(wanted)
    made.id, made.digest = draft.new_id(Kind.NAMESPACE), digest
    made.uid, made.gid, made.mode = user.uid, user.gid, wanted.mode or MODE_DEFAULT
    newest = book.tables.get(TABLE_OF_BLOCKS)
    made.table_version, made.changed_s = newest.version if newest is not None else 0, 0
    del made.older_versions[:]
    draft.put(Kind.NAMESPACE, made, made.id)
    return draft, made


def _check(wanted: KvNamespace) -> None:
    sizes = (
        ("descriptor", wanted.descriptor, DESCRIPTOR_BYTES_MAX),
        ("name", wanted.name, NAME_BYTES_MAX),
        ("tenant", wanted.tenant, TENANT_BYTES_MAX),
    )
    for what, text, limit in sizes:
        if len(text.encode()) > limit:
            raise error(Status.TOO_LARGE, f"the {what} of a namespace has at most {limit} bytes")
    if not wanted.name or not wanted.name.isprintable() or not wanted.tenant.isprintable():
        raise error(Status.INVALID, "a namespace has a name that can be printed, and so has its tenant, if any")
    if wanted.block_bytes > BLOCK_BYTES_MAX:
        raise error(Status.TOO_LARGE, f"blocks of {wanted.block_bytes} bytes: at most {BLOCK_BYTES_MAX}")
    if wanted.mode & ~MODE_BITS:
        raise error(Status.INVALID, f"mode {wanted.mode:o}: permission bits are those of {MODE_BITS:o}")


def _check_sharing(known: KvNamespace, wanted: KvNamespace, user: Identity) -> None:
    """Descriptors can be guessed: whoever registered one first must not get at the blocks of who means to keep them."""
    open_to_others = known.mode & OTHERS & ~(wanted.mode or MODE_DEFAULT)
    if known.uid != user.uid and open_to_others:
        raise error(
            Status.PERMISSION_DENIED,
            f"namespace {known.name!r} belongs to user {known.uid}, who opened it to others (mode {known.mode:o}): "
            "ask for that mode, or for a namespace of your own with a salt",
        )


def _check_room(book: Book, wanted: KvNamespace, user: Identity) -> None:
    same = next((each for each in book.namespaces.values() if each.name == wanted.name), None)
    if same is not None:
        raise error(Status.EXISTS, f"namespace {same.id} is called {same.name!r} already, and is described differently")
    own = sum(each.uid == user.uid for each in book.namespaces.values())
    if len(book.namespaces) >= NAMESPACES_MAX or (own >= NAMESPACES_OF_USER_MAX and not user.trusted):
        raise error(
            Status.QUOTA_EXCEEDED,
            f"there are {len(book.namespaces)} namespaces, {own} of them yours: 'emberfs kv drop' those that nobody uses",
        )


def _check_tenant(book: Book, tenant: str, user: Identity) -> None:
    """Whoever registers under a tenant's name uses up its quota, and has its blocks evicted: those whom the quota names, and nobody else.
    Who is named somewhere does not leave that quota by another name. Other names are free."""
    if user.trusted:
        return
    mine = {quota.tenant for quota in book.quotas.values() if _names(quota, user.uid, (user.gid, *user.groups))}
    if (tenant and tenant in book.quotas and tenant not in mine) or (mine and tenant not in mine):
        whose = ", ".join(sorted(mine)) or "none that has a quota"
        raise error(
            Status.PERMISSION_DENIED,
            f"user {user.uid} does not belong to tenant {tenant!r}, but to {whose}: 'emberfs kv quota' says who does",
        )


def _names(quota: TenantQuota, uid: int, gids: Collection[int]) -> bool:
    return uid in quota.uids or not set(quota.gids).isdisjoint(gids)


def drop_namespace(book: Book, number: int, user: Identity) -> Draft:
    """Forget a namespace; storage servers drop its blocks when they hear of it. Raises NOT_FOUND, PERMISSION_DENIED for who has not
    made it."""
    known = book.namespaces.get(number)
    if known is None:
        raise error(Status.NOT_FOUND, f"there is no namespace {number}")
    if not user.trusted and user.uid != known.uid:
        raise error(Status.PERMISSION_DENIED, f"namespace {known.name!r} belongs to user {known.uid}")
    draft = Draft(book)
    draft.remove(Kind.NAMESPACE, number)
    return draft


def set_quota(book: Book, wanted: TenantQuota, user: Identity) -> Draft:
    """The change that limits a tenant ("": what belongs to none); 0 bytes: no limit any more. Without users and groups they stay who they
    are. Raises INVALID, TOO_LARGE, QUOTA_EXCEEDED, EXISTS where somebody else has namespaces of that tenant."""
    if not wanted.tenant.isprintable():
        raise error(Status.INVALID, "a tenant has a name that can be printed")
    if len(wanted.tenant.encode()) > TENANT_BYTES_MAX:
        raise error(Status.TOO_LARGE, f"a tenant's name has at most {TENANT_BYTES_MAX} bytes")
    draft = Draft(book)
    key = Kind.QUOTA, wanted.tenant.encode()
    if len(wanted.uids) + len(wanted.gids) > MEMBERS_MAX:
        raise error(Status.TOO_LARGE, f"a tenant has at most {MEMBERS_MAX} users and groups")
    if wanted.bytes:
        if wanted.tenant not in book.quotas and len(book.quotas) >= QUOTAS_MAX:
            raise error(Status.QUOTA_EXCEEDED, f"there are {QUOTAS_MAX} quotas of tenants, which is the most")
        made = TenantQuota(tenant=wanted.tenant, bytes=wanted.bytes, uids=wanted.uids, gids=wanted.gids)
        before = book.quotas.get(wanted.tenant)
        if before is None:
            _check_members(book, made, user)
        elif not wanted.uids and not wanted.gids:
            made.uids[:], made.gids[:] = before.uids, before.gids
        draft.put_named(key, made)
    elif wanted.tenant in book.quotas:
        draft.remove_named(key)
    return draft


def _check_members(book: Book, quota: TenantQuota, user: Identity) -> None:
    """Who has registered under the tenant's name before it had a quota would share it."""
    if not quota.tenant:
        return
    for known in book.namespaces.values():
        is_ours = known.uid in (0, user.uid) or _names(quota, known.uid, (known.gid,))
        if known.tenant == quota.tenant and not is_ours:
            raise error(
                Status.EXISTS,
                f"namespace {known.name!r} of tenant {quota.tenant!r} belongs to user {known.uid}, group {known.gid}: "
                "name the user or the group with the quota, or drop the namespace",
            )


def follow(book: Book, draft: Draft, now_s: int) -> None:
    """Let every namespace follow a new version of the table of blocks, if this change makes one. `now_s`: seconds since the epoch."""
    made = [row.message for (kind, _), row in draft.rows.items() if kind is Kind.TABLE]
    newest = next((t for t in made if isinstance(t, ChainTable) and t.id == TABLE_OF_BLOCKS), None)
    if newest is None:
        return
    for known in book.namespaces.values():
        after = KvNamespace()
        after.CopyFrom(known)
        after.table_version, after.changed_s = newest.version, now_s
        before = [known.table_version, *known.older_versions] if known.table_version else []
        after.older_versions[:] = still_needed(before, newest.chains, book.block_tables)
        draft.put(Kind.NAMESPACE, after, known.id)


def still_needed(versions: Sequence[int], newest: Sequence[int], chains_of: Mapping[int, Sequence[int]]) -> list[int]:
    """Those of the older versions (newest first) that place keys differently from all after them: the order of the chains does not matter.
    Of many, beyond the first OLDER_VERSIONS_KEPT, those that have a chain which no other one has: what is deleted goes from there too."""
    found: list[int] = []
    seen, reached = {frozenset(newest)}, set(newest)
    for version in versions:
        chains = frozenset(chains_of.get(version, ()))
        if chains in seen or (len(found) >= OLDER_VERSIONS_KEPT and chains <= reached):
            continue
        seen.add(chains)
        reached |= chains
        found.append(version)
    return found
