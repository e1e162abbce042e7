"""The scrubber: reads every chunk now and then and compares it with its checksums, so that damage is found before it is needed.

It runs at a limited rate; where no client is at work it also folds the patches of small overwrites into one slot. A damaged chunk is
reported loudly, remembered by its target, and repaired where the chain has another replica (repair.py). A chunk that another replica has
and this one lacks is found by comparing their lists, and repaired too. The same walk can ask, in batches, whether the inodes of the
chunks still live (`Living`): chunks of dead inodes are what a client left behind that wrote after its file was gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from ..proto.errors import StatusError
from ..proto.ids import CHUNK_ID_BYTES, ChunkId
from ..proto.settings import time_scale
from .engine.records import ChunkInfo
from .exchange import END
from .inspection import inspect
from .repair import Repairer
from .target import Target
from .updates import chunk_name

RATE_BYTES = 16 << 20  # verified a second, where --scrub-rate does not say
FIRST_SECONDS = 300.0  # after the start; scaled
PAUSE_SECONDS = 6 * 3600.0  # between two walks; scaled
PAGE_CHUNKS = 256  # looked at together

Living = Callable[
    [Sequence[int]], Awaitable[set[int]]
]  # inode ids -> those that are alive (or cannot be said to be dead)


@dataclass
class Report:
    """What one walk found."""

    chunks: int = 0
    content: int = 0  # bytes verified
    damaged: list[bytes] = field(default_factory=list)
    missing: int = 0  # chunks that another replica has
    orphans: list[bytes] = field(default_factory=list)  # chunks of inodes that are not alive


class Scrubber:
    """Walks over one target."""

    def __init__(
        self, target: Target, rate_bytes: int = 0, living: Living | None = None, repairer: Repairer | None = None
    ) -> None:
        self._target = target
        self._repairer = repairer
        self._rate = rate_bytes or RATE_BYTES
        self._living = living
        self._seen = -1  # operations of clients when the last chunk was looked at: nothing since then means idle

    async def run(self) -> None:
        """Background: walk, pause, and again, as long as the target is there."""
        scale = time_scale()
        await self._target.env.sleep(FIRST_SECONDS * scale)
        while not self._target.engine.failed:
            try:
                self._tell(await self.walk())
            except StatusError as failed:  # the target went out under way: the process and its other targets go on
                self._target.log.warning("scrubbing broke off", target=self._target.id, error=failed.strerror)
            except Exception as bug:  # no thread for it, say: no reason to serve nobody
                message = "scrubbing broke off for a reason that nobody thought of"
                self._target.log.error(message, target=self._target.id, exc_info=bug)
            await self._target.env.sleep(PAUSE_SECONDS * scale)

    def _tell(self, report: Report) -> None:
        log = self._target.log.warning if report.damaged or report.missing or report.orphans else self._target.log.info
        log(
            "scrubbed",
            target=self._target.id,
            chunks=report.chunks,
            content=report.content,
            damaged=[chunk_name(chunk) for chunk in report.damaged[:10]],
            missing=report.missing,
            orphans=len(report.orphans),
        )

    async def walk(self) -> Report:
        """Verify every chunk that is there when its turn comes. Raises TARGET_OFFLINE."""
        report = Report()
        first = bytes(CHUNK_ID_BYTES)
        target = self._target
        while not target.engine.failed:
            page: list[ChunkInfo] = await target.blocking(target.engine.chunks, first, END, PAGE_CHUNKS)
            last = page[-1].chunk + b"\0" if page else END
            await self._look_for_missing(first, last, page, report)
            if not page:
                self._forget_removed()
                return report
            for info in page:
                await self._verify(info, report)
            await self._look_for_orphans(page, report)
            first = last
        return report

    def _forget_removed(self) -> None:
        """What was damaged and is not there any more is no damage: nobody comes by it to say that it is sound."""
        target = self._target
        for chunk in list(target.damaged):
            if target.engine.info(chunk) is None:
                del target.damaged[chunk]

    async def _look_for_missing(self, first: bytes, last: bytes, page: Sequence[ChunkInfo], report: Report) -> None:
        if self._repairer is None:
            return
        try:
            report.missing += await self._repairer.look_for_missing(first, last, {info.chunk for info in page})
        except StatusError as failed:
            self._target.log.info("cannot compare with another replica", target=self._target.id, error=failed.strerror)

    async def _verify(self, info: ChunkInfo, report: Report) -> None:
        target = self._target
        if target.engine.failed:
            return
        counters = target.counters
        before, self._seen = self._seen, counters.reads + counters.writes
        read = await inspect(target, info.chunk, fold=before == self._seen and info.patches > 0)
        report.chunks += 1
        report.content += read
        if info.chunk in target.damaged:
            report.damaged.append(info.chunk)
        await target.env.sleep(read / self._rate)

    async def _look_for_orphans(self, page: Sequence[ChunkInfo], report: Report) -> None:
        if self._living is None:
            return
        inodes = {info.chunk: ChunkId.unpack(info.chunk).inode for info in page}
        living = await self._living(sorted(set(inodes.values())))
        report.orphans += [chunk for chunk, inode in inodes.items() if inode not in living]
