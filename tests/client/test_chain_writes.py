"""Writes while members of a chain die and stop: they wait for the manager to move the chain, no longer, and count exactly once."""

from __future__ import annotations

import random

import pytest

from emberfs.client.core.file import Handle
from emberfs.client.core.writes import sync_chains
from emberfs.proto.errors import Status, error

from .chain_world import ChainWorld, opened, run

CHUNK = 64 << 10
STALL_SECONDS_MAX = 5.0 + 0.5 + 1.0  # of a write: the lease, the manager's scan, and the client's own
DATA = random.Random(4).randbytes(40 * CHUNK)


async def new_file(world: ChainWorld, **options: int) -> Handle:
    core = await world.client(**options)
    return await opened(core, "/f", "w+b", chunk_size=CHUNK)


@pytest.mark.parametrize("fault", ["kill", "stop", "kill just before", "cut"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_member_that_dies_or_stops_stalls_writes_until_the_chain_has_moved(fault: str, place: int) -> None:
    async def story(world: ChainWorld) -> None:
        file = await new_file(world, write_back=0)
        victim, written, worst = world.member(place), 0, 0.0
        for number in range(40):
            if number == 10 and fault != "kill just before":
                world.simulation.loop.call_at(world.now + 0.001, lambda: strike(world, fault, victim.host))
            elif number == 10:
                strike(world, "kill", victim.host)
            _, seconds = await world.timed(file.write(DATA[written : written + CHUNK]))
            written += CHUNK
            worst = max(worst, seconds)
            await world.sleep(0.001)
        if fault == "stop":
            victim.host.thaw()
        assert 3 < worst <= STALL_SECONDS_MAX
        await file.fsync()
        assert world.states() == [True, True, False]
        assert await file.pread(len(DATA), 0) == DATA
        applied = world.members[0].applied
        assert len(applied) == len(set(applied)) == 40, "exactly once"

    run(story, seed=place)


def strike(world: ChainWorld, fault: str, host: object) -> None:
    [hit] = [member.host for member in world.members if member.host is host]
    if fault == "kill":
        hit.crash()
    elif fault == "stop":
        hit.freeze()
    else:
        # From everybody: as a node whose cable was pulled. It runs on, and its heartbeats do not arrive.
        world.simulation.network.partition([hit], [world.simulation.host("client"), world.meta])
        hit.freeze()


def test_write_back_and_fsync_wait_as_long() -> None:
    async def story(world: ChainWorld) -> None:
        file = await new_file(world)
        await file.write(DATA[: 20 * CHUNK])
        world.member(0).host.freeze()
        await file.write(DATA[20 * CHUNK :])
        _, seconds = await world.timed(file.fsync())
        assert seconds <= 2 * STALL_SECONDS_MAX
        assert await file.pread(len(DATA), 0) == DATA
        await file.close()

    run(story)


def test_a_sync_whose_head_stops_goes_to_the_next_one() -> None:
    async def story(world: ChainWorld) -> None:
        file = await new_file(world)
        await file.write(DATA[:CHUNK])
        await file.flush()
        head = world.member(0)
        head.host.freeze()
        _, seconds = await world.timed(sync_chains(file.core.cluster, file.file.chains))
        assert 3 < seconds <= STALL_SECONDS_MAX
        assert "sync" not in head.requests and "sync" in world.member(0).requests

    run(story)


def test_a_head_that_applied_a_write_and_died_before_its_answer() -> None:
    """Its successor has the number, and answers what the head would have answered."""

    async def story(world: ChainWorld) -> None:
        file = await new_file(world, write_back=0)
        head = world.member(0)
        head.raises_after.append(error(Status.MAYBE_COMMITTED))
        head.raises.clear()
        world.simulation.loop.call_at(world.now + 0.003, head.host.crash)
        await file.write(DATA[:CHUNK])
        await file.pwrite(b"later", 10)
        assert await file.pread(20, 0) == DATA[:10] + b"later" + DATA[15:20]
        assert len(world.members[0].applied) == 2

    run(story)


def test_a_fenced_head_is_asked_again_until_it_serves_or_another_does() -> None:
    async def story(world: ChainWorld) -> None:
        file = await new_file(world, write_back=0)
        world.member(0).statuses.extend([Status.FENCED] * 5)
        _, seconds = await world.timed(file.write(DATA[:CHUNK]))
        assert seconds < 1
        assert len(world.members[0].applied) == 1

    run(story)


def test_without_any_head_a_write_ends_at_its_deadline_and_may_be_repeated() -> None:
    async def story(world: ChainWorld) -> None:
        file = await new_file(world, write_back=0, timeout=8)
        for member in world.members:
            member.host.freeze()
        began = world.now
        with pytest.raises(TimeoutError, match="gave up after 8 s"):
            await file.write(DATA[:CHUNK])
        assert world.now - began < 10

    run(story)


def test_a_truncate_while_the_head_is_stopped_waits_for_the_next_one() -> None:
    async def story(world: ChainWorld) -> None:
        file = await new_file(world)
        await file.write(DATA)
        await file.flush()
        world.member(0).host.freeze()
        _, seconds = await world.timed(file.truncate(CHUNK + 100))
        assert seconds <= STALL_SECONDS_MAX
        assert await file.pread(len(DATA), 0) == DATA[: CHUNK + 100]

    run(story)
