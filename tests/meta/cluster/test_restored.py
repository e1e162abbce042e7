"""What a copy of the cluster's records needs before it may be used."""

from __future__ import annotations

from emberfs.meta.cluster.chain import Report, next_chain
from emberfs.meta.cluster.restored import take_up
from emberfs.meta.cluster.routing import Book, Draft, Kind, State
from emberfs.meta.cluster.store import Store
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_ONLINE
from emberfs.proto.gen.common_pb2 import TARGET_STATE_LASTSRV, TARGET_STATE_SERVING, Chain, ChainMember


async def restored(chain: Chain) -> Chain:
    """The entry of a chain as it comes out of a copy that was made when it was this one."""
    engine = MemoryEngine(lambda: 0.0)
    store = Store(engine)
    await store.create(State("c", b"k" * 32))
    draft = Draft(Book(State("c", b"k" * 32)))
    draft.put(Kind.CHAIN, chain, chain.id)
    await store.save(draft)
    await take_up(engine)
    loaded = await store.load()
    assert loaded is not None
    return Book(*loaded).chains[chain.id]


def member(target: int, power_losses: int = 0) -> ChainMember:
    return ChainMember(target=target, node=target, state=TARGET_STATE_SERVING, incarnation=5, power_losses=power_losses)


async def test_nobody_finds_the_losses_that_he_was_told_of_before() -> None:
    """Power was lost after the copy was made, and a client was told of that one loss before it wrote; then power was lost again, and the
    metadata with it. What the client has not synced is gone: the number of losses must not come out as the one that it knows."""
    told = next_chain(
        Chain(id=1, version=3, members=[member(7)]), {7: Report(LOCAL_STATE_ONLINE, 5, restarted=True, power_losses=1)}
    )
    assert told.losses == 1
    copy = await restored(Chain(id=1, version=3, members=[member(7)]))
    after = next_chain(copy, {7: Report(LOCAL_STATE_ONLINE, 5, restarted=True, power_losses=2)})
    assert after.version > told.version
    assert after.losses > told.losses + 1


async def test_a_chain_may_go_on_with_a_member_that_had_left_it() -> None:
    """Nobody knows who has had to leave a chain since the copy was made: whoever revives it may lack what was acknowledged."""
    copy = await restored(Chain(id=1, version=3, losses=4, members=[member(7), member(8)]))
    assert [m.state for m in copy.members] == [TARGET_STATE_LASTSRV] * 2
    assert next_chain(copy, {7: Report(LOCAL_STATE_ONLINE, 5, power_losses=0)}).losses > 4
