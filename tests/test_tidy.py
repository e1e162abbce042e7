"""Style as a test: one pass over the syntax trees of the checkout. Every rule is data at the top; a failure names file and line."""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
import tomllib
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A room may import itself, the root package, and these.
ROOMS = {
    "proto": set(),
    "meta": {"proto"},
    "storage": {"proto"},
    "client": {"proto"},
    "fuse": {"proto", "client"},
    "kvcache": {"proto", "client"},
    "deploy": {"proto", "meta", "storage", "client", "fuse", "kvcache"},
    "tests": {"proto", "meta", "storage", "client", "fuse", "kvcache", "deploy"},
}

# Cores decide and own no I/O: a folder (ending in "/") or a module. Time, randomness, disks and networks are handed to them.
CORES = [
    "client/core/",
    "fuse/negotiation.py",
    "fuse/protocol.py",
    "fuse/replies.py",
    "fuse/requests.py",
    "fuse/structs.py",
    "kvcache/core/",
    "storage/blocks/ghosts.py",
    "storage/blocks/policy.py",
    "storage/blocks/watermarks.py",
    "storage/craq.py",
    "storage/resync.py",
    "meta/cluster/chain.py",
    "meta/keys.py",
    "meta/namespace/",
    "proto/env.py",
    "proto/errors.py",
    "proto/frame.py",
    "proto/layout.py",
    "proto/rpc.py",
]
FORBIDDEN_IN_CORES = {
    "asyncio",
    "socket",
    "time",
    "random",
    "os",
    "threading",
    "select",
    "subprocess",
    "secrets",
    "uvloop",
}
# What is no I/O although it lies in such a module: constants and conversions.
ALLOWED_IN_CORES = {"os": re.compile(r"O_[A-Z]+|SEEK_[A-Z]+|PathLike|fsencode|fsdecode|fspath")}

MODULE_NAMES_FORBIDDEN = {"util", "utils", "common", "helper", "helpers", "misc", "stuff", "tools"}
MOCKS = {"unittest.mock", "mock", "pytest_mock"}
MAY_PRINT = ("deploy/cli/", "deploy/bench/", "tests/")
MODULE_LINES_ASK = 500  # a longer module is reported
MODULE_LINES_MAX = 900  # a longer one fails
GENERATED = "proto/gen/"


class Module(NamedTuple):
    path: Path
    relative: str  # with "/", from the root
    source: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.relative.split("/")[0] if "/" in self.relative else ""


@cache
def modules() -> tuple[Module, ...]:
    """Every module of ours; not generated code, not what lies beside the rooms (virtual environments, builds)."""
    files = [ROOT / "__init__.py", ROOT / "__main__.py"]
    for room in ROOMS:
        files += sorted((ROOT / room).rglob("*.py"))
    found = []
    for path in files:
        relative = path.relative_to(ROOT).as_posix()
        if path.exists() and not relative.startswith(GENERATED):
            source = path.read_text()
            found.append(Module(path, relative, source, ast.parse(source, relative)))
    return tuple(found)


class Import(NamedTuple):
    line: int
    module: str  # absolute: "emberfs.proto.errors", "asyncio"
    name: str  # of `from module import name`, or ""


def imports(module: Module) -> Iterator[Import]:
    """All imports, also those within functions and under TYPE_CHECKING, with relative ones made absolute."""
    package = ["emberfs", *module.relative.split("/")[:-1]]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(node.lineno, source, alias.name)


def room_of(item: Import) -> str:
    """The room that an import reaches into, or "" (the root package, foreign code)."""
    parts = [*item.module.split("."), item.name]
    return parts[1] if parts[0] == "emberfs" and parts[1] in ROOMS else ""


def report(complaints: list[str]) -> None:
    assert not complaints, "\n" + "\n".join(complaints)


def test_rooms_import_only_what_they_may() -> None:
    report([
        f"{module.relative}:{item.line}: {module.room} may not import {room_of(item)}"
        for module in modules()
        if module.room
        for item in imports(module)
        if (room := room_of(item)) and room != module.room and room not in ROOMS[module.room]
    ])  # fmt: skip


def test_cores_own_no_io() -> None:
    complaints = []
    for module in modules():
        if not any(
            module.relative == core or (core.endswith("/") and module.relative.startswith(core)) for core in CORES
        ):
            continue
        for item in imports(module):
            foreign = item.module.split(".")[0]
            if foreign not in FORBIDDEN_IN_CORES:
                continue
            allowed = ALLOWED_IN_CORES.get(item.module)
            names = [item.name] if item.name else sorted(_attributes_used(module, item.module))
            if not allowed or not all(allowed.fullmatch(name) for name in names):
                complaints.append(f"{module.relative}:{item.line}: a core imports {item.module} ({', '.join(names)})")
    report(complaints)


def _attributes_used(module: Module, name: str) -> set[str]:
    """`x` of each `name.x` in a module."""
    return {
        node.attr
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    }


def test_no_mocks() -> None:
    report([
        f"{module.relative}:{item.line}: {item.module} {item.name}"
        for module in modules()
        for item in imports(module)
        if item.module in MOCKS or f"{item.module}.{item.name}" in MOCKS
    ])  # fmt: skip


def test_prints_only_where_people_read_them() -> None:
    report([
        f"{module.relative}:{node.lineno}: print"
        for module in modules()
        if not module.relative.startswith(MAY_PRINT)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ])  # fmt: skip


def test_nothing_is_left_for_later() -> None:
    words = ("FIX" + "ME", "TO" + "DO", "XX" + "X", "HA" + "CK")
    complaints = []
    for module in modules():
        for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
            if token.type == tokenize.COMMENT and any(word in token.string for word in words):
                complaints.append(f"{module.relative}:{token.start[0]}: {token.string}")
    report(complaints)


def test_module_names_say_something() -> None:
    report([module.relative for module in modules() if module.path.stem in MODULE_NAMES_FORBIDDEN])


def test_every_module_opens_with_a_docstring() -> None:
    report([module.relative for module in modules() if module.source.strip() and not ast.get_docstring(module.tree)])


def test_modules_stay_small() -> None:
    lengths = {module.relative: module.source.count("\n") for module in modules()}
    for relative, lines in sorted(lengths.items()):
        if lines > MODULE_LINES_ASK:
            warnings.warn(f"{relative} has {lines} lines: does it hold two things?", stacklevel=1)
    report([f"{name}: {lines} lines" for name, lines in lengths.items() if lines > MODULE_LINES_MAX])


def test_no_conftest_in_the_root() -> None:
    assert not (ROOT / "conftest.py").exists(), (
        "pytest would import the root a second time; fixtures live in tests/plugin"
    )


def _entry_points() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project.get("scripts", {}), *project.get("entry-points", {}).values()]
    return [target for group in groups for target in group.values()]


@pytest.mark.parametrize("target", _entry_points())
def test_entry_point_is_importable(target: str) -> None:
    module, _, attribute = target.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_loaded_modules_have_one_name(request: pytest.FixtureRequest) -> None:
    """The plug-in checks the same once more when the session ends."""
    import emberfs_pytest

    report(emberfs_pytest.misnamed_modules())
    assert __name__ == "emberfs.tests.test_tidy"


def test_who_looks_for_lost_data_is_not_asked_twice() -> None:
    import emberfs_pytest

    steady = [f"tests/fuse/test_files.py::test_{i}" for i in range(emberfs_pytest.ONCE_MORE_MAX + 1)]
    assert emberfs_pytest.once_more(steady[1:])
    assert not emberfs_pytest.once_more(steady)
    assert not emberfs_pytest.once_more([])
    for test in (
        "tests/sim/test_chains.py::test_fresh_seeds[1]",
        "tests/scenarios/test_kill_under_load.py::test_it",
        "tests/storage/engine/test_crash.py::test_it",
        "tests/test_tidy.py::test_it",
        "tests/fuse/test_files.py",  # could not be imported
    ):
        assert not emberfs_pytest.once_more([test, steady[0]])
