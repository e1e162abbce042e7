"""Verbs without a device: queue pairs of one process that move bytes with memmove, for tests that count or that need no wire.

What the transport uses of pyverbs has the same names and rules here: receives are used up in order, a SEND that finds none or a key that
is not registered breaks both queue pairs, completions come in the order of the work, the channel tells only who asked.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emberfs.proto.transport import choice
from emberfs.proto.transport.rdma import devices, endpoint, memory, work
from emberfs.proto.transport.rdma.devices import Port

WRITE, SEND, READ = 0, 2, 4
SIGNALED, SOLICITED, INLINE = 2, 4, 8
LOCAL, REMOTE_WRITE, REMOTE_READ = 1, 2, 4  # what memory is registered for
FLUSHED, REFUSED, NO_ANSWER, NOT_READY = 5, 10, 12, 13  # status of completions
PORT = Port("soft0", 1, False, bytes(10) + b"\xff\xff" + bytes([10, 9, 8, 7]), 0, 0, "eth0", "as fast as memory")

_lock = threading.RLock()
_pairs: dict[int, QP] = {}
_keys: dict[int, MR] = {}
_numbers = itertools.count(1)
calls: Counter[str] = Counter()  # of verbs


class Failed(Exception):
    def __init__(self, error_code: int) -> None:
        super().__init__(os.strerror(error_code))
        self.error_code = error_code


class Context:
    def __init__(self, name: str) -> None:
        self.name = name

    def query_device(self) -> Any:
        return SimpleNamespace(max_qp_wr=16384, max_qp_rd_atom=16, max_qp_init_rd_atom=16)

    def query_port(self, number: int) -> Any:
        return SimpleNamespace(active_mtu=5)


class PD:
    def __init__(self, context: Context) -> None:
        self.context = context


class MR:
    def __init__(self, domain: PD, length: int, access: int, address: int) -> None:
        self.address, self.length, self.access = address, length, access
        self.lkey = self.rkey = next(_numbers)
        _keys[self.rkey] = self

    def holds(self, address: int, length: int) -> bool:
        return self.address <= address and address + length <= self.address + self.length

    def close(self) -> None:
        _keys.pop(self.rkey, None)


class CompChannel:
    def __init__(self, context: Context) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)

    def get_cq_event(self, queue: CQ) -> None:
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError as none:
            raise Failed(11) from none

    def close(self) -> None:
        os.close(self.descriptor)


class CQ:
    def __init__(self, context: Context, size: int, _: None, channel: CompChannel, vector: int) -> None:
        self.size, self.channel = size, channel
        self.entries: deque[Any] = deque()
        self.wanted = 0  # 1: solicited, 2: all

    def add(self, entry: Any, solicited: bool) -> None:
        assert len(self.entries) < self.size, "the completion queue overflows"
        self.entries.append(entry)
        if self.wanted == 2 or (self.wanted and (solicited or entry.status)):
            self.wanted = 0
            os.eventfd_write(self.channel.descriptor, 1)

    def poll(self, count: int) -> tuple[int, list[Any]]:
        with _lock:
            calls["poll"] += 1
            taken = [self.entries.popleft() for _ in range(min(count, len(self.entries)))]
            calls["completions"] += len(taken)
            return len(taken), taken

    def req_notify(self, solicited_only: bool) -> None:
        with _lock:
            self.wanted = max(self.wanted, 1 if solicited_only else 2)

    def ack_events(self, count: int) -> None:
        calls["events"] += count

    def close(self) -> None:
        self.entries.clear()


class QP:
    def __init__(self, domain: PD, wanted: Any) -> None:
        self.queue, self.capacity = wanted.scq, wanted.cap
        self.qp_num = next(_numbers)
        self.receives: deque[RecvWR] = deque()
        self.peer = 0
        self.access = 0
        self.broken = False
        _pairs[self.qp_num] = self

    def to_init(self, attributes: Any) -> None:
        self.access = attributes.qp_access_flags

    def to_rtr(self, attributes: Any) -> None:
        self.peer = attributes.dest_qp_num

    def to_rts(self, attributes: Any) -> None:
        """It may send."""

    def post_recv(self, request: RecvWR | None) -> None:
        with _lock:
            while request is not None:
                self.receives.append(request)
                request = request.next_wr
            assert len(self.receives) <= self.capacity.max_recv_wr

    def post_send(self, request: SendWR | None) -> None:
        with _lock:
            calls["post_send"] += 1
            while request is not None:
                calls["work requests"] += 1
                self._carry_out(request)
                request = request.next_wr

    def _carry_out(self, request: SendWR) -> None:
        peer = _pairs.get(self.peer)
        status = FLUSHED if self.broken else NO_ANSWER if peer is None else 0
        if peer is not None and not status:
            status = self._deliver(request, peer) if request.opcode == SEND else self._move(request, peer)
        if status or request.send_flags & SIGNALED:
            self.queue.add(SimpleNamespace(wr_id=request.wr_id, status=status, byte_len=0), False)
        if status and not self.broken:
            self.break_()
            if peer is not None:
                peer.break_()

    @staticmethod
    def _deliver(request: SendWR, peer: QP) -> int:
        if not peer.receives or peer.broken:
            return NOT_READY
        receive, entry = peer.receives.popleft(), request.sg_list
        assert entry.length <= receive.sg[0].length
        ctypes.memmove(receive.sg[0].addr, entry.addr, entry.length)
        completion = SimpleNamespace(wr_id=receive.wr_id, status=0, byte_len=entry.length)
        peer.queue.add(completion, bool(request.send_flags & SOLICITED))
        return 0

    @staticmethod
    def _move(request: SendWR, peer: QP) -> int:
        entry = request.sg_list
        if not entry.length:
            return 0
        own, other = _keys[entry.lkey], _keys.get(request.key)
        assert own.holds(entry.addr, entry.length)
        needed = REMOTE_WRITE if request.opcode == WRITE else REMOTE_READ
        if other is None or not peer.access & other.access & needed or not other.holds(request.remote, entry.length):
            return REFUSED
        places = (request.remote, entry.addr) if request.opcode == WRITE else (entry.addr, request.remote)
        ctypes.memmove(*places, entry.length)
        calls["bytes moved"] += entry.length
        return 0

    def break_(self) -> None:
        self.broken = True
        if self.receives:
            self.queue.add(SimpleNamespace(wr_id=self.receives.popleft().wr_id, status=FLUSHED, byte_len=0), True)

    def close(self) -> None:
        with _lock:
            _pairs.pop(self.qp_num, None)
            self.broken = True


class SGE:
    def __init__(self, addr: int, length: int, lkey: int) -> None:
        self.addr, self.length, self.lkey = addr, length, lkey

    def close(self) -> None:
        """Nothing to free."""


class RecvWR:
    def __init__(self, wr_id: int, num_sge: int, sg: list[SGE]) -> None:
        self.wr_id, self.sg = wr_id, sg
        self.next_wr: RecvWR | None = None

    close = SGE.close


class SendWR:
    def __init__(self, num_sge: int, sg: list[SGE]) -> None:
        self.sg_list = sg[0]
        self.next_wr: SendWR | None = None
        self.wr_id = self.opcode = self.send_flags = self.key = self.remote = 0

    def set_wr_rdma(self, rkey: int, addr: int) -> None:
        self.key, self.remote = rkey, addr


class QPCap:
    def __init__(self, max_send_wr: int, max_recv_wr: int, send_sge: int, recv_sge: int, inline: int) -> None:
        self.max_send_wr, self.max_recv_wr, self.max_inline_data = max_send_wr, max_recv_wr, inline


NAMES = SimpleNamespace(
    AHAttr=SimpleNamespace,
    CQ=CQ,
    CompChannel=CompChannel,
    Context=Context,
    Failed=Failed,
    GID=str,
    GlobalRoute=SimpleNamespace,
    MR=MR,
    PD=PD,
    QP=QP,
    QPAttr=SimpleNamespace,
    QPCap=QPCap,
    QPInitAttr=SimpleNamespace,
    RecvWR=RecvWR,
    SGE=SGE,
    SendWR=SendWR,
    e=SimpleNamespace(
        IBV_ACCESS_LOCAL_WRITE=LOCAL,
        IBV_ACCESS_REMOTE_WRITE=REMOTE_WRITE,
        IBV_ACCESS_REMOTE_READ=REMOTE_READ,
        IBV_QPT_RC=2,
        IBV_WR_RDMA_WRITE=WRITE,
        IBV_WR_RDMA_READ=READ,
        IBV_WR_SEND=SEND,
        IBV_SEND_SIGNALED=SIGNALED,
        IBV_SEND_SOLICITED=SOLICITED,
        IBV_SEND_INLINE=INLINE,
    ),
)


@contextmanager
def soft_device(folder: Path) -> Iterator[Counter[str]]:
    """This process has one device, of this module, and speaks nothing but rdma over "tcp:" addresses. Gives the counts of verbs."""
    (folder / "devices" / PORT.device).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBERFS_TRANSPORT", "rdma")
        patch.delenv("EMBERFS_RDMA_DEVICES", raising=False)
        patch.setattr(choice, "DEVICES", str(folder / "devices"))
        patch.setattr(devices, "ports", lambda: [PORT])
        for module in (endpoint, memory):
            patch.setattr(module, "load", lambda: NAMES)
        patch.setattr(work, "_chains", [])
        patch.setattr(endpoint, "make_channel", _channel)
        patch.setattr(memory, "_devices", {})
        calls.clear()
        yield calls


def _channel(_verbs: Any, context: Context) -> tuple[CompChannel, int]:
    channel = CompChannel(context)
    return channel, channel.descriptor


@contextmanager
def at_once() -> Iterator[None]:
    """Nothing else moves meanwhile."""
    with _lock:
        yield


def alive() -> tuple[int, int]:
    """Queue pairs, and registered pieces of memory."""
    return len(_pairs), len(_keys)


def memory_of(address: int) -> list[MR]:
    """What is registered from there on, in the order in which that was done."""
    return [known for known in _keys.values() if known.address == address]
