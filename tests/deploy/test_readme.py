"""The Python of README.md, run as it stands, one block after the other, on one cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from emberfs.deploy.local import LocalCluster

from .command import SECONDS_MAX, Command

README = Path(__file__).parents[2] / "README.md"


def test_its_programs_run(cluster: LocalCluster, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(os.urandom(100))
    run = Command(cluster.environment)
    run("mkdir", "-p", "/data")
    run(
        "data", "convert", "--format", "files", f"file://{tmp_path}", "/data/train"
    )  # as the page does before it reads them
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) >= 4
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-P", "-c", block],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **cluster.environment},
            timeout=SECONDS_MAX,
        )
        assert done.returncode == 0, (block, done.stderr)
