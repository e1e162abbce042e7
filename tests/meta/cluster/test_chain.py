"""The next state of a chain of one, as a table; longer ones are in test_chain_states.py."""

import itertools

import pytest

from emberfs.meta.cluster.chain import Lease, Report, new_chain, next_chain
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, LOCAL_STATE_ONLINE, LOCAL_STATE_UPTODATE
from emberfs.proto.gen.common_pb2 import TARGET_STATE_LASTSRV, TARGET_STATE_SERVING, Chain, ChainMember

SERVING, LASTSRV = TARGET_STATE_SERVING, TARGET_STATE_LASTSRV
UPTODATE, ONLINE, OFFLINE = LOCAL_STATE_UPTODATE, LOCAL_STATE_ONLINE, LOCAL_STATE_OFFLINE
OURS, OTHER = 111, 222  # incarnations


def chain(state: int, version: int = 4) -> Chain:
    return Chain(id=1, version=version, members=[ChainMember(target=7, node=3, state=state, incarnation=OURS)])


def test_a_new_chain_serves_at_once() -> None:
    made = new_chain(1, 7, 3, OURS)
    assert (made.version, made.members[0].state, made.members[0].incarnation) == (1, SERVING, OURS)


@pytest.mark.parametrize(
    ("state", "report", "next_state", "changed"),
    [
        # Silence and good news change nothing.
        (SERVING, Report(ONLINE, OURS), SERVING, False),
        (SERVING, Report(UPTODATE, OURS), SERVING, False),
        # A restarted process keeps its place and costs a version.
        (SERVING, Report(ONLINE, OURS, restarted=True), SERVING, True),
        (SERVING, Report(UPTODATE, OURS, restarted=True), SERVING, True),
        # The target is gone, and comes back with what the chain holds.
        (SERVING, Report(OFFLINE, OURS), LASTSRV, True),
        (LASTSRV, Report(OFFLINE, OURS), LASTSRV, False),
        (LASTSRV, Report(OFFLINE, OURS, restarted=True), LASTSRV, False),
        (LASTSRV, Report(ONLINE, OURS), SERVING, True),
        (LASTSRV, Report(UPTODATE, OURS, restarted=True), SERVING, True),
        # "A wiped or replaced disk that reports ONLINE … revives an empty chain" must not happen.
        (SERVING, Report(ONLINE, OTHER), LASTSRV, True),
        (SERVING, Report(UPTODATE, OTHER, restarted=True), LASTSRV, True),
        (LASTSRV, Report(ONLINE, OTHER), LASTSRV, False),
        (LASTSRV, Report(UPTODATE, OTHER, restarted=True), LASTSRV, False),
    ],
)
def test_next_state(state: int, report: Report, next_state: int, changed: bool) -> None:
    before = chain(state)
    after = next_chain(before, {7: report})
    assert after.members[0].state == next_state
    assert after.version == before.version + changed
    assert (after is not before) == changed
    assert after.members[0].incarnation == OURS  # only an administrator gives a place to another disk


@pytest.mark.parametrize(
    ("state", "report", "losses"),
    [
        (SERVING, Report(ONLINE, OURS, restarted=True, power_losses=2), 0),  # killed: nothing acknowledged is lost
        (SERVING, Report(ONLINE, OURS, restarted=True, power_losses=3), 1),
        (LASTSRV, Report(ONLINE, OURS, power_losses=2), 0),
        (
            LASTSRV,
            Report(ONLINE, OURS, power_losses=3),
            1,
        ),  # not said by a new process: it had come while nobody could be revived
        (LASTSRV, Report(OFFLINE, OURS, power_losses=3), 0),  # nobody goes on yet
        (SERVING, Report(ONLINE, OURS, restarted=True), 0),
    ],
)
def test_losses_are_counted_when_the_chain_goes_on(state: int, report: Report, losses: int) -> None:
    before = chain(state)
    before.losses, before.members[0].power_losses = 7, 2
    after = next_chain(before, {7: report})
    assert after.losses == 7 + losses
    assert after.members[0].power_losses == 2 + losses
    again = next_chain(after, {7: Report(ONLINE, OURS, restarted=True, power_losses=2 + losses)})
    assert again.losses == 7 + losses, "one loss is told once"
    assert next_chain(again, {7: Report(OFFLINE, OURS)}).losses == 7 + losses


def test_without_a_report_nothing_changes() -> None:
    before = chain(SERVING)
    assert next_chain(before, {}) is before
    assert next_chain(before, {8: Report(OFFLINE, OTHER)}) is before


def test_a_disk_may_move_to_another_node() -> None:
    after = next_chain(chain(LASTSRV), {7: Report(ONLINE, OURS)}, {7: 9})
    assert (after.members[0].node, after.members[0].state, after.version) == (9, SERVING, 5)


def test_only_two_states_can_be_reached() -> None:
    reports = [Report(s, i, r) for s in (UPTODATE, ONLINE, OFFLINE) for i in (OURS, OTHER) for r in (False, True)]
    reached = {SERVING}
    for _ in range(3):
        reached |= {next_chain(chain(s), {7: report}).members[0].state for s in reached for report in reports}
    assert reached == {SERVING, LASTSRV}


@pytest.mark.parametrize("lease", [Lease.OVERDUE, Lease.OVER])
@pytest.mark.parametrize("state", [SERVING, LASTSRV])
def test_a_sole_member_needs_no_lease(state: int, lease: Lease) -> None:
    before = chain(state)
    report = Report(ONLINE, OURS, lease=lease)
    assert (
        next_chain(before, {7: report}).members[0].state
        == next_chain(before, {7: report._replace(lease=Lease.HELD)}).members[0].state
    )


def test_an_index_that_did_not_open_clean_revives_nothing() -> None:
    for state in (SERVING, LASTSRV):
        after = next_chain(chain(state), {7: Report(ONLINE, OURS, restarted=True, opened_clean=False)})
        assert after.members[0].state == LASTSRV


def test_versions_never_fall_and_never_jump() -> None:
    reports = [Report(s, i, r) for s in (ONLINE, OFFLINE) for i in (OURS, OTHER) for r in (False, True)]
    for walk in itertools.product(reports, repeat=3):
        now = chain(SERVING, 1)
        for report in walk:
            after = next_chain(now, {7: report})
            assert after.version - now.version in (0, 1)
            assert (after.version == now.version) == (after == now)
            now = after
