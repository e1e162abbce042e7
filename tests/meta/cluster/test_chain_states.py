"""Chains of one to four members: every public state under everything that can be heard, the rules, and the time of a scan."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

import pytest

from emberfs.meta.cluster.chain import ORDER, Lease, Report, next_chain
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, LOCAL_STATE_ONLINE, LOCAL_STATE_UPTODATE
from emberfs.proto.gen.common_pb2 import Chain, ChainMember, TargetState

PUBLIC = {"S": "SERVING", "L": "LASTSRV", "Y": "SYNCING", "W": "WAITING", "O": "OFFLINE"}
STATE = {letter: TargetState.Value(f"TARGET_STATE_{name}") for letter, name in PUBLIC.items()}
LETTER = {state: letter for letter, state in STATE.items()}
VERSION = 9
OURS = 111  # incarnation

# What may be heard of one member, by a letter.
HEARD: dict[str, Report | None] = {
    "u": Report(LOCAL_STATE_UPTODATE, OURS, chain_version=VERSION),
    "n": Report(LOCAL_STATE_ONLINE, OURS, chain_version=VERSION),
    "x": Report(LOCAL_STATE_OFFLINE, OURS, chain_version=VERSION),
    "r": Report(LOCAL_STATE_ONLINE, OURS, restarted=True),
    "-": None,
    "d": Report(LOCAL_STATE_UPTODATE, OURS, chain_version=VERSION, lease=Lease.OVERDUE),
    "s": Report(LOCAL_STATE_UPTODATE, OURS, chain_version=VERSION, lease=Lease.OVER),
    "k": Report(LOCAL_STATE_ONLINE, OURS, chain_version=VERSION, cut=True),
    # The same, written differently.
    "o": Report(LOCAL_STATE_UPTODATE, OURS, chain_version=VERSION - 1),  # said before the last change: nothing
    "w": Report(LOCAL_STATE_UPTODATE, OURS + 1, chain_version=VERSION),  # another disk: gone
    "c": Report(LOCAL_STATE_ONLINE, OURS, chain_version=VERSION, opened_clean=False),
}
DISTINCT = "unxr-dsk"
HERE = "unrk"  # it is there, and holds what the chain recorded


def chain(states: str, version: int = VERSION) -> Chain:
    members = [ChainMember(target=i + 1, node=i + 1, state=STATE[s], incarnation=OURS) for i, s in enumerate(states)]
    return Chain(id=1, version=version, members=members)


def after(states: str, heard: str) -> Chain:
    return next_chain(chain(states), {i + 1: report for i, word in enumerate(heard) if (report := HEARD[word])})


def letters(found: Chain) -> str:
    return "".join(LETTER[member.state] for member in found.members)


def by_target(found: Chain) -> str:
    """States in the order of targets, as the members were numbered before the step."""
    return "".join(LETTER[member.state] for member in sorted(found.members, key=lambda member: member.target))


def step(states: str, heard: str) -> str:
    return by_target(after(states, heard))


def legal(states: str) -> bool:
    """What the function may be given and may return."""
    in_order = list(states) == sorted(states, key="SLYWO".index)
    served = "S" in states
    return in_order and (served or "L" in states) and not (served and "L" in states) and states.count("Y") <= served


def legal_chains(longest: int = 4) -> Iterator[str]:
    for length in range(1, longest + 1):
        yield from ("".join(s) for s in itertools.combinations_with_replacement("SLYWO", length) if legal("".join(s)))


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_invariants_over_all_public_and_local_states(length: int) -> None:
    """ "At most one SYNCING per chain; ≥1 SERVING or LASTSRV; order of states; version +1 per change; membership constant", from
    every combination of states, also from those that no chain can reach."""
    for states in itertools.product("SLYWO", repeat=length):
        for heard in itertools.product("unxk", repeat=length):
            before = chain("".join(states))
            found = next_chain(before, {i + 1: HEARD[word] for i, word in enumerate(heard)})  # type: ignore[misc]
            result = letters(found)
            assert result.count("Y") <= 1
            if found is not before:
                assert list(result) == sorted(result, key="SLYWO".index)
            assert "Y" not in result or "S" in result
            assert not ("S" in result and "L" in result)
            assert "S" in result or "L" in result or not {"S", "L"} & set(states)
            assert sorted(m.target for m in found.members) == list(range(1, length + 1))
            assert {m.incarnation for m in found.members} == {OURS}
            assert (found is before) or found.version == VERSION + 1
            assert (found.version == VERSION) == (found == before)


def test_what_may_be_said_of_every_legal_chain() -> None:
    """Each rule in its own words, over all legal chains of up to four members and all that can be heard of them."""
    for states in legal_chains():
        for heard in itertools.product(DISTINCT, repeat=len(states)):
            found = after(states, "".join(heard))
            now = by_target(found)
            assert legal(letters(found)), (states, heard, now)
            check_rules(states, heard, now)


def check_rules(states: str, heard: Sequence[str], now: str) -> None:
    case = states, "".join(heard), now
    if is_left_to_one_that_may_serve(states, heard):
        assert now == states, case
        return
    sole = len(states) == 1
    gone = [word == "x" or (word == "s" and not sole) for word in heard]
    for i, (old, word, new) in enumerate(zip(states, heard, now, strict=True)):
        if new == "S":
            # Only who holds all of it serves: who served, who revives, who was synced under this very version.
            assert old in "SL" or (old == "Y" and word == "u"), case
            assert not gone[i] or waits(states, heard), case
        if old == "S" and new != "S":
            assert gone[i] or word in "rk", case  # nobody loses the place for nothing
            assert not sole or new == "L", case
            assert word != "k" or (new == "Y" and leaves_safely(states, heard, i)), case
        if old == "Y" and new == "W":  # it has heard that it serves nothing
            assert word in "unrk", case
        if new == "L":
            assert old in "SL" and "S" not in now, case
        if new == "Y":
            assert old == "Y" or word in "nr" or (old == "S" and word == "k"), case
        if old in "YWO" and gone[i]:
            assert new == "O", case
        if new == "O" and old != "O":
            assert gone[i] or word == "r" or old == "L", case
    if "S" not in now:  # nobody could have served, and all of the last set are remembered
        assert not any(old in "SL" and word in HERE for old, word in zip(states, heard, strict=True)), case
        assert [new == "L" for new in now] == [old in "SL" for old in states], case
    if "S" in now and "Y" not in now:
        assert not any(old in "WO" and word in "nr" for old, word in zip(states, heard, strict=True)), case
    if "L" in states:  # only one revives
        assert now.count("S") <= 1, case


def waits(states: str, heard: Sequence[str]) -> bool:
    words = [word for old, word in zip(states, heard, strict=True) if old == "S"]
    return "d" in words and not set(words) & set("unk-")


def is_left_to_one_that_may_serve(states: str, heard: Sequence[str]) -> bool:
    """Whether all that serve are gone, and one that is SYNCING may not have heard yet that it serves no more."""
    places = list(zip(states, heard, strict=True))
    return all(word in "xs" for old, word in places if old == "S") and any(
        place in places for place in (("Y", "-"), ("Y", "d"))
    )


def leaves_safely(states: str, heard: Sequence[str], place: int) -> bool:
    """Whether a member that is cut off may become SYNCING: another one surely stays, no other one goes in this step, and none that is
    SYNCING now has not heard of it."""
    places = list(zip(states, heard, strict=True))
    stays = ("S", "u") in places or ("S", "n") in places
    return stays and places.index(("S", "k")) == place and not {("Y", "-"), ("Y", "d")} & set(places)


def test_only_one_member_at_a_time_is_moved_for_a_cut() -> None:
    for states in legal_chains():
        for heard in itertools.product("unk-", repeat=len(states)):
            now = step(states, "".join(heard))
            moved = [i for i, (old, new) in enumerate(zip(states, now, strict=True)) if old == "S" != new]
            assert len(moved) <= 1, (states, heard, now)
            assert "S" not in states or "S" in now, (states, heard, now)


def test_the_same_said_differently() -> None:
    for states in legal_chains(3):
        for heard in itertools.product("unxr-", repeat=len(states) - 1):
            rest = "".join(heard)
            assert step(states, "o" + rest) == step(states, "-" + rest)
            assert step(states, "w" + rest) == step(states, "x" + rest)
            assert step(states, "c" + rest) == step(states, ("x" if states[0] in "SL" else "n") + rest)


def test_good_news_from_another_version_is_no_news_and_bad_news_is() -> None:
    for version in (VERSION - 1, VERSION + 1):
        stale = Report(LOCAL_STATE_UPTODATE, OURS, chain_version=version)
        assert next_chain(chain("SY"), {2: stale}).version == VERSION
        assert by_target(next_chain(chain("SO"), {2: stale})) == "SO"
        assert by_target(next_chain(chain("SS"), {2: stale._replace(state=LOCAL_STATE_OFFLINE)})) == "SO"


def test_a_sync_is_done_only_under_the_version_that_it_ran_under() -> None:
    unsaid = Report(LOCAL_STATE_UPTODATE, OURS)  # the server did not say under which version
    assert by_target(next_chain(chain("SY"), {2: unsaid})) == "SY"
    assert step("SY", "-u") == "SS"


@pytest.mark.parametrize(
    ("states", "heard", "expected"),
    [
        ("SSS", "xuu", "OSS"),  # the next one is the head now
        ("SSS", "uxu", "SOS"),
        ("SSS", "uxx", "SOO"),
        ("SSS", "xxx", "LLL"),  # all of them, not the head alone
        ("SSS", "sss", "LLL"),
        ("LLL", "xnx", "OSO"),  # any one revives the chain
        ("LLL", "-nn", "OSO"),  # and only one
        ("LLL", "xxc", "LLL"),  # not with a damaged index
        ("LLL", "xxw", "LLL"),  # nor from another disk
        ("LOO", "xnn", "LWW"),  # they lack what was written since
        ("SOO", "unn", "SYW"),
        ("SYW", "unn", "SYW"),
        ("SYW", "uun", "SSY"),
        ("SYW", "uxn", "SOY"),  # the next one takes its turn
        ("SYW", "xnn", "LWW"),
        ("SYW", "xun", "OSY"),  # a finished sync is as good as any
        ("SW", "uu", "SW"),
        ("SO", "uu", "SW"),
        ("SSS", "uru", "SOS"),  # a new process first loses its place
        ("SSS", "rrr", "SOO"),  # unless nobody else serves
        ("SSS", "xrr", "OSO"),
        ("SYO", "urr", "SOY"),
        ("SSS", "sdd", "SSS"),  # is everything going down? wait
        ("SSS", "ssd", "SSS"),
        ("SSS", "sdu", "OSS"),  # one is certainly there
        ("SSS", "sd-", "OSS"),
        ("SSS", "xdd", "OSS"),  # its own word needs no waiting
        ("SSS", "srd", "SOS"),
        ("SOO", "sdd", "LOO"),
        ("SYO", "uds", "SYO"),
        ("SS", "uk", "SY"),  # cut off: it may still serve, so every write goes through it until it has heard
        ("SS", "ku", "YS"),
        ("SS", "kk", "SS"),
        ("SS", "-k", "SS"),  # nobody surely stays
        ("S", "k", "S"),
        ("SSS", "ukk", "SYS"),  # one at a time
        ("SSS", "ksu", "YOS"),
        ("SY", "uk", "SW"),  # it has heard
        ("SSY", "ukn", "SYW"),  # it needs the place more than who serves nothing anyway
        ("SSY", "ukk", "SYW"),
        ("SSY", "uku", "SYS"),
        ("SSY", "uk-", "SSY"),  # that one may be on its way out as well
        ("SSY", "ukd", "SSY"),
        ("SYW", "ukn", "SWY"),
        ("SWO", "ukk", "SWW"),
        ("LO", "kx", "SO"),  # the link matters to nobody
        ("SY", "x-", "SY"),  # it may still serve: as long as that is so nobody else may begin to
        ("SY", "xn", "LW"),
        ("SY", "xs", "LO"),
        ("SY", "r-", "SY"),
    ],
)
def test_scenarios(states: str, heard: str, expected: str) -> None:
    assert step(states, heard) == expected


@pytest.mark.parametrize(
    ("states", "heard", "order"),
    [
        ("SSS", "xuu", [2, 3, 1]),
        ("SSY", "uuu", [1, 2, 3]),
        ("SYW", "uun", [1, 2, 3]),
        ("SSOO", "uxxx", [1, 2, 3, 4]),  # who lost its place last lacks least, and is synced first
        ("LLL", "xxn", [3, 1, 2]),
        ("SOOO", "uxxn", [1, 4, 2, 3]),
    ],
)
def test_order(states: str, heard: str, order: list[int]) -> None:
    assert [member.target for member in after(states, heard).members] == order


def test_every_legal_chain_can_be_reached_and_nothing_else() -> None:
    for length in (1, 2, 3):
        reached, new = set[str](), {"S" * length}
        while new:
            reached |= new
            new = {
                letters(after(s, "".join(h))) for s in new for h in itertools.product(DISTINCT, repeat=length)
            } - reached
        assert reached == {states for states in legal_chains(length) if len(states) == length}


def test_all_serve_again_when_all_are_there() -> None:
    """From every legal chain, with honest servers that report under the current version: "P-5 AllReplicasInServingState"."""
    for states in legal_chains():
        now = chain(states)
        for _ in range(4 * len(states)):
            reports = {
                m.target: Report(
                    LOCAL_STATE_UPTODATE if LETTER[m.state] in "SY" else LOCAL_STATE_ONLINE,
                    OURS,
                    chain_version=now.version,
                )
                for m in now.members
            }
            now = next_chain(now, reports)
        assert letters(now) == "S" * len(states), states
        assert next_chain(now, reports) is now


def test_who_was_copied_to_has_lost_nothing() -> None:
    """Only who goes on with what it has may lack something; whatever the others lost, they get it from there."""

    def said(word: str, power_losses: int, version: int = VERSION) -> Report:
        report = HEARD[word]
        assert report is not None
        return report._replace(power_losses=power_losses, chain_version=version if word == "u" else 0)

    demoted = next_chain(chain("SS"), {1: said("r", 1), 2: said("u", 0)})
    syncing = next_chain(demoted, {1: said("n", 1)})
    assert (by_target(demoted), by_target(syncing)) == ("OS", "YS")
    whole = next_chain(syncing, {1: said("u", 1, syncing.version), 2: said("u", 0, syncing.version)})
    assert by_target(whole) == "SS" and not whole.losses
    nobody = next_chain(whole, {1: said("x", 1), 2: said("x", 0)})
    assert by_target(nobody) == "LL" and not nobody.losses
    first = next_chain(nobody, {1: said("r", 1)})  # its loss of long ago was made good
    assert by_target(first)[0] == "S" and not first.losses
    second = next_chain(nobody, {1: said("x", 2), 2: said("r", 1)})
    assert by_target(second)[1] == "S" and second.losses == 1


def test_a_disk_may_move_while_others_serve() -> None:
    found = next_chain(chain("SSS"), {2: HEARD["r"]}, {2: 8})  # type: ignore[dict-item]
    assert [(m.target, m.node, LETTER[m.state]) for m in found.members] == [(1, 1, "S"), (3, 3, "S"), (2, 8, "O")]
    found = next_chain(chain("SO"), {}, {2: 8})
    assert [(m.node, LETTER[m.state]) for m in found.members] == [(1, "S"), (8, "O")] and found.version == VERSION + 1


def test_every_state_has_a_place() -> None:
    assert sorted(ORDER) == sorted(STATE.values())


def test_a_scan_of_ten_thousand_chains(capsys: pytest.CaptureFixture[str]) -> None:
    """ "next-state scan of 10,000 chains: 50 ms", as CPU time of three replicas each, best of five."""
    chains = [
        Chain(
            id=i,
            version=VERSION,
            members=[ChainMember(target=3 * i + j, node=j, state=1, incarnation=OURS) for j in range(3)],
        )
        for i in range(10_000)
    ]
    reports = dict.fromkeys(range(30000), HEARD["u"])
    best = float("inf")
    for _ in range(5):
        begin = time.thread_time()
        for entry in chains:
            assert next_chain(entry, reports) is entry  # type: ignore[arg-type]
        best = min(best, time.thread_time() - begin)
    with capsys.disabled():
        print(f" [10,000 chains of three: {best * 1000:.0f} ms] ", end="")
    assert best < 0.2  # a loaded or emulated machine; the figure is for people
