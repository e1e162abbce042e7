"""smallpond as it is on PyPI, on a mount below /hf3fs, in an environment of its own (deploy/smallpond)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = "SMALLPOND_ENVIRONMENT"
PREFIX = Path("/hf3fs")  # smallpond removes trees at once by 3fs-virt/rm-rf where a path begins so
# smallpond's executors begin no task while the processors are busy; its examples ask for 16 cores and 40 GB, its benchmarks for 32 cores,
# or wait for ever: in a mount namespace of its own it sees a machine that has them and is idle, whatever else runs here.
CORES = 32
MEMORY_KIB = 96 << 20
PROBES_MISSED_MAX = 300  # of one a second
OBJECTS_BYTES = 1 << 30  # that Ray keeps in /dev/shm, instead of a third of that memory
RAY_IS_LATE = "The current node timed out during startup"  # after 30 s, which nothing changes
STARTS_MAX = 3
DISGUISE = """\
set -e
cat /proc/stat >"$1/stat"
mount --bind "$1/stat" /proc/stat
mkdir "$1/cpu"
cp -L /sys/devices/system/cpu/online /sys/devices/system/cpu/possible /sys/devices/system/cpu/present "$1/cpu"
sed -E "s/^(MemTotal|MemFree|MemAvailable):.*/\\1: $3 kB/" /proc/meminfo >"$1/meminfo"
mount --bind "$1/meminfo" /proc/meminfo
for i in $(seq 0 $(($2 - 1))); do mkdir -p "$1/cpu/cpu$i/topology"; echo $i >"$1/cpu/cpu$i/topology/core_cpus_list"; done
mount --bind "$1/cpu" /sys/devices/system/cpu
shift 3
"$@"
exit $?
"""


def environment() -> Path | None:
    """Where smallpond is installed, if it is."""
    folder = os.environ.get(ENVIRONMENT, "")
    return Path(folder) if folder and (Path(folder) / "source").is_dir() else None


@dataclass(frozen=True)
class Smallpond:
    """smallpond's programs, with all they read and write below `root`, a directory of the mount."""

    folder: Path  # of the environment
    root: Path

    @property
    def source(self) -> Path:
        """Its tests, examples and benchmarks."""
        return self.root / "source"

    def copy_source(self, *names: str) -> None:
        """Bring some of its directories onto the mount."""
        for name in names:
            shutil.copytree(self.folder / "source" / name, self.source / name)

    def be_patient(self) -> None:
        """Its tests take an executor for dead that has not answered for ten seconds, and end never when they have none left. On a loaded
        machine a task takes longer. (Those of the scheduler wait for dead ones, and for less than that.)"""
        path = self.source / "tests/test_fabric.py"
        text, count = re.subn(r"(max_num_missed_probes: int = )10\b", rf"\g<1>{PROBES_MISSED_MAX}", path.read_text())
        assert count == 1
        path.write_text(text)

    def run(self, scratch: Path, *command: str, seconds: float, **variables: str) -> str:
        """What a program of the environment says; it must succeed, where Ray did not start in time at another attempt. `scratch` is a local
        directory for what the machine pretends to be."""
        wanted = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": os.fspath(self.source),
            "TEST_RUNTIME_ROOT": os.fspath(self.root / "runtime"),
            "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
            "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(OBJECTS_BYTES),
            # No process ahead for each of the cores that there are not.
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_worker_prestart": "0",
            "HOME": os.environ.get("HOME", "/root"),
            **variables,
        }
        end = time.monotonic() + seconds
        for _ in range(STARTS_MAX):
            done = self._run(
                scratch / "machine", [str(CORES), str(MEMORY_KIB), *command], wanted, end - time.monotonic()
            )
            if done.returncode == 0 or RAY_IS_LATE not in done.stdout + done.stderr:
                break
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def _run(
        self, pretended: Path, command: list[str], wanted: Mapping[str, str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        pretended.mkdir()
        # What it leaves running (Ray) ends with it. Ray takes a parent with the number 1 for a dead one: that is the shell.
        alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        disguised = [*alone, "sh", "-c", DISGUISE, "sh", os.fspath(pretended), *command]
        try:
            return subprocess.run(
                disguised, check=False, cwd=self.source, env=wanted, capture_output=True, text=True, timeout=seconds
            )
        finally:
            shutil.rmtree(pretended)
