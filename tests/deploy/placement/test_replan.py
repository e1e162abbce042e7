"""Changes to existing chains: disks come, go, drain, are replaced; as little as possible moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberfs.deploy.placement import Chain, Disk, InfeasibleError, Plan, Request, plan, replan
from emberfs.deploy.placement.model import Standing

from .checker import check_balanced, check_moves, check_sound, seats
from .test_plan import TIB, cluster, requests

GIB = 1 << 30


def existing(request: Request) -> list[Chain]:
    made = plan(request, 0).chains
    return [Chain(chain.members, number + 1, 100 * GIB) for number, chain in enumerate(made)]


def checked(request: Request, chains: list[Chain]) -> Plan:
    found = replan(request, chains)
    check_sound(request, found)
    check_moves(request, chains, found)
    return found


def standing(disks: list[Disk], names: set[str], what: Standing) -> list[Disk]:
    return [replace(disk, standing=what) if disk.node in names or disk.name in names else disk for disk in disks]


@settings(max_examples=40, deadline=None)
@given(requests())
def test_nothing_moves_where_nothing_changed(request: Request) -> None:
    try:
        chains = existing(request)
    except InfeasibleError:
        return
    found = checked(request, chains)
    assert not found.moves and list(found.chains) == chains


@pytest.mark.parametrize("what", [Standing.DRAINING, Standing.GONE])
def test_a_drained_host_gives_away_its_members_and_nothing_else_moves(what: Standing) -> None:
    disks = cluster(10, 2)
    chains = existing(Request(disks, 3, seats_per_disk=6))
    request = Request(standing(disks, {"n3"}, what), 3, seats_per_disk=6)
    found = checked(request, chains)
    check_balanced(request, found.chains)
    assert {move.source for move in found.moves} == {"n3/0", "n3/1"}
    assert found.figures.moves == found.figures.moves_bound == 12
    assert found.figures.bytes_to_move == 12 * 100 * GIB


def test_a_new_host_takes_its_share_and_no_more() -> None:
    disks = cluster(9, 2)
    chains = existing(Request(disks, 3, seats_per_disk=6))
    request = Request([*disks, *(Disk(f"new/{i}", "new", TIB) for i in range(2))], 3)
    found = checked(request, chains)
    check_balanced(request, found.chains)
    assert {move.target for move in found.moves} == {"new/0", "new/1"}
    assert found.figures.moves == found.figures.moves_bound == 10  # 108 members over 20 disks: 5 each
    assert found.figures.pair_load_max <= found.figures.pair_load_bound + 1


def test_a_replaced_disk_hands_over_to_its_successor() -> None:
    disks = cluster(8, 2)
    chains = existing(Request(disks, 3, seats_per_disk=6))
    request = Request([*standing(disks, {"n2/1"}, Standing.GONE), Disk("n2/new", "n2", TIB)], 3)
    found = checked(request, chains)
    assert len(found.moves) == 6
    assert {(move.source, move.target) for move in found.moves} == {("n2/1", "n2/new")}


def test_more_replicas_are_added_without_moving_anything() -> None:
    disks = cluster(6)
    chains = existing(Request(disks, 1, seats_per_disk=3))
    found = checked(Request(disks, 3), chains)
    check_balanced(Request(disks, 3), found.chains)
    assert all(move.source == "" for move in found.moves) and len(found.moves) == 2 * len(chains)
    assert all(after.members[:1] == before.members for before, after in zip(chains, found.chains, strict=True))


def test_two_members_of_a_chain_on_one_host_are_parted() -> None:
    found = checked(Request(cluster(4, 2), 3), [Chain(("n0/0", "n0/1", "n1/0"), 7, GIB)])
    assert [move.source for move in found.moves][:1] == ["n0/1"] and found.chains[0].members[0] == "n0/0"


def test_a_disk_that_nobody_knows_is_gone() -> None:
    found = checked(Request(cluster(4), 3), [Chain(("n0/0", "lost/9", "n1/0"), 7, GIB)])
    assert [move.source for move in found.moves] == ["lost/9"]


def test_only_what_must_move_without_balancing() -> None:
    disks = cluster(6)
    chains = existing(Request(disks, 3, seats_per_disk=6))
    request = Request([*standing(disks, {"n0"}, Standing.DRAINING), Disk("new/1", "new", TIB)], 3)
    found = replan(request, chains, balance=False)
    check_sound(request, found)
    assert {move.source for move in found.moves} == {"n0/0"}


def test_there_must_be_somewhere_to_go() -> None:
    disks = cluster(3)
    chains = existing(Request(disks, 3))
    with pytest.raises(InfeasibleError, match="failure domains"):
        replan(Request(standing(disks, {"n0"}, Standing.DRAINING), 3), chains)
    full = [Disk(f"t{i}", f"n{i}", TIB, seats_max=1) for i in range(4)]
    with pytest.raises(InfeasibleError):
        replan(Request(full, 2), [Chain(("t0", "t1"), 1), Chain(("t2", "t3"), 2), Chain((), 3)])


def test_chains_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        replan(Request(cluster(3), 2), [Chain(("n0/0", "n0/0"), 1)])
    with pytest.raises(ValueError, match="2 replicas are wanted"):
        replan(Request(cluster(3), 2), [Chain(("n0/0", "n1/0", "n2/0"), 1)])


def test_a_member_steps_aside_where_there_is_no_direct_way() -> None:
    """The free seat is on c, whose host chain 1 uses already: a member of chain 2 goes there and makes room."""
    disks = [Disk(name, name, TIB, seats_max=1) for name in "abx"] + [
        Disk("c1", "c", TIB, seats_max=1),
        Disk("c2", "c", TIB, seats_max=1),
    ]
    chains = [Chain(("x", "c1"), 1, GIB), Chain(("a", "b"), 2, GIB)]
    request = Request(standing(disks, {"x"}, Standing.GONE), 2)
    found = replan(request, chains)
    check_sound(request, found)
    check_moves(request, chains, found)
    assert len(found.moves) == 2 and found.figures.moves_bound == 1


@settings(max_examples=20, deadline=None)
@given(requests(), st.data())
def test_any_change(request: Request, data: st.DataObject) -> None:
    """Some disks leave, some come: sound, balanced unless it says otherwise, and close to the fewest moves there can be."""
    try:
        chains = existing(request)
    except InfeasibleError:
        return
    disks = [replace(disk, seats_max=10**5) for disk in request.disks]
    for _ in range(data.draw(st.integers(0, 2))):
        leaves = data.draw(st.sampled_from([disk.name for disk in disks]))
        disks = standing(disks, {leaves}, data.draw(st.sampled_from([Standing.DRAINING, Standing.GONE])))
    for number in range(data.draw(st.integers(0, 2))):
        old = data.draw(st.sampled_from(disks))
        host = data.draw(st.sampled_from([old.node, f"new{number}"]))
        disks.append(Disk(f"new{number}", host, data.draw(st.integers(1, 40)) * (TIB // 4), rack=old.rack))
    try:
        changed = replace(request, disks=disks)
        found = replan(changed, chains)
    except InfeasibleError:
        return
    check_sound(changed, found)
    check_moves(changed, chains, found)
    if not found.notes:
        check_balanced(changed, found.chains)
    assert found.figures.moves <= found.figures.moves_bound * 2


def test_seats_are_kept_by_those_who_have_them() -> None:
    """Ten seats over four equal disks: two of them have three, and keep them."""
    disks = cluster(4)
    members = [("n3/0", "n2/0"), ("n3/0", "n2/0"), ("n3/0", "n1/0"), ("n0/0", "n2/0"), ("n0/0", "n1/0")]
    chains = [Chain(pair, number) for number, pair in enumerate(members)]
    found = checked(Request(disks, 2), chains)
    assert not found.moves
    assert seats(Request(disks, 2), found.chains)["n3/0"] == 3
