"""Moving bytes: cat, put, get, cp, clone. The work is done by deploy/copying.py; here is what the user typed."""

from __future__ import annotations

import os
import posixpath
import shutil
import sys
from typing import Annotated

import typer

from ...proto.errors import StatusError
from .. import copying
from .output import Failed, complain, counted, progress, told, write_json
from .paths import cluster_of, destination, expand, is_directory, once

_Recursive = Annotated[bool, typer.Option("-r", "--recursive", help="Directories with all that is below them.")]
_Preserve = Annotated[bool, typer.Option("-p", "--preserve", help="Keep modes and times.")]
_Jobs = Annotated[int, typer.Option("-j", "--jobs", min=1, max=64, help="Files at a time.")]
_Keep = Annotated[bool, typer.Option("-n", "--no-replace", help="Leave existing files alone and fail for them.")]
STREAM_BYTES = 4 << 20


def cat(paths: Annotated[list[str], typer.Argument(metavar="PATH...")]) -> None:
    """Write files to standard output."""
    failures = 0
    with cluster_of(paths) as (client, wanted):
        sys.stdout.flush()
        for path in expand(client, wanted):
            try:
                with client.open(path) as file:
                    shutil.copyfileobj(file, sys.stdout.buffer, STREAM_BYTES)
            except BrokenPipeError:
                raise
            except StatusError as failed:
                sys.stdout.buffer.flush()
                complain(told(path, failed))
                failures += 1
        sys.stdout.buffer.flush()
    if failures:
        raise Failed()


def put(
    sources: Annotated[list[str], typer.Argument(metavar="LOCAL...", help="Local files; '-' is standard input.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A path in the cluster, or a directory to put them into.")
    ],
    recursive: _Recursive = False,
    preserve: _Preserve = False,
    keep: _Keep = False,
    jobs: _Jobs = copying.JOBS_DEFAULT,
) -> None:
    """Copy local files into the cluster. One that cannot be copied to its end leaves nothing under its name."""
    with cluster_of([target]) as (client, [goal]):
        if sources == ["-"]:
            with copying.whole_or_gone(client, goal, lambda: client.open(goal, "xb" if keep else "wb")) as file:
                shutil.copyfileobj(sys.stdin.buffer, file, STREAM_BYTES)
            return
        local = once([os.path.abspath(path) if path.rstrip("/") in {".", "..", ""} else path for path in sources])
        goals = destination(local, goal, is_directory(client, goal))
        plan = copying.Plan()
        for source, path in zip(local, goals, strict=True):
            copying.plan_local(plan, source, path, recursive)
        _carry_out(plan, copying.Put(client, preserve=preserve, exclusive=keep), jobs)


def get(
    sources: Annotated[list[str], typer.Argument(metavar="PATH...", help="Paths or patterns in the cluster.")],
    target: Annotated[str, typer.Argument(metavar="LOCAL", help="A local path or directory; '-' is standard output.")],
    recursive: _Recursive = False,
    preserve: _Preserve = False,
    keep: _Keep = False,
    jobs: _Jobs = copying.JOBS_DEFAULT,
) -> None:
    """Copy files of the cluster to this machine. A local file appears under its name when it is complete."""
    if target == "-":
        cat(sources)
        return
    with cluster_of(sources) as (client, wanted):
        found = once(expand(client, wanted))
        goals = destination(found, target, os.path.isdir(target))
        plan = copying.Plan()
        for source, path in zip(found, goals, strict=True):
            copying.plan_remote(plan, client, source, path, recursive)
        _carry_out(plan, copying.Get(client, preserve=preserve, exclusive=keep), jobs)


def cp(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Paths or patterns in the cluster.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A path in the cluster, or a directory to copy into.")
    ],
    recursive: _Recursive = False,
    preserve: _Preserve = False,
    keep: _Keep = False,
    jobs: _Jobs = copying.JOBS_DEFAULT,
) -> None:
    """Copy within the cluster. ('put' and 'get' copy between this machine and the cluster.)"""
    with cluster_of([*sources, target]) as (client, [*typed, goal]):
        wanted = once(expand(client, typed))
        goals = destination(wanted, goal, is_directory(client, goal))
        _refuse_into_itself(wanted, goals)
        plan = copying.Plan()
        for source, given, path in zip(wanted, [*sources, *wanted][: len(wanted)], goals, strict=True):
            if not client.exists(source) and os.path.exists(given):
                raise Failed(
                    f"{given} is not in the cluster but on this machine: copy it in with 'emberfs put {given} {goal}'"
                )
            copying.plan_remote(plan, client, source, path, recursive)
        _carry_out(plan, copying.Copy(client, preserve=preserve, exclusive=keep), jobs)


def clone(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Paths or patterns in the cluster.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A path in the cluster, or a directory to clone into.")
    ],
    recursive: _Recursive = False,
    preserve: _Preserve = False,
    keep: _Keep = False,
    jobs: _Jobs = copying.JOBS_DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines: what was cloned.")] = False,
) -> None:
    """Clone files, or directories with -r: at once, and without taking space until one of the two is written.

    A clone has the chunk size and stripe of its source. An existing file is replaced when the clone is complete.
    """
    with cluster_of([*sources, target]) as (client, [*typed, goal]):
        wanted = once(expand(client, typed))
        goals = destination(wanted, goal, is_directory(client, goal))
        _refuse_into_itself(wanted, goals)
        plan = copying.Plan()
        for source, path in zip(wanted, goals, strict=True):
            copying.plan_remote(plan, client, source, path, recursive)
        _carry_out(plan, copying.Clone(client, preserve=preserve, exclusive=keep), jobs, as_json)


def _refuse_into_itself(sources: list[str], goals: list[str]) -> None:
    for source, goal in zip(sources, goals, strict=True):
        if f"{posixpath.normpath(goal)}/".startswith(f"{posixpath.normpath(source).rstrip('/')}/"):
            raise Failed(f"{source} cannot be copied to {goal}: that is the same, or inside of it")


def _carry_out(plan: copying.Plan, way: copying.Way, jobs: int, as_json: bool = False) -> None:
    """Copy all; what could not be copied is told, the rest is done."""
    with progress(way.title, plan.size, len(plan.files)) as shown:
        failures = plan.failures + copying.carry_out(plan, way, jobs, shown)
    if as_json:
        write_json(
            {
                "files": len(plan.files),
                "directories": len(plan.directories),
                "bytes": plan.size,
                "failures": failures,
            }
        )
    for failure in failures:
        complain(failure)
    if failures:
        raise Failed(f"not all was copied: {counted(len(failures), 'error')}" if plan.files else "")
