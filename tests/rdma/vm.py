"""A throw-away machine with two RoCE devices, for tests of the rdma transport where there is no such hardware.

`run` boots a kernel that has Soft-RoCE (`kernel.py`) in qemu and runs a command in it as root. The machine is emulated, also where there
is KVM, which hangs within some virtual machines; EMBERFS_VM_ACCELERATOR=kvm makes it ten times as fast where that works. With
EMBERFS_VM_COUNTED=1 its clock counts instructions, 1 ns each, and what is measured in it is the same whatever else runs here. The
guest's root is this machine's root, read-only under a file system in memory: the checkout and its environment are there under their own
paths, and what the command changes is gone afterwards, except for what it leaves in `$EMBERFS_VM_RESULTS`. No network reaches out of the
guest; guest/network makes the one inside.

    python -m emberfs.tests.rdma COMMAND...         runs a command in it and shows what it prints
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from . import initrd
from .kernel import Kernel, Unavailable, cache_directory, find_kernel

ROOT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).parent / "guest"
QEMU = "qemu-system-x86_64"
BUSYBOX = Path("/bin/busybox")
PYVERBS = Path("/usr/lib/python3/dist-packages/pyverbs")  # the distribution's: pip's fits no library but its own
# What a guest needs of this machine, and the Debian package that has it.
PROGRAMS = {QEMU: "qemu-system-x86", "busybox": "busybox-static", "rdma": "iproute2", "setpriv": "util-linux"}
PROVIDER = "libibverbs/librxe-rdmav*.so"  # under the system's library folder
MEMORY_MIB = 3072  # of the guest; what tests write is in there too
PROCESSORS_MAX = 4
PROGRAMS_OF_PYTHON = Path(sys.executable).parent  # of the environment that is tested
FIRST_SECONDS_MAX = 120.0  # of a command that runs here, before the guest
RESULTS = "/run/vm/job/results"
LATE = 124  # status of a command that took too long
TIME_SCALE = 5  # an emulated machine takes so much longer: see EMBERFS_TIME_SCALE
TIME_SCALE_MAX = 60
LOAD = 1.5  # of a processor here, up to which that will do; beyond, and where the guest boots slowly, it is longer in proportion
BOOT_SECONDS = 12  # until the script runs, where nothing else does
BOOT_SECONDS_MAX = 240.0  # then this machine is too busy for another
EMULATED = "tcg,thread=multi"
COUNTED = ("-accel", "tcg,thread=single", "-icount", "shift=0")
# A kernel that does nothing else for two minutes says where it is, and ends.
STUCK = "softlockup_panic=1 watchdog_thresh=60 loglevel=5"
COMMAND_LINE = f"console=ttyS0 {STUCK} panic=-1 rdinit=/init mitigations=off random.trust_cpu=on cryptomgr.notests=1"
NICE = -5  # of qemu
LOOK_SECONDS = 0.05  # between two looks at what a guest has printed


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command in a guest ended."""

    status: int  # as of a shell; LATE, or 125: the guest ended without saying
    output: str  # stdout and stderr of the command
    console: str  # what the kernel said
    seconds: float  # from the start of qemu to its end
    ready_seconds: float  # of these until the command was started
    silent_seconds: float  # since the command printed something, at the end


def why_not() -> str:
    """Why no guest can be booted here, or "". Asks nobody outside this machine."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"it is made for x86-64, and this is {platform.machine()}"
    if os.geteuid() != 0:
        return "it needs root, as its files are this machine's, whatever their permissions"
    if Path("/run/vm/job").exists():
        return "this is it"
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if not PYVERBS.is_dir():
        missing.append("python3-pyverbs")
    elif not list(PYVERBS.glob(f"device{suffix}")):
        version = ".".join(platform.python_version_tuple()[:2])
        return f"python3-pyverbs of this distribution is for another Python than {version}"
    if not list(Path("/usr/lib/x86_64-linux-gnu").glob(PROVIDER)):
        missing.append("ibverbs-providers")
    if missing:
        return f"packages that are not installed: {' '.join(missing)}"
    if (free := _available_mib()) < MEMORY_MIB:
        return f"it needs {MEMORY_MIB} MiB of memory, and {free} MiB are free"
    return ""


def processors() -> int:
    """How many the guest has: half of ours, for one that has to wait for another's thread spins, which costs more than it brings."""
    return max(1, min((os.cpu_count() or 1) // 2, PROCESSORS_MAX))


def _available_mib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return 0


def run(
    command: Sequence[str],
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    results: Path | None = None,
    show: Callable[[str], None] | None = None,
    first: Sequence[Sequence[str]] = (),
) -> Outcome:
    """Run a command in a guest, in the checkout's root and with this interpreter's programs first in PATH.

    `seconds` is the time for the command; `results` a directory that gets what the command left in $EMBERFS_VM_RESULTS; `show` is called
    with what the command prints, as it comes. `first` are commands that run here before: what they import is compiled in the cache
    directory, and found there by the guest, where to compile takes many times as long. Raises Unavailable, also where it boots too slowly.
    """
    if reason := why_not():
        raise Unavailable(reason)
    kernel = find_kernel()
    told = {"PYTHONPYCACHEPREFIX": str(cache_directory() / "compiled"), **(environment or {})}
    with tempfile.TemporaryDirectory(prefix="emberfs-vm-") as name:
        job = Path(name)
        (job / "results").mkdir()
        (job / "output").touch()
        (job / "script").write_text(_script(command, told))
        (job / "initrd").write_bytes(initrd.build(BUSYBOX.resolve(), kernel.modules, GUEST / "init"))
        with _compiling(first, told) as compiling:
            outcome = _boot(kernel, job, compiling, seconds, show or (lambda text: None))
        if results is not None:
            shutil.copytree(job / "results", results, dirs_exist_ok=True)
    return outcome


@contextmanager
def _compiling(commands: Sequence[Sequence[str]], told: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """These commands, one after the other, while the guest boots."""
    line = "; ".join(shlex.join(words) for words in commands) or "true"
    here = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found = {**here, **told, "PATH": f"{PROGRAMS_OF_PYTHON}:{here['PATH']}"}
    timed = ["timeout", str(FIRST_SECONDS_MAX), "sh", "-c", line]
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *timed],
        cwd=ROOT,
        env=found,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        try:
            yield running
        finally:
            running.terminate()


def _script(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What the guest runs after its root is there."""
    variables = {
        "PATH": f"{PROGRAMS_OF_PYTHON}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/run/vm/tmp",
        "LANG": "C.UTF-8",
        "TMPDIR": "/run/vm/tmp",
        "EMBERFS_VM_RESULTS": RESULTS,
        **environment,
    }
    assignments = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    busy = os.getloadavg()[0] / (os.cpu_count() or 1) / LOAD
    least = min(max(TIME_SCALE, int(TIME_SCALE * busy)), TIME_SCALE_MAX)
    return f"""\
read -r up rest </proc/uptime
scale=$(({TIME_SCALE} * ${{up%.*}} / {BOOT_SECONDS}))
[ $scale -ge {least} ] || scale={least}
[ $scale -le {TIME_SCALE_MAX} ] || scale={TIME_SCALE_MAX}
ulimit -l unlimited
exec >/run/vm/job/output 2>&1
bash {shlex.quote(str(GUEST / "network"))} || exit
cd {shlex.quote(str(ROOT))}
until [ -e /run/vm/job/compiled ]; do sleep 0.1; done
touch /run/vm/job/ready
env -i EMBERFS_TIME_SCALE=$scale {assignments} {shlex.join(command)} </dev/null
echo $? >/run/vm/job/ended
mv /run/vm/job/ended /run/vm/job/status
"""


def _boot(
    kernel: Kernel, job: Path, compiling: subprocess.Popen[bytes], seconds: float, show: Callable[[str], None]
) -> Outcome:
    began = spoke = time.monotonic()
    ready = 0.0
    status = ""
    with (
        open(job / "console", "wb") as console,
        open(job / "output", errors="replace") as output,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *_qemu(kernel, job)],  # ends with us, however we end
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        ) as machine,
    ):
        _prefer(machine.pid)
        said = []
        try:
            while machine.poll() is None and time.monotonic() - began < (
                ready + seconds if ready else BOOT_SECONDS_MAX
            ):
                with suppress(subprocess.TimeoutExpired):
                    machine.wait(LOOK_SECONDS)
                if compiling.poll() is not None:
                    (job / "compiled").touch()
                if not ready and (job / "ready").exists():
                    ready = time.monotonic() - began
                if (job / "status").exists():
                    break
                if text := output.read():
                    spoke = time.monotonic()
                    said.append(text)
                    show(text)
            status = str(LATE) if machine.poll() is None else "125"
        finally:
            machine.kill()
        said.append(output.read())
    ended = time.monotonic()
    console_text = (job / "console").read_text(errors="replace").replace("\r", "")
    if status == str(LATE) and not ready:
        last = (console_text.strip().splitlines() or ["nothing"])[-1]
        raise Unavailable(
            f"it has not booted after {BOOT_SECONDS_MAX:.0f} s, so busy is this machine; it said last: {last}"
        )
    with suppress(FileNotFoundError):
        status = (job / "status").read_text().strip() or status
    return Outcome(int(status), "".join(said), console_text, ended - began, ready, ended - spoke)


def _prefer(process: int) -> None:
    """It comes before others, as time passes in a guest whether it gets the processor or not. Kernels that share the processor among
    sessions first (sched_autogroup) are told so for its session."""
    with suppress(OSError):  # not even root may everywhere
        os.setpriority(os.PRIO_PROCESS, process, NICE)
        Path(f"/proc/{process}/autogroup").write_text(str(NICE))


def _qemu(kernel: Kernel, job: Path) -> list[str]:
    """The command that boots a guest."""
    shared = "security_model=none,multidevs=remap"
    return [
        QEMU,
        *("-machine", "q35,usb=off,sata=off,smbus=off,vmport=off"),
        *(
            COUNTED
            if os.environ.get("EMBERFS_VM_COUNTED")
            else ("-accel", os.environ.get("EMBERFS_VM_ACCELERATOR", EMULATED))
        ),
        *("-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand", "-smp", str(processors()), "-m", str(MEMORY_MIB)),
        *("-kernel", str(kernel.image), "-initrd", str(job / "initrd"), "-append", COMMAND_LINE),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-virtfs", f"local,path=/,mount_tag=root,readonly=on,{shared}"),
        *("-virtfs", f"local,path={job},mount_tag=job,{shared}"),
    ]
