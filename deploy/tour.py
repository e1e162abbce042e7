"""What `deploy/quickstart` shows: real work on a one-node cluster, every byte verified, and how fast it was.

It copies the sources of Python's standard library in, builds a Parquet data set of all their lines through `ember://` URLs with pandas and
pyarrow, queries it with duckdb over fsspec, mounts the cluster and works on it with programs that know only paths, and reads everything
back. The cluster stays up, and mounted. Where nothing can be mounted, it says so and does the rest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import copying, mounts
from .cli.output import Failed, complain, console, human, progress, say
from .local import LocalCluster

if TYPE_CHECKING:
    import pandas

    from ..client.blocking import Client

TOP = "/quickstart"
SOURCES = f"{TOP}/python"
LINES = f"{TOP}/lines"
PARTS = 8  # Parquet files
COMPILED = "asyncio"  # the package that is compiled on the mount
ROWS = 2_000  # of the database on the mount
TRANSACTIONS = 20
NOT_SOURCES = {"__pycache__", "site-packages", "dist-packages"}
QUERY = f"""
    select split_part(file, '/', 1) as package, count(*) as lines, sum(length(text)) as characters,
           count(*) filter (text like '%def %') as functions
    from read_parquet('ember://{LINES}/*.parquet') group by package order by lines desc limit 5
"""  # noqa: S608 -- nothing of it comes from outside


@dataclass
class Steps:
    """What was done, how much, and in what time."""

    done: list[tuple[str, str, float, int]] = field(default_factory=list)  # title, what, seconds, bytes

    @contextmanager
    def step(self, title: str, size: int = 0) -> Iterator[Callable[[str], None]]:
        """Times a step; the block says what it did by calling what it gets."""
        say(f"{title} ...")
        what: list[str] = []
        begin = time.perf_counter()
        yield what.append
        self.done.append((title, " ".join(what), time.perf_counter() - begin, size))

    def show(self) -> None:
        from rich.table import Table

        table = Table("step", "what", "seconds", "rate", title="done", title_justify="left")
        for title, what, seconds, size in self.done:
            table.add_row(title, what, f"{seconds:.2f}", f"{human(size / seconds)}/s" if size else "")
        say()
        console().print(table)


def main() -> None:
    """Entry point: `python -m emberfs.deploy.tour`."""
    options = argparse.ArgumentParser(prog="quickstart", description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--data", help="data directory of the cluster (default: $EMBERFS_DATA, else below your home)")
    options.add_argument("--command", default="emberfs", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.data:
        os.environ["EMBERFS_DATA"] = os.path.abspath(given.data)
    os.environ.pop("EMBERFS_URL", None)
    try:
        tour(given.command)
    except (Failed, OSError) as failed:
        complain(str(getattr(failed, "strerror", None) or failed))
        raise SystemExit(1) from failed


def tour(command: str) -> None:
    """All steps. Raises Failed when something that was read back differs from what was written."""
    from ..client.blocking import connect

    steps = Steps()
    with steps.step("start the cluster") as note:
        cluster = LocalCluster()
        note(f"{'started' if cluster.start() else 'was running'}, data in {cluster.data}")
    with connect(cluster.url) as client:
        if client.exists(TOP):
            client.remove_tree(TOP)
        client.mkdir(TOP)
        plan = _copy_in(client, steps)
        frame = _build(client, steps)
        _query(steps, frame)
        mounted = _mount(cluster, steps)
        if mounted is not None:
            _compile(mounted, steps)
            _keep_database(mounted, steps)
            _verify_mounted(mounted, steps, plan)
        _verify(client, steps, plan)
        _verify_parquet(steps, frame)
        with steps.step("make it durable") as note:
            client.sync()
            note("fsync of data and namespace")
    steps.show()
    _say_next(command, cluster, mounted)


def _copy_in(client: Client, steps: Steps) -> copying.Plan:
    root = Path(sysconfig.get_path("stdlib"))
    plan = copying.Plan()
    copying.plan_local(plan, str(root), SOURCES, recursive=True)
    left_out = tuple(f"/{name}/" for name in NOT_SOURCES)
    for items in (plan.directories, plan.files, plan.symlinks):
        items[:] = [item for item in items if not any(name in f"{item.target}/" for name in left_out)]
    # Compiled modules are no sources; symlinks in a distribution's tree lead out of it.
    plan.files[:] = [item for item in plan.files if item.source.endswith((".py", ".txt", ".cfg"))]
    plan.symlinks.clear()
    with (
        steps.step("copy the standard library in", plan.size) as note,
        progress("put", plan.size, len(plan.files)) as shown,
    ):
        failures = copying.carry_out(plan, copying.Put(client), progress=shown)
        if failures or plan.failures:
            raise Failed("; ".join((failures + plan.failures)[:3]))
        note(f"{len(plan.files)} files, {human(plan.size)}, from {root}")
    return plan


def _build(client: Client, steps: Steps) -> pandas.DataFrame:
    """Read the sources from the cluster, write their lines to it as Parquet."""
    import pandas

    paths = sorted(name for name, stat in client.find(SOURCES) if stat.is_file)
    size = sum(stat.size for _, stat in client.find(SOURCES) if stat.is_file)
    with steps.step("build a Parquet data set of its lines", size) as note:
        columns: dict[str, list[Any]] = {"file": [], "line": [], "text": []}
        for path, content in zip(
            paths, client.read_ranges([(f"{SOURCES}/{path}", None, None) for path in paths]), strict=True
        ):
            if isinstance(content, OSError):
                raise content
            lines = content.decode("utf-8", "replace").split("\n")
            columns["file"] += [path] * len(lines)
            columns["line"] += range(1, len(lines) + 1)
            columns["text"] += lines
        frame = pandas.DataFrame(columns)
        client.mkdir(LINES)
        each = -(-len(frame) // PARTS)
        with progress("write", len(frame), PARTS) as shown:
            for part in range(PARTS):
                rows = frame.iloc[part * each : (part + 1) * each]
                rows.to_parquet(f"ember://{LINES}/part-{part:02}.parquet", index=False)
                shown.add(len(rows))
                shown.file_done()
        written = sum(stat.size for _, stat in client.scandir(LINES))
        note(f"{len(frame):,} lines of {len(paths)} files, {PARTS} Parquet files, {human(written)}")
    return frame


def _query(steps: Steps, frame: pandas.DataFrame) -> None:
    import duckdb
    import fsspec
    from rich.table import Table

    with steps.step("query it with duckdb over fsspec") as note:
        connection = duckdb.connect()
        connection.register_filesystem(fsspec.filesystem("ember"))
        found = connection.execute(QUERY).fetchall()
        counted = connection.execute(f"select count(*) from read_parquet('ember://{LINES}/*.parquet')").fetchone()  # noqa: S608
        connection.close()
        if not counted or counted[0] != len(frame):
            raise Failed(f"duckdb counts {counted} lines where {len(frame)} were written")
        note(f"{counted[0]:,} rows counted, {len(found)} largest packages below")
    table = Table("package", "lines", "characters", "functions", box=None)
    for name, *numbers in found:
        table.add_row(name, *(f"{number:,}" for number in numbers))
    console().print(table)


def _mount(cluster: LocalCluster, steps: Steps) -> Path | None:
    """Where the cluster is mounted, now and by each later `up`; None where this machine lets us mount nothing."""
    with steps.step("mount it") as note:
        if why := mounts.can_mount():
            complain(f"NOT MOUNTED: {why}. Everything else is shown without it")
            note(f"SKIPPED: {why}")
            return None
        path = cluster.data / "mnt"
        path.mkdir(exist_ok=True)
        mounts.remember(cluster, str(path))
        _, failure = mounts.start_remembered(cluster)
        if failure is not None:
            raise failure
        note(f"on {path}")
    return path


def _compile(mounted: Path, steps: Steps) -> None:
    """With Python's own compiler, a program that has never heard of us."""
    sources = mounted / SOURCES.lstrip("/") / COMPILED
    with steps.step("compile a package on the mount") as note:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "compileall", "-q", str(sources)], check=False, capture_output=True, text=True
        )
        found = list(sources.rglob("*.pyc"))
        if done.returncode or len(found) != len(list(sources.rglob("*.py"))):
            raise Failed(f"{sources} was not compiled: {done.stdout}{done.stderr}")
        note(f"{COMPILED}: {len(found)} files, {human(sum(path.stat().st_size for path in found))}")


def _keep_database(mounted: Path, steps: Steps) -> None:
    import sqlite3

    path = mounted / TOP.lstrip("/") / "rows.sqlite"
    with steps.step("keep a SQLite database on the mount") as note:
        with closing(sqlite3.connect(path)) as database:
            database.execute("create table rows (number integer primary key, text)")
            for part in range(TRANSACTIONS):
                numbers = range(part * ROWS // TRANSACTIONS, (part + 1) * ROWS // TRANSACTIONS)
                with database:
                    database.executemany("insert into rows values (?, ?)", ((n, f"row {n}") for n in numbers))
            if database.execute("pragma integrity_check").fetchone() != ("ok",):
                raise Failed(f"{path} is damaged")
            (count,) = database.execute("select count(*) from rows").fetchone()
        if count != ROWS:
            raise Failed(f"{path} has {count} rows where {ROWS} were written")
        note(f"{TRANSACTIONS} durable transactions, {count} rows, and its integrity check")


def _verify_mounted(mounted: Path, steps: Steps, plan: copying.Plan) -> None:
    with steps.step("compare every byte through the mount", plan.size) as note:
        _require_same(plan, lambda item: (mounted / item.target.lstrip("/")).read_bytes(), "on the mount")
        note(f"{len(plan.files)} files are identical")


def _verify(client: Client, steps: Steps, plan: copying.Plan) -> None:
    """Every byte of every file against the original on this machine."""
    with (
        steps.step("read it back and compare every byte", plan.size) as note,
        progress("verify", plan.size, len(plan.files)) as shown,
    ):

        def read(item: copying.Item) -> bytes:
            shown.add(item.size)
            shown.file_done()
            return client.read_bytes(item.target)

        _require_same(plan, read, "in the cluster")
        note(f"{len(plan.files)} files are identical")


def _require_same(plan: copying.Plan, read: Callable[[copying.Item], bytes], where: str) -> None:
    """Compare what is read with the originals. Raises Failed where files differ."""

    def same(item: copying.Item) -> bool:
        return read(item) == Path(item.source).read_bytes()

    with ThreadPoolExecutor(copying.JOBS_DEFAULT) as pool:
        equal = pool.map(same, plan.files)
        different = [item.source for item, is_same in zip(plan.files, equal, strict=True) if not is_same]
    if different:
        raise Failed(f"{len(different)} files differ from their originals {where}: {', '.join(different[:3])}")


def _verify_parquet(steps: Steps, frame: pandas.DataFrame) -> None:
    import pandas
    from pandas.testing import assert_frame_equal

    with steps.step("read the Parquet data set with pandas") as note:
        try:
            assert_frame_equal(pandas.read_parquet(f"ember://{LINES}").reset_index(drop=True), frame)
        except AssertionError as different:
            raise Failed(f"the data set differs from what was written: {different}") from different
        note(f"{len(frame):,} rows are identical")


def _say_next(command: str, cluster: LocalCluster, mounted: Path | None) -> None:
    relative = os.path.relpath(command)
    name = relative if len(relative) < len(command) and os.sep in command else command
    if os.environ.get("EMBERFS_DATA"):
        name += f" --data {cluster.data}"
    say("\nThe cluster is running. Try:")
    if mounted is not None:
        say(f"  ls {mounted}{TOP}")
        say(f"  grep -r 'import this' {mounted}{SOURCES}")
        say(f"  cat {mounted}/.ember/stats")
    for line in (
        "status",
        f"ls -l {SOURCES}",
        f"info {LINES}/part-00.parquet",
        f"cat {SOURCES}/this.py",
        "put -r FOLDER /",
        "bench fs --quick",
        "down",
    ):
        say(f"  {name} {line}")


if __name__ == "__main__":
    main()
