"""What must hold when everything was healed and every client has ended: replicas hold the same, nothing is left undecided."""

from __future__ import annotations

from typing import Any

from emberfs.storage.engine.checksum import crc32c
from emberfs.storage.engine.engine import ChunkEngine
from emberfs.storage.target import Target

from .cluster import ChainCluster
from .watch import LAST_CHUNK

SETTLE_SECONDS = 30.0  # until the last pending versions are committed everywhere


async def check_replicas(cluster: ChainCluster) -> None:
    """All members of a chain hold the same chunks, under the same versions, with the same bytes, and recognise the same retries."""
    loop = cluster.simulation.loop
    until = loop.time + SETTLE_SECONDS
    for chain in cluster.chains:
        targets = [target for _, target in cluster.members(chain)]
        assert len(targets) == cluster.knobs.replicas, f"chain {chain} has {len(targets)} replicas"
        while any(_busy(target) for target in targets):
            assert loop.time < until, f"chain {chain} does not come to rest"
            await loop.sleep(0.2)
        held = [held_by(target.engine) for target in targets]
        for target, one in zip(targets[1:], held[1:], strict=True):
            assert one == held[0], f"chain {chain}: target {targets[0].id} holds {held[0]}, target {target.id} {one}"
        receipts = [receipts_of(target.engine) for target in targets]
        for target, mine in zip(targets[1:], receipts[1:], strict=True):
            assert mine == receipts[0], (
                f"chain {chain}: receipts of {targets[0].id} {receipts[0]}, of {target.id} {mine}"
            )


def _busy(target: Target) -> bool:
    pending = any(info.pending for info in target.engine.chunks(b"", LAST_CHUNK))
    return bool(target.replica.in_flight) or pending


def held_by(engine: ChunkEngine) -> dict[str, Any]:
    """Chunk -> version, chain version, length, truncate version and content, verified."""
    found = {}
    for info in engine.chunks(b"", LAST_CHUNK):
        content = bytes(engine.read(info.chunk)) if info.length else b""
        version = (info.version, info.chain_version, info.truncate_version)
        found[info.chunk.hex()] = (*version, len(content), crc32c(content))
    return found


def receipts_of(engine: ChunkEngine) -> dict[tuple[str, int], int]:
    return {(receipt.client.hex(), receipt.channel): receipt.sequence for receipt in engine.receipts()}
