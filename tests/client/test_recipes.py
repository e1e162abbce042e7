"""The recipes of client/README.md are run as they stand there, each in a process of its own that starts others."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).resolve().parents[2] / "client" / "README.md"
IN_DEV = ("pandas", "DuckDB", "zarr")  # their packages come with the extra `dev`
SECONDS_MAX = 250.0


def recipes() -> dict[str, str]:
    section = README.read_text().split("\n## Recipes\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^### (.+?)\n\n```python\n(.*?)```", section, re.MULTILINE | re.DOTALL))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_DEV else pytest.mark.training) for name in recipes()]
)
def test_recipe(name: str, cluster: Any, tmp_path: Path) -> None:
    program = tmp_path / "recipe.py"
    program.write_text(recipes()[name])
    for package in re.findall(r"^(?:import|from) (\w+)", recipes()[name], re.MULTILINE):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not here: ./deploy/test --training")
    # What libraries keep for themselves (caches, sessions) goes with the test.
    home = {"HF_HOME": str(tmp_path / "hf"), "RAY_TMPDIR": "/tmp", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, **home, "EMBERFS_URL": cluster.url}
    done = subprocess.run(
        [sys.executable, "-P", program],
        env=environment,
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_there_is_one_for_each() -> None:
    assert list(recipes()) == ["pandas", "DuckDB", "zarr", "Dask", "Ray", "HF datasets", "webdataset"]
