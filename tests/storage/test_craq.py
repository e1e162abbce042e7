"""The replica as a machine: each rule of its docstring by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emberfs.proto.errors import Status
from emberfs.storage import craq
from emberfs.storage.craq import Replica
from emberfs.storage.events import (
    ALWAYS,
    Checkpoint,
    ClientsEnded,
    Commit,
    CommitDone,
    CopyChunks,
    Discard,
    Fate,
    FenceRequest,
    Forward,
    ForwardAck,
    Kind,
    Mend,
    MendDone,
    Persist,
    PersistDone,
    Repair,
    Reply,
    Result,
    RoutingChanged,
    Suspect,
    SyncRequest,
    Tick,
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
    chain,
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


def acked(forward: Forward, *results: Result) -> ForwardAck:
    return ForwardAck(forward.batch, forward.session, forward.number, results or [Result(Status.OK, 1, 4)])


def unanswered(forward: Forward) -> ForwardAck:
    return ForwardAck(forward.batch, forward.session, forward.number, None)


def forwarding(*states: int, rows: Rows | None = None) -> tuple[Replica, Rows, Forward]:
    """A head that has persisted a write and forwards it."""
    machine, rows = replica(*states or (SERVING, SERVING), rows=rows)
    (persist,) = machine.step(0, request(write(1)))
    assert isinstance(persist, Persist)
    (forward,) = machine.step(0, persisted(machine, rows, persist))
    assert isinstance(forward, Forward)
    return machine, rows, forward


def test_with_a_successor_persist_then_forward_then_commit_then_reply() -> None:
    # Rule 3: "persists an update before it forwards it, commits it after its successor acknowledged it, and only then answers".
    machine, rows, forward = forwarding()
    assert (forward.target, forward.chain_version, forward.updates[0].version) == (2, 1, Version(1, 1))
    assert not forward.whole
    assert rows.unresolved
    (commit,) = machine.step(0, acked(forward))
    assert isinstance(commit, Commit)
    (reply,) = machine.step(0, CommitDone(commit.batch))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.OK


def test_a_successor_that_appears_while_bytes_are_written_does_not_miss_them() -> None:
    # Rule 3: "Whether there is one is asked at that write (`fate`), not when the update came".
    machine, rows = replica(SERVING, OFFLINE)
    (persist,) = machine.step(0, request(write(1)))
    assert isinstance(persist, Persist)
    assert machine.fate(persist.batch) is Fate.COMMIT
    machine.step(0, RoutingChanged(chain(SERVING, SYNCING, version=2)))
    assert machine.fate(persist.batch) is Fate.PENDING
    (forward,) = machine.step(0, persisted(machine, rows, persist))
    assert isinstance(forward, Forward)
    assert (forward.target, forward.chain_version, forward.whole) == (2, 2, True)


def test_pending_is_only_resolved_forward() -> None:
    # Rule 4: "forwarded again until acknowledged, committed when the successor is gone".
    machine, _, forward = forwarding()
    assert machine.step(0, unanswered(forward)) == []
    assert machine.step(0, Tick()) == []
    (again,) = machine.step(craq.FORWARD_RETRY_S, Tick())
    assert isinstance(again, Forward)
    assert again.updates == forward.updates
    assert again.session > forward.session  # rule 8: the first one may still be on its way
    assert machine.step(1, acked(forward)) == []  # too late: the second one has to be answered
    (commit,) = machine.step(1, RoutingChanged(chain(SERVING, OFFLINE, version=2)))
    assert isinstance(commit, Commit)
    (reply,) = machine.step(1, CommitDone(commit.batch))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.OK
    assert machine.step(1, acked(again)) == []


def test_a_refusal_is_no_silence_the_session_stays() -> None:
    machine, _, forward = forwarding()
    assert machine.step(0, acked(forward, Result(Status.NO_SPACE))) == []
    (again,) = machine.step(craq.FORWARD_RETRY_S, Tick())
    assert isinstance(again, Forward)
    assert (again.session, again.number) == (forward.session, forward.number + 1)


@pytest.mark.parametrize("refusal", [Status.FENCED, Status.STALE_CHAIN_VERSION, Status.TARGET_OFFLINE])
def test_what_was_refused_at_the_door_may_come_once_more(refusal: Status) -> None:
    # Rule 8: its number is none that was taken, so a second copy of it would be, unless its session is over by then.
    machine, rows, forward = forwarding()
    assert machine.step(0, acked(forward, Result(refusal))) == []
    (again,) = machine.step(craq.FORWARD_RETRY_S, Tick())
    assert isinstance(again, Forward)
    assert again.session > forward.session
    successor, rows = replica(SERVING, SERVING, target=2)

    def arrives(sent: Forward, update: Update) -> Status:
        came = request(update, sender=1, session=sent.session, number=sent.number)
        (reply,) = perform(successor, rows, successor.step(0, came))
        return Status(reply.results[0].status)

    update, gone = again.updates[0], Update(Kind.REMOVE, b"a", 0, 0, 0, b"", 0, 0, ALWAYS, 0, None, Version(1, 2))
    assert arrives(again, update) is Status.OK
    assert arrives(replace(again, number=again.number + 1), gone) is Status.OK
    assert arrives(forward, update) is Status.BUSY
    assert not rows.chunks


def test_what_was_refused_for_another_ones_session_goes_again_at_once() -> None:
    machine, rows, first = forwarding()
    (persist,) = machine.step(0, request(write(1, b"b", channel=2), ticket=2))
    assert isinstance(persist, Persist)
    (second,) = machine.step(0, persisted(machine, rows, persist))
    assert isinstance(second, Forward)
    machine.step(0, unanswered(first))
    (again,) = machine.step(0, acked(second, Result(Status.BUSY)))
    assert isinstance(again, Forward)
    assert again.session > second.session
    assert machine.step(0, acked(again, Result(Status.BUSY))) == []  # this time for a reason of its own


def test_late_forwards_and_second_ones_are_refused() -> None:
    # Rule 8: a chunk that was removed must not come back.
    machine, rows = replica(SERVING, SERVING, target=2)

    def forwarded(update: Update, session: int, number: int) -> Status:
        effects = machine.step(0, request(update, sender=1, session=session, number=number))
        (reply,) = perform(machine, rows, effects)
        return Status(reply.results[0].status)

    first, gone = write(1, version=Version(1, 1)), Update(Kind.REMOVE, b"a", 0, 0, 0, b"", 0, 0, ALWAYS, 0)
    assert forwarded(first, 5, 1) is Status.OK
    assert forwarded(gone._replace(version=Version(1, 2)), 6, 1) is Status.OK
    assert forwarded(first, 5, 2) is Status.BUSY  # late
    assert forwarded(first, 6, 1) is Status.BUSY  # twice
    assert not rows.chunks
    machine.step(0, RoutingChanged(chain(SERVING, SERVING, version=2)))
    (reply,) = machine.step(0, request(first, sender=1, session=7, number=1))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.STALE_CHAIN_VERSION


def test_a_restarted_sender_begins_above_its_sessions() -> None:
    machine, _ = replica(SERVING, SERVING)
    for now in range(3):
        (persist,) = machine.step(now, request(write(1, bytes([now]), channel=now)))
        assert isinstance(persist, Persist)
    later, rows = Replica(1, Rows(), held()), Rows()
    later.step(100, RoutingChanged(chain(SERVING, SERVING)))
    (persist,) = later.step(100, request(write(1)))
    assert isinstance(persist, Persist)
    (forward,) = later.step(100, persisted(later, rows, persist))
    assert isinstance(forward, Forward)
    assert forward.session > 3


def test_who_leaves_the_chain_says_maybe() -> None:
    # Rule 4: 'To the client an error after that point means "maybe applied"'.
    machine, rows, _ = forwarding()
    (reply,) = machine.step(0, RoutingChanged(chain(OFFLINE, SERVING, version=2)))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.MAYBE_COMMITTED
    assert rows.unresolved  # nobody forgets it before a predecessor makes us equal to itself
    machine.step(0, RoutingChanged(chain(OFFLINE, SERVING, version=3)))
    assert machine.step(0, RoutingChanged(chain(SYNCING, SERVING, version=4))) == [Discard()]


def test_what_was_not_persisted_when_we_left_shall_never_have_been() -> None:
    machine, rows = replica(SERVING, SERVING)
    (persist,) = machine.step(0, request(write(1)))
    assert isinstance(persist, Persist)
    assert machine.step(0, RoutingChanged(chain(OFFLINE, SERVING, version=2))) == []
    assert machine.fate(persist.batch) is Fate.DROP
    (reply,) = machine.step(0, persisted(machine, rows, persist))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.STALE_ROUTING
    assert not rows.unresolved and not rows.channels


def test_other_bytes_at_the_successor_are_reported_and_replaced() -> None:
    # Rule 7: "Where the bytes of a SERVING one differ it gets the whole content, too".
    machine, rows, forward = forwarding()
    mine = rows.unresolved[b"a"].checksum
    assert machine.step(0, acked(forward, Result(Status.OK, 1, 4, mine + 1))) == [Suspect(2, b"a")]
    (again,) = machine.step(1, Tick())
    assert isinstance(again, Forward)
    assert again.whole
    assert isinstance(machine.step(1, acked(again, Result(Status.OK, 1, 4, mine)))[0], Commit)


def test_a_successor_that_lacks_the_version_before_gets_the_whole_content() -> None:
    machine, _, forward = forwarding()
    assert machine.step(0, acked(forward, Result(Status.NOT_COMMITTED))) == []
    (again,) = machine.step(1, Tick())
    assert isinstance(again, Forward)
    assert again.whole


def test_who_begins_to_serve_resolves_what_it_finds_pending() -> None:
    # Rule 4: "What a member finds pending when it begins to serve it resolves the same way".
    rows = Rows()
    pending = write(1, version=Version(1, 1))
    rows.stage(pending)
    machine = Replica(1, rows, held())
    (commit,) = machine.step(0, RoutingChanged(chain(SERVING, version=2)))
    assert isinstance(commit, Commit)
    assert machine.step(0, request(write(1), version=2)) == []  # the client's retry waits behind it, and finds it done
    rows.commit(commit.updates[0])
    (reply,) = machine.step(0, CommitDone(commit.batch))
    assert reply == Reply("t", [Result(Status.OK, 1, 4)])

    rows.stage(write(2, version=Version(2, 2)))
    machine = Replica(1, rows, held())
    forward, greeting = machine.step(0, RoutingChanged(chain(SERVING, SERVING, version=3)))
    assert isinstance(forward, Forward) and isinstance(greeting, Forward)
    assert not greeting.updates
    assert forward.whole  # which update it was is not known any more
    assert forward.updates[0].client == CLIENT  # but its number is: the successor may become the head


def test_a_new_last_member_commits_what_the_one_before_may_have_shown() -> None:
    # Rule 4: "the last SERVING member commits all of it at once".
    machine, rows, _ = forwarding(SERVING, SERVING, SYNCING)
    effects = machine.step(0, RoutingChanged(chain(SERVING, OFFLINE, SYNCING, version=2)))
    (commit,) = [effect for effect in effects if isinstance(effect, Commit)]
    rows.commit(commit.updates[0])
    (reply,) = machine.step(0, CommitDone(commit.batch))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.OK


def test_what_a_leaving_member_may_show_is_not_committed_before_it_has_confirmed() -> None:
    # Rule 4: "nobody is told of either until it has confirmed".
    machine, rows, _ = forwarding(SERVING, SERVING)
    effects = machine.step(0, RoutingChanged(chain(SERVING, SYNCING, version=2)))
    (forward,) = [effect for effect in effects if isinstance(effect, Forward) and effect.updates]
    assert not any(isinstance(effect, Commit) for effect in effects)
    assert not machine.decides
    assert machine.step(0, acked(forward, Result(Status.STALE_CHAIN_VERSION))) == []
    effects = machine.step(1, RoutingChanged(chain(SERVING, SYNCING, version=3)))  # it has still not heard
    (forward,) = [effect for effect in effects if isinstance(effect, Forward) and effect.updates]
    assert not machine.decides
    (commit,) = machine.step(1, acked(forward))
    assert isinstance(commit, Commit)
    rows.commit(commit.updates[0])
    (reply,) = machine.step(1, CommitDone(commit.batch))
    assert isinstance(reply, Reply)
    assert machine.decides


def test_a_leaving_member_that_is_gone_is_not_waited_for() -> None:
    machine, _, _ = forwarding(SERVING, SERVING)
    machine.step(0, RoutingChanged(chain(SERVING, SYNCING, version=2)))
    effects = machine.step(0, RoutingChanged(chain(SERVING, OFFLINE, version=3)))
    assert any(isinstance(effect, Commit) for effect in effects)
    assert machine.decides


def test_a_promoted_member_shows_nothing_before_its_predecessor_knows() -> None:
    # Rule 9: "until then that one may still answer from its own".
    machine, _ = replica(SERVING, SYNCING, target=2)
    assert machine.may_read(1, 0) is Status.TARGET_OFFLINE
    machine.step(0, RoutingChanged(chain(SERVING, SERVING, version=2)))
    assert machine.may_read(2, 0) is Status.FENCED
    predecessor, _ = replica(SERVING, SYNCING)
    (greeting,) = predecessor.step(0, RoutingChanged(chain(SERVING, SERVING, version=2)))
    assert isinstance(greeting, Forward)
    event = SyncRequest("greeting", greeting.chain_version, 1, greeting.session, greeting.number)
    assert isinstance(machine.step(0, event)[0], Checkpoint)
    assert machine.may_read(2, 0) is Status.OK
    assert predecessor.step(0, acked(greeting, Result(Status.OK))) == []
    assert predecessor.in_flight == 0


def test_forwarded_updates_old_news_is_a_success_and_a_gap_is_not() -> None:
    # Rule 6: "Behind it the version alone decides".
    machine, rows = replica(SERVING, SERVING, target=2)
    machine.step(0, ClientsEnded([CLIENT]))  # the head decided that; refusing here would wedge it
    rows.floor = 9  # so are floors

    def forwarded(update: Update) -> Status:
        (reply,) = perform(machine, rows, machine.step(0, request(update, sender=1)))
        return Status(reply.results[0].status)

    assert forwarded(write(1, version=Version(1, 1))) is Status.OK
    assert forwarded(write(1, version=Version(1, 1))) is Status.OK
    assert rows.names(b"a") == [(CLIENT, 1)]
    assert forwarded(write(3, version=Version(1, 3))) is Status.NOT_COMMITTED
    assert forwarded(write(2, version=Version(1, 2))) is Status.OK
    replace = Update(Kind.REPLACE, b"a", 0, 8, 1, b"", 0, 0, 0, 1 << 20, b"whole!!!", Version(1, 9))
    assert forwarded(replace) is Status.OK  # over a gap
    assert forwarded(replace._replace(version=Version(1, 8), data=b"old")) is Status.OK
    assert rows.chunks[b"a"].data == b"whole!!!"


def test_a_syncing_member_becomes_what_its_predecessor_is() -> None:
    # Rule 7. "The whole predecessor's state wins", also where its numbers are lower.
    machine, rows = replica(SERVING, OFFLINE, target=2)
    rows.persist(write(1, version=Version(4, 8)), True)
    rows.stage(write(1, b"b", channel=2, version=Version(4, 1)))
    assert machine.step(0, RoutingChanged(chain(SERVING, SYNCING, version=2))) == [Discard()]
    rows.unresolved.clear()
    replace = Update(Kind.REPLACE, b"a", 0, 3, 1, b"", 0, 0, 0, 1 << 20, b"new", Version(1, 3))
    (reply,) = perform(machine, rows, machine.step(0, request(replace, version=2, sender=1)))
    assert reply.results[0].status == Status.OK
    assert (rows.chunks[b"a"].data, rows.chunks[b"a"].version) == (b"new", Version(1, 3))
    gone = Update(Kind.REMOVE, b"a", 0, 0, 0, b"", 0, 0, ALWAYS, 0, None, Version(2, 0))
    (reply,) = perform(machine, rows, machine.step(0, request(gone, version=2, sender=1)))
    assert reply.results[0].status == Status.OK
    assert not rows.chunks
    assert machine.step(0, RoutingChanged(chain(SERVING, SERVING, version=3))) == []


def test_copies_and_updates_of_a_chunk_stand_in_one_line() -> None:
    # Rule 7: "the copy of a chunk and its updates cannot overtake each other".
    machine, rows = replica(SERVING, SYNCING)
    rows.persist(write(1, version=Version(1, 1)), True)
    rows.persist(write(1, b"b", channel=2, version=Version(1, 1)), True)
    (copy,) = machine.step(0, CopyChunks("copy", 1, [b"a", b"x"]))
    assert isinstance(copy, Forward)
    assert copy.whole
    assert [(u.kind, u.chunk) for u in copy.updates] == [(Kind.REPLACE, b"a"), (Kind.REMOVE, b"x")]
    assert machine.step(0, request(write(2), ticket="update")) == []
    other = machine.step(0, request(write(2, b"b", channel=2)))
    assert isinstance(other[0], Persist)
    reply, persist = machine.step(0, acked(copy, Result(Status.OK, 1, 4), Result(Status.CHECKSUM)))
    assert isinstance(reply, Reply) and isinstance(persist, Persist)
    assert [r.status for r in reply.results] == [Status.OK, Status.CHECKSUM]
    (forward,) = machine.step(0, persisted(machine, rows, persist))
    assert isinstance(forward, Forward) and forward.whole
    assert machine.step(0, CopyChunks("copy", 1, [b"a"])) == []  # behind the update
    effects = machine.step(0, RoutingChanged(chain(SERVING, OFFLINE, version=2)))
    assert isinstance(effects[0], Commit)
    rows.commit(forward.updates[0])
    answers = [e for e in machine.step(0, CommitDone(effects[0].batch)) if isinstance(e, Reply)]
    assert answers[1] == Reply("copy", [Result(Status.STALE_CHAIN_VERSION)])


def test_a_copy_ends_with_its_chain_version() -> None:
    machine, rows = replica(SERVING, SYNCING)
    rows.persist(write(1, version=Version(1, 1)), True)
    (copy,) = machine.step(0, CopyChunks("copy", 1, [b"a"]))
    assert isinstance(copy, Forward)
    machine.step(0, unanswered(copy))
    (again,) = machine.step(1, Tick())
    assert isinstance(again, Forward)
    (reply,) = machine.step(1, RoutingChanged(chain(SERVING, SYNCING, version=2)))
    assert reply == Reply("copy", [Result(Status.STALE_CHAIN_VERSION)])
    (reply,) = machine.step(1, CopyChunks("copy", 1, [b"a"]))
    assert reply == Reply("copy", [Result(Status.STALE_CHAIN_VERSION)])
    assert machine.in_flight == 0


def test_a_repair_waits_for_the_chunks_updates_and_they_for_it() -> None:
    machine, rows, forward = forwarding()
    assert machine.step(0, Repair("mend", b"a")) == []
    (commit,) = machine.step(0, acked(forward))
    assert isinstance(commit, Commit)
    rows.commit(commit.updates[0])
    _, mend = machine.step(0, CommitDone(commit.batch))
    assert isinstance(mend, Mend)
    assert mend.chunk == b"a"
    assert machine.step(0, request(write(2))) == []
    reply, persist = machine.step(0, MendDone(mend.batch))
    assert reply == Reply("mend", [Result(Status.OK)])
    assert isinstance(persist, Persist)
    machine.step(0, RoutingChanged(chain(OFFLINE, SERVING, version=2)))
    (reply,) = machine.step(0, Repair("mend", b"b"))
    assert reply == Reply("mend", [Result(Status.STALE_ROUTING)])


def test_without_a_lease_nothing_is_read_admitted_or_answered_with_success() -> None:
    # Rule 9.
    machine, rows = replica(SERVING, SERVING, lease=held(until=10))
    assert machine.may_read(1, 9) is Status.OK
    assert machine.may_read(1, 10) is Status.FENCED
    (reply,) = machine.step(11, request(write(1)))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.FENCED
    (persist,) = machine.step(9, request(write(1)))
    assert isinstance(persist, Persist)
    (forward,) = machine.step(9, persisted(machine, rows, persist))
    assert isinstance(forward, Forward)
    (commit,) = machine.step(11, acked(forward))  # the tail has it: this is no news to anybody
    assert isinstance(commit, Commit)
    (reply,) = machine.step(11, CommitDone(commit.batch))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.FENCED

    tail, rows = replica(SERVING, SERVING, target=2, lease=held(until=10))
    (persist,) = tail.step(9, request(write(1, version=Version(1, 1)), sender=1))
    assert isinstance(persist, Persist)
    (reply,) = tail.step(11, persisted(tail, rows, persist))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.FENCED


def test_a_chain_of_one_needs_no_lease() -> None:
    machine, rows = replica(SERVING, lease=held(until=-1))
    assert submit(machine, rows, write(1)) == [Status.OK]
    assert machine.may_read(1, 0) is Status.OK


def test_only_the_predecessor_forwards() -> None:
    machine, _ = replica(SERVING, SERVING, SERVING, target=3)
    (reply,) = machine.step(0, request(write(1, version=Version(1, 1)), sender=1))
    assert isinstance(reply, Reply)
    assert reply.results[0].status == Status.STALE_ROUTING


def test_a_sync_goes_down_the_chain() -> None:
    machine, _ = replica(SERVING, SERVING)
    (checkpoint,) = machine.step(0, SyncRequest("s", 1))
    assert isinstance(checkpoint, Checkpoint)
    (forward,) = machine.step(0, PersistDone(checkpoint.batch, [Result(Status.OK)]))
    assert isinstance(forward, Forward)
    assert forward.updates == []
    (reply,) = machine.step(0, acked(forward, Result(Status.OK)))
    assert reply == Reply("s", [Result(Status.OK)])


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
