"""The next state of a chain: a pure function of its entry and of what is known about its members.

Public states are the manager's, and the order of the members follows them:
    SERVING  answers reads and takes writes; the first one is the head. Every acknowledged write is on every SERVING member.
    LASTSRV  was SERVING when the last of them went; nobody serves, and each of them holds every acknowledged write.
    SYNCING  takes live writes as the successor of the last SERVING member, which copies to it what it lacks. At most one.
    WAITING  is there, and its turn to be copied to has not come.
    OFFLINE  is not there, or has just lost its place; what it holds counts for nothing.
Local states are the storage server's report: UPTODATE (holds all that the chain holds), ONLINE (is there), OFFLINE.

A chain changes only by `next_chain`, and with every change its version grows by one, so that whoever still uses the old entry is
refused and fetches the new one. The members stay the same; who they are is an administrator's decision.

Rules:
1. A member counts only with the incarnation that the chain recorded: a disk that was replaced or formatted anew holds none of
   the chain's chunks, whatever it reports.
2. A sole member stays SERVING through silence and restarts: there is nobody to hand its place to, so it needs no lease.
   A restart still costs a version: requests that were sent to the old process are not taken by the new one. A sole member whose
   target is gone is LASTSRV, and the same incarnation revives the chain when it returns.
3. A member of a longer chain has its place only under a lease. A new process first loses its place, as it may have lost what it had
   not synced, unless nobody else serves.
4. When nobody serves any more, all that were SERVING are LASTSRV: a write was acknowledged only when all of them had it, so any
   one may revive the chain (3FS waits for the head). Only one does. The others may differ from it, each in what it had not
   synced or had not been told, so they are copied to like everybody else.
5. Whoever is to revive the chain, or to keep its place, has an index that opened clean.
6. Good news counts only under the current chain version: "UPTODATE" from before a demotion would make a member SERVING that
   missed the writes since. Bad news always counts.
7. When leases run out one after the other because everything fails at once, the first ones keep their places until it is clear
   whether anybody is left. Taking them one by one would leave a chain that only the last one may revive.
8. A member that is cut off from the one before it, while both hold their leases, must not lose its place from one version to the next: it
   serves until it has heard of that. It becomes SYNCING first, at the end of the chain, where it serves nothing and every write still goes
   through it, so none is acknowledged that it could miss. From there it may be copied to over another link and serve again; over the
   link that is cut nobody copies, so it is WAITING as soon as it has reported under the new version. One member at a time, never the
   last one that serves, and nobody else takes SYNCING from a member that has not heard of it yet.
9. For the same reason a chain in which such a member is left alone stays as it is until that one has heard, or its lease is over.
10. When a chain goes on with a member that has lost power since it was known to hold everything, its `losses` grow: whoever has written
    before, and syncs only now, must hear that some of it may be missing.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, LOCAL_STATE_UPTODATE, LocalState
from ...proto.gen.common_pb2 import (
    TARGET_STATE_LASTSRV,
    TARGET_STATE_OFFLINE,
    TARGET_STATE_SERVING,
    TARGET_STATE_SYNCING,
    TARGET_STATE_WAITING,
    Chain,
    ChainMember,
    TargetState,
)


class Lease(enum.Enum):
    """A node's lease, as the manager counts it from the last renewal that it received."""

    HELD = "held"
    OVERDUE = "overdue"  # at least one renewal should have come since; the node may still serve
    OVER = "over"  # the node has stopped serving, whatever became of it


class Report(NamedTuple):
    """What is known about one target right now."""

    state: LocalState
    incarnation: int  # of what lies on the disk
    restarted: bool = False  # by a process that the chain has not seen yet
    chain_version: int = 0  # that the server had when it said so; 0: it said none, and so cannot have finished a sync
    lease: Lease = Lease.HELD
    opened_clean: bool = True  # nothing that the index should hold was missing or damaged when it was opened
    power_losses: int | None = None  # of the target until now; None: not said
    cut: bool = (
        False  # SERVING: cut off from its predecessor; else: nobody who serves last can copy to it now (links.py)
    )


class Word(enum.IntEnum):  # hashed many thousand times a scan, which an Enum does in Python
    """What a report comes down to, for one member of one chain."""

    UPTODATE = 1
    ONLINE = 2
    RESTARTED = 3
    NOTHING = 4  # no report, or good news from before the chain's last change
    OVERDUE = 5
    SILENT = 6  # its lease is over
    GONE = 7
    CUT = 8  # it is there, and cut off


SERVING, LASTSRV = TARGET_STATE_SERVING, TARGET_STATE_LASTSRV
SYNCING, WAITING, OFFLINE = TARGET_STATE_SYNCING, TARGET_STATE_WAITING, TARGET_STATE_OFFLINE
ORDER = {SERVING: 0, LASTSRV: 1, SYNCING: 2, WAITING: 3, OFFLINE: 4}

# Who serves after this step without any question.
SERVES = {
    (SERVING, Word.UPTODATE),
    (SERVING, Word.ONLINE),
    (SERVING, Word.NOTHING),
    (SYNCING, Word.UPTODATE),  # it has every write of this chain version and all that was before
}
# Who may, if nobody does: the first of these in the order of the chain.
REVIVES = {
    (SERVING, Word.RESTARTED),
    (LASTSRV, Word.UPTODATE),
    (LASTSRV, Word.ONLINE),
    (LASTSRV, Word.RESTARTED),
}

# (public, word) -> public, in a chain that a member serves after this step. An impossible transition is a missing key.
# SYNCING goes to one member only; who does not get it is WAITING.
SERVED: dict[tuple[int, Word], TargetState] = {
    (SERVING, Word.UPTODATE): SERVING,
    (SERVING, Word.ONLINE): SERVING,
    (SERVING, Word.NOTHING): SERVING,
    (SERVING, Word.RESTARTED): OFFLINE,
    (SERVING, Word.GONE): OFFLINE,
    (SERVING, Word.CUT): SYNCING,
    (LASTSRV, Word.UPTODATE): OFFLINE,
    (LASTSRV, Word.ONLINE): OFFLINE,
    (LASTSRV, Word.NOTHING): OFFLINE,
    (LASTSRV, Word.RESTARTED): OFFLINE,
    (LASTSRV, Word.GONE): OFFLINE,
    (SYNCING, Word.UPTODATE): SERVING,
    (SYNCING, Word.ONLINE): SYNCING,
    (SYNCING, Word.NOTHING): SYNCING,
    (SYNCING, Word.RESTARTED): OFFLINE,  # what was copied to it may not have been synced
    (SYNCING, Word.GONE): OFFLINE,
    (SYNCING, Word.CUT): WAITING,
    (WAITING, Word.UPTODATE): WAITING,  # it has to say ONLINE first: nobody has copied anything to it
    (WAITING, Word.ONLINE): SYNCING,
    (WAITING, Word.NOTHING): WAITING,
    (WAITING, Word.RESTARTED): SYNCING,
    (WAITING, Word.GONE): OFFLINE,
    (WAITING, Word.CUT): WAITING,
    (OFFLINE, Word.UPTODATE): WAITING,
    (OFFLINE, Word.ONLINE): SYNCING,
    (OFFLINE, Word.NOTHING): OFFLINE,
    (OFFLINE, Word.RESTARTED): SYNCING,
    (OFFLINE, Word.GONE): OFFLINE,
    (OFFLINE, Word.CUT): WAITING,
}
# The same in a chain that nobody serves.
UNSERVED: dict[tuple[int, Word], TargetState] = {
    (SERVING, Word.GONE): LASTSRV,
    (LASTSRV, Word.NOTHING): LASTSRV,
    (LASTSRV, Word.GONE): LASTSRV,
    (SYNCING, Word.ONLINE): WAITING,
    (SYNCING, Word.RESTARTED): WAITING,
    (SYNCING, Word.GONE): OFFLINE,
    (SYNCING, Word.CUT): WAITING,
    (WAITING, Word.UPTODATE): WAITING,
    (WAITING, Word.ONLINE): WAITING,
    (WAITING, Word.NOTHING): WAITING,
    (WAITING, Word.RESTARTED): WAITING,
    (WAITING, Word.GONE): OFFLINE,
    (WAITING, Word.CUT): WAITING,
    (OFFLINE, Word.UPTODATE): WAITING,
    (OFFLINE, Word.ONLINE): WAITING,
    (OFFLINE, Word.NOTHING): OFFLINE,
    (OFFLINE, Word.RESTARTED): WAITING,
    (OFFLINE, Word.GONE): OFFLINE,
    (OFFLINE, Word.CUT): WAITING,
}

# SERVING members of whom one of these is heard leave no doubt that somebody is left (rule 7).
_FRESH = (Word.UPTODATE, Word.ONLINE, Word.NOTHING)
HEARD_MAX = 65_536  # different things heard of chains whose outcome is remembered


def new_chain(chain_id: int, target: int, node: int, incarnation: int, power_losses: int = 0) -> Chain:
    """A chain of one: its target serves from the start, there is nothing to copy."""
    member = ChainMember(target=target, node=node, state=SERVING, incarnation=incarnation, power_losses=power_losses)
    return Chain(id=chain_id, version=1, members=[member])


def with_members(chain: Chain, members: Sequence[ChainMember]) -> Chain:
    """The next version, with other members or other states of them, in the order that their states give."""
    after = Chain(id=chain.id, version=chain.version + 1, losses=chain.losses)
    after.members.extend(sorted(members, key=lambda member: ORDER[member.state]))
    return after


def next_chain(chain: Chain, reports: Mapping[int, Report], nodes: Mapping[int, int] | None = None) -> Chain:
    """The chain after these reports (by target); the same object when nothing changes. A target without a report is where it was and
    keeps its place, but gets no better one. `nodes` says which node owns a target now: a disk may move to another server."""
    members = chain.members
    replicated = len(members) > 1
    version = chain.version
    heard = []
    for member in members:
        report = reports.get(member.target)
        word = _word(member, report, version, replicated) if report is not None else Word.NOTHING
        heard.append((member.state, word))
    states = _next_states(tuple(heard))
    if states is None and not nodes:
        return chain
    before = [member.node for member in members]
    owners = [nodes.get(m.target, m.node) for m in members] if nodes else before
    if states is None and owners == before:
        return chain
    after = _changed(chain, states or [state for state, _ in heard], owners)
    _count_losses(after, {member.target: state for member, (state, _) in zip(members, heard, strict=True)}, reports)
    return after


def _word(member: ChainMember, report: Report, chain_version: int, replicated: bool) -> Word:
    state, incarnation, restarted, reported_version, lease, opened_clean, _, cut = report
    if replicated and lease is not Lease.HELD:
        return Word.OVERDUE if lease is Lease.OVERDUE else Word.SILENT
    if incarnation != member.incarnation or state == LOCAL_STATE_OFFLINE:
        return Word.GONE
    if not opened_clean and member.state in (SERVING, LASTSRV):
        return Word.GONE
    if restarted:
        return Word.RESTARTED
    if reported_version != chain_version and (reported_version or member.state == SYNCING):
        return Word.NOTHING
    if cut and member.state != LASTSRV:
        return Word.CUT
    return Word.UPTODATE if state == LOCAL_STATE_UPTODATE and reported_version else Word.ONLINE


@functools.lru_cache(HEARD_MAX)
def _next_states(heard: tuple[tuple[int, Word], ...]) -> tuple[TargetState, ...] | None:
    """The next public state of each member, None when nothing changes. Few different things are heard of many thousand chains, so
    this is remembered."""
    answers = _answers(heard)
    served = any(entry in SERVES for entry in answers)
    reviver = -1 if served else next((i for i, entry in enumerate(answers) if entry in REVIVES), -1)
    table = SERVED if served or reviver >= 0 else UNSERVED
    if table is UNSERVED and (SYNCING, Word.NOTHING) in answers:
        return None  # rule 9
    states = [SERVING if i == reviver else table[entry] for i, entry in enumerate(answers)]
    candidates = [i for i, state in enumerate(states) if state == SYNCING]
    chosen = next((i for state in (SERVING, SYNCING) for i in candidates if heard[i][0] == state), -1)
    chosen = candidates[0] if chosen < 0 and candidates else chosen
    for i in candidates:
        states[i] = SYNCING if i == chosen else WAITING
    restarted = any(state == SERVING and word is Word.RESTARTED for state, (_, word) in zip(states, heard, strict=True))
    return tuple(states) if restarted or any(s != old for s, (old, _) in zip(states, heard, strict=True)) else None


def _answers(heard: Sequence[tuple[int, Word]]) -> list[tuple[int, Word]]:
    """What is heard, with silence made into an answer: OVERDUE is NOTHING yet, SILENT is GONE unless rule 7 says to wait. Who serves and is
    cut off stays where rule 8 says so."""
    heard = _kept(heard)
    serving = [word for state, word in heard if state == SERVING]
    wait = Word.OVERDUE in serving and not any(word in _FRESH for word in serving)
    answers = []
    for state, word in heard:
        if word is Word.OVERDUE or (word is Word.SILENT and wait and state == SERVING):
            answers.append((state, Word.NOTHING))
        else:
            answers.append((state, Word.GONE if word is Word.SILENT else word))
    return answers


def _kept(heard: Sequence[tuple[int, Word]]) -> Sequence[tuple[int, Word]]:
    """The same, with one SERVING member CUT at most: where another one surely stays, and no member that is SYNCING may still serve."""
    if (SERVING, Word.CUT) not in heard:
        return heard
    stays = any(entry in ((SERVING, Word.UPTODATE), (SERVING, Word.ONLINE)) for entry in heard)
    unheard = any(state == SYNCING and word in (Word.NOTHING, Word.OVERDUE) for state, word in heard)
    goes = heard.index((SERVING, Word.CUT)) if stays and not unheard else -1
    return [
        (state, Word.ONLINE if word is Word.CUT and state == SERVING and i != goes else word)
        for i, (state, word) in enumerate(heard)
    ]


def _changed(chain: Chain, states: Sequence[TargetState], owners: Sequence[int]) -> Chain:
    """The next version. Members of one state keep their order, so a member that has been synced comes last of the SERVING ones, and
    the one that lost its place last is synced first of those that have: it lacks least."""
    places = sorted(range(len(states)), key=lambda i: ORDER[states[i]])
    after = Chain(
        id=chain.id, version=chain.version + 1, members=[chain.members[i] for i in places], losses=chain.losses
    )
    for member, i in zip(after.members, places, strict=True):
        member.state, member.node = states[i], owners[i]
    return after


def _count_losses(after: Chain, before: Mapping[int, int], reports: Mapping[int, Report]) -> None:
    """Rule 10; `before` is the state of each target."""
    lost = False
    for member in after.members:
        report = reports.get(member.target)
        if member.state != SERVING or report is None or report.power_losses in (None, member.power_losses):
            continue
        # What was copied to it as a SYNCING member is everything, whatever it had lost.
        lost = lost or before[member.target] != SYNCING
        member.power_losses = report.power_losses
    after.losses += lost
