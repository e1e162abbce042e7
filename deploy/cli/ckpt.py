"""`emberfs ckpt`: the checkpoints in a directory, whether they are whole, and which may go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

from .moving import Yes, confirm
from .output import Failed, complain, console, human, name_out, progress, say, time_text, write_json
from .paths import split_url

if TYPE_CHECKING:
    from ...client.checkpoints.catalog import Checkpoint, Damage

EXIT_DAMAGED = 4  # as for any data that are not what was written

ckpt = typer.Typer(
    name="ckpt",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
_Path = Annotated[
    str, typer.Argument(help="A checkpoint, or a directory of checkpoints; file:///… for one on the local disk.")
]


@ckpt.callback()
def _group() -> None:
    """Checkpoints of training: of torch.distributed.checkpoint, and safetensors files.

    A checkpoint is whole if every file that it names is there with its size. Those that emberfs.client.checkpoints has written carry
    checksums: 'verify' proves their bytes.
    """


def _found(path: str) -> list[Checkpoint]:
    """The checkpoints of a directory, oldest first. Raises Failed if there are none."""
    from ...client.checkpoints.catalog import checkpoints
    from ...client.checkpoints.folders import folder_of

    found = checkpoints(folder_of(_url(path)))
    if not found:
        raise Failed(f"{path}: no checkpoints")
    return found


def _url(path: str) -> str:
    """What names the directory for the library, as its `Folder.url` does."""
    if path.startswith("file://"):
        return unquote(urlsplit(path).path).rstrip("/")
    url, inside = split_url(path)
    return (url or "ember:///") + inside.strip("/")


def _row(each: Checkpoint) -> dict[str, Any]:
    return {
        "name": each.name,
        "kind": each.kind,
        "saved_ns": each.saved_ns,
        "bytes": each.size,
        "tensors": each.tensors,
        "save_id": each.save_id,
        "checksums": each.sums,
        "whole": each.whole,
        "problem": each.problem,
    }


@ckpt.command("ls")
def ls(path: _Path, as_json: _Json = False) -> None:
    """Show the checkpoints of a directory, oldest first."""
    found = _found(path)
    if as_json:
        write_json([_row(each) for each in found])
        return
    from rich.table import Table

    table = Table("name", "kind", "size", "tensors", "saved", "state", box=None)
    for each in found:
        state = name_out(each.problem) or ("whole, with checksums" if each.sums else "whole")
        tensors = "" if each.tensors is None else f"{each.tensors:,}"
        table.add_row(name_out(each.name), each.kind, human(each.size), tensors, time_text(each.saved_ns), state)
    console().print(table)


@ckpt.command("verify")
def verify(path: _Path, as_json: _Json = False) -> None:
    """Read every byte of a checkpoint, or of all in a directory, and compare the checksums. Exit code 4 if anything is damaged."""
    found = _found(path)
    damages = {each.name: _verified(each) for each in found}
    if as_json:
        rows = [{**_row(each), "damage": [list(damage) for damage in damages[each.name]]} for each in found]
        write_json(rows)
    for each in found:
        damage = damages[each.name]
        if not damage and not as_json:
            proven = "proven by checksums" if each.sums else "read; their writer left no checksums"
            say(f"{name_out(each.name)}: {human(each.size)}, {proven}")
        for file, item, what in damage:
            complain(": ".join(part for part in (each.name, file, item, what) if part))
    if any(damages.values()):
        raise Failed("", EXIT_DAMAGED)


def _verified(each: Checkpoint) -> list[Damage]:
    from ...client.checkpoints import catalog

    with progress(f"verifying {each.name}", each.size, 1) as bar:
        return catalog.verify(each, done=bar.add)


@ckpt.command("prune")
def prune(
    path: Annotated[str, typer.Argument(help="A directory of checkpoints.")],
    keep: Annotated[int, typer.Option(help="How many whole ones stay: the last.", min=1)],
    proven: Annotated[
        bool, typer.Option("--verify", help="Only those count as whole whose bytes are what was written. Reads them.")
    ] = False,
    forever: Annotated[bool, typer.Option(help="Past the trash: the space is free at once.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Yes = False,
) -> None:
    """Remove old checkpoints. The last whole ones stay, and so does what is newer than they are: it may be on its way. The only whole
    one never goes."""
    from ...client.checkpoints.catalog import may_go

    found = _found(path)
    if found[0].folder.url == _url(path):
        raise Failed(f"{path} is a checkpoint itself: name the directory that it lies in", 2)
    if proven:
        found = _proven(found, keep)
    going = may_go(found, keep)
    for each in going:
        say(f"{name_out(each.name)}  {human(each.size)}  {name_out(each.problem)}".rstrip())
    if not going:
        say("nothing to remove")
        return
    if dry_run:
        return
    confirm(f"Remove {len(going)} of {len(found)} checkpoints, {human(sum(each.size for each in going))}?", yes)
    for each in going:
        each.folder.remove_all(forever=forever)


def _proven(found: list[Checkpoint], keep: int) -> list[Checkpoint]:
    """The same, newest verified first until `keep` are whole; the older ones go whatever they are."""
    from dataclasses import replace

    made, whole = [], 0
    for each in reversed(found):
        damage = _verified(each) if each.whole and whole < keep else []
        made.append(replace(each, problem=damage[0].what) if damage else each)
        whole += made[-1].whole
    return made[::-1]
