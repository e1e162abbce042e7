"""Appending from many clients: one at a time has the file's token, and with it the true end.

The first append asks for the token; from then on appends gather in the write-back like any other writes, each behind the one before,
until another client wants to append. The server says so in answer to a request that a worker of this client keeps open there (one per
server). Then what was appended is sent, and length and token go back together. Who has the token keeps it for a few milliseconds
at least, so that two who append all the time write more than one record in each turn.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ...proto.env import Call
from ...proto.errors import Status, StatusError, error
from ...proto.gen.meta_pb2 import (
    TOKEN_ACTION_GIVE,
    TOKEN_ACTION_TAKE,
    AppendReply,
    AppendRequest,
    WatchTokensReply,
    WatchTokensRequest,
)
from ...proto.rpc import META
from ...proto.settings import CLIENT_LEASE_SECONDS
from .inode import Inode, name_of

if TYPE_CHECKING:
    from .client import Core

TURN_SECONDS = 0.005  # that a token is kept at least
TAKE_SECONDS_MAX = 1.5 * CLIENT_LEASE_SECONDS  # scaled; a holder that is gone has been cleaned up after by then
WATCH_SECONDS_MAX = 10.0  # scaled: one request to hear of those who wait; the server answers earlier
WATCH_PAUSE_SECONDS = 0.2  # scaled: after one that failed
IDLE_SECONDS = 10.0  # scaled: without a token the worker ends


class Token:
    """The right to append to one inode."""

    __slots__ = ("turn_ends", "wanted")

    def __init__(self, now: float) -> None:
        self.turn_ends = now + TURN_SECONDS
        self.wanted = False  # by somebody else


class Tokens:
    """Of one identity of a client."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._env = core.env
        self._held: dict[int, Inode] = {}
        self._watching: set[str] = set()  # servers, by address

    async def have(self, file: Inode, session: int) -> None:
        """Make sure that this client may append, and knows where. Under the inode's lock. Raises DEADLINE when another client keeps the
        token for longer than a lease."""
        token = file.token
        if token is not None:
            if not token.wanted or self._env.now() < token.turn_ends:
                if not file.unsettled:  # others may have cut it, or written at its end without appending
                    await file.fetch()
                return
            await self.give(file)
        await self._take(file, session)

    async def _take(self, file: Inode, session: int) -> None:
        request = AppendRequest(inode=file.id, session=session, action=TOKEN_ACTION_TAKE)
        seconds = self._core.options.scaled(TAKE_SECONDS_MAX)
        deadline = self._env.now() + seconds
        try:
            while True:
                reply: AppendReply = await self._core.cluster.change(META.Append, request, inode=file.id)
                if not reply.waiting:
                    break
                if self._env.now() >= deadline:
                    text = f"{name_of(file.id)}: another client has been appending for over {seconds:g} s"
                    raise error(Status.DEADLINE, text)
        except BaseException as failure:
            if not isinstance(failure, StatusError) or failure.maybe_committed:
                self._watch(file)  # it may have been granted all the same: who wants it will be heard
            raise
        file.take(reply.attributes)
        file.token = Token(self._env.now())
        self._held[file.id] = file
        self._watch(file)

    async def give(self, file: Inode) -> None:
        """Send what was appended, and give back length and token in one. Under the inode's lock. Raises what a settlement raises."""
        if file.write_back is not None:
            await file.write_back.drain()
        if file.stale_end:
            await file.fetch()
        self.forget(file)
        request = AppendRequest(
            inode=file.id,
            session=file.sessions[-1] if file.sessions else 0,
            action=TOKEN_ACTION_GIVE,
            written=file.unsettled and bool(file.sessions),
            length=file.hint_end,
            truncate_version=file.truncate_version,
            sparse=file.sparse,
        )
        reply: AppendReply = await self._core.cluster.change(META.Append, request, inode=file.id)
        if request.written:
            file.settled(reply.attributes)

    def forget(self, file: Inode) -> None:
        """The token goes back, or has gone."""
        file.token = None
        self._held.pop(file.id, None)

    # --- hearing of others --------------------------------------------------------------------------------------------------------------

    def _watch(self, file: Inode) -> None:
        """Have a worker listen where the token is."""
        address = self._core.cluster.owner_address(file.id)
        if address not in self._watching:
            self._watching.add(address)
            self._env.spawn(lambda: self._listen(address), "append tokens")

    async def _listen(self, address: str) -> None:
        core, scaled = self._core, self._core.options.scaled
        idle_since = self._env.now()
        try:
            while not core.closed and core.tokens is self and self._env.now() < idle_since + scaled(IDLE_SECONDS):
                held = list(self._held)
                request = WatchTokensRequest(inodes=held)
                try:
                    call = Call(address, META.WatchTokens, request, scaled(WATCH_SECONDS_MAX))
                    reply: WatchTokensReply = await self._env.call(call)
                except StatusError as failure:
                    if failure.status in (Status.CANCELLED, Status.SESSION_ENDED):
                        return
                    # Where the tokens are watched from now on is seen anew: the server may be gone.
                    await core.cluster.recover_from(failure, address)
                    await self._env.sleep(scaled(WATCH_PAUSE_SECONDS))
                    if any(core.cluster.owner_address(number) != address for number in held):
                        return
                    continue
                if core.tokens is not self:
                    return  # this identity is over, and what it held with it
                for number in reply.wanted:
                    with suppress(
                        StatusError
                    ):  # tried again when it is wanted again, and told by whoever flushes the file
                        await self._recalled(number)
                if self._held or reply.wanted:
                    idle_since = self._env.now()
        finally:
            self._watching.discard(address)
            if core.tokens is self and not core.closed:
                for file in list(self._held.values()):
                    self._watch(file)

    async def _recalled(self, number: int) -> None:
        file = self._core.inodes.get(number)
        if file is None:  # closed meanwhile, or granted to a request that nobody waited for
            request = AppendRequest(inode=number, action=TOKEN_ACTION_GIVE)
            await self._core.cluster.change(META.Append, request, inode=number)
            return
        if (token := file.token) is None:
            async with file.lock:  # the grant may have been answered a moment ago: then it is being taken in
                if (token := file.token) is None:
                    await self.give(file)
                    return
        token.wanted = True  # whoever appends next may be faster than we are
        left = token.turn_ends - self._env.now()
        if left > 0:
            await self._env.sleep(left)
        async with file.lock:
            if file.token is token:
                await self.give(file)
