"""Requests that the kernel sends again, under the numbers that their changes had before: how they are carried out once (see `journal`)."""

from __future__ import annotations

import asyncio

from ..client.core.cluster import RequestIds
from ..proto.env import Environment
from .journal import Journal
from .protocol import RESEND, Opcode

# What must not be carried out twice: the second time it would fail, or do something else.
ONCE = frozenset(
    {
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.RENAME2,
        Opcode.LINK,
        Opcode.SETATTR,
        Opcode.SETXATTR,
        Opcode.REMOVEXATTR,
        Opcode.CREATE,
        Opcode.TMPFILE,
    }
)


class JournaledRequests(RequestIds):
    """Numbers of changes, kept in the journal for as long as the kernel waits for what they belong to.

    Under which request a change is made, the running task says (`operation.Operation.request`).
    """

    def __init__(self, env: Environment, last: int, journal: Journal) -> None:
        super().__init__(env, last)
        self._journal = journal
        self._of_request: dict[int, list[int]] = {}
        for number in journal.inherited:
            self._in_flight[number] = None

    async def begin(self) -> int:
        unique = _request_under_way()
        if not unique:
            return await super().begin()
        number = self._journal.replay(unique)
        if not number:
            number = await super().begin()
            self._journal.begin(unique, number)
        self._of_request.setdefault(unique, []).append(number)
        return number

    async def end(self, request_id: int) -> None:
        unique = _request_under_way()
        if not unique or request_id not in self._of_request.get(unique, ()):
            await super().end(request_id)

    def answered(self, unique: int) -> None:
        """The kernel has its answer: the records of this request may go."""
        unique &= ~RESEND
        numbers = self._of_request.pop(unique, None)
        if numbers is not None:
            for number in numbers:
                self._in_flight.pop(number, None)
            self._journal.end(unique)

    def forget_inherited(self) -> None:
        """See `Journal.forget_inherited`."""
        for number in self._journal.inherited:
            self._in_flight.pop(number, None)
        self._journal.forget_inherited()


def _request_under_way() -> int:
    """The kernel's number of the request that the running task serves, if it is one that must be carried out once."""
    request = getattr(asyncio.current_task(), "request", None)
    if request is None or request.opcode not in ONCE:
        return 0
    return int(request.unique) & ~RESEND
