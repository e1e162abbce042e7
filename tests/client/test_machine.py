"""A state machine: names and files through the client, compared with a local directory as the oracle."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from emberfs.client import aio
from emberfs.client.core.client import Core
from emberfs.client.core.options import Options
from emberfs.proto.drivers.aio import AioEnvironment

from .world import World

CHUNK = 64 << 10
# Few names and round offsets, so that operations meet.
PATHS = st.sampled_from(["a", "a", "b", "b", "d", "d/a", "d/\u00e4", "d/d/a"])
OFFSETS = st.sampled_from([0, 0, 1, 10, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 150_000])
SIZES = st.sampled_from([0, 1, 10, 4096, CHUNK, CHUNK + 1, 150_000])
MODES = st.sampled_from(["rb", "r+b", "r+b", "wb", "w+b", "w+b", "w+b", "ab", "a+b", "xb", "x+b"])


def both(ours: Callable[[], Any], local: Callable[[], Any]) -> tuple[Any, Any]:
    """Run both; either both fail with the same class of error, or neither. The results (None, None) of a failure."""
    try:
        expected = local()
    except (OSError, ValueError) as failure:
        with pytest.raises(OSError if isinstance(failure, OSError) else type(failure)) as got:
            ours()
        if isinstance(failure, OSError):
            assert os.strerror(got.value.errno or 0) == os.strerror(failure.errno or 0)
        return None, None
    return ours(), expected


class Machine(RuleBasedStateMachine):
    files = Bundle("files")

    world: World
    client: Any

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="emberfs-oracle-"))
        self.root = f"/m{id(self):x}"
        self.opened: list[tuple[Any, Any]] = []
        self.seed = 0

    @initialize()
    def begin(self) -> None:
        self.client.mkdir(self.root)

    def there(self, path: str) -> str:
        return f"{self.root}/{path}"

    def here(self, path: str) -> Path:
        return self.base / path

    def data(self, size: int) -> bytes:
        self.seed += 1
        return (self.seed.to_bytes(4, "big") * (size // 4 + 1))[:size]

    # --- names --------------------------------------------------------------------------------------------------------------------

    @rule(path=PATHS)
    def mkdir(self, path: str) -> None:
        both(lambda: self.client.mkdir(self.there(path)), lambda: self.here(path).mkdir())

    @rule(path=PATHS, kind=st.sampled_from(["rmdir", "unlink"]))
    def remove(self, path: str, kind: str) -> None:
        both(lambda: getattr(self.client, kind)(self.there(path)), getattr(self.here(path), kind))

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: str, new: str) -> None:
        both(
            lambda: self.client.rename(self.there(old), self.there(new)),
            lambda: os.rename(self.here(old), self.here(new)),
        )

    @rule(old=PATHS, new=PATHS)
    def link(self, old: str, new: str) -> None:
        if not self.here(old).is_dir():
            both(
                lambda: self.client.link(self.there(old), self.there(new)),
                lambda: os.link(self.here(old), self.here(new)),
            )

    @rule(path=PATHS, length=OFFSETS)
    def truncate_by_name(self, path: str, length: int) -> None:
        both(lambda: self.client.truncate(self.there(path), length), lambda: os.truncate(self.here(path), length))

    @rule(path=PATHS, size=SIZES)
    def write_whole(self, path: str, size: int) -> None:
        data = self.data(size)
        both(lambda: self.client.write_bytes(self.there(path), data), lambda: self.here(path).write_bytes(data))

    @rule(path=PATHS, start=OFFSETS, size=SIZES)
    def read_range(self, path: str, start: int, size: int) -> None:
        got, expected = both(
            lambda: self.client.read_bytes(self.there(path), start, start + size),
            lambda: self.here(path).read_bytes()[start : start + size],
        )
        assert got == expected

    # --- open files ---------------------------------------------------------------------------------------------------------------

    @rule(target=files, path=PATHS, mode=MODES)
    def open(self, path: str, mode: str) -> Any:
        ours, local = both(
            lambda: self.client.open(self.there(path), mode, chunk_size=CHUNK),
            lambda: open(self.here(path), mode, buffering=0),  # noqa: SIM115 - closed by `close` or the teardown
        )
        if ours is None:
            return multiple()
        self.opened.append((ours, local))
        return ours, local

    @rule(pair=files, size=SIZES)
    def read(self, pair: Any, size: int) -> None:
        ours, local = pair
        got, expected = both(lambda: ours.read(size), lambda: local.read(size))
        assert got == expected

    @rule(pair=files, size=SIZES)
    def write(self, pair: Any, size: int) -> None:
        ours, local = pair
        data = self.data(size)
        both(lambda: ours.write(data), lambda: local.write(data))
        self.same_position(pair)

    @rule(pair=files, size=SIZES, offset=OFFSETS)
    def pwrite(self, pair: Any, size: int, offset: int) -> None:
        ours, local = pair
        if not local.writable() or "a" in ours.mode:
            return
        data = self.data(size)
        ours.pwrite(data, offset)
        os.pwrite(local.fileno(), data, offset)

    @rule(pair=files, size=SIZES, offset=OFFSETS)
    def pread(self, pair: Any, size: int, offset: int) -> None:
        ours, local = pair
        if local.readable():
            assert ours.pread(size, offset) == os.pread(local.fileno(), size, offset)

    @rule(pair=files, offset=OFFSETS)
    def seek(self, pair: Any, offset: int) -> None:
        ours, local = pair
        both(lambda: ours.seek(offset), lambda: local.seek(offset))

    @rule(pair=files)
    def seek_end(self, pair: Any) -> None:
        ours, local = pair
        both(lambda: ours.seek(0, 2), lambda: local.seek(0, 2))
        self.same_position(pair)

    @rule(pair=files, length=OFFSETS)
    def truncate(self, pair: Any, length: int) -> None:
        ours, local = pair
        if local.writable():
            both(lambda: ours.truncate(length), lambda: local.truncate(length))

    @rule(pair=files, how=st.sampled_from(["flush", "fsync"]))
    def get_out(self, pair: Any, how: str) -> None:
        getattr(pair[0], how)()

    @rule(pair=files, size=SIZES, offset=OFFSETS, near=st.integers(-10, 10))
    def write_and_look(self, pair: Any, size: int, offset: int, near: int) -> None:
        self.pwrite(pair, size, offset)
        self.pread(pair, size, max(0, offset + near))

    @rule(pair=consumes(files))
    def close(self, pair: Any) -> None:
        pair[0].close()
        pair[1].close()

    def same_position(self, pair: Any) -> None:
        assert pair[0].tell() == pair[1].tell()

    # --- looking ------------------------------------------------------------------------------------------------------------------

    @invariant()
    def the_trees_are_equal(self) -> None:
        if not self.client.exists(self.root):
            return
        ours = {
            path: (stat.type, stat.size if stat.is_file else 0, stat.nlink if stat.is_file else 0)
            for path, stat in self.client.find(self.root)
        }
        # The listing shows the server's lengths and this client's own; both sides write through one client here.
        local = {}
        for found in self.base.rglob("*"):
            seen = found.stat()
            kind = "directory" if found.is_dir() else "file"
            local[str(found.relative_to(self.base))] = (
                kind,
                seen.st_size if kind == "file" else 0,
                seen.st_nlink if kind == "file" else 0,
            )
        assert ours == local

    def teardown(self) -> None:
        for ours, local in self.opened:
            ours.close()
            local.close()
        for found in self.base.rglob("*"):
            if found.is_file():
                path = self.there(str(found.relative_to(self.base)))
                assert self.client.read_bytes(path) == found.read_bytes(), path
        if self.client.exists(self.root):
            self.client.remove_tree(self.root)
        shutil.rmtree(self.base)


def run(world: World, client: Any, examples: int) -> None:
    found = type("Machine", (Machine,), {"world": world, "client": client})
    case = found.TestCase
    case.settings = settings(
        max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case().runTest()


@pytest.mark.parametrize("options", [{}, {"readahead": 0, "write_back": 0}, {"write_back": 100_000}])
def test_blocking(world: World, options: dict[str, int]) -> None:
    run(world, world.client(**options), 25)


class Outside:
    """The asyncio face, used from outside its loop: each call runs one coroutine to its end there."""

    def __init__(self, inner: Any, world: World) -> None:
        self._inner = inner
        self._world = world

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            made = found(*args, **kwargs)
            if hasattr(made, "__aiter__"):
                return self._world.run(_listed(made))
            if not asyncio.iscoroutine(made):
                return made
            result = self._world.run(made)
            return Outside(result, self._world) if isinstance(result, aio.File) else result

        return call


async def _listed(items: Any) -> list[Any]:
    return [item async for item in items]


def test_asyncio(world: World) -> None:
    async def connected() -> aio.Client:
        env = AioEnvironment(pool_bytes=64 << 20, local=world.network)
        core = Core(env, ["local:meta"], Options(timeout=60.0, memory=64 << 20), 0o022)
        await core.connect()
        return aio.Client(core)

    client = asyncio.run_coroutine_threadsafe(connected(), world.loop).result(60)
    run(world, Outside(client, world), 15)
    asyncio.run_coroutine_threadsafe(client.close(), world.loop).result(60)
