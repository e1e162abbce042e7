"""The rdma transport over Soft-RoCE: whatever is marked `rdma` in the tests runs in a machine that has such devices (`vm.py`).

Where this machine has devices of its own, those tests run here as well, like any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from . import vm
from .kernel import Unavailable

REPORT = "junit.xml"
TEST_SECONDS_MAX = 300  # of one test in a guest, where everything takes its time
OUTPUT_CHARACTERS_SHOWN = 6000
STUCK = "BUG: soft lockup"  # says a kernel of which a processor does nothing else any more
QUICK = ["tests/proto/test_transports.py", "tests/rdma/test_bytes.py", "tests/rdma/test_cluster.py"]
LEAN = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_timeout"}  # others take seconds to import
IMPORTED = "import emberfs.deploy.local, emberfs.meta.server, emberfs.storage.server"  # by processes that tests start


class KernelStuck(Exception):
    """The guest's kernel ended because it did nothing else any more."""


def run_in_vm(
    folder: Path, *arguments: str, seconds: float, at_least: int, environment: Mapping[str, str] | None = None
) -> None:
    """Run pytest with these arguments in a guest. Fails unless `at_least` tests passed there, none failed and none was skipped.
    Raises KernelStuck."""
    pytest_command = ["pytest", "-v", "-o", f"timeout={TEST_SECONDS_MAX}", *arguments]
    command = [*pytest_command, "--durations=8", f"--junitxml={vm.RESULTS}/{REPORT}"]
    first = [["python", "-c", IMPORTED], [*pytest_command, "--collect-only"]]
    told = {"PYTHONUNBUFFERED": "1", **(environment or {})}  # each outcome is seen as it comes
    try:
        outcome = vm.run(command, seconds=seconds, environment=told, results=folder, first=first)
    except Unavailable as reason:
        pytest.skip(f"no VM with RoCE devices: {reason}")
    print(outcome.output)
    print(f"{outcome.ready_seconds:.1f} s to boot, {outcome.seconds:.1f} s in all")
    if _was_only_slow(outcome):
        pytest.skip(
            f"no VM with RoCE devices: {outcome.output.count(' PASSED')} tests in {seconds:.0f} s, so busy is this machine"
        )
    if not (folder / REPORT).exists():
        if STUCK in outcome.console:
            raise KernelStuck(_end(outcome.console))
        pytest.fail(
            f"no report, status {outcome.status}: {_end(outcome.output)}\n{_end(outcome.console)}", pytrace=False
        )
    passed, wrong = _judge(folder / REPORT)
    if wrong or outcome.status:
        pytest.fail(f"in the VM (status {outcome.status}): {'; '.join(wrong)}\n{_end(outcome.output)}", pytrace=False)
    assert passed >= at_least, f"only {passed} tests ran in the VM"


def _was_only_slow(outcome: vm.Outcome) -> bool:
    """Whether time ran out while tests passed, one after the other."""
    return (
        outcome.status == vm.LATE
        and outcome.silent_seconds < TEST_SECONDS_MAX
        and " FAILED" not in outcome.output
        and " ERROR" not in outcome.output
    )


def _judge(report: Path) -> tuple[int, list[str]]:
    """How many tests passed, and the names of the others."""
    passed, wrong = 0, []
    for case in ElementTree.parse(report).iter("testcase"):
        said = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        if said:
            wrong.append(f"{case.get('classname')}::{case.get('name')} {said[0]}")
        else:
            passed += 1
    return passed, wrong


def _end(text: str) -> str:
    return text[-OUTPUT_CHARACTERS_SHOWN:]


@pytest.mark.timeout(900)
def test_transports_and_a_cluster_over_soft_roce(tmp_path: Path) -> None:
    thin = {**LEAN, "PYTEST_PLUGINS": "pytest_timeout,emberfs.tests.rdma.thin"}
    run_in_vm(tmp_path, "-m", "rdma and not soak", *QUICK, seconds=480, at_least=35, environment=thin)


@pytest.mark.soak
@pytest.mark.timeout(5400)
def test_everything_marked_rdma(tmp_path: Path) -> None:
    """Faults of peers, a thousand connections, a kill of a storage process."""
    suites = ["tests/proto", "tests/rdma", "--ignore=tests/rdma/test_link.py"]
    run_in_vm(tmp_path, "-m", "rdma", "--soak", *suites, seconds=5300, at_least=150, environment=LEAN)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_links_that_break(tmp_path: Path) -> None:
    """Once in some ten runs Linux 6.1 does not come back from its own Soft-RoCE when a link goes down in the middle of transfers: a
    processor spins in the kernel, and no process can do anything about that. Such a guest counts once for nothing."""
    arguments = ["-m", "rdma", "--soak", "tests/rdma/test_link.py"]
    try:
        run_in_vm(tmp_path, *arguments, seconds=1700, at_least=12, environment=LEAN)
    except KernelStuck as stuck:
        print(f"once more: {stuck}")
        run_in_vm(tmp_path, *arguments, seconds=1700, at_least=12, environment=LEAN)


SUITES = {
    "connections": (["tests/proto/test_connections.py"], 30),
    "files": (["tests/client/fsspec/test_filesystem.py"], 35),
    "blocks": (["tests/kvcache/test_contract.py"], 90),
}


@pytest.mark.soak
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("suite", SUITES)
def test_other_suites_where_everybody_speaks_rdma(tmp_path: Path, suite: str) -> None:
    """What knows nothing of transports works as over any other."""
    arguments, at_least = SUITES[suite]
    run_in_vm(
        tmp_path,
        "-p",
        "no:zarr",
        *arguments,
        seconds=5300,
        at_least=at_least,
        environment={"EMBERFS_TRANSPORT": "rdma"},
    )


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_on_a_device_that_cannot_be_used_nothing_is_tested_and_why_is_said() -> None:
    hidden = f"mount -t tmpfs none {vm.PYVERBS} && pytest -q -m rdma tests/rdma/test_bytes.py"
    try:
        outcome = vm.run(["bash", "-c", hidden], seconds=600, environment=LEAN)
    except Unavailable as reason:
        pytest.skip(f"no VM with RoCE devices: {reason}")
    assert outcome.status == pytest.ExitCode.NO_TESTS_COLLECTED, _end(outcome.output)
    assert "rdma: not tested on devices of this machine, but in a VM: pyverbs is not installed" in outcome.output


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_what_rdma_costs_beside_tcp(tmp_path: Path) -> None:
    """Counts are the same on any machine; of times only ratios mean something, and those of an emulated device little."""
    try:
        outcome = vm.run(
            ["bash", "-c", f"emberfs bench rdma --quick --json >{vm.RESULTS}/bench.json"], seconds=880, results=tmp_path
        )
    except Unavailable as reason:
        pytest.skip(f"no VM with RoCE devices: {reason}")
    assert outcome.status == 0, _end(outcome.output)
    [result] = json.loads((tmp_path / "bench.json").read_text())
    print(json.dumps(result, indent=1))
    missed = [
        row["what"] for row in result["rows"] if row.get("met") is False and row["unit"] not in ("MiB/s", "s/GiB")
    ]
    assert not missed
