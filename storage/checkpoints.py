"""When a target's checkpoints are taken: one at a time, for everybody who waits, each second, and where only one makes room."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

from ..proto.env import Environment, Promise
from ..proto.errors import Status, StatusError, error
from .engine.engine import ChunkEngine

Told = Callable[[StatusError | None], None]

CHECKPOINT_SECONDS = 1.0  # what was acknowledged is durable after this at the latest


class Checkpoints:
    """Of one target. `write` begins one, and raises when it failed, at once or when it is awaited; `spawn(work, *arguments)` runs what
    waits for it in the background."""

    def __init__(
        self,
        engine: ChunkEngine,
        env: Environment,
        write: Callable[[], Awaitable[None]],
        spawn: Callable[..., None],
    ) -> None:
        self._engine = engine
        self._env = env
        self._write = write
        self._spawn = spawn
        self._under_way: Promise[None] | None = None
        self._waiting: list[tuple[int, Told]] = []  # for a checkpoint of this number

    async def reach(self) -> None:
        """Everything staged before is durable when this returns; calls that come meanwhile share the next one. Raises TARGET_OFFLINE."""
        wanted = self._wanted
        while self._engine.checkpointed < wanted:
            await self._begin()

    def when_reached(self, tell: Told) -> None:
        """`reach`, for one who has no task to wait in: `tell` is called once, perhaps at once, with why it failed, if it did."""
        wanted = self._wanted
        if self._engine.checkpointed >= wanted:
            tell(None)
        else:
            self._waiting.append((wanted, tell))
            self._begin()

    @property
    def _wanted(self) -> int:
        """The checkpoint that covers everything staged before."""
        return self._engine.epoch if self._engine.is_dirty else self._engine.epoch - 1

    def relieve(self) -> None:
        """A checkpoint now, where space is short for what only a checkpoint frees."""
        if self._engine.wants_checkpoint and not self._engine.failed:
            self._begin()

    async def keep(self) -> None:
        """Background: a checkpoint each second."""
        while not self._engine.failed:
            await self._env.sleep(CHECKPOINT_SECONDS)
            with suppress(StatusError):  # told already, if the target is out; otherwise it is tried again
                await self.reach()

    def _begin(self) -> Promise[None]:
        """The end of the checkpoint that is under way, or of a new one."""
        if self._under_way is None:
            self._under_way = self._env.promise()
            self._spawn(self._take, self._under_way, self._write())
        return self._under_way

    async def _take(self, over: Promise[None], written: Awaitable[None]) -> None:
        try:
            await written
        except BaseException as failed:
            self._under_way = None
            over.fail(failed)
            if not isinstance(failed, StatusError):
                self._tell(error(Status.INTERNAL, f"no checkpoint: {failed!r}"))
                raise
            self._tell(failed)
        else:
            self._under_way = None
            over.set(None)
            self._tell(None)

    def _tell(self, failed: StatusError | None) -> None:
        waiting, self._waiting = self._waiting, []
        for wanted, tell in waiting:
            if failed is None and self._engine.checkpointed < wanted:
                self._waiting.append((wanted, tell))
            else:
                tell(failed)
        if self._waiting:
            self._begin()
