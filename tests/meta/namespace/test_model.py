"""A random user against a naive tree in memory: the same outcomes, the same names, links, types, lengths, after every step.

The model knows nothing of keys, transactions or caches. Between the steps the garbage collector runs, the server restarts, and
requests are repeated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emberfs.meta.namespace.check import check
from emberfs.proto.env import drive
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen.meta_pb2 import FindRequest

from .world import World, place

FILE, DIRECTORY, SYMLINK = 1, 2, 3
NAMES = ["a", "b", "c"]
SYMLINKS_MAX = 40


@dataclass(eq=False)
class Node:
    kind: int
    children: dict[str, Node] = field(default_factory=dict)
    parent: Node | None = None  # of a directory
    length: int = 0
    target: str = ""
    nlink: int = 1


def fail(status: Status) -> None:
    raise error(status)


class Model:
    """A POSIX tree, the simplest way, for root."""

    def __init__(self) -> None:
        self.root = Node(DIRECTORY)
        self.root.parent = self.root

    def walk(self, path: str, *, follow: bool, creating: bool = False) -> tuple[Node, str, Node | None, bool, str]:
        """(directory, name, what is there, trailing slash, the dots that the path ended in); the name is empty for a directory itself."""
        current = self.root
        slash = path.endswith("/")
        todo = [part for part in reversed(path.split("/")) if part]
        links = 0
        while todo:
            name = todo.pop()
            if name in (".", ".."):
                current = current.parent if name == ".." else current  # type: ignore[assignment]
                if not todo:
                    return current, "", current, slash, name
                continue
            if creating and slash and not todo:
                fail(Status.IS_DIRECTORY)
            node = current.children.get(name)
            if node is not None and node.kind == SYMLINK and (todo or follow):
                links += 1
                if links > SYMLINKS_MAX:
                    fail(Status.SYMLINK_LOOP)
                slash = slash or (not todo and node.target.endswith("/"))
                todo += [part for part in reversed(node.target.split("/")) if part]
                current = self.root if node.target.startswith("/") else current
                continue
            if not todo:
                return current, name, node, slash, ""
            if node is None:
                raise error(Status.NOT_FOUND)
            if node.kind != DIRECTORY:
                fail(Status.NOT_DIRECTORY)
            current = node
        return current, "", current, slash, ""

    def lookup(self, path: str, *, follow: bool = True) -> Node:
        _, _, node, slash, _ = self.walk(path, follow=follow or path.endswith("/"))
        if node is None:
            raise error(Status.NOT_FOUND)
        if slash and node.kind != DIRECTORY:
            fail(Status.NOT_DIRECTORY)
        return node

    def make(self, path: str, kind: int, target: str = "") -> None:
        parent, name, node, slash, _ = self.walk(path, follow=False)
        if node is not None:
            fail(Status.EXISTS)
        if slash and kind != DIRECTORY:
            fail(Status.NOT_FOUND)
        parent.children[name] = Node(kind, target=target, parent=parent if kind == DIRECTORY else None)

    def write(self, path: str, length: int) -> None:
        parent, name, node, _, _ = self.walk(path, follow=True, creating=True)
        if node is None:
            node = parent.children[name] = Node(FILE)
        if node.kind == DIRECTORY:
            fail(Status.IS_DIRECTORY)
        node.length = max(node.length, length)

    def truncate(self, path: str, length: int) -> None:
        node = self.lookup(path)
        if node.kind == DIRECTORY:
            fail(Status.IS_DIRECTORY)
        node.length = length

    def link(self, source: str, target: str) -> None:
        node = self.lookup(source, follow=False)
        parent, name, there, slash, _ = self.walk(target, follow=False)
        if there is not None:
            fail(Status.EXISTS)
        if slash:
            fail(Status.NOT_FOUND)
        if node.kind == DIRECTORY:
            fail(Status.NOT_PERMITTED)
        parent.children[name] = node
        node.nlink += 1

    def unlink(self, path: str) -> None:
        parent, name, node, slash, _ = self.walk(path, follow=False)
        if not name:
            fail(Status.IS_DIRECTORY)
        if node is None:
            raise error(Status.NOT_FOUND)
        if node.kind == DIRECTORY:
            fail(Status.IS_DIRECTORY)
        if slash:
            fail(Status.NOT_DIRECTORY)
        del parent.children[name]
        node.nlink -= 1

    def _going(self, path: str) -> tuple[Node, str, Node]:
        parent, name, node, _, dots = self.walk(path, follow=False)
        if dots == ".":
            fail(Status.INVALID)
        if dots == "..":
            fail(Status.NOT_EMPTY)
        if not name:
            fail(Status.BUSY_RESOURCE)
        if node is None:
            raise error(Status.NOT_FOUND)
        return parent, name, node

    def rmdir(self, path: str) -> None:
        parent, name, node = self._going(path)
        if node.kind != DIRECTORY:
            fail(Status.NOT_DIRECTORY)
        if node.children:
            fail(Status.NOT_EMPTY)
        del parent.children[name]

    def remove_tree(self, path: str) -> None:
        node = self.walk(path, follow=False)[2]
        if node is not None and node.kind != DIRECTORY:
            self.unlink(path)
            return
        parent, name, node = self._going(path)
        del parent.children[name]
        self._drop(node)

    def _drop(self, node: Node) -> None:
        for child in node.children.values():
            if child.kind == DIRECTORY:
                self._drop(child)
            else:
                child.nlink -= 1

    def _above(self, upper: Node, lower: Node) -> bool:
        while True:
            if lower is upper:
                return True
            if lower is self.root:
                return False
            lower = lower.parent  # type: ignore[assignment]

    def rename(self, source: str, target: str, flags: int) -> None:
        first, name, node, slash, _ = self.walk(source, follow=False)
        second, new, there, new_slash, _ = self.walk(target, follow=False)
        if not name:
            fail(Status.BUSY_RESOURCE)
        if not new:
            fail(Status.EXISTS if flags == 1 else Status.BUSY_RESOURCE)
        if node is None or (flags == 2 and there is None):
            raise error(Status.NOT_FOUND)
        if flags == 1 and there is not None:
            fail(Status.EXISTS)
        for one, other in ((node, slash), (there if flags == 2 else node, new_slash)):
            if other and one is not None and one.kind != DIRECTORY:
                fail(Status.NOT_DIRECTORY)
        if node.kind == DIRECTORY and self._above(node, second) and first is not second:
            fail(Status.INVALID)
        if there is not None and there.kind == DIRECTORY and self._above(there, first) and first is not second:
            fail(Status.INVALID if flags == 2 else Status.NOT_EMPTY)
        if flags == 2:
            assert there is not None
            first.children[name], second.children[new] = there, node
            there.parent = first if there.kind == DIRECTORY else None
        else:
            self._replace(node, there)
            if there is node:
                return
            del first.children[name]
            second.children[new] = node
        node.parent = second if node.kind == DIRECTORY else None

    def _replace(self, node: Node, there: Node | None) -> None:
        if there is None or there is node:
            return
        if node.kind == DIRECTORY != there.kind:
            fail(Status.NOT_DIRECTORY)
        if there.kind == DIRECTORY != node.kind:
            fail(Status.IS_DIRECTORY)
        if there.children:
            fail(Status.NOT_EMPTY)
        there.nlink -= 1

    def listing(self) -> list[tuple[object, ...]]:
        """Every path with what it is, depth first in the order of names; files by the order in which they are met."""
        met: dict[int, int] = {}
        rows: list[tuple[object, ...]] = []

        def visit(node: Node, prefix: str) -> None:
            for name, child in sorted(node.children.items()):
                links = (
                    2 + sum(c.kind == DIRECTORY for c in child.children.values())
                    if child.kind == DIRECTORY
                    else child.nlink
                )
                length = len(child.target) if child.kind == SYMLINK else child.length
                rows.append(
                    (prefix + name, child.kind, links, length, child.target, met.setdefault(id(child), len(met)))
                )
                visit(child, prefix + name + "/")

        visit(self.root, "")
        return rows


part = st.sampled_from([*NAMES, *NAMES, *NAMES, ".", ".."])
paths = st.builds(
    lambda parts, slash: "/" + "/".join(parts) + ("/" if slash else ""),
    st.lists(part, max_size=4),
    st.sampled_from([False, False, False, False, True]),
)
targets = st.builds(lambda absolute, path: path if absolute else path[1:] or ".", st.booleans(), paths)


class Tree(RuleBasedStateMachine):
    """Each rule does the same to both and compares the outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.model = Model()
        self.lives = 1
        self.deaths = 0

    @initialize()
    def start(self) -> None:
        drive(self.world.start())

    def both(self, real: Any, model: Any) -> None:
        assert attempt(lambda: drive(real())) == attempt(model)

    @rule(path=paths)
    def mkdir(self, path: str) -> None:
        self.both(lambda: self.world.mkdir(path), lambda: self.model.make(path, DIRECTORY))

    @rule(path=paths)
    def touch(self, path: str) -> None:
        self.both(lambda: self.world.touch(path), lambda: self.model.make(path, FILE))

    @rule(path=paths, to=targets)
    def symlink(self, path: str, to: str) -> None:
        self.both(lambda: self.world.symlink(path, to), lambda: self.model.make(path, SYMLINK, to))

    @rule(path=paths, length=st.integers(0, 100), dies=st.booleans())
    def write(self, path: str, length: int, dies: bool) -> None:
        async def real() -> None:
            self.deaths += dies
            client = b"dies-%011d" % self.deaths if dies else self.world.client
            opened = await self.world.open(path, os.O_CREAT | os.O_WRONLY, client=client)
            number, version = opened.attributes.inode, opened.attributes.truncate_version
            self.world.chunks.write(number, length, version)
            if dies:
                self.world.namespace.client_ended(client)
                await self.world.namespace.clients.step()
            else:
                await self.world.close(opened, length, truncate_version=version)

        self.both(real, lambda: self.model.write(path, length))

    @rule(path=paths, length=st.integers(0, 100))
    def truncate(self, path: str, length: int) -> None:
        self.both(lambda: self.world.truncate(path, length), lambda: self.model.truncate(path, length))

    @rule(source=paths, to=paths)
    def link(self, source: str, to: str) -> None:
        self.both(lambda: self.world.link(source, to), lambda: self.model.link(source, to))

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        self.both(lambda: self.world.unlink(path), lambda: self.model.unlink(path))

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        self.both(lambda: self.world.rmdir(path), lambda: self.model.rmdir(path))

    @rule(path=paths)
    def remove_tree(self, path: str) -> None:
        self.both(lambda: self.world.remove_tree(path), lambda: self.model.remove_tree(path))

    @rule(source=paths, to=paths, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, source: str, to: str, flags: int) -> None:
        self.both(lambda: self.world.rename(source, to, flags), lambda: self.model.rename(source, to, flags))

    @rule(path=paths, follow=st.booleans())
    def stat(self, path: str, follow: bool) -> None:
        self.both(lambda: self.world.stat(path, follow=follow), lambda: self.model.lookup(path, follow=follow))

    @rule()
    def collect_some(self) -> None:
        drive(self.world.namespace.collector.step())
        self.world.clock.time += 7.0

    @rule()
    def restart(self) -> None:
        before = self.world
        self.world = World(before.engine, before.clock, before.chunks)
        self.lives += 1
        self.world.client = b"client-%09d" % self.lives  # its request ids start anew
        drive(self.world.start())

    @invariant()
    def same_tree(self) -> None:
        reply = drive(self.world.ask("find", FindRequest(place=place("/"), entries_max=5000)))
        met: dict[int, int] = {}
        assert [
            (name.decode(), a.type, a.nlink, a.length, a.target.decode(), met.setdefault(a.inode, len(met)))
            for name, a in zip(reply.paths, reply.attributes, strict=True)
        ] == self.model.listing()

    def teardown(self) -> None:
        assert drive(check(self.world.engine)) == []
        drive(self.world.collect())
        assert drive(check(self.world.engine)) == []
        inodes, pending = drive(self.world.namespace.counts())
        assert (inodes, pending) == (1 + len({row[-1] for row in self.model.listing()}), 0)


def attempt(action: Any) -> Status:
    try:
        action()
    except StatusError as failure:
        return failure.status
    return Status.OK


Tree.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TestTree = Tree.TestCase


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_tree_for_long() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    long = settings(max_examples=1000, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Tree, settings=long)
