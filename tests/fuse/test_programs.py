"""Programs that people use, on a mount: they do more to a file system than tests of ours think of, and check it themselves.

CPython's own regression tests run with their temporary directory on the mount, and must end as they do on the local disk. The rest is
long, and runs with --soak.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from emberfs.deploy.bench.postgres import ACCOUNTS, find_programs

PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
STDLIB = Path(sysconfig.get_path("stdlib"))
PACKAGES = ("asyncio", "ctypes", "email", "http", "json", "logging", "multiprocessing", "unittest", "xml")
SECONDS_MAX = 1800  # of one test: on a loaded machine pip, tarfile and stress-ng take ten minutes
# Of stress-ng's class for file systems: what mounts by itself, or has nothing to do with the directory that it is given.
OTHER_STRESSORS = {"bind-mount", "binderfs", "eventfd", "ioprio", "procfs", "inotify", "dnotify", "fanotify"}
NO_RESOURCE, NOT_SUPPORTED = 3, 4  # its exit status
QUICK = ["test_fileio", "test_mmap", "test_fcntl", "test_tempfile", "test_dbm"]
ALL = [
    "test_os",
    "test_posix",
    "test_shutil",
    "test_pathlib",
    "test_glob",
    "test_io",
    "test_zipfile",
    "test_tarfile",
    "test_sqlite3",
    "test_mailbox",
    "test_largefile",
    "test_import",
    "test_venv",
]
# What ends otherwise on the mount than on the local disk, and why; README.md has these in its table.
DEVIATIONS: dict[str, str] = {}


def run(*command: str | os.PathLike[str], cwd: Path | None = None, **environment: str) -> str:
    """A program's output. Raises AssertionError with all that it said, if it does not end with 0."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-8000:]}"
    return done.stdout


def needs(program: str, package: str = "") -> str:
    """The path of a program of the system, or a skip."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed (package {package or program})")
    return found


def regression_tests(directory: Path, *names: str) -> int:
    """Run tests of CPython's own with their files in `directory`; how many cases."""
    if not (STDLIB / "test" / "test_fileio.py").is_file():  # Debian's Python has only what runs them
        pytest.skip("CPython's tests are not installed (package libpython3-testsuite)")
    ignored = [f"--ignore={case}" for case in DEVIATIONS]
    command = (PYTHON, "-P", "-m", "test", "--tempdir", directory, "-u", "largefile", "-v", *ignored, *names)
    output = run(*command, cwd=directory)
    return sum(int(count) for count in re.findall(r"^Ran (\d+) tests? in", output, re.MULTILINE))


def test_cpythons_own_tests(place: Path) -> None:
    assert regression_tests(place, *QUICK) > 200


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("name", ALL)
def test_all_of_cpythons_own_tests(place: Path, name: str) -> None:
    assert regression_tests(place, name) > 0


# --- trees --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(place: Path) -> Path:
    """Some hundred real files, with symlinks, a hard link, modes and an empty directory among them."""
    made = place / "tree"
    for package in PACKAGES:
        shutil.copytree(STDLIB / package, made / package, ignore=shutil.ignore_patterns("__pycache__"))
    (made / "empty").mkdir()
    (made / "link").symlink_to("email/message.py")
    (made / "dangling").symlink_to("nowhere")
    (made / "json" / "hard.py").hardlink_to(made / "json" / "decoder.py")
    (made / "email" / "parser.py").chmod(0o755)
    (made / "zeros").write_bytes(bytes(3_000_000) + b"end")
    return made


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX)
def test_git(place: Path, tree: Path) -> None:
    git = needs("git")

    def at(folder: Path, *command: str) -> str:
        names = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return run(git, *command, cwd=folder, HOME=os.fspath(place), **names)

    at(tree, "init", "-q")
    at(tree, "add", "-A")
    at(tree, "commit", "-q", "-m", "first")
    for number, path in enumerate(sorted(tree.rglob("*.py"))):
        if number % 3 == 0:
            path.write_text(path.read_text() + f"# {number}\n")
        elif number % 7 == 0:
            path.rename(path.with_suffix(".moved"))
    at(tree, "commit", "-q", "-a", "-m", "second")
    at(tree, "add", "-A")
    at(tree, "commit", "-q", "-m", "third")
    assert at(tree, "status", "--porcelain") == ""
    at(place, "clone", "-q", "tree", "linked")
    at(place, "clone", "-q", "--no-local", "tree", "copied")
    at(tree, "gc", "-q", "--prune=now", "--aggressive")
    at(tree, "worktree", "add", "-q", "../another", "HEAD~1")
    for folder in ("tree", "linked", "copied", "another"):
        at(place / folder, "fsck", "--full", "--strict")
        assert at(place / folder, "status", "--porcelain") == ""
    run("diff", "-r", "--no-dereference", "--exclude=.git", place / "tree", place / "copied", "--exclude=empty")


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX)
def test_rsync(place: Path, tree: Path) -> None:
    """The second run, the one that looks at every byte, and the way back find nothing to do."""
    rsync = needs("rsync")
    target = place / "target"
    options = ("-aHAXS", "--itemize-changes")
    assert run(rsync, *options, f"{tree}/", f"{target}/")
    for source, to in ((tree, target), (target, tree)):
        for checks in (("--checksum",), ("--delete",)):
            assert run(rsync, *options, *checks, f"{source}/", f"{to}/") == ""
    (tree / "email" / "parser.py").write_text("changed")
    (tree / "json" / "hard.py").unlink()
    assert len(run(rsync, *options, "--delete", f"{tree}/", f"{target}/").splitlines()) >= 2
    run("diff", "-r", "--no-dereference", tree, target)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX)
def test_tar(place: Path, tree: Path) -> None:
    """Packed from the mount, unpacked twice over itself, compared by tar."""
    tar = needs("tar")
    target = place / "target"
    target.mkdir()
    run(tar, "--sparse", "--xattrs", "-cf", place / "archive", "-C", tree, ".")
    for _ in range(2):
        run(tar, "--xattrs", "-xpf", place / "archive", "-C", target)
        assert run(tar, "--compare", "-f", place / "archive", "-C", target) == ""
    run("diff", "-r", "--no-dereference", tree, target)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX)
def test_gcc(place: Path) -> None:
    """Objects, an archive, a shared library; the program runs from the mount."""
    gcc, ar = needs("gcc"), needs("ar", "binutils")
    parts = range(20)
    for number in parts:
        (place / f"part{number}.c").write_text(f"#include <stdio.h>\nint part{number}(void) {{ return {number}; }}\n")
    calls = " + ".join(f"part{number}()" for number in parts)
    declared = "".join(f"int part{number}(void);\n" for number in parts)
    main = f'#include <stdio.h>\n{declared}int main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    (place / "main.c").write_text(main)
    sources = [f"part{number}.c" for number in parts]
    run(gcc, "-O2", "-g", "-fPIC", "-c", *sources, "main.c", cwd=place)
    run(ar, "rcs", "libparts.a", *(name.replace(".c", ".o") for name in sources), cwd=place)
    run(gcc, "-shared", "-o", "libparts.so", *(name.replace(".c", ".o") for name in sources), cwd=place)
    run(gcc, "-o", "with_archive", "main.o", "libparts.a", cwd=place)
    run(gcc, "-o", "with_library", "main.o", "-L.", "-lparts", "-Wl,-rpath,$ORIGIN", cwd=place)
    (place / "libparts.a").unlink()
    assert run(place / "with_archive") == run(place / "with_library") == f"{sum(parts)}\n"


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX)
def test_pip_installs_into_an_environment(place: Path) -> None:
    """From the wheels that CPython brings along: no network."""
    wheels = STDLIB / "ensurepip" / "_bundled"
    if not list(wheels.glob("*.whl")):
        pytest.skip("CPython comes without wheels (package python3-venv)")
    run(PYTHON, "-m", "venv", place / "venv")
    inside = place / "venv" / "bin" / "python"
    for _ in range(2):
        run(
            inside,
            "-m",
            "pip",
            "install",
            "--no-index",
            "--force-reinstall",
            "--find-links",
            wheels,
            "pip",
            "setuptools",
        )
    assert "No broken" in run(inside, "-m", "pip", "check")
    run(inside, "-m", "compileall", "-q", "-f", place / "venv" / "lib")
    assert "setuptools" in run(inside, "-c", "import setuptools; print(setuptools.__file__)")


# --- databases ----------------------------------------------------------------------------------------------------------------------

WRITER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
database.execute("PRAGMA journal_mode = " + sys.argv[2])
for number in range(int(sys.argv[3])):
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO entries VALUES (?, randomblob(500))", (number,))
    database.execute("UPDATE total SET entries = entries + 1")
    database.execute("COMMIT")
"""


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("journal", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
def test_sqlite_under_two_writers(place: Path, journal: str) -> None:
    path, transactions = place / "database", 60
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(f"PRAGMA journal_mode = {journal}")
    database.execute("CREATE TABLE entries (number, data)")
    database.execute("CREATE TABLE total (entries)")
    database.execute("INSERT INTO total VALUES (0)")
    command = (PYTHON, "-c", WRITER, os.fspath(path), journal, str(transactions))
    writers = [subprocess.Popen(command) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        for written, told in database.execute("SELECT (SELECT count(*) FROM entries), entries FROM total"):
            assert written == told, "a reader sees whole transactions"
    assert [writer.wait(SECONDS_MAX) for writer in writers] == [0, 0]
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert database.execute("SELECT entries FROM total").fetchone() == (2 * transactions,)
    database.close()


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX)
def test_postgresql(place: Path) -> None:
    """pgbench, a crash, recovery, more of it, and every page's checksum in the end."""
    programs = find_programs()
    if programs is None or not (programs / "pgbench").exists():
        pytest.skip("PostgreSQL is not installed (package postgresql)")
    place.chmod(0o777)
    data, socket = place / "data", place / "socket"
    account = next(name for name in ACCOUNTS if exists(name))

    def as_postgres(program: str, *arguments: str | Path) -> str:
        return run(
            "setpriv",
            "--reuid",
            account,
            "--regid",
            group_of(account),
            "--clear-groups",
            programs / program,
            *arguments,
            cwd=place,
        )

    def control(*arguments: str) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={socket} -c shared_buffers=16MB"
        as_postgres("pg_ctl", "-D", data, "-w", "-l", place / "log", "-o", options, *arguments)

    def ask(statement: str) -> str:
        return as_postgres("psql", "-h", socket, "-U", "bench", "-Atc", statement, "postgres")

    as_postgres("initdb", "-D", data, "-U", "bench", "-A", "trust", "--data-checksums", "-E", "UTF8", "--locale=C")
    socket.mkdir()
    socket.chmod(0o777)
    control("start")
    try:
        bench = ("-h", socket, "-U", "bench", "-c", "4")
        as_postgres("pgbench", "-h", socket, "-U", "bench", "-i", "-q", "-s", "1", "postgres")
        as_postgres("pgbench", *bench, "-t", "50", "postgres")
        control("stop", "-m", "immediate")
        control("start")
        assert ask("SELECT count(*) FROM pgbench_history") == "200\n", "what was committed is there"
        as_postgres("pgbench", *bench, "-n", "-t", "50", "postgres")  # -n: the history stays
        sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)"
        assert ask(sums) == "t\n"
        ask("VACUUM FULL")
    finally:
        control("stop", "-m", "fast")
    assert re.search(r"Bad checksums: +0$", as_postgres("pg_checksums", "--check", "-D", data), re.MULTILINE)


def exists(account: str) -> bool:
    """Whether there is such a user."""
    try:
        pwd.getpwnam(account)
    except KeyError:
        return False
    return True


def group_of(account: str) -> str:
    return str(pwd.getpwnam(account).pw_gid)


# --- programs made to find faults ----------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize(
    "options",
    [
        ("--rw=randrw", "--bs=4k", "--ioengine=psync"),
        ("--rw=randwrite", "--bs=16k", "--ioengine=libaio", "--iodepth=8", "--direct=1"),
        ("--rw=write", "--bs=1m", "--ioengine=psync", "--fsync=4"),
        ("--rw=randrw", "--bs=4k", "--ioengine=mmap"),
        ("--rw=randrw", "--bsrange=512-64k", "--bs_unaligned", "--ioengine=psync", "--fallocate=native"),
    ],
    ids=["4k", "direct", "sequential", "mapped", "unaligned"],
)
def test_fio(place: Path, options: tuple[str, ...]) -> None:
    """Two jobs, and every block read again and its checksum compared."""
    checks = ("--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_backlog=256")
    files = ("--size=12m", "--numjobs=2", f"--directory={place}")
    assert "err= 0" in run(needs("fio"), "--name=job", *files, *checks, *options, cwd=place)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX)
def test_stress_ng(place: Path) -> None:
    """Everything that it has for file systems, a second each, with its own verification."""
    stress = needs("stress-ng")
    listed = run(stress, "--class", "filesystem?").partition(":")[2].split()
    failed = {}
    for name in (name for name in listed if name not in OTHER_STRESSORS):
        command = (stress, f"--{name}", "1", "--verify", "--timeout", "1", "--temp-path", os.fspath(place))
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=SECONDS_MAX / 3
        )
        if done.returncode not in (0, NOT_SUPPORTED, NO_RESOURCE):
            failed[name] = done.stdout[-2000:]
    assert not failed


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX)
def test_dbench(place: Path) -> None:
    load = Path("/usr/share/dbench/client.txt")
    output = run(needs("dbench"), "-t", "10", "-c", load, "-D", place, "4")
    assert re.search(r"Throughput [1-9.]", output) or "Throughput 0." in output
