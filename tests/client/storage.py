"""A storage server in memory, for tests of the client core: exactly-once writes, checksums by unit, and faults on order.

It keeps the contract of storage.proto, so the same tests pass against the real server; what it adds is that a test can say what goes
wrong next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import crc32c

from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen import storage_pb2 as pb
from emberfs.proto.gen.common_pb2 import Chain
from emberfs.proto.layout import checksum_unit
from emberfs.proto.rpc import STORAGE, Context


@dataclass
class Chunk:
    data: bytearray = field(default_factory=bytearray)
    truncate_version: int = 0
    version: int = 0
    size: int = 1 << 20
    chain: int = 0


class MemoryStorage:
    spec = STORAGE

    async def _between_servers(self, request: Any, context: Context) -> Any:
        raise error(Status.UNSUPPORTED, "this storage has no peers")

    forward = committed = list_chunks = put_records = finish_sync = add_target = drop_target = _between_servers

    def __init__(self) -> None:
        self.chains: dict[int, Chain] = {}
        self.chunks: dict[tuple[int, int], Chunk] = {}
        self.seen: dict[tuple[bytes, int], tuple[int, int]] = {}  # (client, channel) -> (sequence, status)
        self.floors: dict[int, int] = {}  # inode -> truncate version below which writes are refused
        self.raises: deque[StatusError] = deque()  # instead of the next requests, before anything is done
        self.raises_after: deque[StatusError] = deque()  # instead of the next answers, after it was done
        self.statuses: deque[Status] = deque()  # of the next single operations
        self.flips: deque[int] = deque()  # bit masks for the first byte of the next reads
        self.reports: list[tuple[int, int, int]] = []  # (target, inode, index)
        self.requests: list[str] = []
        self.applied: list[tuple[int, int, int]] = []  # (inode, index, offset) of writes that took effect

    def _check(self, request: Any, i: int) -> Status:
        if self.statuses:
            return self.statuses.popleft()
        return self._check_version(request, i)

    def _check_version(self, request: Any, i: int) -> Status:
        chain = self.chains.get(request.chain[i])
        if chain is None or chain.version != request.chain_version[i]:
            return Status.STALE_CHAIN_VERSION
        return Status.OK

    async def _enter(self, name: str) -> None:
        self.requests.append(name)
        if self.raises:
            raise self.raises.popleft()

    def _newer(self, statuses: Any) -> list[Chain]:
        return list(self.chains.values()) if Status.STALE_CHAIN_VERSION in statuses else []

    async def read(self, request: pb.ReadRequest, context: Context) -> pb.ReadReply:
        await self._enter("read")
        sink = context.sink(sum(request.length))
        reply = pb.ReadReply()
        position = 0
        for i, wanted in enumerate(request.length):
            status = self._check(request, i)
            chunk = self.chunks.get((request.inode[i], request.index[i]))
            if status is Status.OK and chunk is None:
                status = Status.CHUNK_NOT_FOUND
            data = b"" if status or chunk is None else bytes(chunk.data[request.offset[i] : request.offset[i] + wanted])
            unit = checksum_unit(chunk.size if chunk else 1 << 20)
            sums = self._sums(data, request.offset[i], unit)
            if data:
                sent = bytearray(data)
                if self.flips:
                    sent[0] ^= self.flips.popleft()
                self._fill(sink, position, sent)
            reply.status.append(status)
            reply.returned.append(len(data))
            reply.checksums.append(len(sums))
            reply.checksum.extend(sums)
            reply.unit.append(unit)
            reply.commit_version.append(chunk.version if chunk else 0)
            position += wanted
        reply.chains.extend(self._newer(reply.status))
        return reply

    @staticmethod
    def _fill(sink: Any, position: int, data: bytearray) -> None:
        done = 0
        for buffer in sink.buffers(position, len(data)):
            buffer[:] = data[done : done + len(buffer)]
            done += len(buffer)
        sink.filled(position, len(data))

    @staticmethod
    def _sums(data: bytes, offset: int, unit: int) -> list[int]:
        # Long pieces get one checksum per unit, short ones a single one: a client must understand both.
        if len(data) <= 2 * unit:
            return [crc32c.crc32c(data)]
        sums, begin = [], 0
        while begin < len(data):
            end = min(len(data), ((offset + begin) // unit + 1) * unit - offset)
            sums.append(crc32c.crc32c(data[begin:end]))
            begin = end
        return sums

    async def write(self, request: pb.WriteRequest, context: Context) -> pb.WriteReply:
        await self._enter("write")
        if request.sync:
            self.requests.append("synced with the write")
        data = bytes(await context.pull())
        assert len(set(request.channel)) == len(request.channel), "a channel occurs once in a request"
        reply = pb.WriteReply()
        position = 0
        for i, length in enumerate(request.length):
            piece = data[position : position + length]
            position += length
            reply.status.append(self._write(request, i, piece, context.peer.client))
            reply.commit_version.append(0)
            reply.chunk_length.append(0)
        reply.chains.extend(self._newer(reply.status))
        if self.raises_after:
            raise self.raises_after.popleft()
        return reply

    def _write(self, request: pb.WriteRequest, i: int, piece: bytes, client: bytes) -> int:
        status = self._check(request, i)
        if status:
            return status
        key, sequence = (client, request.channel[i]), request.sequence[i]
        last, result = self.seen.get(key, (0, 0))
        if sequence <= last:
            return result if sequence == last else Status.DUPLICATE
        if crc32c.crc32c(piece) != request.checksum[i]:
            return Status.CHECKSUM
        if request.truncate_version[i] < self.floors.get(request.inode[i], 0):
            return Status.STALE_TRUNCATE_VERSION
        chunk = self.chunks.setdefault((request.inode[i], request.index[i]), Chunk())
        offset = request.offset[i]
        if len(chunk.data) < offset:
            chunk.data.extend(bytes(offset - len(chunk.data)))
        chunk.data[offset : offset + len(piece)] = piece
        chunk.truncate_version, chunk.size = request.truncate_version[i], request.chunk_size[i]
        chunk.chain = request.chain[i]
        chunk.version += 1
        self.applied.append((request.inode[i], request.index[i], offset))
        self.seen[key] = (sequence, 0)
        return 0

    async def clone(self, request: pb.CloneRequest, context: Context) -> pb.CloneReply:
        await self._enter("clone")
        reply = pb.CloneReply()
        for i in range(len(request.inode)):
            status = self._clone(request, i, context.peer.client)
            made = self.chunks.get((request.inode[i], request.index[i]))
            reply.status.append(status)
            reply.commit_version.append(made.version if made else 0)
            reply.chunk_length.append(len(made.data) if made else 0)
        reply.chains.extend(self._newer(reply.status))
        if self.raises_after:
            raise self.raises_after.popleft()
        return reply

    def _clone(self, request: pb.CloneRequest, i: int, client: bytes) -> int:
        status = self._check(request, i)
        key, sequence = (client, request.channel[i]), request.sequence[i]
        last, result = self.seen.get(key, (0, 0))
        if status or sequence <= last:
            return status or (result if sequence == last else Status.DUPLICATE)
        if request.truncate_version[i] < self.floors.get(request.inode[i], 0):
            return Status.STALE_TRUNCATE_VERSION
        if request.source_truncate_version[i] < self.floors.get(request.source_inode[i], 0):
            return Status.STALE_TRUNCATE_VERSION
        self.seen[key] = (sequence, 0)
        made = request.inode[i], request.index[i]
        source = self.chunks.get((request.source_inode[i], request.source_index[i]))
        self.applied.append((*made, 0))
        old = self.chunks.pop(made, None)
        if source is not None and request.source_inode[i]:
            data = source.data[: request.length[i]]
            version = old.version if old else 0
            self.chunks[made] = Chunk(
                bytearray(data), request.truncate_version[i], version + 1, source.size, request.chain[i]
            )
        return 0

    async def extents(self, request: pb.ExtentsRequest, context: Context) -> pb.ExtentsReply:
        await self._enter("extents")
        reply = pb.ExtentsReply()
        for i, inode in enumerate(request.inode):
            wanted = range(request.first[i], request.last[i])
            found = sorted(
                (index, len(chunk.data))
                for (owner, index), chunk in self.chunks.items()
                if owner == inode and index in wanted and chunk.chain == request.chain[i]
            )
            reply.status.append(self._check(request, i))
            reply.chunks.append(len(found))
            reply.more.append(False)
            reply.index.extend([index for index, _ in found])
            reply.length.extend([length for _, length in found])
        reply.chains.extend(self._newer(reply.status))
        return reply

    async def truncate(self, request: pb.TruncateChunkRequest, context: Context) -> pb.TruncateChunkReply:
        reply = pb.TruncateChunkReply()
        for i, length in enumerate(request.length):
            key = request.inode[i], request.index[i]
            self.floors[key[0]] = max(self.floors.get(key[0], 0), request.truncate_version[i])
            chunk = self.chunks.get(key)
            if chunk is None:
                reply.status.append(Status.CHUNK_NOT_FOUND)
                continue
            del chunk.data[length:]
            chunk.truncate_version = request.truncate_version[i]
            if not length:
                del self.chunks[key]
            reply.status.append(0)
        return reply

    async def remove(self, request: pb.RemoveChunksRequest, context: Context) -> pb.RemoveChunksReply:
        reply = pb.RemoveChunksReply()
        for i, inode in enumerate(request.inode):
            version = request.truncate_version[i] if request.truncate_version else 1 << 31
            if request.truncate_version:
                self.floors[inode] = max(self.floors.get(inode, 0), version)
            doomed = [
                key
                for key, chunk in self.chunks.items()
                if key[0] == inode and request.first[i] <= key[1] < request.last[i] and chunk.truncate_version < version
            ]
            for key in doomed:
                del self.chunks[key]
            reply.status.append(0)
            reply.removed.append(len(doomed))
            reply.more.append(False)
        return reply

    async def query_last(self, request: pb.QueryLastRequest, context: Context) -> pb.QueryLastReply:
        reply = pb.QueryLastReply()
        for i, inode in enumerate(request.inode):
            mine = {
                index: len(chunk.data)
                for (owner, index), chunk in self.chunks.items()
                if owner == inode and chunk.truncate_version >= request.truncate_version[i]
            }
            last = max(mine, default=0)
            reply.status.append(0)
            reply.found.append(bool(mine))
            reply.index.append(last)
            reply.length.append(mine.get(last, 0))
        return reply

    async def sync(self, request: pb.SyncRequest, context: Context) -> pb.SyncReply:
        await self._enter("sync")
        statuses = [self._check_version(request, i) for i in range(len(request.chain))]
        return pb.SyncReply(status=statuses, chains=self._newer(statuses))

    async def space(self, request: pb.SpaceRequest, context: Context) -> pb.SpaceReply:
        return pb.SpaceReply()

    async def report_corruption(
        self, request: pb.ReportCorruptionRequest, context: Context
    ) -> pb.ReportCorruptionReply:
        self.reports += zip(request.target, request.inode, request.index, strict=True)
        return pb.ReportCorruptionReply()
