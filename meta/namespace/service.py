"""The `Meta` service: who calls, which operation, read or change, and what comes with the reply from outside the transaction."""

from __future__ import annotations

import os
from contextlib import suppress

from ...proto.errors import Status, StatusError, error
from ...proto.gen import meta_pb2
from ...proto.ids import ROOT_INODE
from ...proto.rpc import META, Context, PeerInfo
from . import trim
from .access import Credentials
from .attempt import Task
from .inode import DIRECTORY, REGULAR
from .leases import session_of
from .namespace import Namespace
from .ops import (
    allocate,
    atime,
    attributes,
    clone,
    close,
    create,
    find,
    link,
    open,
    quota,
    readdir,
    remove,
    rename,
    stat,
    trash,
    truncate,
    xattr,
)

_CREDENTIALS = "meta.credentials"  # in a connection's attachments
GROUPS_MAX = 1024  # supplementary groups of a caller


class MetaService:
    """The service object for `proto.rpc.META`; every binding serves the same one."""

    spec = META

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def _credentials(self, peer: PeerInfo) -> Credentials:
        """Who a connection is. Raises NOT_PERMITTED for one that names another user's client."""
        # Worked out once per connection: building and hashing them per request would cost more than a look-up of a file.
        found = peer.attachments.get(_CREDENTIALS)
        if found is None:
            identity = peer.identity
            self._namespace.capabilities.owners.require(peer.client, identity)
            found = peer.attachments[_CREDENTIALS] = Credentials(identity.uid, identity.gid, tuple(identity.groups))
        return found

    def _task(self, context: Context, request: object) -> Task:
        # Whom the request acts for. Only root and the owner of a server may name somebody else: the connection proved who it is.
        peer = context.peer
        own = self._credentials(peer)
        if not request.HasField("caller"):  # type: ignore[attr-defined]
            return Task(own, peer.client, session=session_of(peer))
        caller = request.caller  # type: ignore[attr-defined]
        if len(caller.groups) > GROUPS_MAX:
            raise error(Status.TOO_LARGE, f"a caller in {len(caller.groups)} groups: at most {GROUPS_MAX}")
        named = Credentials(caller.uid, caller.gid, tuple(caller.groups))
        if not peer.identity.trusted and named != own:
            raise error(
                Status.NOT_PERMITTED,
                f"user {peer.identity.uid} may not act for user {caller.uid}: leave the caller out, or connect as the server's user",
            )
        return Task(named, peer.client, session=session_of(peer))

    def _owner_task(self, context: Context) -> Task:
        # Requests that carry a session need no caller: the right was checked when it was opened.
        return Task(self._credentials(context.peer), context.peer.client, session=session_of(context.peer))

    async def stat(self, request: meta_pb2.StatRequest, context: Context) -> meta_pb2.StatReply:
        task, leases = self._task(context, request), self._namespace.leases
        mark = leases.commits
        reply = await self._namespace.read(stat.stat, task, request)
        if request.lease and task.session is not None and len(reply.statuses) == 1 and not request.follow:
            status, inode = reply.statuses[0], reply.attributes[0].inode
            if not status or status == Status.NOT_FOUND:
                reply.leased = leases.keep(task.session, mark, request.places[0], inode)
        return reply

    def _task_with_grant(self, context: Context, request: meta_pb2.OpenRequest | meta_pb2.LockRequest) -> Task:
        task = self._task(context, request)
        if request.capability:
            with suppress(StatusError):  # another client's says nothing
                task.granted = self._namespace.capabilities.verify(task.client, request.capability)
        return task

    async def open(self, request: meta_pb2.OpenRequest, context: Context) -> meta_pb2.OpenReply:
        task, leases = self._task_with_grant(context, request), self._namespace.leases
        mark = leases.commits
        readers = self._namespace.clients.readers
        if open.changes(request):
            if not open.writes(request.flags):
                await readers.admit(task.client)
            reply, repeated = await self._namespace.change(META.Open, open.open_file, task, request)
            mark = task.committed
            if repeated and request.flags & os.O_TRUNC:
                await trim.finish(self._namespace, reply.attributes.inode, task)
        else:
            reply = await self._namespace.read(open.open_file, task, request)
            if reply.attributes.type == REGULAR and await readers.admit(task.client):
                # Only what is opened from now on waits for the client's reports.
                reply = await self._namespace.read(open.open_file, task, request)
        if request.lease and task.session is not None and (not request.place.path or request.flags & os.O_NOFOLLOW):
            reply.leased = leases.keep(task.session, mark, request.place, reply.attributes.inode)
        if reply.attributes.type == REGULAR:
            if not reply.session and not reply.attributes.nlink:
                await readers.hold(task.client, reply.attributes.inode)
            grants = self._namespace.capabilities
            rights = open.GRANTED[request.flags & os.O_ACCMODE]
            reply.capability = grants.issue(task.client, reply.attributes.inode, rights)
            reply.capability_ms = grants.valid_ms
        return reply

    async def close(self, request: meta_pb2.CloseRequest, context: Context) -> meta_pb2.CloseReply:
        task = self._owner_task(context)
        if not request.session and not request.HasField("ended"):
            return await self._namespace.read(close.close, task, request)
        if request.reading:
            await self._namespace.clients.readers.admit(task.client)
        reply, _ = await self._namespace.change(META.Close, close.close, task, request)
        return reply

    async def sync_file(self, request: meta_pb2.SyncFileRequest, context: Context) -> meta_pb2.SyncFileReply:
        task = self._owner_task(context)
        if request.session and request.written:
            reply, _ = await self._namespace.change(META.SyncFile, close.sync_file, task, request)
        else:
            reply = await self._namespace.read(close.sync_file, task, request)
        if request.durable:
            # Not only this commit: the name of a new file must survive with its length.
            await self._namespace.engine.sync()
        return reply

    async def create(self, request: meta_pb2.CreateRequest, context: Context) -> meta_pb2.CreateReply:
        task, leases = self._task(context, request), self._namespace.leases
        reply, repeated = await self._namespace.change(META.Create, create.create, task, request)
        if request.lease and task.session is not None and len(reply.statuses) == 1 and not reply.statuses[0]:
            place, inode = request.entries[0].place, reply.attributes[0].inode
            reply.leased = leases.keep(task.session, task.committed, place, inode)
            if reply.leased and reply.attributes[0].type == DIRECTORY and not (repeated or request.exist_ok):
                reply.whole = leases.keep_made(task.session, task.committed, inode)
        return reply

    async def remove(self, request: meta_pb2.RemoveRequest, context: Context) -> meta_pb2.RemoveReply:
        reply, _ = await self._namespace.change(META.Remove, remove.remove, self._task(context, request), request)
        return reply

    async def rename(self, request: meta_pb2.RenameRequest, context: Context) -> meta_pb2.RenameReply:
        reply, _ = await self._namespace.change(META.Rename, rename.rename, self._task(context, request), request)
        return reply

    async def link(self, request: meta_pb2.LinkRequest, context: Context) -> meta_pb2.LinkReply:
        reply, _ = await self._namespace.change(META.Link, link.link, self._task(context, request), request)
        return reply

    async def set_attributes(
        self, request: meta_pb2.SetAttributesRequest, context: Context
    ) -> meta_pb2.SetAttributesReply:
        task = self._task(context, request)
        reply, _ = await self._namespace.change(META.SetAttributes, attributes.set_attributes, task, request)
        return reply

    async def grow(self, request: meta_pb2.GrowRequest, context: Context) -> meta_pb2.GrowReply:
        task = self._owner_task(context)
        reply, _ = await self._namespace.change(META.Grow, close.grow, task, request)
        return reply

    async def truncate(self, request: meta_pb2.TruncateRequest, context: Context) -> meta_pb2.TruncateReply:
        task = self._task(context, request)
        reply, repeated = await self._namespace.change(META.Truncate, truncate.truncate, task, request)
        if repeated:
            # The first one may have failed between its commit and the chunks.
            await trim.finish(self._namespace, reply.attributes.inode, task)
        return reply

    async def clone(self, request: meta_pb2.CloneFileRequest, context: Context) -> meta_pb2.CloneFileReply:
        reply, _ = await self._namespace.change(META.Clone, clone.clone, self._task(context, request), request)
        return reply

    async def allocate(self, request: meta_pb2.AllocateRequest, context: Context) -> meta_pb2.AllocateReply:
        reply, _ = await self._namespace.change(META.Allocate, allocate.allocate, self._task(context, request), request)
        return reply

    async def read_directory(
        self, request: meta_pb2.ReadDirectoryRequest, context: Context
    ) -> meta_pb2.ReadDirectoryReply:
        task, leases = self._task(context, request), self._namespace.leases
        mark = leases.commits
        reply = await self._namespace.read(readdir.read_directory, task, request)
        if request.lease and task.session is not None and request.attributes and not request.place.path:
            directory = request.place.parent or ROOT_INODE
            reply.leased = leases.keep_listed(task.session, mark, directory, reply)
        return reply

    async def watch_leases(self, request: meta_pb2.WatchLeasesRequest, context: Context) -> meta_pb2.WatchLeasesReply:
        context.listening = True
        return await self._namespace.leases.watch(context.peer, request)

    async def find(self, request: meta_pb2.FindRequest, context: Context) -> meta_pb2.FindReply:
        return await self._namespace.read(find.find, self._task(context, request), request)

    async def lock(self, request: meta_pb2.LockRequest, context: Context) -> meta_pb2.LockReply:
        return await self._namespace.locking.lock(self._task_with_grant(context, request), request, context)

    async def test_lock(self, request: meta_pb2.TestLockRequest, context: Context) -> meta_pb2.TestLockReply:
        return await self._namespace.locking.test(self._task(context, request), request, context)

    async def append(self, request: meta_pb2.AppendRequest, context: Context) -> meta_pb2.AppendReply:
        return await self._namespace.appending.append(self._owner_task(context), request, context)

    async def watch_tokens(self, request: meta_pb2.WatchTokensRequest, context: Context) -> meta_pb2.WatchTokensReply:
        task = self._owner_task(context)
        context.listening = True
        return await self._namespace.appending.watch(task.client, request, context)

    async def stat_fs(self, request: meta_pb2.StatFsRequest, context: Context) -> meta_pb2.StatFsReply:
        return await self._namespace.read(stat.stat_fs, self._task(context, request), request)

    async def publish(self, request: meta_pb2.PublishRequest, context: Context) -> meta_pb2.PublishReply:
        reply, _ = await self._namespace.change(META.Publish, link.publish, self._task(context, request), request)
        return reply

    async def list_trash(self, request: meta_pb2.ListTrashRequest, context: Context) -> meta_pb2.ListTrashReply:
        return await self._namespace.read(trash.list_trash, self._task(context, request), request)

    async def restore_trash(
        self, request: meta_pb2.RestoreTrashRequest, context: Context
    ) -> meta_pb2.RestoreTrashReply:
        task = self._task(context, request)
        reply, _ = await self._namespace.change(META.RestoreTrash, trash.restore_trash, task, request)
        return reply

    async def purge_trash(self, request: meta_pb2.PurgeTrashRequest, context: Context) -> meta_pb2.PurgeTrashReply:
        task = self._task(context, request)
        reply, _ = await self._namespace.change(META.PurgeTrash, trash.purge_trash, task, request)
        return reply

    async def set_quota(self, request: meta_pb2.SetQuotaRequest, context: Context) -> meta_pb2.SetQuotaReply:
        task = self._task(context, request)
        reply, _ = await self._namespace.change(META.SetQuota, quota.set_quota, task, request)
        return reply

    async def list_quotas(self, request: meta_pb2.ListQuotasRequest, context: Context) -> meta_pb2.ListQuotasReply:
        return await self._namespace.read(quota.list_quotas, self._task(context, request), request)

    async def get_xattr(self, request: meta_pb2.GetXattrRequest, context: Context) -> meta_pb2.GetXattrReply:
        return await self._namespace.read(xattr.get_xattr, self._task(context, request), request)

    async def list_xattrs(self, request: meta_pb2.ListXattrsRequest, context: Context) -> meta_pb2.ListXattrsReply:
        return await self._namespace.read(xattr.list_xattrs, self._task(context, request), request)

    async def set_xattr(self, request: meta_pb2.SetXattrRequest, context: Context) -> meta_pb2.SetXattrReply:
        reply, _ = await self._namespace.change(META.SetXattr, xattr.set_xattr, self._task(context, request), request)
        return reply

    async def remove_xattr(self, request: meta_pb2.RemoveXattrRequest, context: Context) -> meta_pb2.RemoveXattrReply:
        task = self._task(context, request)
        reply, _ = await self._namespace.change(META.RemoveXattr, xattr.remove_xattr, task, request)
        return reply

    async def read_times(self, request: meta_pb2.ReadTimesRequest, context: Context) -> meta_pb2.ReadTimesReply:
        task = self._task(context, request)
        reply, _ = await self._namespace.change(META.ReadTimes, atime.read_times, task, request)
        return reply

    async def access(self, request: meta_pb2.AccessRequest, context: Context) -> meta_pb2.AccessReply:
        return await self._namespace.read(stat.access, self._task(context, request), request)

    async def settle_sessions(
        self, request: meta_pb2.SettleSessionsRequest, context: Context
    ) -> meta_pb2.SettleSessionsReply:
        task = self._owner_task(context)
        settled = await self._namespace.clients.settle_own(task.client, frozenset(request.keep))
        return meta_pb2.SettleSessionsReply(settled=settled)

    async def read_events(self, request: meta_pb2.ReadEventsRequest, context: Context) -> meta_pb2.ReadEventsReply:
        task = self._task(context, request)
        if not task.caller.is_root and not context.peer.identity.trusted:
            raise error(Status.NOT_PERMITTED, "only root, or the user of the servers, may watch what everybody does")
        return await self._namespace.events.read(request, task, context)

    async def sync_namespace(
        self, request: meta_pb2.SyncNamespaceRequest, context: Context
    ) -> meta_pb2.SyncNamespaceReply:
        await self._namespace.engine.sync()
        return meta_pb2.SyncNamespaceReply()
