"""What the simulator has found, as short stories that name the fault; they run without chance."""

from __future__ import annotations

import pytest

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
