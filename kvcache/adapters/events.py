"""KV events in vLLM's form: which blocks the cache holds, for routers that send a request to where its prefix is.

One ZeroMQ PUB socket; each message is (topic, sequence number as 8 bytes big-endian, msgpack), the content a batch [time, [event, ...],
rank]. Events are maps with a `type`: BlockStored, BlockRemoved, AllBlocksCleared. A subscriber that sees a gap in the numbers asks the
ROUTER socket, if there is one, for everything from a number on. Consumers of vLLM's events (llm-d, Dynamo, Mooncake's conductor)
read these without a change; block hashes are our keys, 32 bytes, medium is "STORAGE".

Needs `pyzmq` and `msgspec`, which the engines bring along.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import msgspec
import zmq

from .settings import AdapterSettings, logger

if TYPE_CHECKING:
    from ..blocking import KVCache

REPLAY_BATCHES = 10_000  # that are kept for subscribers who missed some
QUEUED_MESSAGES_MAX = 100_000  # of each subscriber; a slower one misses some, and sees that by their numbers
POLL_MS = 200  # within which a request for a replay, or the end, is noticed
SEQUENCE_BYTES = 8
END = (-1).to_bytes(SEQUENCE_BYTES, "big", signed=True)  # behind the last batch of a replay


def _socket(kind: int, endpoint: str, high_water: int) -> zmq.Socket[bytes]:
    """Bound where the endpoint has a place for subscribers ("tcp://*:5557", "ipc:///run/kv"), else connected to it ("tcp://router:5557")."""
    socket = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.SNDHWM, high_water)
    socket.setsockopt(zmq.LINGER, 0)
    if kind == zmq.ROUTER or "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://")):
        socket.bind(endpoint)
    else:
        socket.connect(endpoint)
    return socket


class EventPublisher:
    """Publishes what happens to blocks. Thread-safe; never waits for a subscriber. Raises zmq.ZMQError for endpoints that are taken.

    `rank` is the data-parallel rank that consumers know this cache by, `locality` "LOCAL" or "REMOTE" as they see it."""

    def __init__(
        self,
        endpoint: str,
        *,
        replay_endpoint: str | None = None,
        topic: str = "",
        rank: int | None = None,
        locality: str | None = None,
        owner: str | None = "emberfs",
    ) -> None:
        self._topic, self._rank = topic.encode(), rank
        self._fixed = {"locality": locality, "ownership": owner}
        self._lock = threading.Lock()
        self._next = 0
        self._sent: deque[tuple[bytes, bytes]] = deque(maxlen=REPLAY_BATCHES)
        self._encoder = msgspec.msgpack.Encoder()
        self._publisher: zmq.Socket[bytes] | None = _socket(zmq.PUB, endpoint, QUEUED_MESSAGES_MAX)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        if replay_endpoint is not None:
            router = _socket(zmq.ROUTER, replay_endpoint, 2 * (REPLAY_BATCHES + 1))
            self._thread = threading.Thread(target=self._serve_replays, args=(router,), name="kv-events", daemon=True)
            self._thread.start()

    def stored(
        self,
        hashes: Sequence[bytes],
        *,
        parent: bytes | None = None,
        tokens: Sequence[int] = (),
        block_tokens: int = 0,
        group: int | None = None,
        medium: str = "STORAGE",
    ) -> None:
        """Blocks are there now, in the order of their prefix; `parent` stands before the first. Stores rarely know tokens."""
        self.publish([
            {
                "type": "BlockStored", "block_hashes": list(hashes), "parent_block_hash": parent, "token_ids": list(tokens),
                "block_size": block_tokens, "lora_id": None, "medium": medium, "lora_name": None, "group_idx": group, **self._fixed,
            }
        ])  # fmt: skip

    def removed(self, hashes: Sequence[bytes], *, group: int | None = None, medium: str = "STORAGE") -> None:
        """Blocks are not there any more: evicted, expired, deleted."""
        self.publish([
            {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": medium, "group_idx": group, **self._fixed}
        ])  # fmt: skip

    def cleared(self) -> None:
        """Nothing is there any more."""
        self.publish([{"type": "AllBlocksCleared"}])

    def publish(self, events: Iterable[dict[str, Any]]) -> None:
        """A batch. After `close` it is dropped."""
        batch = [time.time(), list(events), self._rank]
        with self._lock:
            if self._publisher is None:
                return
            message = self._next.to_bytes(SEQUENCE_BYTES, "big"), self._encoder.encode(batch)
            self._next += 1
            self._sent.append(message)
            self._publisher.send_multipart((self._topic, *message))

    def _serve_replays(self, router: zmq.Socket[bytes]) -> None:
        with router:
            while not self._ending.is_set():
                if not router.poll(POLL_MS):
                    continue
                asked = router.recv_multipart()
                if len(asked) != 3 or len(asked[2]) != SEQUENCE_BYTES:
                    continue
                with self._lock:
                    sent = list(self._sent)
                for number, batch in sent:
                    if number >= asked[2]:  # big-endian: in order as bytes, too
                        router.send_multipart((asked[0], b"", self._topic, number, batch))
                router.send_multipart((asked[0], b"", b"", END, b""))

    def close(self) -> None:
        """What subscribers have not taken by now they will not get. A second time it does nothing."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            socket, self._publisher = self._publisher, None
        if socket is not None:
            socket.close()


class Relay:
    """Publishes what one cache's client stores and deletes, in a thread, until it is closed."""

    def __init__(self, kv: KVCache, publisher: EventPublisher) -> None:
        self._events, self._publisher = kv.events(), publisher
        self._thread = threading.Thread(target=self._run, name="kv-events-relay", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, kv: KVCache, settings: AdapterSettings) -> Self | None:
        """What an adapter's settings want: `kv_events` is where to publish. Raises zmq.ZMQError."""
        return cls(kv, EventPublisher(settings.kv_events)) if settings.kv_events else None

    def _run(self) -> None:
        for event in self._events:
            if event.kind == "stored":
                spec = event.namespace.spec if event.namespace is not None else None
                self._publisher.stored(event.keys, block_tokens=spec.page_tokens if spec is not None else 0)
            elif event.kind == "removed":
                self._publisher.removed(event.keys)
            else:
                logger.warning("KV events were lost: more were stored at once than could be published")

    def close(self) -> None:
        """Publish what has happened until now, and end. A second time it does nothing."""
        self._events.close()
        self._thread.join()
        self._publisher.close()
