"""Sessions that ended at this client, and of which the metadata server has yet to hear.

A writer's session says at the server that bytes may be on their way. One under which everything is settled, as when a file was only
made, says nothing any more: its end takes nothing back and shows nobody anything new, so `close` does not wait for it. It goes along
with the next open for writing, in the same transaction and before it, so that this client never meets its own past; or with the next
close that has something to say; or the keeper tells it within a second. Until then the server treats such a file as open: removed, it
goes a little later. It does not matter if it is told twice, or never: then it ends with the client's lease.
"""

from __future__ import annotations

from collections import deque

from ...proto.gen.meta_pb2 import CloseRequest, EndedSessions, OpenRequest

UNTOLD_MAX = 64  # more are told by the close itself


class Ended:
    """Those of one identity of a client. Threads add and take at once: each is in one message, or here."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= UNTOLD_MAX

    def add(self, inode: int, session: int) -> None:
        """This session on that inode is over, and nothing of it is unsettled."""
        self._waiting.append((inode, session))

    def tell(self, request: OpenRequest | CloseRequest) -> None:
        """Put into a request all that waits. If it fails, `again`."""
        inodes, sessions = [], []
        for _ in range(len(self._waiting)):
            try:
                inode, session = self._waiting.popleft()
            except IndexError:
                break  # another thread tells the rest
            inodes.append(inode)
            sessions.append(session)
        if inodes:
            request.ended.inodes.extend(inodes)
            request.ended.sessions.extend(sessions)

    def again(self, request: OpenRequest | CloseRequest) -> None:
        """The request failed, and with it what it was to tell; it may be sent anew, without that."""
        ended: EndedSessions = request.ended
        self._waiting.extend(zip(ended.inodes, ended.sessions, strict=True))
        request.ClearField("ended")
