"""Setting, removing and looking at quotas."""

from __future__ import annotations

from ....proto.errors import Status, error
from ....proto.gen import meta_pb2
from ....proto.gen.meta_pb2 import Quota
from ... import keys
from .. import path, quota
from ..attempt import Attempt
from ..quota import DIRECTORY, GROUP, QUOTAS_MAX, USER, Limits, Quotas, Scope
from ..ways import Ways

LIMIT_MAX = (1 << 63) - 1


async def set_quota(attempt: Attempt, request: meta_pb2.SetQuotaRequest) -> meta_pb2.SetQuotaReply:
    """Set or remove the limits of a user, a group, or a directory. Root only. Raises NOT_PERMITTED, INVALID, NOT_FOUND (nothing to
    remove), TOO_LARGE (too many quotas)."""
    if not attempt.caller.is_root:
        raise error(Status.NOT_PERMITTED, "only root sets quotas")
    if max(request.bytes_max, request.inodes_max) > LIMIT_MAX:
        raise error(Status.INVALID, f"a limit of at most {LIMIT_MAX}")
    known = await quota.quotas(attempt)
    scope = await _scope(attempt, request)
    before = known.limits.get(scope)
    if before is None and request.remove:
        raise error(Status.NOT_FOUND, "there is no such quota")
    if before is None and len(known.limits) >= QUOTAS_MAX:
        raise error(Status.TOO_LARGE, f"{QUOTAS_MAX} quotas: there can be no more")
    limits = before or Limits(0, 0)
    if scope[0] == DIRECTORY and before is None:
        limits = await _begin(attempt, scope[1])
    if limits.ending:
        raise error(Status.BUSY_RESOURCE, "that quota is being removed: try again when it is gone")
    limits = limits._replace(bytes_max=request.bytes_max, inodes_max=request.inodes_max)
    if request.remove:
        # What a directory's has counted goes back to the project around it, in the background; then the record goes.
        limits = limits._replace(bytes_max=0, inodes_max=0, counting=True, ending=True)
    if request.remove and scope[0] != DIRECTORY:
        attempt.txn.delete(keys.quota_key(*scope))
    else:
        attempt.txn.put(keys.quota_key(*scope), limits.pack())
    attempt.directory_changed()
    return meta_pb2.SetQuotaReply(quota=await _message(attempt, known, Ways(attempt), scope, limits))


async def _scope(attempt: Attempt, request: meta_pb2.SetQuotaRequest) -> Scope:
    kind = int(request.kind)
    if kind in (USER, GROUP):
        return kind, int(request.id)
    if kind != DIRECTORY:
        raise error(Status.INVALID, f"kind of quota {kind}: directory, user or group")
    inode = await path.lookup(attempt, request.place, follow=True)
    if not inode.is_directory:
        raise error(Status.NOT_DIRECTORY, "a quota is of a directory, a user or a group")
    return kind, inode.id


async def _begin(attempt: Attempt, number: int) -> Limits:
    """The directory becomes a project of its own, and what is in it is to be counted."""
    inode = await attempt.inode(number)
    before = quota.owner_of(inode)
    around, inode.project = inode.project, inode.id
    quota.changed_hands(attempt.txn, inode, before)
    attempt.put(inode)
    empty = not await attempt.txn.scan(*keys.dentry_range(number), 1)
    return Limits(0, 0, around, counting=not empty)


async def list_quotas(attempt: Attempt, request: meta_pb2.ListQuotasRequest) -> meta_pb2.ListQuotasReply:
    """All of them for root; for others those of themselves and of their groups, and of directories."""
    known = await quota.quotas(attempt)
    caller = attempt.caller
    own = [
        scope
        for scope in sorted(known.limits)
        if caller.is_root
        or scope[0] == DIRECTORY
        or scope == (USER, caller.uid)
        or (scope[0] == GROUP and caller.member_of(scope[1]))
    ]
    reply, ways = meta_pb2.ListQuotasReply(), Ways(attempt)
    for scope in own:
        reply.quotas.append(await _message(attempt, known, ways, scope, known.limits[scope]))
    return reply


async def _message(attempt: Attempt, known: Quotas, ways: Ways, scope: Scope, limits: Limits) -> Quota:
    now = (await quota.used(attempt.txn, known, [scope]))[scope]
    kind, number = scope
    return Quota(
        kind=kind,  # type: ignore[arg-type]
        id=number,
        bytes_max=limits.bytes_max,
        inodes_max=limits.inodes_max,
        bytes_used=now.bytes,
        inodes_used=now.inodes,
        counting=limits.counting,
        path=await ways.to(number) if kind == DIRECTORY else b"",
    )
