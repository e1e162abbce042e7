"""KV events as vLLM's own classes read them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .parts import require, stand_in

require("vllm", "vLLM")
require("zmq", "pyzmq")

import msgspec  # noqa: E402
import zmq  # noqa: E402

from emberfs.kvcache import KVCache  # noqa: E402
from emberfs.kvcache.adapters.events import END, EventPublisher, Relay  # noqa: E402
from emberfs.kvcache.adapters.settings import AdapterSettings  # noqa: E402

from ..faces import keys_of, spec_of  # noqa: E402
from . import vllm_host  # noqa: E402, F401  # enters the package

stand_in("vllm.config.kv_events", KVEventsConfig=object)
stand_in("vllm.v1.core.kv_cache_utils", ExternalBlockHash=bytes | int)

from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch  # noqa: E402

if TYPE_CHECKING:
    from emberfs_cluster import LocalCluster

pytestmark = pytest.mark.engines

WAIT_MS = 20_000


@pytest.fixture
def endpoint() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="emberfs-") as folder:
        yield f"ipc://{Path(folder) / 'events'}"


class Subscriber:
    """What a router does."""

    def __init__(self, endpoint: str, publisher: Any) -> None:
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(endpoint)
        while not self._socket.poll(50):  # until the publisher knows of us
            publisher()
        while self._socket.poll(50):
            self.number = int.from_bytes(self._socket.recv_multipart()[1], "big")

    def next(self) -> Any:
        assert self._socket.poll(WAIT_MS), "no event"
        _, number, batch = self._socket.recv_multipart()
        self.number += 1
        assert int.from_bytes(number, "big") == self.number
        return msgspec.msgpack.Decoder(KVEventBatch).decode(batch)

    def close(self) -> None:
        self._socket.close(linger=0)


def test_its_classes_read_our_events(endpoint: str) -> None:
    publisher = EventPublisher(endpoint, replay_endpoint=endpoint + "-replay", topic="kv", rank=3, locality="REMOTE")
    subscriber = Subscriber(endpoint, publisher.cleared)
    keys = keys_of(3)
    publisher.stored(keys, parent=keys[0], tokens=range(48), block_tokens=16, group=1)
    publisher.removed(keys[:1])
    publisher.cleared()
    batch = subscriber.next()
    [stored] = batch.events
    assert isinstance(stored, BlockStored) and batch.data_parallel_rank == 3
    assert (stored.block_hashes, stored.parent_block_hash, stored.token_ids) == (keys, keys[0], list(range(48)))
    assert (stored.block_size, stored.medium, stored.locality, stored.ownership, stored.group_idx) == (
        16, "STORAGE", "REMOTE", "emberfs", 1,
    )  # fmt: skip
    [removed] = subscriber.next().events
    assert isinstance(removed, BlockRemoved) and removed.block_hashes == keys[:1]
    assert isinstance(subscriber.next().events[0], AllBlocksCleared)

    asking = zmq.Context.instance().socket(zmq.DEALER)
    asking.connect(endpoint + "-replay")
    first = subscriber.number - 2
    asking.send_multipart((b"", first.to_bytes(8, "big")))
    for number in range(first, first + 3):
        assert asking.poll(WAIT_MS)
        assert asking.recv_multipart()[1:3] == [b"kv", number.to_bytes(8, "big")]
    assert asking.recv_multipart()[2] == END
    asking.close(linger=0)
    subscriber.close()
    publisher.close()
    publisher.close()


def test_what_a_cache_stores_is_published(cluster: LocalCluster, endpoint: str) -> None:
    kv = KVCache(cluster.url)
    relay = Relay.of(kv, AdapterSettings(kv_events=endpoint))
    assert relay is not None
    namespace = kv.namespace(spec_of(1000))
    subscriber = Subscriber(endpoint, lambda: kv.put(namespace, keys_of(1)[0], bytes(1000)))
    keys = keys_of(4)
    kv.put_from(namespace, keys, [bytes(1000)] * 4)
    [stored] = subscriber.next().events
    assert (sorted(stored.block_hashes), stored.block_size) == (sorted(keys), 16)
    kv.put_from(namespace, keys, [bytes(1000)] * 4)  # they are there already: no event
    kv.delete(namespace, keys[:2])
    [removed] = subscriber.next().events
    assert isinstance(removed, BlockRemoved) and sorted(removed.block_hashes) == sorted(keys[:2])
    relay.close()
    relay.close()
    subscriber.close()
    kv.close()


def test_no_relay_unless_it_is_wanted(cluster: LocalCluster) -> None:
    with KVCache(cluster.url) as kv:
        assert Relay.of(kv, AdapterSettings()) is None
