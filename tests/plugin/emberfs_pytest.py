"""Pytest plug-in of the project: module names, long tests, a table of what was skipped, and which failed tests may be asked again.

The root of the checkout is the package `emberfs`. Left alone, pytest imports test modules (and the root's `__init__`) a second time under
the clone's directory name, and every class exists twice. A finder therefore answers pytest's names with the modules of the
package: `tests/proto/test_frame.py` is `emberfs.tests.proto.test_frame` in every clone, whatever it is called, so that spawned processes
can import it too.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import signal
import sys
import tomllib
from collections.abc import Collection, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from emberfs_cluster import cluster, fresh_cluster, make_cluster, replicated_cluster
from emberfs_mount import make_mount
from emberfs_postgres import postgres_server, postgres_url

# Fixtures of every test.
__all__ = [
    "cluster",
    "fresh_cluster",
    "make_cluster",
    "make_mount",
    "postgres_server",
    "postgres_url",
    "replicated_cluster",
]

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = Path(__file__).resolve().parent


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers `CLONE.tests.x` and `tests.x` with the module `emberfs.tests.x`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        parts = fullname.split(".")
        if parts[0] == ROOT.name and ROOT.name != "emberfs":
            parts = parts[1:]
        elif parts[0] != "tests":
            return None
        place = ROOT.joinpath(*parts)
        for file in (place.with_suffix(".py") if parts else place, place / "__init__.py"):
            if file.is_file():
                spec = importlib.machinery.ModuleSpec(
                    fullname, self, origin=str(file), is_package=file.name == "__init__.py"
                )
                spec.loader_state = ".".join(["emberfs", *parts])
                return spec
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.loader_state)
        self._own = module.__spec__  # the import machinery is about to replace it
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own


sys.meta_path.insert(0, _Alias())


def misnamed_modules() -> list[str]:
    """Modules loaded from the checkout under another name than the package's, so that their classes exist twice."""
    wrong = []
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        if not file.is_relative_to(ROOT) or file.is_relative_to(PLUGINS):
            continue
        if file.relative_to(ROOT).parts[0].startswith("."):  # a virtual environment in the clone
            continue
        if file.is_relative_to(ROOT / "kvcache" / "adapters" / "dropin"):  # stands in for a package of another name
            continue
        own = getattr(module.__spec__, "name", name)
        if own.split(".")[0] != "emberfs" or module is not sys.modules.get(own):
            wrong.append(f"{name} ({file})")
    return wrong


def pytest_configure(config: pytest.Config) -> None:
    spec = importlib.util.find_spec("emberfs")
    if spec is None or Path(spec.origin or "/").resolve().parent != ROOT:
        found = spec.origin if spec else "nothing"
        raise pytest.UsageError(f"'import emberfs' finds {found}, not this checkout: pip install -e {ROOT}")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a shell's job in the background; tests send Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.pluginmanager.hasplugin("hypothesispytest"):  # its import takes a while
        _set_up_hypothesis(derandomize=not config.getoption("--soak"))


def _set_up_hypothesis(derandomize: bool) -> None:
    """A machine that has much else to do is no fault of the code, and whether a change may land is no matter of luck: the same examples
    in every run, and others in each soak."""
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "emberfs", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=derandomize
    )
    settings.load_profile("emberfs")


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if path == ROOT:
        return pytest.Dir.from_parent(parent, path=path)
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="also run the long tests")
    parser.addoption("--strict-skips", action="store_true", help="fail on a skip that tests/skips.toml does not allow")
    parser.addoption(
        "--once-more",
        metavar="FILE",
        help=f"where at most {ONCE_MORE_MAX} tests failed: write their names there and end with {ONCE_MORE} ({__name__}.once_more)",
    )


@cache
def why_no_rdma() -> str:
    """Why tests marked `rdma` do not run here, or "". Elsewhere tests/rdma/test_vm.py boots a machine and runs all of them in there."""
    if not any(Path("/sys/class/infiniband").glob("*")):
        return "this machine has no RDMA device"
    from emberfs.proto.errors import StatusError
    from emberfs.proto.transport.rdma.devices import survey
    from emberfs.proto.transport.rdma.endpoint import Endpoint

    try:
        found = survey()
        for port in [one.port for one in found if one.port is not None]:
            Endpoint(port, serves=False).close()
            return ""
    except StatusError as failed:  # no pyverbs, no right to use the device, too little memory that may be locked
        return failed.strerror or str(failed)
    return "; ".join(f"{one.name}: {one.reason}" for one in found)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {"soak": not config.getoption("--soak"), "rdma": bool(why_no_rdma())}
    marks = [mark for mark, out in left_out.items() if out]
    if out := [item for item in items if any(item.get_closest_marker(mark) for mark in marks)]:
        config.hook.pytest_deselected(items=out)
        gone = set(out)
        items[:] = [item for item in items if item not in gone]


# --- skips: each is listed at the end, and with --strict-skips one that nobody allowed is a failure --------------------------------

_skipped: dict[str, str] = {}  # node id -> reason
_failed: dict[str, None] = {}  # node ids, in the order in which they failed


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.failed:
        _failed[report.nodeid] = None
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        _skipped[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")


pytest_runtest_logreport = _note
pytest_collectreport = _note


def _allowed() -> list[tuple[str, str]]:
    rules = tomllib.loads((ROOT / "tests" / "skips.toml").read_text()).get("skip", [])
    return [(rule["test"], rule["reason"]) for rule in rules]


def _unexpected() -> dict[str, str]:
    """Skipped tests that no row of tests/skips.toml allows (both the test and the reason must match)."""
    rules = _allowed()
    return {
        test: reason
        for test, reason in _skipped.items()
        if not any(fnmatch(test, tests) and fnmatch(reason, reasons) for tests, reasons in rules)
    }


# --- unsteady tests: what failed beside all the others may be asked once more, alone ----------------------------------------------

ONCE_MORE = 64  # pytest's status: few tests failed, none of which decides about data
ONCE_MORE_MAX = 3  # more than that is no accident
NEVER_AGAIN = ("tests/sim/", "tests/scenarios/", "tests/storage/", "tests/test_")


def once_more(failed: Collection[str]) -> bool:
    """Whether these failed tests may be run again, alone, before they count.

    Thousands of tests of real processes share a machine with each other, and one of them may have been stopped for longer than it
    allows for. Those that look for lost data (simulator, scenarios, storage) get no second chance: one loss is a loss, and the next
    run would draw another seed. Neither do static ones, nor modules that could not be collected.
    """
    return 0 < len(failed) <= ONCE_MORE_MAX and all(
        "::" in test and not test.startswith(NEVER_AGAIN) for test in failed
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    strict = session.config.getoption("--strict-skips")
    if (strict and _unexpected()) or misnamed_modules():
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        return
    path = session.config.getoption("--once-more")
    if path and session.exitstatus == pytest.ExitCode.TESTS_FAILED and once_more(_failed):
        Path(path).write_text("".join(f"{test}\n" for test in _failed))
        session.exitstatus = ONCE_MORE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped:
        unexpected = _unexpected()
        terminalreporter.section("skipped")
        for test, reason in sorted(_skipped.items()):
            terminalreporter.line(f"{'NOT ALLOWED' if test in unexpected else 'allowed    '}  {test}: {reason}")
    if reason := why_no_rdma():
        terminalreporter.line(f"rdma: not tested on devices of this machine, but in a VM: {reason}")
    for name in misnamed_modules():
        terminalreporter.line(f"ERROR: loaded under a name outside the package: {name}", red=True)
