"""The quickstart's work and the benchmarks run to their end; what they measure is not judged here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import emberfs
from emberfs.deploy import mounts
from emberfs.deploy.local import LocalCluster

from .command import Command


@pytest.mark.timeout(600)
def test_quickstart(cluster: LocalCluster) -> None:
    """It verifies every byte itself. What an earlier run left is replaced."""
    pytest.importorskip("pyarrow")
    pytest.importorskip("duckdb")
    with emberfs.connect(cluster.url) as client:
        client.mkdir("/quickstart/lines", parents=True)
        client.write_bytes("/quickstart/lines/stale.parquet", b"of an earlier run")
    command = [sys.executable, "-P", "-m", "emberfs.deploy.tour", "--data", str(cluster.data)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd="/", env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr
    assert "files are identical" in done.stdout and "rows are identical" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" down")
    if why := mounts.can_mount():
        assert f"NOT MOUNTED: {why}" in done.stderr and "SKIPPED" in done.stdout
    else:
        try:
            assert "durable transactions" in done.stdout and os.path.ismount(cluster.data / "mnt")
            assert (cluster.data / "mnt" / "quickstart" / "rows.sqlite").stat().st_size
        finally:
            assert mounts.end(str(cluster.data / "mnt"))
            with cluster.changing() as record:
                del record["mounts"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["net", "target", "meta", "fs", "chains"])
def test_bench_says_what_it_measured(name: str, tmp_path: Path) -> None:
    run = Command({"TMPDIR": str(tmp_path), "EMBERFS_TIME_SCALE": "0.2" if name == "chains" else "1"})
    [result] = run("bench", name, "--quick", "--json", "--keep", str(tmp_path / "kept")).json
    assert result["bench"] == name and result["rows"]
    assert all(row["value"] >= 0 and row["unit"] and row["what"] for row in result["rows"])
    assert (tmp_path / "kept" / f"{name}.json").exists()
    assert not list(tmp_path.glob("emberfs-bench-*")), "it cleans up"
