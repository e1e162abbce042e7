"""One queue pair with all that belongs to it: completion queue and channel, slots to send from and to receive into, work requests.

Work requests are queued (`write`, `read`, `send`) and leave together with `post`, in the order in which they came: what a peer receives
after bulk says that the bulk is there. Few of them are signalled: those after which something has to happen, and so many others that the
queue's places and the slots come back in time. One thread at a time; nothing here waits.
"""

from __future__ import annotations

import atexit
import logging
import mmap
import os
import struct
import weakref
from collections import deque
from typing import Any

from ...copying import address_of
from ...errors import Status, StatusError, error
from ...gen import rpc_pb2
from ...settings import time_scale
from ...weakly import living
from .channel import close_channel, make_channel
from .credits import Credits
from .devices import Port, gid_text
from .memory import LOCAL, Device, abandon, open_device, reason_of
from .verbs import load
from .work import BATCH, WHY, Chain, Done, Work, give_chain, take_chain

SLOT_BYTES = 8192  # of one SEND, with its header
RECEIVES = 32  # posted: what the peer has credits for
GROUP = 8  # receives posted again together
SENDS = 16  # slots to send from
WORK_REQUESTS_MAX = 256  # in the send queue
COMPLETIONS = RECEIVES + WORK_REQUESTS_MAX  # that the queue holds: it can never overflow
POLLED = 16  # completions taken at once
SIGNALLED_SENDS = SENDS // 4  # at least one in so many is signalled, so that slots come back
INLINE_BYTES = 188  # SENDs up to here are copied into the work request, where the device can: it need not fetch them
READS_MAX = 16  # RDMA READs at once, in each direction
RETRIES = 7  # of the transport, before the queue pair breaks
RNR_RETRIES = (
    7  # without limit: credits see to it that a receive is there; only a peer that restarts its queue lacks them
)
RNR_TIMER = 12  # 0.64 ms
TIMEOUT = 14  # 4.096 µs * 2^14 = 67 ms for an acknowledgement; doubled with EMBERFS_TIME_SCALE
TIMEOUT_MAX = 20  # 4.3 s
HOPS = 64  # routers on the way, RoCE v2

_log = logging.getLogger("emberfs.rdma")

HEADER = struct.Struct("<HH")  # of every SEND: credits given back, and what the rest is
STREAM, PROBE = 0, 1  # the rest: bytes of the stream; nothing, sent to try the path
PAYLOAD_BYTES = SLOT_BYTES - HEADER.size


class Gone(OSError):
    """The queue pair is of no more use."""


class Endpoint:
    """`serves`: this end moves bytes in the other's memory, never the other way round."""

    def __init__(self, port: Port, serves: bool) -> None:
        self.port = port
        self.serves = serves
        self.device: Device = open_device(port.device)
        self.failed = ""  # why the queue pair is of no more use
        self.arrived: deque[memoryview] = deque()  # payload that nobody took yet
        self._slots_arrived: deque[int] = deque()  # where it lies
        self.posts = 0  # calls that posted, for those who count
        self.requests = 0  # work requests posted
        self.completions = 0  # taken from the queue
        self._verbs = verbs = load()
        e = verbs.e
        self._process = os.getpid()
        self._write, self._read, self._send = e.IBV_WR_RDMA_WRITE, e.IBV_WR_RDMA_READ, e.IBV_WR_SEND
        self._signalled, self._inline, self._solicited = e.IBV_SEND_SIGNALED, e.IBV_SEND_INLINE, e.IBV_SEND_SOLICITED
        self._sequence = int.from_bytes(os.urandom(3))
        self._credits = Credits(RECEIVES, RECEIVES)
        self._work: deque[Work] = deque()  # queued, not posted
        # Per signalled request: requests and slots up to it, and as in Work.
        self._flight: deque[tuple[int, int, Done | None, bool]] = deque()
        self._unsignalled = self._unsignalled_slots = 0
        self._room = min(WORK_REQUESTS_MAX, self.device.limits.max_qp_wr)
        self._slots_free = SENDS
        self._slot = 0
        self._awaited = 0  # requests that somebody waits for
        self._armed = 0  # the channel will tell: 1 of what the peer sends, 2 of everything
        self.payload_max = PAYLOAD_BYTES
        _endpoints.add(self)
        self._chain: Chain = []
        self._receives: list[Any] = []
        try:
            self._make(serves)
        except (verbs.Failed, OSError) as failed:
            self.close()
            if isinstance(failed, StatusError):
                raise
            raise error(Status.UNSUPPORTED, f"{port.name} has no queue pair for us ({reason_of(failed)})") from failed
        except BaseException:
            self.close()
            raise

    _memory: Any = None
    _view: memoryview
    _channel: Any = None
    _queue: Any = None
    _pair: Any = None
    descriptor = -1  # of the completion channel

    def _make(self, serves: bool) -> None:
        verbs, device = self._verbs, self.device
        e = verbs.e
        self._view = memoryview(mmap.mmap(-1, (RECEIVES + SENDS) * SLOT_BYTES))
        self._base = address_of(self._view)
        self._memory = device.pin(self._view, LOCAL)
        self._channel, self.descriptor = make_channel(verbs, device.context)
        self._queue = verbs.CQ(device.context, COMPLETIONS, None, self._channel, 0)
        capacity = verbs.QPCap(self._room, RECEIVES, 1, 1, INLINE_BYTES)
        wanted = verbs.QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self._queue, rcq=self._queue, cap=capacity, sq_sig_all=0)
        self._pair = verbs.QP(device.domain, wanted)
        self._inline_max = min(wanted.cap.max_inline_data, INLINE_BYTES)
        attributes = verbs.QPAttr(port_num=self.port.number)
        attributes.qp_access_flags = 0 if serves else e.IBV_ACCESS_REMOTE_READ | e.IBV_ACCESS_REMOTE_WRITE
        self._pair.to_init(attributes)
        self._make_requests()
        self._arm(1)

    def _make_requests(self) -> None:
        verbs, key = self._verbs, self._memory.lkey
        self._chain = take_chain(verbs)
        for slot in range(RECEIVES):
            entry = verbs.SGE(self._base + slot * SLOT_BYTES, SLOT_BYTES, key)
            self._receives.append(verbs.RecvWR(wr_id=slot, num_sge=1, sg=[entry]))
            entry.close()
        for slot in range(RECEIVES - 1):
            if (slot + 1) % GROUP:
                self._receives[slot].next_wr = self._receives[slot + 1]
        self._untaken = [GROUP] * (RECEIVES // GROUP)  # slots of each group that are posted, or arrived and not taken
        for first in range(0, RECEIVES, GROUP):
            self._pair.post_recv(self._receives[first])

    # Connecting.

    def queue(self) -> rpc_pb2.RdmaQueue:
        """This end, for the other."""
        return rpc_pb2.RdmaQueue(
            number=self._pair.qp_num,
            sequence=self._sequence,
            gid=self.port.gid,
            lid=self.port.lid,
            infiniband=self.port.infiniband,
            mtu=128 << self._mtu(),
            receives=RECEIVES,
            receive_bytes=SLOT_BYTES,
            reads=min(READS_MAX, self.device.limits.max_qp_rd_atom),
        )

    def _mtu(self) -> int:
        """Active MTU of the port, as verbs count: 1 is 256 bytes, 5 is 4096."""
        return int(self.device.context.query_port(self.port.number).active_mtu)

    def connect(self, peer: rpc_pb2.RdmaQueue) -> None:
        """Ready to send and receive. Raises PROTOCOL, UNSUPPORTED."""
        if len(peer.gid) != 16 or peer.infiniband != self.port.infiniband:
            raise error(Status.PROTOCOL, "the peer's queue pair is of another kind of network")
        if peer.lid > 0xFFFF or peer.sequence > 0xFFFFFF or peer.number > 0xFFFFFF:
            raise error(Status.PROTOCOL, "the peer's queue pair has numbers that there are none of")
        if peer.receive_bytes <= HEADER.size:
            raise error(Status.PROTOCOL, f"the peer receives {peer.receive_bytes} bytes at once: too few")
        self._credits = Credits(peer.receives, RECEIVES)
        self.payload_max = min(SLOT_BYTES, peer.receive_bytes) - HEADER.size
        verbs, limits = self._verbs, self.device.limits
        mtu = min(self._mtu(), max(peer.mtu, 256).bit_length() - 8)
        attributes = verbs.QPAttr(port_num=self.port.number, path_mtu=mtu)
        attributes.dest_qp_num, attributes.rq_psn, attributes.sq_psn = peer.number, peer.sequence, self._sequence
        attributes.max_rd_atomic = max(min(READS_MAX, peer.reads, limits.max_qp_init_rd_atom), 1)
        attributes.max_dest_rd_atomic = max(min(READS_MAX, limits.max_qp_rd_atom), 1)
        attributes.min_rnr_timer, attributes.rnr_retry, attributes.retry_cnt = RNR_TIMER, RNR_RETRIES, RETRIES
        attributes.timeout = min(TIMEOUT + max(int(time_scale()) - 1, 0).bit_length(), TIMEOUT_MAX)
        route = verbs.GlobalRoute(dgid=verbs.GID(gid_text(peer.gid)), sgid_index=self.port.gid_index, hop_limit=HOPS)
        far = peer.infiniband and peer.gid[:8] == self.port.gid[:8]
        attributes.ah_attr = verbs.AHAttr(gr=route, is_global=0 if far else 1, port_num=self.port.number, dlid=peer.lid)
        try:
            self._pair.to_rtr(attributes)
            self._pair.to_rts(attributes)
        except verbs.Failed as failed:
            raise error(
                Status.UNSUPPORTED, f"{self.port.name} does not reach {gid_text(peer.gid)} ({reason_of(failed)})"
            ) from failed

    # Work requests.

    def write(self, address: int, length: int, local_key: int, remote: int, key: int, done: Done | None = None) -> None:
        """Queue an RDMA WRITE. Nobody is woken for `done`: it is called with what comes next, or by a `poll`."""
        self._queue_work(Work(self._write, address, length, local_key, remote, key, 0, 0, done, False))

    def read(self, address: int, length: int, local_key: int, remote: int, key: int, done: Done | None = None) -> None:
        """Queue an RDMA READ."""
        self._queue_work(Work(self._read, address, length, local_key, remote, key, 0, 0, done, True))

    @property
    def may_send(self) -> bool:
        """Whether `slot` has room, and the peer a receive for it."""
        return bool(self._slots_free) and self._credits.may_send

    def slot(self) -> memoryview:
        """Where the payload of the next SEND is to be put."""
        begin = (RECEIVES + self._slot) * SLOT_BYTES + HEADER.size
        return self._view[begin : begin + self.payload_max]

    def send(self, length: int) -> None:
        """Queue a SEND of so many bytes in `slot`."""
        self._queue_send(length, STREAM, None)

    def probe(self) -> None:
        """Send as much as one SEND holds, for the peer to ignore: when it has completed, the path carries packets of full size."""
        self._queue_send(self.payload_max, PROBE, _nothing)
        self.post()

    def _queue_send(self, length: int, kind: int, done: Done | None) -> None:
        begin = (RECEIVES + self._slot) * SLOT_BYTES
        HEADER.pack_into(self._view, begin, self._credits.sent(), kind)
        self._slot = (self._slot + 1) % SENDS
        self._slots_free -= 1
        size = HEADER.size + length
        flags = self._solicited | (self._inline if size <= self._inline_max else 0)
        self._queue_work(
            Work(self._send, self._base + begin, size, self._memory.lkey, 0, 0, flags, 1, done, done is not None)
        )

    def _queue_work(self, work: Work) -> None:
        if self._pair is None:  # what a handler finished after the end
            if work.done is not None:
                work.done(False)
            return
        self._work.append(work)

    def post(self) -> None:
        """Everything queued leaves, as far as the send queue has room; the rest follows by itself. Raises Gone."""
        work = self._work
        if not work or self.failed:
            return
        if self._armed < 2 and any(queued.awaited for queued in work):
            # Armed for all before they are posted: then no completion can slip through. What a SEND completes wakes nobody.
            self._arm(2)
        while work and self._room:
            count = min(len(work), self._room, BATCH)
            first = BATCH - count  # the last of the chain ends the list
            for position in range(first, BATCH):
                self._fill(position, work.popleft())
            self._room -= count
            self.posts += 1
            self.requests += count
            try:
                self._pair.post_send(self._chain[first][0])
            except self._verbs.Failed as failed:
                self._fail(f"the device refuses work ({reason_of(failed)})")
                raise Gone(self.failed) from failed

    def _fill(self, position: int, work: Work) -> None:
        request, entry = self._chain[position]
        opcode, entry.addr, entry.length, entry.lkey, remote, key, flags, slots, done, awaited = work
        request.opcode = opcode
        if key:
            request.set_wr_rdma(key, remote)
        self._unsignalled += 1
        self._unsignalled_slots += slots
        if done is not None or self._unsignalled >= BATCH or self._unsignalled_slots >= SIGNALLED_SENDS:
            flags |= self._signalled
            self._flight.append((self._unsignalled, self._unsignalled_slots, done, awaited))
            self._unsignalled = self._unsignalled_slots = 0
            self._awaited += awaited
        request.wr_id = RECEIVES  # no receive
        request.send_flags = flags

    @property
    def pending(self) -> bool:
        """Whether work was queued or posted that is not known to be done."""
        return bool(self._work or self._flight or self._unsignalled)

    def settle(self) -> None:
        """Have the end of all that was posted signalled, and tell. Raises Gone. A client may have to ask again later: for want of room it
        does nothing, and who serves it does not let it write, not even nothing."""
        if not self.pending or self._awaited or self.failed:
            return
        if self.serves:
            self._queue_work(Work(self._write, self._base, 0, self._memory.lkey, 0, 0, 0, 0, _nothing, True))
        elif self._slots_free and self._credits.available:
            self._queue_send(0, STREAM, _nothing)
        self.post()

    @property
    def holds(self) -> bool:
        """Whether somebody's memory waits for a completion."""
        return any(done is not None for _, _, done, _ in self._flight)

    # Completions.

    def poll(self) -> None:
        """Take in what has completed. Raises Gone."""
        taken = POLLED
        while taken == POLLED and not self.failed:
            try:
                taken, completions = self._queue.poll(POLLED)
            except self._verbs.Failed as failed:
                self._fail(f"its completions cannot be read ({reason_of(failed)})")
                break
            self.completions += taken
            for completion in completions:
                if completion.status:
                    self._fail(WHY.get(completion.status, f"completion status {completion.status}"))
                    break
                if completion.wr_id < RECEIVES:
                    self._received(completion.wr_id, completion.byte_len)
                else:
                    self._sent()
        if self.failed and not self.arrived:
            raise Gone(self.failed)
        if self._work:
            self.post()

    def _sent(self) -> None:
        requests, slots, done, awaited = self._flight.popleft()
        self._room += requests
        self._slots_free += slots
        self._awaited -= awaited
        if done is not None:
            done(True)

    def _received(self, slot: int, length: int) -> None:
        begin = slot * SLOT_BYTES
        told, kind = HEADER.unpack_from(self._view, begin)
        try:
            if length < HEADER.size or kind > PROBE:
                raise error(Status.PROTOCOL, f"the peer sent {length} bytes of kind {kind}, which mean nothing")
            self._credits.received(told)
        except StatusError as broken:
            self._fail(broken.strerror or "")
            raise
        if length > HEADER.size and kind == STREAM:
            self.arrived.append(self._view[begin + HEADER.size : begin + length])
            self._slots_arrived.append(slot)
        else:
            self._taken(slot)

    def take(self, buffer: memoryview) -> int:
        """Move what has arrived into this buffer; how much that was."""
        filled, arrived = 0, self.arrived
        while arrived and filled < len(buffer):
            data = arrived[0]
            part = min(len(data), len(buffer) - filled)
            buffer[filled : filled + part] = data[:part]
            filled += part
            if part < len(data):
                arrived[0] = data[part:]
            else:
                arrived.popleft()
                self._taken(self._slots_arrived.popleft())
        return filled

    def _taken(self, slot: int) -> None:
        """A receive slot is free. Whole groups are posted again, and told to the peer."""
        group = slot // GROUP
        self._untaken[group] -= 1
        if self._untaken[group] or self.failed:
            return
        self._untaken[group] = GROUP
        self._pair.post_recv(self._receives[group * GROUP])
        self._credits.posted(GROUP)

    def give_credits(self) -> None:
        """Tell the peer of receives posted again, if it may be waiting for that. Raises Gone."""
        if self._credits.update_due and self._slots_free and not self.failed:
            self.send(0)
            self.post()

    def arm(self) -> None:
        """The channel becomes readable with the next completion that matters; look once more after this. Raises Gone."""
        wanted = 2 if self._awaited or not self._slots_free or self._work else 1
        if self._armed >= wanted or self.failed:
            return
        self._arm(wanted)

    def _arm(self, wanted: int) -> None:
        try:
            self._queue.req_notify(wanted == 1)
        except self._verbs.Failed as failed:
            self._fail(f"the device tells no news ({reason_of(failed)})")
            raise Gone(self.failed) from failed
        self._armed = wanted

    def disarm(self) -> bool:
        """Take what the channel told; whether it had told anything."""
        if self.failed:
            return False
        try:
            self._channel.get_cq_event(self._queue)
        except self._verbs.Failed:  # nothing: something else woke us
            return False
        self._queue.ack_events(1)
        self._armed = 0
        return True

    def give_up(self, reason: str) -> None:
        """Nothing more is sent; who tries ends the connection."""
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        self.failed = self.failed or reason

    # The end.

    def close(self) -> None:
        """The queue pair is gone when this returns, and nobody moves anything through it any more. What was not done never will be."""
        objects, channel = self._objects(), self._channel
        self._pair = self._queue = self._channel = self._memory = None
        self.failed = self.failed or "it was closed"
        if self._process != os.getpid():
            abandon(*objects)
            return
        for made in objects:
            try:
                if made is channel:
                    close_channel(made)
                else:
                    made.close()
            except self._verbs.Failed as failed:  # the rest must go all the same
                _log.warning("%s keeps part of a queue pair (%s)", self.port.name, reason_of(failed))
        for request in self._receives:
            request.close()
        self._receives.clear()
        if self._chain:
            give_chain(self._chain)
            self._chain = []
        given_up = [done for _, _, done, _ in self._flight] + [work.done for work in self._work]
        self._flight.clear()
        self._work.clear()
        self.arrived.clear()
        for done in given_up:
            if done is not None:
                done(False)

    def _objects(self) -> list[Any]:
        """In the order in which they can be destroyed."""
        return [made for made in (self._pair, self._queue, self._channel, self._memory) if made is not None]

    def abandon(self) -> None:
        """Never to be destroyed by this process."""
        abandon(*self._objects())


_endpoints: weakref.WeakSet[Endpoint] = weakref.WeakSet()


def endpoints() -> list[Endpoint]:
    """All of this process, for those who count and for those who look."""
    return living(_endpoints)


def _leave() -> None:
    for endpoint in living(_endpoints):
        endpoint.abandon()


atexit.register(_leave)
os.register_at_fork(after_in_child=_leave)


def _nothing(_done: bool) -> None:
    """Somebody only wants to know when."""
