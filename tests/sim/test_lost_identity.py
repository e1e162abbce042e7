"""A client whose lease ran out goes on under a new identity; nothing that was under way is repeated under that one."""

from __future__ import annotations

from emberfs.client.core.file import Handle
from emberfs.client.core.options import parse_mode
from emberfs.client.core.whole import read_bytes, write_bytes
from emberfs.proto.errors import Status, StatusError

from .environment import Simulation
from .stories import Cluster


def test_a_change_is_not_repeated_under_another_identity() -> None:
    """Its number would mean another request there, and the server could not know it for a repetition: whether it happened is open."""
    simulation = Simulation(4)

    async def story() -> None:
        cluster = await Cluster(simulation).start()
        core = await cluster.client("ann")
        file = await core.open("/f", parse_mode("wb"))  # from here on there is a lease to lose
        host = simulation.host("ann")
        identity = core.env.client  # type: ignore[attr-defined]

        async def change() -> Status:
            try:
                await core.mkdir("/during")
            except StatusError as failure:
                return failure.status
            return Status.OK

        simulation.network.partition([host], [cluster.meta])
        task = simulation.host("story").spawn(change(), "change")
        await core.env.sleep(12)
        await core.lose_lease(core.lease)  # as the keeper does when it finds out
        simulation.network.heal()
        assert await task is Status.MAYBE_COMMITTED
        assert core.env.client != identity  # type: ignore[attr-defined]
        for i in range(10):
            await core.mkdir(f"/{i}")
        await file.write(b"under the new one")  # nothing was unwritten, so the handle was opened anew
        await file.close()
        assert await read_bytes(core, "/f") == b"under the new one"

    simulation.run(story())


def test_what_was_opened_while_the_identity_was_lost_is_not_the_new_ones() -> None:
    """Between the answer to an open and its handle, the client may ask for a chain table that it has not heard of."""
    simulation = Simulation(4)

    async def story() -> None:
        cluster = await Cluster(simulation).start()
        core = await cluster.client("ann")
        await write_bytes(core, "/f", b"from before")
        lasting = await core.open("/lasting", parse_mode("wb"))  # from here on there is a lease to lose
        opened: dict[str, Handle | Status] = {}

        async def open_as(mode: str) -> None:
            try:
                opened[mode] = await core.open("/f", parse_mode(mode))
            except StatusError as failure:
                opened[mode] = failure.status

        for mode in ("r+b", "rb"):
            core.cluster.table.version = 0  # as if it had not heard of any
            core.cluster.table.tables.clear()
            simulation.network.hold("GetRouting", "ann", "meta")
            task = simulation.host("story").spawn(open_as(mode), mode)
            await core.env.sleep(1)
            await core.lose_lease(core.lease)
            simulation.network.release()
            await task
        assert opened["r+b"] is Status.SESSION_ENDED, "the session was the old identity's"
        reader = opened["rb"]
        assert isinstance(reader, Handle) and reader.file is core.inodes[reader.file.id]
        assert await reader.read() == b"from before"
        for handle in (reader, lasting):
            await handle.close()

    simulation.run(story())
