"""`doctor`: does this machine have what emberfs needs, and does its cluster have what it should? Each check is a function that yields
findings; nothing is changed."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ...proto.settings import PORT_DEFAULT, default_data_dir
from .output import Failed, console, human, painted, write_json

KERNEL_MIN = (5, 10)  # pidfd_open, memfd seals, preadv2(RWF_NOWAIT); older ones are not tested
FILES_MIN = 4096
MEMORY_MIN = 1 << 30
SHM = Path("/dev/shm")  # noqa: S108 -- looked at, not written
SHM_MIN = 256 << 20
DISK_FREE_MIN = 5 << 30
CLOCK_ERROR_US_MAX = 500_000
STA_UNSYNC = 0x0040  # of adjtimex(2)

SPACE_FREE_PART_MIN = 0.05  # of a cluster
SHOWN_MAX = 8  # chains named in a finding

# health of a chain (status.py) -> state, advice
_CHAIN_ADVICE = {
    "copying": ("warning", "wait: emberfs status --watch"),
    "short of a member": ("warning", "start its node, or let others take over: emberfs chain apply --keep"),
    "not served": ("error", "start the nodes that served last; if they are lost for good: emberfs chain revive"),
}
_TARGET_ADVICE = {
    "offline": "its server is away or its disk has failed: emberfs target replace {0} gives its place to another one",
    "disabled": "emberfs target online {0} puts it back into service",
    "damaged": "rows of its index were lost: emberfs target replace {0}",
    "full": "it takes no new chunks: remove files, or add nodes and 'emberfs chain apply'",
}
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "glusterfs"}


class Finding(NamedTuple):
    check: str
    state: str  # "ok", "warning", "error"
    found: str
    advice: str = ""


def doctor(
    data: Annotated[str, typer.Option("--data", help="Data directory to look at.", show_default=False)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """Check kernel, limits, memory, disk, ports, clock and Python; and of a cluster its servers, chains, targets and space.

    Exit code 1 when something is in the way, or data cannot be read.
    """
    folder = Path(data) if data else default_data_dir()
    findings = list(examine(folder, data))
    if as_json:
        write_json([finding._asdict() for finding in findings])
    else:
        from rich.table import Table

        colours = {"ok": "green", "warning": "yellow", "error": "red"}
        table = Table("check", "", "found", "what to do", box=None)
        for finding in findings:
            table.add_row(finding.check, painted(finding.state, colours[finding.state]), finding.found, finding.advice)
        console().print(table)
    if any(finding.state == "error" for finding in findings):
        raise Failed()


def examine(folder: Path, data: str = "") -> Iterator[Finding]:
    """All checks, in order: of this machine, with this folder for data, and of the cluster that `data` or the environment names."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": _python,
        "kernel": _kernel,
        "limits": _limits,
        "memory": _memory,
        "memory regions": _shared_memory,
        "disk": lambda: _disk(folder),
        "ports": _ports,
        "clock": _clock,
        "rdma": _rdma,
        "cluster": lambda: cluster_findings(_status(data)),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except OSError as failed:
            yield Finding(name, "error", str(failed), "this machine does not allow it")


def _rate(check: str, good: bool, found: str, advice: str, worst: str = "warning") -> Finding:
    return Finding(check, "ok" if good else worst, found, "" if good else advice)


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    yield _rate(
        "python", sys.version_info >= (3, 11), f"{version} ({sys.executable})", "use Python 3.11 or newer", "error"
    )
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    missing = []
    for name in ("crc32c", "fsspec", "grpcio", "prometheus-client", "protobuf", "rocksdict", "structlog", "uvloop"):
        try:
            version_of(name)
        except PackageNotFoundError:
            missing.append(name)
    yield _rate(
        "packages",
        not missing,
        f"missing: {', '.join(missing)}" if missing else "all there",
        "pip install emberfs",
        "error",
    )


def _kernel() -> Iterator[Finding]:
    release = os.uname().release
    number = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    yield _rate("kernel", number >= KERNEL_MIN, release, f"use Linux {KERNEL_MIN[0]}.{KERNEL_MIN[1]} or newer", "error")
    fd = os.pidfd_open(os.getpid())
    os.close(fd)


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield _rate(
        "open files",
        hard >= FILES_MIN,
        f"{soft}, at most {hard}",
        f"raise the limit (ulimit -Hn) to {FILES_MIN} or more",
    )
    threads = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    good = threads == resource.RLIM_INFINITY or threads >= 1024
    yield _rate(
        "processes",
        good,
        "unlimited" if threads == resource.RLIM_INFINITY else str(threads),
        "raise it (ulimit -u) to 1024 or more",
    )


def _memory() -> Iterator[Finding]:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) << 10
    found = f"{human(free)} available"
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if file.exists() and (text := file.read_text().strip()).isdigit() and int(text) < 1 << 60:
            free = min(free, int(text))
            found += f", {human(int(text))} allowed by the control group"
    yield _rate("memory", free >= MEMORY_MIN, found, f"servers and client need {human(MEMORY_MIN)}")


def _shared_memory() -> Iterator[Finding]:
    fd = os.memfd_create("emberfs-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        mmap.mmap(fd, mmap.PAGESIZE).close()
    finally:
        os.close(fd)
    yield Finding("memory regions", "ok", "memfd with seals works")
    shm = SHM
    if not shm.is_dir():
        yield Finding(str(shm), "warning", "not there", "torch's data loaders need it: mount a tmpfs there")
        return
    free = shutil.disk_usage(shm).free
    yield _rate(
        str(shm), free >= SHM_MIN, f"{human(free)} free", "torch's data loaders need more (containers: --shm-size=1g)"
    )


def _disk(data: Path) -> Iterator[Finding]:
    place = data.absolute()
    while not place.exists():
        place = place.parent
    writable = os.access(place, os.W_OK | os.X_OK)
    yield _rate(
        "data directory",
        writable,
        str(data),
        f"{place} cannot be written: choose another with --data or EMBERFS_DATA",
        "error",
    )
    free = shutil.disk_usage(place).free
    yield _rate(
        "disk", free >= DISK_FREE_MIN, f"{human(free)} free", f"less than {human(DISK_FREE_MIN)} does not carry far"
    )
    kind = _file_system(place)
    yield _rate(
        "file system",
        kind not in _NETWORK_FILE_SYSTEMS,
        kind,
        "use a local disk: a network file system is slow and may lose what was synced",
    )
    if writable:
        with tempfile.TemporaryFile(dir=place) as file:
            os.posix_fallocate(file.fileno(), 0, 4096)
            file.write(b"x" * 4096)
            file.flush()
            try:
                os.preadv(file.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT)
            except BlockingIOError:
                pass  # not in the page cache, which is an answer
            except OSError as bad:
                advice = "each read takes a thread's time: ext4 and xfs know it"
                yield Finding("file system", "warning", f"{kind}: reads that do not wait: {bad.strerror}", advice)


def _file_system(place: Path) -> str:
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        point, this = line.split()[1:3]
        point = point.replace("\\040", " ")
        if place.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, this
    return kind


def _ports() -> Iterator[Finding]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT_DEFAULT))
            yield Finding(f"port {PORT_DEFAULT}", "ok", "free")
        except OSError:
            yield Finding(
                f"port {PORT_DEFAULT}", "warning", "taken", "by a running cluster, or name another one with 'up --port'"
            )


def _clock() -> Iterator[Finding]:
    """Leases use no wall clock, but file times of several hosts are compared by programs like make."""
    buffer = ctypes.create_string_buffer(512)
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    if state < 0:
        yield Finding(
            "clock", "warning", f"adjtimex: {os.strerror(ctypes.get_errno())}", "cannot tell whether it is synchronised"
        )
        return
    words = memoryview(buffer.raw).cast("l")
    error_us, flags = words[4], words[5] & 0xFFFFFFFF  # struct timex: modes, offset, freq, maxerror, esterror, status
    good = not flags & STA_UNSYNC and error_us <= CLOCK_ERROR_US_MAX
    found = "synchronised" if not flags & STA_UNSYNC else "not synchronised"
    yield _rate("clock", good, found, "file times of several hosts are compared: run chrony or systemd-timesyncd")


def _rdma() -> Iterator[Finding]:
    from . import transports

    for check, good, found, advice in transports.devices():
        yield _rate(check, good, found, advice)


def _status(data: str) -> dict[str, Any] | None:
    """As `emberfs status --json`; None where there is no cluster yet."""
    from .status import collect

    try:
        return collect(data)
    except Failed:
        return None


def cluster_findings(status: dict[str, Any] | None) -> Iterator[Finding]:
    """What a cluster lacks, from `emberfs status --json`."""
    if status is None:
        return
    down = [server["name"] for server in status["servers"] if not server["pid"]]
    yield _rate("servers", not down, f"down: {', '.join(down)}" if down else "all run", "emberfs up")
    if status["error"]:
        yield Finding("cluster", "error", status["error"], "look into the servers' logs")
    if not status["chains"]:
        return
    silent = [node["name"] or str(node["node"]) for node in status["nodes"] if node["state"] == "silent"]
    if silent:
        yield Finding(
            "nodes",
            "warning",
            f"silent: {', '.join(silent)}",
            "start them; those that are gone for good: emberfs node remove",
        )
    yield from _chains(status["chains"], "files")
    yield from _chains(status["chains"], "kv")
    yield from _targets(status["targets"])
    yield from _transports(status["transports"])
    space = status["space"]
    part = space["free"] / space["total"] if space["total"] else 0.0
    yield _rate(
        "space", part >= SPACE_FREE_PART_MIN, f"{human(space['free'])} free ({part:.0%})", "remove files, or add nodes"
    )


def _chains(all_chains: list[dict[str, Any]], kind: str) -> Iterator[Finding]:
    """One that holds KV blocks and is not served is a smaller cache: keys go around it."""
    from .status import WELL, health_of

    chains = [chain for chain in all_chains if chain["for"] == kind]
    name = "chains" if kind == "files" else "chains of KV blocks"
    words: dict[str, list[str]] = {}
    for chain in chains:
        words.setdefault(health_of(chain), []).append(str(chain["chain"]))
    lacking = {word: numbers for word, numbers in words.items() if word != WELL}
    if chains and not lacking:
        yield Finding(name, "ok", f"{len(chains)}, all well")
    for word, numbers in lacking.items():
        state, advice = _CHAIN_ADVICE[word]
        shown = ", ".join(numbers[:SHOWN_MAX]) + (" ..." if len(numbers) > SHOWN_MAX else "")
        state = "warning" if kind != "files" else state
        yield Finding(name, state, f"{len(numbers)} of {len(chains)} {word}: {shown}", advice)


def _transports(rows: list[dict[str, Any]]) -> Iterator[Finding]:
    """What peers speak, and why those that could speak RDMA do not."""
    ways: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        ways.setdefault((row["transport"], row["reason"]), []).append(f"{row['from']} to {row['to']}")
    for (transport, reason), pairs in sorted(ways.items()):
        shown = ", ".join(pairs[:SHOWN_MAX]) + (" ..." if len(pairs) > SHOWN_MAX else "")
        yield Finding("transport", "ok", f"{transport} ({reason}): {shown}")


def _targets(targets: list[dict[str, Any]]) -> Iterator[Finding]:
    for target in targets:
        marks = [mark for mark in target["marks"] if mark in _TARGET_ADVICE]
        if not marks and target["state"] == "OFFLINE":
            marks = ["offline"]
        for mark in marks:
            where = f"target {target['target']} on {target['name'] or target['node']}"
            yield Finding(where, "warning", mark, _TARGET_ADVICE[mark].format(target["target"]))
