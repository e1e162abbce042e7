"""Bare verbs and bare TCP: the moves of a 1 MiB read or write with nothing of ours between two programs and the kernel.

What RDMA can bring on a machine at all: beside it stands what the transport makes of it (`rdma.py`). Emulated devices are slower than the
loopback here already.
"""

from __future__ import annotations

import json
import mmap
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from ...proto.copying import address_of
from ...proto.errors import Status, error
from ...proto.transport.rdma import devices
from ...proto.transport.rdma.devices import gid_text
from ...proto.transport.rdma.verbs import load
from .measure import MIB, peer

DEPTH = 2  # requests under way
RECEIVES = 16  # more than requests under way
NOTE_BYTES = 64  # of a request or reply
ASKED, MOVED, SENT = 1, 2, 3  # numbers of work requests


class Cost(NamedTuple):
    """Of so many moves: seconds that passed, and processor time of the server."""

    seconds: float
    cpu: float


class End:
    """One queue pair, and the memory that is moved."""

    def __init__(self, size: int, device: str, reads: int = 16) -> None:
        verbs = self.verbs = load()
        e = verbs.e
        found = [port for port in devices.ports() if device in ("", port.device)]
        if not found:
            raise error(Status.UNSUPPORTED, "no port can be used: 'emberfs doctor' says why")
        self.port, self.size, self.reads = found[0], size, reads
        self.context = verbs.Context(name=self.port.device)
        self.domain = verbs.PD(self.context)
        self.view = memoryview(mmap.mmap(-1, DEPTH * size + NOTE_BYTES))
        self.view[:] = bytes(len(self.view))
        self.address = address_of(self.view)
        access = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
        self.memory = verbs.MR(self.domain, len(self.view), access, address=self.address)
        self.channel = verbs.CompChannel(self.context)
        self.queue = verbs.CQ(self.context, 256, None, self.channel, 0)
        capacity = verbs.QPCap(64, RECEIVES, 1, 1, 0)
        wanted = verbs.QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.queue, rcq=self.queue, cap=capacity, sq_sig_all=0)
        self.pair = verbs.QP(self.domain, wanted)
        attributes = verbs.QPAttr(port_num=self.port.number)
        attributes.qp_access_flags = e.IBV_ACCESS_REMOTE_READ | e.IBV_ACCESS_REMOTE_WRITE
        self.pair.to_init(attributes)
        note = verbs.SGE(self.address + DEPTH * size, NOTE_BYTES, self.memory.lkey)
        self._receive = verbs.RecvWR(wr_id=ASKED, num_sge=1, sg=[note])
        flags = e.IBV_SEND_SIGNALED | e.IBV_SEND_SOLICITED
        self._note = verbs.SendWR(wr_id=SENT, opcode=e.IBV_WR_SEND, num_sge=1, send_flags=flags, sg=[note])
        for _ in range(RECEIVES):
            self.pair.post_recv(self._receive)

    def connect(self, control: socket.socket) -> None:
        """With the one at the other end of the socket."""
        verbs = self.verbs
        told = {"pair": self.pair.qp_num, "gid": self.port.gid.hex(), "lid": self.port.lid}
        told |= {"at": self.address, "key": self.memory.rkey}
        control.sendall(json.dumps(told).encode() + b"\n")
        other = json.loads(_line(control))
        mtu = int(self.context.query_port(self.port.number).active_mtu)
        attributes = verbs.QPAttr(port_num=self.port.number, path_mtu=mtu)
        attributes.dest_qp_num, attributes.rq_psn, attributes.sq_psn = other["pair"], 0, 0
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = self.reads
        attributes.min_rnr_timer, attributes.rnr_retry, attributes.retry_cnt, attributes.timeout = 12, 7, 7, 18
        gid = verbs.GID(gid_text(bytes.fromhex(other["gid"])))
        route = verbs.GlobalRoute(dgid=gid, sgid_index=self.port.gid_index, hop_limit=64)
        attributes.ah_attr = verbs.AHAttr(gr=route, is_global=1, port_num=self.port.number, dlid=other["lid"])
        self.pair.to_rtr(attributes)
        self.pair.to_rts(attributes)
        self._there, self._key = other["at"], other["key"]

    def note(self) -> None:
        """Ask, or answer."""
        self.pair.post_send(self._note)

    def move(self, opcode: int, slot: int, part: int, parts: int, last: bool, answer: bool) -> None:
        """A part of a slot, to or from the same place at the other end; an answer may leave with it."""
        length = self.size // parts
        at = slot * self.size + part * length
        sge = self.verbs.SGE(self.address + at, length, self.memory.lkey)
        flags = self.verbs.e.IBV_SEND_SIGNALED if last and not answer else 0
        request = self.verbs.SendWR(wr_id=MOVED, opcode=opcode, num_sge=1, send_flags=flags, sg=[sge])
        request.set_wr_rdma(self._key, self._there + at)
        if answer:
            request.next_wr = self._note
        self.pair.post_send(request)

    def completions(self, solicited: bool) -> list[int]:
        """Numbers of what has completed, waiting for the first."""
        while True:
            for _ in range(2):
                count, found = self.queue.poll(16)
                if count:
                    break
                self.queue.req_notify(solicited)
            if count:
                break
            self.channel.get_cq_event(self.queue)
            self.queue.ack_events(1)
        for completion in found:
            if completion.status:
                raise OSError(f"completion status {completion.status}")
            if completion.wr_id == ASKED:
                self.pair.post_recv(self._receive)
        return [completion.wr_id for completion in found]


def ask(end: End, count: int) -> None:
    """The client's part of so many requests."""
    for _ in range(min(DEPTH, count)):
        end.note()
    asked, answered = min(DEPTH, count), 0
    while answered < count:
        for number in end.completions(solicited=True):
            if number == ASKED:
                answered += 1
                if asked < count:
                    asked += 1
                    end.note()


def serve_reads(end: End, count: int, parts: int) -> None:
    """RDMA WRITE and an answer behind it, in one post."""
    opcode, done, sent = end.verbs.e.IBV_WR_RDMA_WRITE, 0, 0
    while sent < count:
        for number in end.completions(solicited=done < count):
            if number == ASKED:
                for part in range(parts):
                    end.move(opcode, done % DEPTH, part, parts, part == parts - 1, part == parts - 1)
                done += 1
            sent += number == SENT


def serve_writes(end: End, count: int, parts: int) -> None:
    """RDMA READ, and an answer when the bytes are here."""
    opcode, done, sent = end.verbs.e.IBV_WR_RDMA_READ, 0, 0
    while sent < count:
        for number in end.completions(solicited=False):
            if number == ASKED:
                for part in range(parts):
                    end.move(opcode, done % DEPTH, part, parts, part == parts - 1, False)
                done += 1
            elif number == MOVED:
                end.note()
            sent += number == SENT


def _answer_commands(control: socket.socket, work: Callable[[str, int, int], None]) -> None:
    """Do what the client asks for, and say what it cost."""
    while line := _line(control):
        kind, count, parts = json.loads(line)
        before = time.process_time()
        control.sendall(b"\n")
        work(kind, count, parts)
        control.sendall(json.dumps(time.process_time() - before).encode() + b"\n")


Bare = Callable[..., Cost]  # (kind "read" or "write", count, parts of one move)


def _commanded(control: socket.socket, work: Callable[[str, int], None]) -> Bare:
    def way(kind: str, count: int, parts: int = 1) -> Cost:
        control.sendall(json.dumps([kind, count, parts]).encode() + b"\n")
        _line(control)
        begin = time.perf_counter()
        work(kind, count)
        cpu = json.loads(_line(control))
        return Cost(time.perf_counter() - begin, cpu)

    return way


@contextmanager
def bare_verbs(size: int = MIB, server: str = "", client: str = "", reads: int = 16) -> Iterator[Bare]:
    """Two processes and a queue pair; devices by name, or the first."""

    def serve(control: socket.socket) -> None:
        end = End(size, server, reads)
        end.connect(control)
        ways = {"read": serve_reads, "write": serve_writes}
        _answer_commands(control, lambda kind, count, parts: ways[kind](end, count, parts))

    with peer(serve) as control:
        end = End(size, client, reads)
        end.connect(control)
        yield _commanded(control, lambda kind, count: ask(end, count))


@contextmanager
def bare_tcp(size: int = MIB, host: str = "127.0.0.1", source: str = "") -> Iterator[Bare]:
    """Two processes and a connection."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, 0)))

        def serve(control: socket.socket) -> None:
            data, _ = listener.accept()
            data.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            view = memoryview(bytearray(size))
            _answer_commands(control, lambda kind, count, parts: _serve_tcp(data, view, kind, count))

        control = stack.enter_context(peer(serve))
        data = stack.enter_context(
            socket.create_connection(listener.getsockname(), source_address=(source, 0) if source else None)
        )
        data.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        view = memoryview(bytearray(size))
        yield _commanded(control, lambda kind, count: _ask_tcp(data, view, kind, count))


def _serve_tcp(data: socket.socket, view: memoryview, kind: str, count: int) -> None:
    for _ in range(count):
        if kind == "read":
            data.recv(1)
            data.sendall(view)
        else:
            _receive(data, view)
            data.sendall(b"x")


def _ask_tcp(data: socket.socket, view: memoryview, kind: str, count: int) -> None:
    for i in range(count + DEPTH):
        if i < count:
            data.sendall(b"x" if kind == "read" else view)
        if i >= DEPTH:
            _receive(data, view if kind == "read" else view[:1])


def _receive(data: socket.socket, view: memoryview) -> None:
    while view:
        view = view[data.recv_into(view) :]


def _line(control: socket.socket) -> bytes:
    """The next one, b"" at the end."""
    line = b""
    while not line.endswith(b"\n") and (more := control.recv(1)):
        line += more
    return line
