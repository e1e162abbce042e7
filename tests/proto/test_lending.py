"""Bytes that a handler lends from a file: the same reply on every transport, and nothing held for a peer that reads slowly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emberfs.proto import rpc
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.drivers.blocking import BlockingEnvironment
from emberfs.proto.env import Call, drive
from emberfs.proto.errors import StatusError
from emberfs.proto.gen import storage_pb2
from emberfs.proto.region import Slice

from .pieces import READ, SIZE, Loop, Pieces, running

SMALL = 4096  # pieces shorter than this are copied in this test


class Lender(Pieces):
    """Its buffer is also a file; long pieces are lent from there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.write_bytes(self.data)
        self.file = open(path, "r+b", buffering=0)  # noqa: SIM115
        self.returned = threading.Semaphore(0)
        self.lent = 0

    async def read(self, request: storage_pb2.ReadRequest, context: rpc.Context) -> storage_pb2.ReadReply:
        sink = context.sink(sum(request.length))
        sink.when_returned(self.returned.release)
        position = 0
        for offset, length in zip(request.offset, request.length, strict=True):
            if sink.lends and length >= SMALL:
                sink.lend(position, self.file.fileno(), offset, length)
                sink.filled(position, length)
                self.lent += length
            else:
                self._fill(sink, position, offset, length)
            position += length
        return storage_pb2.ReadReply()


@pytest.fixture
def lender(tmp_path: Path) -> Iterator[Lender]:
    made = Lender(tmp_path / "file")
    yield made
    made.file.close()


def _call(address: str, env: Any, offsets: list[int], lengths: list[int]) -> Call:
    region = env.register(bytearray(sum(lengths)))
    request = storage_pb2.ReadRequest(offset=offsets, length=lengths)
    return Call(address, READ, request, 60.0, target=(Slice(region, 0, sum(lengths)),))


@pytest.mark.parametrize("kind", ["tcp:127.0.0.1:0", "unix"])
def test_lent_and_copied_pieces_arrive_in_their_order(kind: str, lender: Lender, tmp_path: Path) -> None:
    with running(f"unix:{tmp_path}/sock" if kind == "unix" else kind, service=lender) as server:
        env = BlockingEnvironment()
        try:
            offsets, lengths = [7, 1 << 20, 5, 2 << 20, 9], [100, 1 << 20, SMALL - 1, 3 * SMALL, SMALL]
            calls = [_call(server.addresses[0], env, offsets, lengths) for _ in range(8)]
            assert not [reply for reply in drive(env.call_many(calls)) if isinstance(reply, StatusError)]
            wanted = b"".join(lender.data[o : o + n] for o, n in zip(offsets, lengths, strict=True))
            assert all(call.target[0].view == wanted for call in calls)
            assert lender.lent == 8 * sum(n for n in lengths if n >= SMALL)
            assert all(lender.returned.acquire(timeout=60) for _ in calls)
        finally:
            env.close()


def test_what_was_lent_comes_back_although_the_peer_does_not_read(lender: Lender) -> None:
    with running("tcp:127.0.0.1:0", service=lender) as server:
        env = BlockingEnvironment()
        try:
            calls = [_call(server.addresses[0], env, [0], [SIZE]) for _ in range(6)]  # more than any socket takes
            tickets = [env.start(call) for call in calls]  # one connection each, and nobody reads
            assert all(lender.returned.acquire(timeout=60) for _ in calls)
            lender.file.truncate(0)  # whatever becomes of the file
            for call, ticket in zip(calls, tickets, strict=True):
                drive(env.collect(ticket))
                assert call.target[0].view[SIZE // 2 :] == lender.data[SIZE // 2 :]
        finally:
            env.close()


def test_a_file_that_ended_breaks_the_connection_not_the_server(lender: Lender) -> None:
    with running("tcp:127.0.0.1:0", service=lender) as server:
        env = BlockingEnvironment()
        try:
            with pytest.raises(StatusError):
                drive(env.call(_call(server.addresses[0], env, [SIZE - SMALL], [2 * SMALL])))
            assert lender.returned.acquire(timeout=60)
            drive(env.call(good := _call(server.addresses[0], env, [0], [SIZE])))
            assert good.target[0].view == lender.data
        finally:
            env.close()


def test_the_asyncio_client(lender: Lender) -> None:
    loop = Loop()
    try:
        with running("tcp:127.0.0.1:0", service=lender) as server:
            env = loop.do(AioEnvironment)
            calls = [_call(server.addresses[0], env, [i], [SIZE - i]) for i in range(6)]
            loop.run(env.call_many(calls))
            assert all(call.target[0].view == lender.data[i:] for i, call in enumerate(calls))
            loop.run(env.close())
    finally:
        loop.close()
