"""When a target's checkpoints are taken: one at a time, for everybody who waits, each second, and where only one makes room."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..proto.env import Environment, Promise
from ..proto.errors import StatusError
from .engine.engine import ChunkEngine

CHECKPOINT_SECONDS = 1.0  # what was acknowledged is durable after this at the latest


class Checkpoints:
    """Of one target. `write` takes one, and raises when it failed; `spawn(work, *arguments)` runs it in the background."""

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

    async def reach(self) -> None:
        """Everything staged before is durable when this returns; calls that come meanwhile share the next one. Raises TARGET_OFFLINE."""
        engine = self._engine
        wanted = engine.epoch if engine.is_dirty else engine.epoch - 1
        while engine.checkpointed < wanted:
            await self._begin()

    def relieve(self) -> None:
        """A checkpoint now, where space is short for what only a checkpoint frees."""
        if self._engine.wants_checkpoint and not self._engine.failed:
            self._begin()

    async def keep(self) -> None:
        """Background: a checkpoint each second."""
        while not self._engine.failed:
            await self._env.sleep(CHECKPOINT_SECONDS)
            try:
                await self.reach()
            except StatusError:
                return  # told already; the target is out

    def _begin(self) -> Promise[None]:
        """The end of the checkpoint that is under way, or of a new one."""
        if self._under_way is None:
            self._under_way = self._env.promise()
            self._spawn(self._take, self._under_way)
        return self._under_way

    async def _take(self, over: Promise[None]) -> None:
        try:
            await self._write()
        except BaseException as failed:
            self._under_way = None
            over.fail(failed)
            if not isinstance(failed, StatusError):
                raise
        else:
            self._under_way = None
            over.set(None)
