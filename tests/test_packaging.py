"""What is installed: the wheel's contents, what `import emberfs` loads, generated code, the lowest versions that are declared."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("client", "deploy", "fuse", "kvcache", "meta", "proto", "storage")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Each costs tens of milliseconds; a program that only mentions emberfs must not pay them.
HEAVY = {
    "asyncio",
    "fsspec",
    "google.protobuf",
    "grpc",
    "numpy",
    "prometheus_client",
    "pydantic",
    "rich",
    "rocksdict",
    "structlog",
    "typer",
    "uvloop",
}
# What a command line's first answer must not load.
HEAVY_FOR_HELP = HEAVY - {"rich", "typer"}
IMPORT_MS_MAX = 100
HELP_MS_MAX = 300


def folders() -> list[str]:
    """The packages as they lie in the checkout."""
    found = ["emberfs"]
    for room in ROOMS:
        for init in sorted((ROOT / room).rglob("__init__.py")):
            found.append(".".join(["emberfs", *init.parent.relative_to(ROOT).parts]))
    return sorted(found)


def test_packages_are_the_folders() -> None:
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == folders()


def test_every_folder_with_code_is_a_package() -> None:
    bare = {
        p.parent
        for room in (*ROOMS, "tests")
        for p in (ROOT / room).rglob("*.py")
        if not (p.parent / "__init__.py").exists()
    }
    assert bare <= {ROOT / "tests" / "plugin"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder stays in the checkout."""
    work = tmp_path_factory.mktemp("wheel")
    copy = work / "a-clone.2"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "bench-results")
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(work),
        str(copy),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(work.glob("emberfs-*.whl"))


def test_wheel_holds_the_rooms_and_nothing_else(wheel: Path) -> None:
    expected = {"emberfs/py.typed"}
    expected |= {f"emberfs/{file.relative_to(ROOT)}" for file in (ROOT / "deploy" / "systemd").glob("*.service")}
    for package in folders():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for file in folder.iterdir():
            if file.suffix in {".py", ".pyi", ".proto", ".toml", ".service", ".json"} and (
                package != "emberfs" or file.suffix == ".py"
            ):
                expected.add("/".join([*package.split("."), file.name]))
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert not any("/tests/" in name for name in names)


def test_wheel_says_license_and_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        text = {name.split("/", 1)[1]: file.read(name).decode() for name in file.namelist() if ".dist-info/" in name}
    assert "Apache License" in text["licenses/LICENSE"]
    assert "emberfs = emberfs.deploy.cli.main:main" in text["entry_points.txt"]
    assert "mount.emberfs = emberfs.deploy.cli.mount:helper" in text["entry_points.txt"]
    assert "ember = emberfs.client.filesystem:EmberFileSystem" in text["entry_points.txt"]


def test_version_is_said_once_and_the_same() -> None:
    source = (ROOT / "__init__.py").read_text()
    match = re.search(r'__version__ = "(.+)"', source)
    assert match and match[1] == PROJECT["project"]["version"]
    assert match[1] in (ROOT / "CHANGELOG.md").read_text()


def _loaded_by(code: str) -> tuple[set[str], float]:
    """Modules loaded by a program, and how long it ran, in ms beyond the interpreter's own start (the best of five)."""
    script = f"import sys, time; t = time.perf_counter()\n{code}\nsys.stderr.write(repr((time.perf_counter() - t, list(sys.modules))))"
    best = float("inf")
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/", check=True)
        seconds, modules = eval(done.stderr)
        best = min(best, seconds * 1000)
    return set(modules), best


def _heavy(modules: set[str], heavy: set[str]) -> set[str]:
    return {name for name in heavy if name in modules or any(module.startswith(name + ".") for module in modules)}


def test_import_is_light() -> None:
    modules, ms = _loaded_by("import emberfs")
    assert not _heavy(modules, HEAVY)
    print(f"import emberfs: {ms:.1f} ms (at most {IMPORT_MS_MAX})")


def test_help_is_light() -> None:
    code = "sys.argv = ['emberfs', '--help']\nfrom emberfs.deploy.cli.main import main\ntry: main()\nexcept SystemExit: pass"
    modules, ms = _loaded_by(code)
    assert not _heavy(modules, HEAVY_FOR_HELP)
    print(f"emberfs --help: {ms:.1f} ms (at most {HELP_MS_MAX}, with the interpreter)")


def test_generated_code_is_not_stale(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([ROOT / "deploy" / "generate", tmp_path], check=True, env=environment, capture_output=True)
    for folder, other in ((tmp_path, ROOT / "proto" / "gen"), (ROOT / "proto" / "gen", tmp_path)):
        for file in folder.glob("*.py*"):
            if file.name != "__init__.py":
                assert (other / file.name).read_text() == file.read_text(), f"{file.name} is stale: run deploy/generate"


def _lowest(requirement: str) -> str:
    name, _, version = requirement.partition(">=")
    assert version, f"{requirement}: declare a lower bound, and no upper one"
    return f"{name}=={version}"


def test_dependencies_have_lower_bounds_only() -> None:
    groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    free = [
        r
        for group in groups
        for r in group
        if not re.fullmatch(r"[A-Za-z0-9_\-]+(\[[a-z,]+\])?>=[0-9.]+|emberfs\[.*\]|grpcio-tools==1\.78\.\*", r)
    ]
    assert not free, f"bounds other than a lower one: {free}"


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_lowest_declared_versions(wheel: Path, tmp_path: Path) -> None:
    """An environment with exactly the lower bounds: every module imports, and a cluster starts and answers."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    optional = PROJECT["project"]["optional-dependencies"]
    # What modules import when they are imported; loaders and sorting use numpy.
    extras = [*optional["grpc"], *optional["postgres"], *(r for r in optional["dev"] if r.startswith("numpy"))]
    lowest = [_lowest(requirement) for requirement in [*PROJECT["project"]["dependencies"], *extras]]
    subprocess.run([python, "-m", "pip", "install", "-q", *lowest], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    code = """
import importlib, json, pkgutil, emberfs
names = [m.name for m in pkgutil.walk_packages(emberfs.__path__, "emberfs.") if not m.name.endswith("__main__")]
# These subclass what an inference engine's package or torch brings, or publish through libraries that engines bring.
engines = {"events", "lmcache", "lmcache_remote", "sglang", "vllm"}
without = {f"emberfs.kvcache.adapters.{engine}" for engine in engines}
without |= {"emberfs.client.checkpoints.dcp", "emberfs.client.loader.pytorch"}
names = [name for name in names if name not in without]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""
    done = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "emberfs.deploy.local" in json.loads(done.stdout)
    emberfs, data = tmp_path / "venv" / "bin" / "emberfs", tmp_path / "data"
    environment = {**os.environ, "EMBERFS_DATA": str(data)}
    try:
        for command in (["up"], ["put", str(ROOT / "LICENSE"), "/LICENSE"], ["status"]):
            done = subprocess.run(
                [emberfs, *command], check=False, capture_output=True, text=True, env=environment, cwd="/"
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
        done = subprocess.run([emberfs, "cat", "/LICENSE"], capture_output=True, env=environment, cwd="/", check=True)
        assert done.stdout == (ROOT / "LICENSE").read_bytes()
    finally:
        subprocess.run([emberfs, "down"], env=environment, cwd="/", check=False)
