"""What a client reports as held open, against a server that frees what nobody holds: the lists may come late, opens may be slow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from emberfs.client.core.held import Held, Report
from emberfs.proto.env import drive
from emberfs.proto.errors import Status, StatusError

from .world import World


def mark_of(queue: list[int]) -> bytes:
    return len(queue).to_bytes(4, "big")


class Client(RuleBasedStateMachine):
    """One client and the part of the server that listens to it (meta/namespace/readers.py). A file is opened in three steps: asked for,
    answered by the server, and taken note of; a report in two: drawn up, and arrived together with its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.inodes: dict[int, Any] = {}  # the client's table
        self.held = Held(self.inodes)
        self.asked: list[Any] = []  # opens on their way to the server: their context managers
        self.answered: list[tuple[Any, int]] = []  # and on their way back, with the inode
        self.report: Report | None = None
        self.named = 1  # the inode that has the name
        self.queue: list[int] = []  # unlinked, in order
        self.holds: set[int] = set()
        self.reported = b""
        self.freed: set[int] = set()

    @rule()
    def ask(self) -> None:
        context = self.held.opening()
        context.__enter__()
        self.asked.append(context)

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 100))
    def answer(self, which: int) -> None:
        self.answered.append((self.asked.pop(which % len(self.asked)), self.named))

    @precondition(lambda self: self.answered)
    @rule(which=st.integers(0, 100))
    def note(self, which: int) -> None:
        context, number = self.answered.pop(which % len(self.answered))
        inode = self.inodes.setdefault(number, SimpleNamespace(id=number, readers=0))
        inode.readers += 1
        context.__exit__(None, None, None)

    @rule()
    def open_quickly(self) -> None:
        self.ask()
        self.answer(len(self.asked) - 1)
        self.note(len(self.answered) - 1)

    @precondition(lambda self: self.inodes)
    @rule(which=st.integers(0, 100))
    def close(self, which: int) -> None:
        number = sorted(self.inodes)[which % len(self.inodes)]
        self.inodes[number].readers -= 1
        if not self.inodes[number].readers:
            del self.inodes[number]

    @rule()
    def replace(self) -> None:
        """Another client renames a new file over it."""
        self.queue.append(self.named)
        self.named += 1

    @rule(everything=st.booleans())
    def draw_up(self, everything: bool) -> None:
        self.report = self.held.report(everything=everything)  # one that was lost before is forgotten

    @precondition(lambda self: self.report)
    @rule()
    def arrive(self) -> None:
        assert self.report is not None
        self.holds = set(self.report.inodes)
        self.reported = max(self.reported, self.report.mark)
        self.held.mark = mark_of(self.queue)
        self.report = None
        self.collect()

    def collect(self) -> None:
        covered = int.from_bytes(self.reported, "big")
        self.freed |= {number for number in self.queue[:covered] if number not in self.holds}

    @invariant()
    def nothing_open_is_freed(self) -> None:
        in_use = set(self.inodes) | {number for _, number in self.answered}
        assert not in_use & self.freed

    def teardown(self) -> None:
        """Once all is closed, three reports free everything."""
        for context, _ in self.answered:
            context.__exit__(None, None, None)
        for context in self.asked:
            context.__exit__(None, None, None)
        self.inodes.clear()
        for _ in range(3):
            self.draw_up(everything=False)
            self.arrive()
        assert self.freed >= set(self.queue)
        assert not self.holds


TestClient = Client.TestCase
TestClient.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


def test_an_inode_that_is_opened_by_its_number_is_listed_at_once() -> None:
    inodes: dict[int, Any] = {}
    held = Held(inodes)
    with held.opening(7):
        assert held.report(everything=False).inodes == [7]
        inodes[7] = SimpleNamespace(id=7, readers=1)
    assert held.report(everything=False).inodes == [7]
    del inodes[7]
    assert held.report(everything=False).inodes == []


def test_ranges_are_held_while_they_are_read() -> None:
    held = Held({})
    with held.opening() as opening:
        held.mark = b"1"
        assert held.report(everything=True) == Report([], b"")
        opening.opened([3, 4])
        assert held.report(everything=True) == Report([3, 4], b"1")
    assert held.report(everything=True) == Report([], b"1")


def test_a_reader_that_was_taken_for_dead_opens_again(world: World) -> None:
    """Also one that has nothing but reads to do: the server forgets what it holds, so it must be somebody else from then on."""
    client = world.client()
    client.write_bytes("/f", b"bytes")
    assert client.read_bytes("/f") == b"bytes"
    for read in (lambda: client.read_bytes("/f"), lambda: client.read_ranges([("/f", 0, 5)])[0]):
        lost = client.core.env.client
        world.run(world.manager.end_client(lost))
        world.run(world.namespace.clients.step())
        assert read() == b"bytes"
        assert client.core.env.client != lost


def test_a_reader_keeps_a_file_that_was_unlinked_at_once(world: World) -> None:
    client, other = world.client(), world.client()
    client.write_bytes("/f", b"still here")
    file = client.open("/f")
    other.unlink("/f")
    collector = world.namespace.collector
    for _ in range(4):
        drive(client.core.keeper.renew())
        collector._round = float("-inf")
        world.run(collector.step())
        assert file.pread(10, 0) == b"still here"
    number = file.handle.file.id
    file.close()
    for _ in range(3):
        drive(client.core.keeper.renew())
        collector._round = float("-inf")
        world.run(collector.step())
    try:
        world.run(world.namespace.clients.readers.hold(b"somebody--------", number))
    except StatusError as failure:
        assert failure.status is Status.STALE_HANDLE
    else:
        raise AssertionError("the file is still there")
