"""Mounts in processes of their own, for what a mount within the test's process cannot do: page faults, and loads in parallel."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import emberfs_mount

SECONDS_MAX = 60.0  # for ending


@contextlib.contextmanager
def mounted(url: str) -> Iterator[Path]:
    """A directory where the cluster is mounted, until the end."""
    with tempfile.TemporaryDirectory(prefix="emberfs-mount-") as folder:
        Path(folder).chmod(0o755)  # other users come here, too
        command = [sys.executable, emberfs_mount.__file__, url, folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "mounted\n"
            yield Path(folder)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SECONDS_MAX)
            finally:
                process.kill()
                process.stdout.close()
                if os.path.ismount(folder):
                    emberfs_mount.detach(folder)
