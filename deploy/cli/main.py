"""The command line `emberfs`: which commands exist, and how a failure is told.

A command's module is imported when it is used (or when all are listed for `--help`), and what it needs for its work only inside
its function, so that the first answer comes at once.

Exit codes: 0 it worked; 1 it failed (not found, no permission, no space, ...); 2 wrong usage; 3 the cluster is not running or does not
answer; 4 stored data is damaged or lost; 5 a bug; 130 interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import Annotated, Any

import typer
import typer.core

from ... import __version__
from ...proto.errors import Blame, Status, StatusError
from .output import Failed, complain, told

HELP_COLUMNS = 100  # at most, on a wide terminal
SHORT_HELP_MAX = 1000  # characters of a command in the list of all: its first sentence, not cut
EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_DAMAGED, EXIT_BUG, EXIT_INTERRUPTED = 1, 2, 3, 4, 5, 130
_DAMAGED = {Status.CHECKSUM, Status.LOST_DATA, Status.IO_ERROR, Status.TARGET_OFFLINE, Status.BAD_FORMAT}

# command -> (module, panel of the help page); in the order of the help page
COMMANDS = {
    "up": ("servers", "Cluster"),
    "down": ("servers", "Cluster"),
    "status": ("status", "Cluster"),
    "mount": ("mount", "Cluster"),
    "umount": ("mount", "Cluster"),
    "doctor": ("doctor", "Cluster"),
    "bench": ("bench", "Cluster"),
    "fsck": ("metadata", "Metadata"),
    "meta": ("metadata", "Metadata"),
    "node": ("node", "Disks and chains"),
    "target": ("target", "Disks and chains"),
    "chain": ("chain", "Disks and chains"),
    "kv": ("kv", "KV cache"),
    "sort": ("sort", "Training"),
    "ckpt": ("ckpt", "Training"),
    "data": ("data", "Training"),
    "ls": ("listing", "Files"),
    "tree": ("listing", "Files"),
    "stat": ("listing", "Files"),
    "du": ("listing", "Files"),
    "df": ("listing", "Files"),
    "info": ("layout", "Files"),
    "cat": ("transfer", "Files"),
    "put": ("transfer", "Files"),
    "get": ("transfer", "Files"),
    "cp": ("transfer", "Files"),
    "clone": ("transfer", "Files"),
    "mkdir": ("changes", "Files"),
    "mv": ("changes", "Files"),
    "rm": ("changes", "Files"),
    "xattr": ("xattr", "Files"),
    "trash": ("trash", "Files"),
    "quota": ("quota", "Files"),
    "events": ("events", "Files"),
}


class _Commands(typer.core.TyperGroup):
    """The group of all commands: loads the module of one when it is asked for, and turns failures into sentences."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:  # completion asks what there is
                return None
            near = difflib.get_close_matches(cmd_name, COMMANDS, 1)
            raise Failed(
                f"there is no command {cmd_name!r}"
                + (f"; did you mean '{near[0]}'?" if near else ": 'emberfs --help' lists all"),
                EXIT_USAGE,
            )
        module, panel = COMMANDS[cmd_name]
        function = getattr(importlib.import_module(f".{module}", __package__), cmd_name)
        if isinstance(function, typer.Typer):  # a command with commands of its own
            function.rich_markup_mode = None  # help as plain text, which wraps, can be searched, and is there at once
            group: Any = typer.main.get_command(function)
            group.rich_help_panel = panel
            for each in group.commands.values():
                each.short_help = each.get_short_help_str(SHORT_HELP_MAX)
            return group
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name, rich_help_panel=panel, context_settings={"help_option_names": ["-h", "--help"]})(
            function
        )
        return typer.main.get_command(single)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        # In panels, which Typer makes only by loading libraries for Markdown and tracebacks: they take longer than everything else here.
        records = (param.get_help_record(ctx) for param in self.get_params(ctx))
        _section(formatter, "Options", [record for record in records if record is not None])
        for panel in dict.fromkeys(panel for _, panel in COMMANDS.values()):
            names = [name for name, (_, its_panel) in COMMANDS.items() if its_panel == panel]
            rows = [(name, self.get_command(ctx, name).get_short_help_str(SHORT_HELP_MAX)) for name in names]
            _section(formatter, panel, rows)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Failed as failed:
            if str(failed):
                complain(str(failed))
            code = failed.code
        except StatusError as failed:
            complain(sentence(failed))
            code = exit_code(failed)
        except BrokenPipeError:
            # Whoever read our output has seen enough. Nothing more may be written, not even by the interpreter's exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = EXIT_FAILED
        except OSError as failed:
            complain(f"{failed.filename}: {failed.strerror}" if failed.filename else str(failed))
            code = EXIT_FAILED
        except KeyboardInterrupt:
            complain("interrupted")
            code = EXIT_INTERRUPTED
        ctx.exit(code)


def _section(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    with formatter.section(_styled(title, bold=True)):
        formatter.write_dl([(_styled(name, fg="cyan"), text) for name, text in rows])


def _styled(text: str, **style: Any) -> str:
    """With colours, which are taken out again where the output is no terminal."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, **style)


def sentence(failed: StatusError) -> str:
    """What went wrong, with the path in question if the message does not name it."""
    return told(failed.filename, failed) if isinstance(failed.filename, str) else str(failed.strerror)


def exit_code(failed: StatusError) -> int:
    """See the module's docstring."""
    if failed.status in _DAMAGED:
        return EXIT_DAMAGED
    if failed.status is Status.INTERNAL:
        return EXIT_BUG
    unreachable = failed.status in {Status.WRONG_CLUSTER, Status.UNAUTHENTICATED} or _is_about_the_peer(failed.status)
    return EXIT_UNREACHABLE if unreachable else EXIT_FAILED


def _is_about_the_peer(status: Status) -> bool:
    from ...proto.errors import TABLE

    return TABLE[status].blame is Blame.PEER


app = typer.Typer(
    cls=_Commands,
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_COLUMNS},
    epilog="Paths are absolute in the cluster; ember://host:port/path names another cluster. "
    "Exit codes: 1 failed, 2 wrong usage, 3 cluster not reachable, 4 data damaged, 5 a bug.",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"emberfs {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    url: Annotated[
        str, typer.Option(help="The cluster, as ember://host:port/. Default: $EMBERFS_URL, else the one of --data.")
    ] = "",
    data: Annotated[
        str, typer.Option(help="Data directory of a local cluster. Default: $EMBERFS_DATA, else below your home.")
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """emberfs: a distributed parallel file system. Start one with 'emberfs up'."""
    if data:
        os.environ["EMBERFS_DATA"] = os.path.abspath(data)
        os.environ["EMBERFS_URL"] = ""
    if url:
        os.environ["EMBERFS_URL"] = url


def _fill_closed_streams() -> None:
    """/dev/null for a standard stream that was closed before we began: the next file to be opened would get its number, and our output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 -- for the life of the process


def main() -> None:
    """Entry point of the console script and of `python -m emberfs`."""
    _fill_closed_streams()
    try:
        app(prog_name="emberfs")
    except Exception as bug:
        import traceback

        traceback.print_exc()
        complain(f"this is a bug of emberfs {__version__}: {type(bug).__name__}: {bug}")
        sys.exit(EXIT_BUG)
