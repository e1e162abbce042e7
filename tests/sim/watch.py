"""What is watched from outside while a run goes on: chains as the managers and everybody else knows them, versions as the disks hold them.

Each watcher is told or looks; none of them changes anything. What they assert is in `facts` of the protocol: one entry per chain version,
members in the order of their states, one SYNCING at most, versions that only rise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from emberfs.meta.cluster.chain import LASTSRV, ORDER, SERVING, SYNCING
from emberfs.proto.gen.common_pb2 import Chain
from emberfs.storage.engine.engine import ChunkEngine

from .disks import Platters

LAST_CHUNK = b"\xff" * 17  # behind every chunk id


class ChainWatch:
    """Every entry of a chain that anybody has seen. `lost(chain)` is called when a member serves again that has lost what it had not
    synced: what was acknowledged and not synced may be gone then, and nothing else."""

    def __init__(self, lost: Callable[[int], None]) -> None:
        self.entries: dict[tuple[int, int], bytes] = {}  # (chain, version) -> the entry
        self._newest: dict[int, Chain] = {}
        self._members: dict[int, frozenset[int]] = {}
        self._incomplete: set[int] = set()  # incarnations of targets that fell back, and were not copied to since
        self._lost = lost

    def fell_back(self, platters: Platters) -> None:
        """Power was lost, or a sync has failed."""
        self._incomplete.add(platters.incarnation)

    def see(self, chains: Iterable[Chain], who: str) -> None:
        for chain in chains:
            key = (chain.id, chain.version)
            data = chain.SerializeToString(deterministic=True)
            known = self.entries.get(key)
            if known is None:
                self.entries[key] = data
                self._check(chain, who)
            assert known in (None, data), (
                f"two entries of chain {chain.id} have version {chain.version}; {who} has\n{chain}"
            )

    def _check(self, chain: Chain, who: str) -> None:
        states = [member.state for member in chain.members]
        assert sorted(states, key=ORDER.__getitem__) == states, f"members out of order, as {who} sees them:\n{chain}"
        assert states.count(SYNCING) <= 1, f"two are copied to at once, as {who} sees it:\n{chain}"
        assert SERVING in states or LASTSRV in states, f"nobody could revive this chain:\n{chain}"
        assert SERVING in states or SYNCING not in states, f"nobody copies to the one that is SYNCING:\n{chain}"

    def changed(self, chains: Iterable[Chain]) -> None:
        """A primary has made these durable and told everybody."""
        chains = list(chains)
        self.see(chains, "the manager")
        for chain in chains:
            before = self._newest.get(chain.id)
            if before is not None and before.version >= chain.version:
                continue
            self._newest[chain.id] = Chain.FromString(chain.SerializeToString())
            states = {member.target: member.state for member in before.members} if before is not None else {}
            for member in chain.members:
                if member.state != SERVING or member.incarnation not in self._incomplete:
                    continue
                if states.get(member.target) != SYNCING:
                    self._lost(chain.id)
                self._incomplete.discard(member.incarnation)

    def answered(self, target: int, entry: Chain | None, known: Iterable[Chain]) -> None:
        """A target has answered a read by `entry`. Whatever it has heard: the newest entry that there is says that it is SERVING, or it was
        cut off and became SYNCING since, and nothing is acknowledged that has not gone through it. `known`: what the manager has of
        this chain."""
        assert entry is not None, f"target {target} answers a read and is in no chain"
        noted = self._newest.get(entry.id)
        newest = max([entry, *known, *([noted] if noted is not None else [])], key=lambda chain: chain.version)
        later = [self.entries.get((entry.id, version)) for version in range(entry.version + 1, newest.version)]
        states = [
            _state(chain, target) for chain in (entry, *(Chain.FromString(data) for data in later if data), newest)
        ]
        while len(states) > 1 and states[-1] == SYNCING:
            states.pop()
        assert set(states) == {SERVING}, f"target {target} answers by version {entry.version}, which is over:\n{newest}"


def _state(chain: Chain, target: int) -> int:
    return next((member.state for member in chain.members if member.target == target), 0)


class VersionWatch:
    """Committed versions of chunks on one disk rise while its target is SERVING, and the same version has the same content."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, bytes], tuple[int, int]] = {}  # (incarnation, chunk) -> (version, checksum)

    def look(self, incarnation: int, engine: ChunkEngine, serving: bool) -> None:
        if engine.failed:
            return
        for info in engine.chunks(b"", LAST_CHUNK):
            key = (incarnation, info.chunk)
            if info.pending and info.version:
                assert info.pending > info.version, f"version {info.pending} is pending over {info.version}: {info}"
            if not serving or not info.version:
                self._seen.pop(key, None)
                continue
            version, checksum = self._seen.get(key, (0, 0))
            assert info.version >= version, f"a committed version went back from {version}: {info}"
            if info.version == version:
                assert info.checksum == checksum, f"version {version} has other bytes now: {info}"
            self._seen[key] = info.version, info.checksum

    def forget(self, incarnation: int) -> None:
        """Power was lost, or it does not serve any more: it may have gone back."""
        for key in [key for key in self._seen if key[0] == incarnation]:
            del self._seen[key]
