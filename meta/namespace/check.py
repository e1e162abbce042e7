"""The checker: every invariant that `meta/keys.py` states, verified from outside, by reading all keys.

It reads in pages, each on a snapshot of its own, so the answer is exact only while nobody changes the namespace. It keeps a few
numbers per inode in memory (about 300 bytes).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from ...proto.errors import StatusError
from ...proto.ids import ROOT_INODE
from .. import keys
from ..kv.engine import Engine, Pair
from . import acl as acls
from . import append, deadlock, gc, idempotency, inline, locks, quota, session, trash, trim
from . import dentry as dentries
from . import inode as inodes
from .inode import Inode

PAGE = 1000

_Record = TypeVar("_Record")


class Problem(NamedTuple):
    """One broken invariant. `kind` names it, `detail` is for people."""

    kind: str
    key: bytes
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail} ({self.key!r})"


@dataclass(slots=True)
class Facts:
    """What the pass over the keys found."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    names: Counter[int] = field(default_factory=Counter)  # inode -> how many DENT name it
    parents: dict[int, int] = field(default_factory=dict)  # directory -> the directory that names it
    named_by: dict[int, bytes] = field(default_factory=dict)  # directory -> the key of that name
    entries: Counter[int] = field(default_factory=Counter)  # directory -> names in it
    subdirectories: Counter[int] = field(default_factory=Counter)
    dead_files: set[int] = field(default_factory=set)
    dead_trees: set[int] = field(default_factory=set)
    used: Counter[tuple[int, int, bytes]] = field(default_factory=Counter)  # kind, id, column of USED
    problems: list[Problem] = field(default_factory=list)

    def report(self, kind: str, key: bytes, detail: str) -> None:
        self.problems.append(Problem(kind, key, detail))


async def check(engine: Engine) -> list[Problem]:
    """Everything that is wrong; empty for a healthy namespace."""
    return (await survey(engine)).problems


async def survey(engine: Engine) -> Facts:
    """Everything that is wrong, with what else is known for whoever repairs it (repair.py)."""
    facts = Facts()
    await _read_inodes(engine, facts)
    await _read_queues(engine, facts)
    await _read_trash(engine, facts)
    await _read_names(engine, facts)
    _check_links(facts)
    _check_tree(facts)
    await _check_counters(engine, facts)
    await _check_inlined(engine, facts)
    await _check_quotas(engine, facts)
    await _check_sessions(engine, facts)
    await _check_trims(engine, facts)
    await _check_locks(engine, facts)
    await _check_xattrs(engine, facts)
    await _check_acls(engine, facts)
    await _check_singles(engine, facts)
    return facts


def _read(
    facts: Facts,
    key: bytes,
    unpack: Callable[[bytes], _Record],
    value: bytes,
    version: int,
    kind: str = "damaged record",
) -> _Record | None:
    """What a record says; None, and a problem of this kind, where it is damaged. Raises BAD_FORMAT for one of a newer version than this
    one: whoever does not know what is there must mend nothing."""
    letters = key[:4].decode()
    if value[:1] > bytes([version]):
        raise keys.refused(f"a record {letters}", value[0])
    try:
        return unpack(value)
    except StatusError as damage:
        facts.report(kind, key, f"{letters}: {damage.strerror}")
    except (struct.error, IndexError, ValueError) as damage:
        facts.report(kind, key, f"{letters}: {damage}")
    return None


async def _rows(engine: Engine, letters: bytes) -> AsyncIterator[Pair]:
    begin, end = keys.prefix_range(letters)
    while True:
        page = await engine.begin().scan(begin, end, PAGE, snapshot=True)
        for row in page:
            yield row
        if len(page) < PAGE:
            return
        begin = page[-1][0] + b"\0"


async def _read_inodes(engine: Engine, facts: Facts) -> None:
    async for key, value in _rows(engine, keys.INODE):
        number = keys.inode_of(key)
        try:
            facts.inodes[number] = inodes.unpack(number, value)
        except StatusError as damage:
            if value and value[0] > inodes.VERSION:
                raise  # a newer emberfs wrote it: whoever does not know what is there must mend nothing
            facts.report("damaged inode", key, str(damage))


async def _read_queues(engine: Engine, facts: Facts) -> None:
    async for key, _ in _rows(engine, keys.DEAD_FILE):
        facts.dead_files.add(keys.dead_inode(key))
    async for key, _ in _rows(engine, keys.DEAD_TREE):
        number = keys.dead_inode(key)
        facts.dead_trees.add(number)
        if number not in facts.inodes:
            facts.report("dead tree without inode", key, f"directory {number:x} does not exist")
    async for key, value in _rows(engine, keys.DEAD_CHUNKS):
        _read(facts, key, gc.unpack_layout, value, gc.CHUNKS_VERSION)
        if keys.dead_inode(key) in facts.inodes:
            facts.report("chunks of a live inode are going", key, f"inode {keys.dead_inode(key):x} exists")


async def _read_trash(engine: Engine, facts: Facts) -> None:
    marked = {number for number, inode in facts.inodes.items() if inode.flags & inodes.TRASH}
    async for key, value in _rows(engine, keys.TRASH):
        if _read(facts, key, trash.unpack, value, trash.VERSION) is None:
            continue
        number = keys.dead_inode(key)
        inode = facts.inodes.get(number)
        if inode is None:
            facts.report("trash without inode", key, f"inode {number:x} does not exist")
            continue
        if number not in marked:
            facts.report("trash without flag", key, f"inode {number:x} does not say that it is in the trash")
        marked.discard(number)
        (facts.dead_trees if inode.is_directory else facts.dead_files).add(number)
    for number in sorted(marked):
        facts.report("flag without trash", keys.inode_key(number), f"inode {number:x} is not in the trash")


async def _read_names(engine: Engine, facts: Facts) -> None:
    async for key, value in _rows(engine, keys.DENTRY):
        directory, name = keys.inode_of(key), key[keys.DENTRY_NAME_AT :]
        entry = _read(facts, key, dentries.unpack, value, dentries.VERSION)
        if entry is None:
            continue
        inode, parent = facts.inodes.get(entry.inode), facts.inodes.get(directory)
        if parent is None or not parent.is_directory:
            facts.report("name in no directory", key, f"{name!r} is in {directory:x}, which is no directory")
        if inode is None:
            facts.report("name without inode", key, f"{name!r} in directory {directory:x} names inode {entry.inode:x}")
            continue
        if inode.type != entry.type:
            facts.report("wrong type", key, f"{name!r} says type {entry.type}, inode {inode.id:x} is {inode.type}")
        facts.names[inode.id] += 1
        facts.entries[directory] += 1
        if inode.is_directory:
            facts.subdirectories[directory] += 1
            _name_directory(facts, inode, directory, key)


def _name_directory(facts: Facts, inode: Inode, directory: int, key: bytes) -> None:
    other = facts.named_by.get(inode.id)
    if other is not None:
        # One too many: not the one in the directory that it says it is in.
        wrong = other if inode.parent == directory else key
        places = f"{facts.parents[inode.id]:x} and in {directory:x}"
        facts.report("directory with two names", wrong, f"directory {inode.id:x} is in {places}")
        if wrong is key:
            return
    facts.parents[inode.id], facts.named_by[inode.id] = directory, key


def _check_links(facts: Facts) -> None:
    for number, inode in facts.inodes.items():
        key = keys.inode_key(number)
        if inode.is_directory:
            continue
        if inode.nlink != facts.names[number]:
            facts.report(
                "wrong link count", key, f"inode {number:x} counts {inode.nlink} names and has {facts.names[number]}"
            )
        if not inode.nlink and number not in facts.dead_files:
            facts.report("orphan", key, f"inode {number:x} has no name and is in no queue")


def _check_tree(facts: Facts) -> None:
    # Upwards from every directory, each visited once: the root, or the top of a detached tree, or a problem.
    good = {ROOT_INODE} | facts.dead_trees
    for number, inode in facts.inodes.items():
        if not inode.is_directory or number == ROOT_INODE:
            continue
        named = facts.parents.get(number)
        if named is None and number not in facts.dead_trees:
            facts.report("orphan", keys.inode_key(number), f"directory {number:x} has no name and is in no queue")
        elif named is not None and named != inode.parent:
            facts.report(
                "wrong parent",
                keys.inode_key(number),
                f"directory {number:x} is in {named:x} and says {inode.parent:x}",
            )
        _check_way_up(facts, number, good)


def _check_way_up(facts: Facts, number: int, good: set[int]) -> None:
    way: list[int] = []
    seen: set[int] = set()
    current: int | None = number
    while current is not None and current not in good:
        if current in seen:
            facts.report("cycle", keys.inode_key(number), f"directory {number:x} lies below itself")
            break
        seen.add(current)
        way.append(current)
        current = facts.parents.get(current)
    good.update(way)


async def _check_counters(engine: Engine, facts: Facts) -> None:
    counted: dict[tuple[int, bytes], int] = {}
    async for key, value in _rows(engine, keys.DIRECTORY_COUNTER):
        counted[keys.inode_of(key), key[-1:]] = keys.counter(value)
        if keys.inode_of(key) not in facts.inodes:
            facts.report("counter without directory", key, f"directory {keys.inode_of(key):x} does not exist")
    for number, inode in facts.inodes.items():
        if not inode.is_directory or number in facts.dead_trees:
            continue  # a tree that is being dismantled does not count any more
        for column, name, actual in (
            (b"e", "entries", facts.entries[number]),
            (b"s", "subdirectories", facts.subdirectories[number]),
        ):
            if counted.get((number, column), 0) != actual:
                facts.report(
                    "wrong count",
                    keys.inode_key(number),
                    f"directory {number:x} counts {counted.get((number, column), 0)} {name} and has {actual}",
                )


async def _check_inlined(engine: Engine, facts: Facts) -> None:
    flagged = {number for number, inode in facts.inodes.items() if inode.flags & inodes.INLINE}
    async for key, value in _rows(engine, keys.INLINE):
        number = keys.inode_of(key)
        if number not in facts.inodes:
            facts.report("content without inode", key, f"inode {number:x} does not exist")
        elif number not in flagged:
            facts.report("content without flag", key, f"inode {number:x} does not say that it is inlined")
        elif (there := len(inline.unpack(value))) != (length := facts.inodes[number].length):
            facts.report("wrong content", key, f"inode {number:x} is {length} bytes long and has {there}")
        flagged.discard(number)
    for number in sorted(flagged):
        facts.report("flag without content", keys.inode_key(number), f"inode {number:x} has no bytes beside it")


async def _check_quotas(engine: Engine, facts: Facts) -> None:
    async for key, value in _rows(engine, keys.QUOTA):
        kind, number = keys.split_quota_key(key)
        _read(facts, key, quota.unpack, value, quota.VERSION)
        if kind == quota.DIRECTORY and (number not in facts.inodes or facts.inodes[number].project != number):
            facts.report(
                "quota without directory",
                keys.quota_key(kind, number),
                f"directory {number:x} does not count for itself",
            )
    counted: Counter[tuple[int, int, bytes]] = facts.used
    for inode in facts.inodes.values():
        if inode.nlink > 0:
            for kind, number in ((quota.USER, inode.uid), (quota.GROUP, inode.gid), (quota.DIRECTORY, inode.project)):
                if number or kind != quota.DIRECTORY:
                    counted[kind, number, quota.INODES] += 1
                    counted[kind, number, quota.BYTES] += inode.length
    found = {
        (*keys.split_quota_key(key), key[-1:]): keys.counter(value) async for key, value in _rows(engine, keys.USED)
    }
    for kind, number, column in sorted({*counted, *found}):
        is_there, should = found.get((kind, number, column), 0), counted[kind, number, column]
        if is_there != should:
            key = keys.used_key(kind, number, column)
            facts.report("wrong usage", key, f"quota kind {kind} of {number:x} counts {is_there}, and uses {should}")


async def _check_sessions(engine: Engine, facts: Facts) -> None:
    async for key, value in _rows(engine, keys.SESSION):
        _read(facts, key, session.unpack, value, session.VERSION)
        number, _ = keys.split_session_key(key)
        if number not in facts.inodes:
            facts.report("session without inode", key, f"inode {number:x} does not exist")
    async for key, value in _rows(engine, keys.IDEMPOTENCY):
        _read(facts, key, idempotency.unpack, value, idempotency.VERSION)


async def _check_trims(engine: Engine, facts: Facts) -> None:
    trimming = {number for number, inode in facts.inodes.items() if inode.flags & inodes.TRIMMING}
    async for key, value in _rows(engine, keys.TRIM):
        if _read(facts, key, trim.unpack, value, trim.VERSION) is None:
            continue
        number = keys.inode_of(key)
        if number not in trimming:
            facts.report("trim without flag", key, f"inode {number:x} is not being trimmed")
        trimming.discard(number)
    for number in sorted(trimming):
        facts.report(
            "flag without trim", keys.inode_key(number), f"inode {number:x} waits for a trim that does not exist"
        )


async def _check_locks(engine: Engine, facts: Facts) -> None:
    async for key, value in _rows(engine, keys.LOCK):
        number, table = keys.inode_of(key), _read(facts, key, locks.unpack, value, locks.VERSION)
        if table is None:
            continue
        if number not in facts.inodes:
            facts.report("locks without inode", key, f"inode {number:x} does not exist")
        if not table:
            facts.report("empty lock table", key, f"nobody holds a lock of inode {number:x}")
        if wrong := locks.faults(table):
            facts.report("locks in conflict", key, f"inode {number:x}: {wrong}")
    async for key, value in _rows(engine, keys.LOCK_WAIT):
        _read(facts, key, partial(deadlock.unpack, key), value, deadlock.VERSION)
    async for key, value in _rows(engine, keys.APPEND_TOKEN):
        _read(facts, key, append.unpack, value, append.VERSION)
        if keys.inode_of(key) not in facts.inodes:
            facts.report("append token without inode", key, f"inode {keys.inode_of(key):x} does not exist")


async def _check_xattrs(engine: Engine, facts: Facts) -> None:
    async for key, _ in _rows(engine, keys.XATTR):
        number = keys.inode_of(key)
        inode = facts.inodes.get(number)
        if inode is None:
            facts.report("attribute without inode", key, f"inode {number:x} does not exist")
        elif not inode.flags & inodes.XATTRS:
            facts.report("attribute without flag", key, f"inode {number:x} does not say that it has attributes")


async def _check_acls(engine: Engine, facts: Facts) -> None:
    flagged = {(number, flag) for number, inode in facts.inodes.items() for flag in _ACL_KEYS if inode.flags & flag}
    async for key, value in _rows(engine, keys.ACL):
        number = keys.inode_of(key)
        flag = inodes.ACL if key == keys.acl_key(number) else inodes.DEFAULT_ACL
        if (number, flag) not in flagged:
            facts.report("ACL without flag", key, f"inode {number:x} does not exist or does not say that it has an ACL")
        flagged.discard((number, flag))
        found = _read(facts, key, acls.unpack, value, acls.VERSION, "damaged ACL")
        if found is not None and flag == inodes.ACL and not found.says_more_than_mode:
            facts.report("ACL without mask", key, f"the mode of inode {number:x} says the same")
    for number, flag in sorted(flagged):
        facts.report("flag without ACL", _ACL_KEYS[flag](number), f"inode {number:x} says that it has an ACL")


_ACL_KEYS = {inodes.ACL: keys.acl_key, inodes.DEFAULT_ACL: keys.default_acl_key}


async def _check_singles(engine: Engine, facts: Facts) -> None:
    used, following = await engine.begin().get_many([keys.INODES_USED, keys.NEXT_INODE], snapshot=True)
    if keys.counter(used) != len(facts.inodes):
        facts.report(
            "wrong count", keys.INODES_USED, f"counts {keys.counter(used)} inodes, there are {len(facts.inodes)}"
        )
    largest = max(facts.inodes, default=0)
    if largest > ROOT_INODE and largest >= keys.counter(following):
        facts.report(
            "inode from the future", keys.inode_key(largest), f"the next number is {keys.counter(following):x}"
        )
    root = facts.inodes.get(ROOT_INODE)
    if root is None or not root.is_directory or root.parent != ROOT_INODE:
        facts.report("no root", keys.inode_key(ROOT_INODE), "the root directory is missing or damaged")
