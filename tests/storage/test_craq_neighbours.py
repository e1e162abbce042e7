"""The replica as a machine with neighbours: what passes down the chain and comes back, and what a change of the chain does to it. Each rule
of its docstring alone; whole chains are in test_craq_chains.py."""

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

from .machines import (
    CLIENT,
    OFFLINE,
    SERVING,
    SYNCING,
    Rows,
    chain,
    held,
    perform,
    persisted,
    replica,
    request,
    write,
)


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
