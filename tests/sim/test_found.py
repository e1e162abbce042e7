"""What the simulator has found, as short stories that name the fault; they run without chance."""

from __future__ import annotations

import pytest

from emberfs.client.core.options import parse_mode
from emberfs.client.core.whole import read_bytes, write_bytes
from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.cluster_pb2 import RenewClientRequest
from emberfs.proto.gen.common_pb2 import FILE_TYPE_DIRECTORY
from emberfs.proto.rpc import CLUSTER, META

from .environment import Simulation
from .stories import Cluster


def test_a_late_copy_of_an_answered_request_changes_nothing() -> None:
    """A create waits in the buffer of a connection that its client has given up. The client repeats it elsewhere, gets the answer, says
    so (and the record of it goes), and renames the directory. Then the first copy is read: it must not make the directory again."""
    simulation = Simulation(1)

    async def story() -> None:
        await Cluster(simulation).start()
        env = simulation.environment(simulation.host("client"))
        entry = meta_pb2.NewEntry(place=meta_pb2.Place(path=b"a"), type=FILE_TYPE_DIRECTORY, mode=0o755)
        create = Call("local:meta", META.Create, meta_pb2.CreateRequest(entries=[entry], request_id=4), 10)
        first = await env.call(create)
        again = await env.call(create)
        assert again.attributes[0].inode == first.attributes[0].inode
        await env.call(Call("local:meta", CLUSTER.RenewClient, RenewClientRequest(acknowledged_request=4), 10))
        a, b = meta_pb2.Place(path=b"a"), meta_pb2.Place(path=b"b")
        await env.call(Call("local:meta", META.Rename, meta_pb2.RenameRequest(source=a, target=b, request_id=5), 10))
        with pytest.raises(StatusError) as refusal:
            await env.call(create)
        assert refusal.value.status is Status.DUPLICATE
        found = await env.call(Call("local:meta", META.Stat, meta_pb2.StatRequest(places=[a, b]), 10))
        assert list(found.statuses) == [Status.NOT_FOUND, Status.OK]

    simulation.run(story())


def test_a_lease_outlives_a_long_outage_of_storage() -> None:
    """While what is dirty waits for storage, the keeper goes on renewing: the data is there in the end, not thrown away with the lease."""
    simulation = Simulation(2)

    async def story() -> None:
        cluster = await Cluster(simulation).start()
        core = await cluster.client("ann")
        file = await core.open("/f", parse_mode("wb"))
        await file.write(b"written before the outage")
        identity = core.env.client  # type: ignore[attr-defined]
        cluster.disk.freeze()
        await core.env.sleep(100)
        cluster.disk.thaw()
        await file.close()
        assert core.env.client == identity  # type: ignore[attr-defined]
        assert await read_bytes(core, "/f") == b"written before the outage"

    simulation.run(story())


def test_who_opens_right_after_a_renewal_is_waited_for() -> None:
    """He reports the file with his second renewal from then on, and one may be lost; its chunks are not removed before."""
    simulation = Simulation(3)

    async def story() -> None:
        cluster = await Cluster(simulation).start()
        reader, other = await cluster.client("ann"), await cluster.client("bob")
        await write_bytes(other, "/first", b"")
        await write_bytes(other, "/f", b"still here")
        await reader.open("/first", parse_mode("rb"))
        await reader.env.sleep(0.1)
        file = await reader.open("/f", parse_mode("rb"))
        await other.unlink("/f")
        await reader.env.sleep(15)
        simulation.network.partition([simulation.host("ann")], [cluster.meta])
        await reader.env.sleep(8)
        simulation.network.heal()
        await reader.env.sleep(100)
        assert await file.pread(100, 0) == b"still here"
        await file.close()
        await reader.env.sleep(60)
        assert not [chunk for chunk in cluster.storage.chunks if chunk[0] == file.file.id]

    simulation.run(story())
