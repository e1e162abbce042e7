"""`emberfs sort`: the sort benchmark's records made, sorted and validated, by several processes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Failed, human, parse_size, progress, say, write_json

if TYPE_CHECKING:
    from ..sorting.parallel import File

sort = typer.Typer(
    name="sort",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_FILE = "ember://… in a cluster, without a mount; anything else is a file of this machine, also on a mount."
_Jobs = Annotated[int, typer.Option("-j", "--jobs", min=0, help="Processes.", show_default="one a core")]
_Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]


@sort.callback()
def _group() -> None:
    """Records of 100 bytes with keys of 10: the data of GraySort, made as gensort and checked as valsort do. Needs numpy."""


def _file(text: str) -> File:
    try:
        from ..sorting import places
        from ..sorting.parallel import File
    except ModuleNotFoundError as missing:
        raise Failed(f"this needs {missing.name}: pip install {missing.name}") from missing
    return File(*places.locate(text))


def _jobs(asked: int) -> int:
    from ..sorting.parallel import jobs_default

    return asked or jobs_default()


@sort.command("generate")
def generate(
    records: Annotated[int, typer.Argument(min=0, help="How many; 10,000,000 are 1 GB.")],
    file: Annotated[str, typer.Argument(help=_FILE)],
    begin: Annotated[int, typer.Option("-b", "--begin", min=0, help="The number of the first record.")] = 0,
    ascii_: Annotated[bool, typer.Option("-a", "--ascii", help="Printable records; binary ones otherwise.")] = False,
    skewed: Annotated[bool, typer.Option("-s", "--skewed", help="Keys that crowd.")] = False,
    checksum: Annotated[bool, typer.Option("-c", "--checksum", help="Tell the checksum of all records.")] = False,
    jobs: _Jobs = 0,
    as_json: _Json = False,
) -> None:
    """Make a file of records, the same ones as gensort makes."""
    target = _file(file)
    from ..sorting import parallel

    begun = time.monotonic()
    with parallel.workers(_jobs(jobs)) as pool:
        kind = parallel.Kind(begin, ascii_, skewed)
        total = parallel.generate(pool, target, records, kind, checksum=checksum)
    result = {"records": records, **({"checksum": f"{total:x}"} if checksum else {})}
    _tell(result, records * 100, time.monotonic() - begun, as_json)


@sort.command("validate")
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help=f"Several are parts, in order. {_FILE}")],
    jobs: _Jobs = 0,
    as_json: _Json = False,
) -> None:
    """Say whether records are in order, and their number, duplicate keys and checksum, as valsort does."""
    parts = [_file(file) for file in files]
    from ..sorting import parallel

    with parallel.workers(_jobs(jobs)) as pool:
        found = parallel.validate(pool, parts)
    if as_json:
        write_json({
            "records": found.records,
            "checksum": f"{found.checksum:x}",
            "duplicates": found.duplicates,
            "unordered": found.unordered,
            "first_unordered": found.first_unordered or None,
        })  # fmt: skip
    else:
        say("\n".join(found.lines()))
    if not found.ordered:
        raise Failed()


@sort.command("run")
def run(
    source: Annotated[str, typer.Argument(metavar="INPUT", help=_FILE)],
    target: Annotated[str, typer.Argument(metavar="OUTPUT", help="Appears when it is complete. May be the input.")],
    scratch: Annotated[
        str, typer.Option(help="A directory for what is sorted in part.", show_default="the output's")
    ] = "",
    memory: Annotated[str, typer.Option(help="For all processes together.")] = "1GiB",
    check: Annotated[bool, typer.Option("--validate", help="Read the output and compare it with the input.")] = False,
    jobs: _Jobs = 0,
    as_json: _Json = False,
) -> None:
    """Sort a file of records by their keys, also one that is larger than memory."""
    given, wanted = _file(source), _file(target)
    aside = _file(scratch) if scratch else None
    from ..sorting import external, parallel

    begun = time.monotonic()
    with parallel.workers(_jobs(jobs)) as pool:
        size = parallel.count_records(given) * 100
        with progress("sort", 2 * size, 1) as shown:
            made = external.sort(
                pool, given, wanted, scratch=aside, memory=parse_size(memory), checksum=check, done=shown.add
            )
        result: dict[str, Any] = {"records": made.records, "runs": made.runs, "partitions": made.partitions}
        seconds = time.monotonic() - begun
        found = parallel.validate(pool, [wanted]) if check and made.records else None
    whole = not found or (found.ordered and found.records == made.records and found.checksum == made.checksum)
    if found:
        result |= {"checksum": f"{found.checksum:x}", "duplicates": found.duplicates, "validated": whole}
    _tell(result, size, seconds, as_json)
    if not whole:
        raise Failed("the output is not the sorted input", 4)


def _tell(result: dict[str, Any], size: int, seconds: float, as_json: bool) -> None:
    if as_json:
        write_json({**result, "bytes": size, "seconds": round(seconds, 3)})
        return
    what = ", ".join(f"{name} {value:,}" if type(value) is int else f"{name} {value}" for name, value in result.items())
    say(f"{what}: {human(size)} in {seconds:.1f} s, {human(size / seconds)}/s")
