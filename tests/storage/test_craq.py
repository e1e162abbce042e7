"""The replica as a machine, by itself: who is admitted, who waits for whom, and which update counts. Each rule of its docstring alone;
with neighbours it is in test_craq_neighbours.py."""

from __future__ import annotations

import pytest

from emberfs.proto.errors import Status, error
from emberfs.storage import craq
from emberfs.storage.craq import Replica
from emberfs.storage.events import (
    ALWAYS,
    Checkpoint,
    ClientsEnded,
    FenceRequest,
    Kind,
    Persist,
    PersistDone,
    Reply,
    Result,
    SyncRequest,
    Update,
    Version,
)
from emberfs.storage.lines import LINE_MAX

from .machines import (
    CLIENT,
    OFFLINE,
    OTHER,
    SERVING,
    SYNCING,
    Rows,
    held,
    perform,
    persisted,
    replica,
    request,
    submit,
    write,
)


def test_alone_an_update_is_persisted_and_committed_in_one_write_before_the_reply() -> None:
    # Rule 3: "Without a successor (the tail; a chain of one) persisting and committing are one write of the index."
    machine, rows = replica()
    (persist,) = machine.step(0, request(write(1)))
    assert isinstance(persist, Persist)
    assert persist.updates[0].version == Version(1, 1)
    (reply,) = machine.step(0, persisted(machine, rows, persist))
    assert reply == Reply("t", [Result(Status.OK, 1, 4, rows.chunks[b"a"].checksum)])
    assert machine.in_flight == 0


def test_another_chain_version_is_refused() -> None:
    # Rule 1: "under the exact chain version".
    machine, rows = replica()
    assert submit(machine, rows, write(1), version=2) == [Status.STALE_CHAIN_VERSION]
    assert machine.may_read(1, 0) is Status.OK
    assert machine.may_read(2, 0) is Status.STALE_CHAIN_VERSION
    assert not rows.chunks


def test_a_target_of_no_chain_and_one_that_is_not_serving_refuse() -> None:
    rows = Rows()
    assert Replica(1, rows, held()).may_read(1, 0) is Status.TARGET_OFFLINE
    machine, _ = replica(SERVING, OFFLINE, target=2)
    assert machine.may_read(1, 0) is Status.TARGET_OFFLINE
    machine, _ = replica(SERVING, SYNCING, target=2)
    assert machine.may_read(1, 0) is Status.TARGET_OFFLINE  # SYNCING members take writes but answer no reads


def test_a_client_write_belongs_to_the_head() -> None:
    # Rule 1: "A client's update enters at the head".
    machine, _ = replica(SERVING, SERVING, target=2)
    (reply,) = machine.step(0, request(write(1)))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.STALE_ROUTING


def test_one_update_in_flight_per_chunk_the_next_waits() -> None:
    # Rule 2: "a chunk has one update in flight".
    machine, rows = replica()
    (first,) = machine.step(0, request(write(1), ticket=1))
    assert machine.step(0, request(write(1, client=OTHER), ticket=2)) == []
    assert isinstance(first, Persist)
    effects = machine.step(0, persisted(machine, rows, first))
    assert isinstance(effects[0], Reply)
    assert effects[0].ticket == 1
    assert isinstance(effects[1], Persist)
    assert effects[1].updates[0].version == Version(1, 2)


def test_a_batch_waits_for_all_its_chunks_and_others_pass() -> None:
    machine, rows = replica()
    (first,) = machine.step(0, request(write(1, b"a", channel=1), ticket=1))
    assert (
        machine.step(
            0, request(write(1, b"a", client=OTHER, channel=1), write(1, b"b", client=OTHER, channel=2), ticket=2)
        )
        == []
    )
    assert machine.step(0, request(write(5, b"b", channel=5), ticket=3)) == []  # behind 2, which is behind 1
    (free,) = machine.step(0, request(write(6, b"c", channel=6), ticket=4))
    assert isinstance(free, Persist)
    assert isinstance(first, Persist)
    replies = perform(machine, rows, [first, free])
    assert sorted(r.ticket for r in replies) == [1, 2, 3, 4]
    assert rows.names(b"a") == [(CLIENT, 1), (OTHER, 1)]
    assert rows.names(b"b") == [(OTHER, 1), (CLIENT, 5)]
    assert rows.names(b"c") == [(CLIENT, 6)]


def test_lines_are_bounded() -> None:
    machine, _ = replica()
    machine.step(0, request(write(1)))
    for i in range(LINE_MAX - 1):
        assert machine.step(0, request(write(2 + i))) == []
    (reply,) = machine.step(0, request(write(99)))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.BUSY
    (reply,) = machine.step(
        0, request(*[write(1, bytes([i % 256, i // 256]), channel=i) for i in range(craq.UPDATES_MAX + 1)])
    )
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.TOO_LARGE


def test_a_request_names_a_chunk_and_a_channel_once() -> None:
    machine, rows = replica()
    assert submit(machine, rows, write(1, b"a"), write(2, b"a", channel=2)) == [Status.OK, Status.INVALID]
    assert submit(machine, rows, write(3, b"b"), write(4, b"c")) == [Status.OK, Status.INVALID]


def test_the_same_sequence_gets_the_same_answer_also_from_a_new_machine() -> None:
    # Rule 5: "the same sequence gets the same answer, a lower one is refused, also after a restart".
    machine, rows = replica()
    assert submit(machine, rows, write(7)) == [Status.OK]
    for each in (machine, replica(rows=rows)[0]):
        (reply,) = each.step(0, request(write(7)))
        assert reply == Reply("t", [Result(Status.OK, 1, 4)])
        assert submit(each, rows, write(6)) == [Status.DUPLICATE]
    assert rows.names(b"a") == [(CLIENT, 7)]
    assert submit(machine, rows, write(8)) == [Status.OK]


def test_a_retry_is_not_recognised_by_what_was_never_written() -> None:
    # The request came twice, and the disk failed under the first: its receipt is in memory, and nowhere else.
    machine, rows = replica()
    (persist,) = machine.step(0, request(write(7), ticket=1))
    assert machine.step(0, request(write(7), ticket=2)) == []
    assert isinstance(persist, Persist)
    rows.stage(persist.updates[0])
    rows.failed = True
    replies = machine.step(0, PersistDone(persist.batch, [Result(Status.TARGET_OFFLINE)], False))
    assert replies == [Reply(1, [Result(Status.TARGET_OFFLINE)]), Reply(2, [Result(Status.TARGET_OFFLINE)])]


def test_nobody_waits_behind_an_update_whose_rows_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(key: bytes) -> None:
        raise error(Status.TARGET_OFFLINE, "the index cannot be read")

    machine, rows = replica()
    monkeypatch.setattr(rows, "chunk", unreadable)
    for sequence in (7, 8):
        assert machine.step(0, request(write(sequence))) == [Reply("t", [Result(Status.TARGET_OFFLINE)])]
    assert not machine.in_flight


def test_a_late_write_does_not_revert_a_newer_one() -> None:
    # The scenario behind rule 5: W1 sits in the socket of a stopped head, the client gives up and writes W2 to the same chunk.
    machine, rows = replica()
    assert submit(machine, rows, write(2)) == [Status.OK]
    assert submit(machine, rows, write(1)) == [Status.DUPLICATE]


def test_ended_clients_are_refused() -> None:
    # Rule 6.
    machine, rows = replica()
    assert submit(machine, rows, write(1)) == [Status.OK]
    machine.step(0, ClientsEnded([CLIENT]))
    assert submit(machine, rows, write(2)) == [Status.SESSION_ENDED]
    assert submit(machine, rows, write(1, client=OTHER)) == [Status.OK]


def test_a_dead_process_of_a_client_is_refused_and_its_successor_is_not() -> None:
    # Rule 6: "from the moment at which its successor, the same client, has said so".
    machine, rows = replica()
    (persist,) = machine.step(0, request(write(5), ticket=1))
    assert machine.step(0, request(write(6), ticket=2)) == [], "it waits for its turn"
    assert machine.step(0, FenceRequest("f", 1, CLIENT, 10)) == [Reply("f", [Result(Status.OK)])]
    assert isinstance(persist, Persist)
    first, second = machine.step(0, persisted(machine, rows, persist))
    assert isinstance(first, Reply) and first.results[0].status == Status.OK, "it was decided before"
    assert isinstance(second, Reply) and second.results[0].status == Status.SESSION_ENDED
    assert submit(machine, rows, write(10)) == [Status.SESSION_ENDED]
    assert submit(machine, rows, write(11)) == [Status.OK]
    assert submit(machine, rows, write(1, client=OTHER)) == [Status.OK]
    assert submit(machine, rows, Update(Kind.REMOVE, b"a", 0, 0, 0, b"", 0, 0, ALWAYS, 0)) == [Status.OK], (
        "a server's own"
    )
    machine.step(0, FenceRequest("f", 1, CLIENT, 7))
    assert submit(machine, rows, write(10)) == [Status.SESSION_ENDED], "it does not go back"
    machine.step(0, ClientsEnded([CLIENT]))
    assert machine.fences == {}


def test_only_the_head_of_the_present_chain_takes_a_fence() -> None:
    machine, _ = replica(SERVING, SERVING, target=2)
    assert machine.step(0, FenceRequest("f", 1, CLIENT, 1)) == [Reply("f", [Result(Status.STALE_ROUTING)])]
    machine, _ = replica()
    assert machine.step(0, FenceRequest("f", 2, CLIENT, 1)) == [Reply("f", [Result(Status.STALE_CHAIN_VERSION)])]


def test_writes_from_before_a_truncate_are_refused() -> None:
    # Rule 6: "updates from before a truncate that the chunk has seen".
    machine, rows = replica()
    cut = Update(Kind.TRUNCATE, b"a", 0, 5, 0, OTHER, 1, 1, 3, 1 << 20)
    assert submit(machine, rows, write(1)) == [Status.OK]
    assert submit(machine, rows, cut) == [Status.OK]
    assert submit(machine, rows, write(2, truncate=2)) == [Status.STALE_TRUNCATE_VERSION]
    assert submit(machine, rows, write(3, truncate=3)) == [Status.OK]


def test_a_remove_takes_what_is_older_than_its_truncate() -> None:
    machine, rows = replica()
    remove = Update(Kind.REMOVE, b"a", 0, 0, 0, b"", 0, 0, 2, 0)
    assert submit(machine, rows, write(1, truncate=1)) == [Status.OK]
    assert submit(machine, rows, remove) == [Status.OK]
    assert not rows.chunks
    assert submit(machine, rows, write(2, truncate=1)) == [
        Status.STALE_TRUNCATE_VERSION
    ]  # also where the chunk is gone
    assert submit(machine, rows, write(2, truncate=2)) == [Status.OK]
    assert rows.chunks[b"a"].version.number == 3  # the name of the removed content is not used again
    assert submit(machine, rows, remove) == [Status.OK]  # a late one: the file has grown again since
    assert rows.chunks
    assert submit(machine, rows, remove._replace(truncate_version=ALWAYS)) == [Status.OK]
    assert not rows.chunks


def test_a_truncate_of_nothing_still_raises_the_floor() -> None:
    machine, rows = replica()
    cut = Update(Kind.TRUNCATE, b"a", 0, 5, 0, OTHER, 1, 1, 3, 1 << 20)
    assert submit(machine, rows, cut) == [Status.OK]
    assert submit(machine, rows, write(1, truncate=2)) == [Status.STALE_TRUNCATE_VERSION]


def test_what_cannot_be_persisted_is_refused_alone() -> None:
    machine, rows = replica()
    (persist,) = machine.step(0, request(write(1, b"a"), write(2, b"b", channel=2)))
    assert isinstance(persist, Persist)
    done = PersistDone(persist.batch, [Result(Status.NO_SPACE), rows.persist(persist.updates[1], True)], committed=True)
    (reply,) = machine.step(0, done)
    assert isinstance(reply, Reply)
    assert [r.status for r in reply.results] == [Status.NO_SPACE, Status.OK]
    assert submit(machine, rows, write(1, b"a")) == [Status.OK]  # the sequence was not used up


def test_sync_is_a_checkpoint_before_the_reply() -> None:
    machine, _ = replica()
    (checkpoint,) = machine.step(0, SyncRequest("s", 1))
    assert isinstance(checkpoint, Checkpoint)
    assert machine.step(0, PersistDone(checkpoint.batch, [Result(Status.OK)])) == [Reply("s", [Result(Status.OK)])]
    (reply,) = machine.step(0, SyncRequest("s", 9))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.STALE_CHAIN_VERSION


def test_a_chain_of_one_needs_no_lease() -> None:
    machine, rows = replica(SERVING, lease=held(until=-1))
    assert submit(machine, rows, write(1)) == [Status.OK]
    assert machine.may_read(1, 0) is Status.OK


def test_a_long_row_of_waiting_duplicates_is_no_recursion() -> None:
    machine, rows = replica()
    (first,) = machine.step(0, request(write(1, b"0", channel=0), write(1, b"1", channel=1), ticket=0))
    for i in range(1, 1500):  # each shares one chunk with the one before
        updates = [write(1, str(i).encode(), channel=i), write(1, str(i + 1).encode(), channel=i + 1)]
        assert machine.step(0, request(*updates, ticket=i)) == []
    machine.step(0, ClientsEnded([CLIENT]))
    assert isinstance(first, Persist)
    assert len(perform(machine, rows, [first])) == 1500
    assert machine.in_flight == 0
