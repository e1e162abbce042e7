"""The one writer of the cluster's records: every change is planned on the `Book`, made durable, applied and told, in this order and under
one lock. Of several managers only the elected one's changes commit (election.py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from ...proto.errors import Status, error
from .routing import Book, Draft
from .store import Store

Plan = Callable[[Book], Draft]  # pure; may run again on another book


class Writer:
    """Holds the book. `listeners` are called after a change, with the version before it."""

    def __init__(self, store: Store, book: Book, lock: AbstractAsyncContextManager[None]) -> None:
        self.book = book
        self.listeners: list[Callable[[int], None]] = []
        self._store = store
        self._lock = lock
        self._doubtful = False  # a commit failed halfway: memory and store may differ

    async def change(self, plan: Plan) -> None:
        """Plan, make durable, apply, tell. Raises what the plan and the engine raise; then nothing took effect."""
        async with self._lock:
            await self._reload_if_doubtful()
            draft = plan(self.book)
            if not draft:
                return
            self._doubtful = True
            await self._store.save(draft)
            self._doubtful = False
            before = self.book.state.version
            self.book.apply(draft)
        self._tell(before)

    async def _reload_if_doubtful(self) -> None:
        # A commit that failed may still have happened; its version must not be used for another change.
        if not self._doubtful:
            return
        loaded = await self._store.load()
        if loaded is None:
            raise error(Status.INTERNAL, "the cluster's records are gone from the KV engine")
        before = self.book.state.version
        self.book = Book(*loaded)
        self._doubtful = False
        if self.book.state.version != before:
            self._tell(before)

    def _tell(self, before: int) -> None:
        for listener in self.listeners:
            listener(before)
