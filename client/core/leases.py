"""What this client may believe of attributes and names without asking: metadata leases.

    began = leases.asked()                       before a request with `lease`; 0: do not ask for one
    leases.learn(began, place, stat)             the reply said so, and was `leased`
    leases.entry(directory, name), .attributes   what is known: no request is needed

The server tells, in answer to a request that a worker here keeps open (`WatchLeases`), what others have changed. What is known may be used
until a second after the last such request was *sent* that has been answered: so whatever happens to the server or the network,
nobody believes anything for longer than a second after it ceased to be true. The worker begins with the first question and ends when
nobody has asked for a while; when it fails, everything is forgotten.

**Replies and notices overtake one another.** A reply may have left the server before a change, and arrive after the notice of it. Every
notice, and every change of our own, has a number; who asks notes the last one, and what has been told since is not learned.

**Changes of our own** are not told to us. Before such an operation returns, what it touched is learned anew from its reply where a
lease is held on it, or forgotten (`touched.py`). Where nobody knows whether it was carried out, all is forgotten under a new session:
should it be carried out later, that is somebody else's change to the server.

**Whole directories.** Of a directory that this client has made all names are known, and so that there are no others: the server tells when
somebody else changes one of them. What is known of its names under no lease of their own goes with that.

What is kept of an inode is up to whoever uses this: `keep` makes it of its attributes (a mount keeps what the kernel wants to hear).
For the tasks of one event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ...proto.env import Call
from ...proto.errors import Status, StatusError
from ...proto.gen.meta_pb2 import EndedLeases, Place, WatchLeasesReply, WatchLeasesRequest
from ...proto.ids import ROOT_INODE
from ...proto.rpc import META
from .attributes import Stat, stat_of
from .touched import Name, simple_name, touched

if TYPE_CHECKING:
    from ...proto.rpc import Method
    from .cluster import Cluster

VALID_SECONDS = 1.0  # after the last request was sent that the server answered; scaled
WATCH_SECONDS_MAX = 2.0  # for an answer of the server, which comes after 0.3 s at the latest; scaled
PAUSE_SECONDS = 0.2  # after a request that failed, scaled
REFUSED_SECONDS = 30.0  # until a server that grants no leases is asked again; scaled
IDLE_SECONDS = 10.0  # scaled: without a question the worker ends
INODES_MAX = 1 << 17  # whose attributes are kept; at the limit the oldest 1/8 go
NAMES_MAX = 1 << 17
DROPPED_PART = 8
WHOLE_MAX = 1 << 15  # directories all of whose names are known
NOTICES_MAX = 1 << 14  # that are remembered one by one, for replies that are on their way

MISSING = 0  # where a name leads that does not exist
NAME_BYTES_MAX = 255  # longer ones are wrong, not missing
_DOTS = (b".", b"..")

Listener = Callable[[Iterable[int], Iterable[Name]], None]  # attributes of inodes, and names, that others have changed
Kept = TypeVar("Kept")


class Leases(Generic[Kept]):
    """See the module."""

    def __init__(
        self, cluster: Cluster, keep: Callable[[Stat], Kept], advance: Callable[[Kept, int, int], Kept] | None = None
    ) -> None:
        """`advance` gives what is kept of a directory with this time (ns) as mtime, ctime and version, if it is later, and so many
        subdirectories more."""
        self._cluster = cluster
        self._env = cluster.env
        self._keep = keep
        self._advance = advance
        self._inodes: dict[int, Kept] = {}  # the oldest first
        self._names: dict[Name, int] = {}
        self._whole: dict[int, dict[bytes, int]] = {}  # directories -> all their names
        self._whole_names = 0
        self._told: dict[int | Name, int] = {}  # -> number of the last notice; (directory, b""): of any name in it
        self._changing = 0  # changes of our own that have no answer yet
        self._number = 1  # of the last notice
        self._floor = 1  # what was asked before this one is not learned
        self._valid_until = 0.0  # on the environment's clock
        self._session = 0
        self._watching = False
        self._used = False
        self._refused_until = 0.0
        self._listeners: list[Listener] = []
        self.on_recall: Callable[[int], None] = lambda inode: None  # others want locks of this inode
        self.on_end: Callable[[], None] = lambda: None  # nobody is asked any more

    # --- what is known --------------------------------------------------------------------------------------------------------------

    def remaining(self) -> float:
        """Seconds for which what is known may be believed; 0 or less: not at all."""
        return self._valid_until - self._env.now()

    def attributes(self, inode: int) -> Kept | None:
        """What was kept of an inode's attributes; None: they are not known. Only while there is time `remaining`."""
        self._used = True
        return self._inodes.get(inode)

    def entry(self, directory: int, name: bytes) -> int | None:
        """The inode that a name leads to, MISSING where there is no such name; None: that is not known. Only while there is time
        `remaining`."""
        self._used = True
        if (names := self._whole.get(directory)) is None:
            return self._names.get((directory, name))
        found = names.get(name)
        if found is None and len(name) <= NAME_BYTES_MAX and name not in _DOTS:
            return MISSING
        return found

    def __len__(self) -> int:
        return len(self._inodes) + len(self._names) + self._whole_names

    def listen(self, listener: Listener) -> None:
        """Be called with what others have changed, of what is or was known here."""
        self._listeners.append(listener)

    # --- learning -------------------------------------------------------------------------------------------------------------------

    def asked(self) -> int:
        """Note when a question is asked. 0: no lease can be had now."""
        self._used = True
        if self._valid_until > self._env.now():
            return self._number
        self._start()
        return 0

    def learn(self, began: int, place: Place, stat: Stat | None) -> None:
        """A reply has said where a place leads, under a lease; None: nowhere. A symlink was not followed."""
        if stat is not None:
            self.learn_inode(began, stat)
        if (name := simple_name(place)) is not None:
            self.learn_name(began, place.parent or ROOT_INODE, name, stat.inode if stat is not None else MISSING)

    def learn_inode(self, began: int, stat: Stat) -> Kept | None:
        """The attributes of an inode. What is kept of them, where they may be."""
        if not self._may_learn(began, stat.inode):
            return None
        if len(self._inodes) >= INODES_MAX:
            _drop_oldest(self._inodes)
        self._learned(stat.inode)
        kept = self._inodes[stat.inode] = self._keep(stat)
        return kept

    def learn_name(self, began: int, directory: int, name: bytes, inode: int) -> None:
        """Where a name leads."""
        key = (directory, name)
        if self._may_learn(began, key):
            self._learned(key)
            self._lead(key, inode)

    def _learn_whole(self, began: int, directory: int) -> None:
        """A directory was empty when we made it, which began then."""
        if self._may_learn(began, (directory, b"")) and directory not in self._whole:
            if len(self._whole) >= WHOLE_MAX:
                self._end_whole(next(iter(self._whole)))
            self._whole[directory] = {}

    def _end_whole(self, directory: int) -> None:
        self._whole_names -= len(self._whole.pop(directory, ()))

    def _lead(self, key: Name, inode: int) -> None:
        directory, name = key
        if (whole := self._whole.get(directory)) is None:
            if len(self._names) >= NAMES_MAX:
                _drop_oldest(self._names)
            self._names[key] = inode
            return
        self._whole_names -= len(whole)
        if inode == MISSING:
            whole.pop(name, None)
        else:
            whole[name] = inode
        self._whole_names += len(whole)
        while self._whole_names > NAMES_MAX:
            self._end_whole(next(iter(self._whole)))

    def _learned(self, key: int | Name) -> None:
        """A change of ours that is under way may have been carried out before this, and others' after it: its reply says nothing more."""
        if self._changing:
            self._number += 1
            self._told[key] = self._number

    def _may_learn(self, began: int, key: int | Name) -> bool:
        return began >= self._floor and (began == self._number or self._told.get(key, 0) <= began)

    # --- forgetting -----------------------------------------------------------------------------------------------------------------

    def forget(self, inodes: Iterable[int], names: Iterable[Name] = ()) -> None:
        """These have changed, and replies that are on their way do not know it."""
        self._number += 1
        number, told = self._number, self._told
        for inode in inodes:
            self._inodes.pop(inode, None)
            told[inode] = number
        for name in names:
            self._names.pop(name, None)
            told[name] = told[name[0], b""] = number
            if name[0] in self._whole:
                self._end_whole(name[0])
        if len(told) > NOTICES_MAX:
            self._forget_notices()

    def _forget_notices(self) -> None:
        """Of the older half nobody knows any more what they were about: what was asked before them is not learned. Not all of them, or each
        change that is under way would seem to have been overtaken, and end what is known of its directory."""
        floor = sorted(self._told.values())[len(self._told) // 2]
        self._told = {key: number for key, number in self._told.items() if number > floor}
        self._floor = max(self._floor, floor)

    def forget_all(self) -> None:
        """Nothing is known any more, and what was asked before now will not be learned."""
        self._number += 1
        self._floor = self._number
        self._inodes.clear()
        self._names.clear()
        self._whole.clear()
        self._whole_names = 0
        self._told.clear()

    def begin_anew(self) -> None:
        """Forget everything, and tell the server so: no lease is held until it has answered."""
        self.forget_all()
        self._valid_until = 0.0
        self._session += 1

    # --- changes of our own ---------------------------------------------------------------------------------------------------------

    def begin(self) -> int:
        """A change of ours begins: the number of the last notice. `changed` or `failed` follows."""
        self._changing += 1
        return self._number

    def changed(self, began: int, method: Method, request: Any, reply: Any) -> None:
        """This client has changed something, which it began at this number."""
        self._changing -= 1
        found = touched(method.name, request, reply)
        if found is None:
            self.forget_all()
            return
        # Its reply knows of this change, and of nothing that was told since it began. What it says of a directory may be older than
        # the change: counters are read without conflict.
        stats = [
            stat_of(each)
            for each in found.attributes
            if (found.leased or each.inode in self._inodes) and self._may_learn(began, each.inode)
        ]
        leads = [
            (name, inode) for name, inode in found.names.items() if inode is not None and self._may_learn(began, name)
        ]
        lost = found.names if not leads else found.names.keys() - dict(leads).keys()
        recounted = [moved[0] for moved in found.directories if moved[2] and not self._may_learn(began, moved[0])]
        self.forget((*found.inodes, *recounted), lost)
        self._move_on(found.directories)
        for stat in stats:
            if not stat.is_dir or found.made:
                self.learn_inode(self._number, stat)
        self._lead_on(leads, leased=found.names_leased)
        if found.made:
            self._learn_whole(began, found.made)

    def _lead_on(self, leads: Iterable[tuple[Name, int]], *, leased: bool) -> None:
        """Where names lead now. Who held a lease on a name before a change of his own holds it still."""
        number, told = self._number, self._told
        for name, inode in leads:
            told[name] = told[name[0], b""] = number
            if leased or name in self._names or name[0] in self._whole:
                self._lead(name, inode)

    def _move_on(self, directories: Iterable[tuple[int, int, int]]) -> None:
        """The times of these have moved by a change of ours, and perhaps the number of their subdirectories. What is known of them holds
        with that, in whatever order changes are carried out: unless somebody else has changed them too, and then we hear of that. Or
        else each create would cost one more request: the kernel asks for the directory's attributes after each change in it."""
        for directory, when_ns, more in directories:
            self._told[directory] = self._number  # replies that are on their way may not know it
            kept = self._inodes.pop(directory, None)
            if kept is not None and self._advance is not None:
                self._inodes[directory] = self._advance(kept, when_ns, more)

    def failed(self, failure: BaseException, *, uncertain: bool) -> None:
        """A change of ours that was begun has failed; `uncertain`: after attempts that had no answer. Unless a server said clearly that it
        will not be carried out, it still may be."""
        self._changing -= 1
        clear = isinstance(failure, StatusError) and not (
            failure.maybe_committed or failure.status is Status.UNAVAILABLE
        )
        if uncertain or not clear:
            self.begin_anew()

    # --- hearing of others ------------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._watching and self._env.now() >= self._refused_until:
            self._watching = True
            self._env.spawn(self._watch, "leases")

    async def _watch(self) -> None:
        env, scaled = self._env, self._cluster.options.scaled
        idle_at = env.now() + scaled(IDLE_SECONDS)
        try:
            while True:
                sent = env.now()
                if self._used:
                    self._used, idle_at = False, sent + scaled(IDLE_SECONDS)
                elif sent >= idle_at:
                    return
                session = self._session
                request, seconds = WatchLeasesRequest(session=session), scaled(WATCH_SECONDS_MAX)
                try:
                    reply: WatchLeasesReply = await env.call(
                        Call(self._cluster.meta_address(), META.WatchLeases, request, seconds)
                    )
                except StatusError as failure:
                    if failure.status is Status.CANCELLED:
                        return
                    self.begin_anew()
                    if failure.status is not Status.UNSUPPORTED:
                        await env.sleep(scaled(PAUSE_SECONDS))
                        continue
                    reply = WatchLeasesReply()
                if session != self._session:
                    continue
                if not reply.granting:
                    self._refused_until = env.now() + scaled(REFUSED_SECONDS)
                    return
                self._take(reply)
                self._valid_until = sent + scaled(VALID_SECONDS)
        finally:
            self._watching = False
            self.begin_anew()
            self.on_end()

    def _take(self, reply: WatchLeasesReply) -> None:
        if reply.fresh or reply.everything:
            self.forget_all()
        for inode in reply.locks:
            self.on_recall(inode)
        if reply.HasField("dropped"):
            self.forget(*_columns(reply.dropped))
        if reply.HasField("changed"):
            inodes, names = _columns(reply.changed)
            self.forget(inodes, names)
            for listener in self._listeners:
                listener(inodes, names)


def _columns(ended: EndedLeases) -> tuple[list[int], list[Name]]:
    return list(ended.inodes), list(zip(ended.directories, ended.names, strict=True))


def _drop_oldest(known: dict[Any, Any]) -> None:
    for key in list(islice(known, len(known) // DROPPED_PART)):
        del known[key]
