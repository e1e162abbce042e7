"""The quick start of kvcache/README.md works as it stands there, and what is imported costs what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).resolve().parents[2] / "kvcache" / "README.md"


def test_the_quick_start(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERFS_URL", cluster.url)
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["hit"].n == 8


def test_files_that_the_readme_names_are_there() -> None:
    for name in re.findall(r"`([a-z_/]+\.py)`", README.read_text()):
        assert (README.parent / name).exists(), name


def test_importing_it_loads_nothing() -> None:
    code = "import sys, emberfs.kvcache; sys.exit(any(m.startswith('emberfs.') and m != 'emberfs.kvcache' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_blocking_face_loads_no_event_loop() -> None:
    heavy = {"asyncio", "uvloop", "grpc", "numpy", "torch", "fsspec"}
    code = f"import sys; from emberfs.kvcache import KVCache; print(*set(sys.modules) & {heavy})"
    assert not subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_it_works_without_numpy(cluster: Any) -> None:
    code = f"""
import sys
sys.modules["numpy"] = None
from emberfs.kvcache import KVCache, NamespaceSpec
with KVCache({cluster.url!r}, timeout=60) as kv:
    ns = kv.namespace(NamespaceSpec("e", "m", "r", "bf16", 16, "l", object_bytes=100, salt="bare"))
    keys = [bytes([i]) * 32 for i in range(40)]
    assert list(kv.put_from(ns, keys, [bytes([i]) * 100 for i in range(40)])) == [100] * 40
    pool = kv.allocate(4000)
    assert list(kv.get_into(ns, keys, (pool, range(0, 4000, 100), 100))) == [100] * 40
    assert bytes(pool.view[700:800]) == b"\\7" * 100
    assert kv.exists(ns, [*keys[:2], bytes(31) + b"x"]) == [True, True, False]
    assert list(kv.match(ns, keys).lengths) == [100] * 40
"""
    subprocess.run([sys.executable, "-c", code], check=True)
