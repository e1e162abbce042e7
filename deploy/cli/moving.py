"""Moves of members as people see them: a bar on a terminal, lines of what was done otherwise; Ctrl-C stops only the looking on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from .output import Failed, complain, parse_size, printable, say

if TYPE_CHECKING:
    from ..administration import Administration
    from ..mover import Mover
    from ..placement.moves import Decision, Step, Wish
    from ..placement.view import ClusterView, NodeView

AtOnce = Annotated[int, typer.Option(help="Copies that may be under way, each to another node.", min=1)]
Rate = Annotated[
    str,
    typer.Option(help="Bytes a second to copy on average, as 200M. Default: what clients leave.", show_default=False),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DomainOption = Annotated[
    str,
    typer.Option(
        "--domain",
        help="What members of a chain may not share: node, host or rack. Default: the widest there are enough of.",
        show_default=False,
    ),
]
BlocksOption = Annotated[bool, typer.Option("--kv", help="Chains of KV blocks, instead of those of files.")]
AT_ONCE = 2
KINDS = {TABLE_OF_FILES: "files", TABLE_OF_BLOCKS: "kv"}  # what the chains of a table, and their targets, are for


@contextlib.contextmanager
def administration(patience: float | None = None) -> Iterator[Administration]:
    """A connection for changes, to the cluster that the command line names. That it cannot be reached is exit code 3."""
    from ...proto.errors import StatusError
    from ..administration import PATIENCE_SECONDS, Administration

    try:
        made = Administration(patience=PATIENCE_SECONDS if patience is None else patience)
    except StatusError as failed:
        raise Failed(str(failed.strerror), 3) from failed
    with made:
        yield made


def look(connection: Administration, table: int = TABLE_OF_FILES) -> ClusterView:
    """The cluster as it is now, with the chains of one kind: of files, or of KV blocks."""
    from ..placement.view import view_of

    return view_of(connection.status(), table)


def look_everywhere(connection: Administration) -> tuple[ClusterView, ClusterView]:
    """The same of both kinds: files, KV blocks."""
    from ..placement.view import view_of

    status = connection.status()
    return view_of(status, TABLE_OF_FILES), view_of(status, TABLE_OF_BLOCKS)


def domain_of(text: str) -> Any:
    """A failure domain by its name, None for the default. Raises Failed for another word."""
    from ..placement import Domain

    if not text:
        return None
    try:
        return Domain(text)
    except ValueError:
        raise Failed(f"{text!r} is no failure domain: one of {', '.join(d.value for d in Domain)}", 2) from None


def limit_of(rate: str) -> int:
    """Bytes a second, 0 for no limit. Raises Failed."""
    return parse_size(rate) if rate else 0


def node_named(view: ClusterView, name: str) -> NodeView:
    """A storage node by its name or number. Raises Failed for none, and for a name that several have."""
    found = [node for node in view.nodes.values() if name in (node.name, str(node.id))]
    if len(found) == 1:
        return found[0]
    if not found:
        known = ", ".join(sorted(node.name or str(node.id) for node in view.nodes.values())) or "none"
        raise Failed(f"no storage node is called {name!r}; there are {known}")
    raise Failed(
        f"{len(found)} nodes are called {name!r}: say which by its number, {', '.join(str(n.id) for n in found)}"
    )


def confirm(question: str, yes: bool) -> None:
    """Ask, unless `yes`. Raises Failed for a no, and where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failed(f"{question} Nobody is there to ask: say --yes", 2)
    if not typer.confirm(question):
        raise Failed("nothing was changed", 1)


def move(connection: Administration, wish: Wish, at_once: int, rate: str, table: int = TABLE_OF_FILES) -> Decision:
    """Carry out what `wish` asks for, and show how it goes. Raises Failed when something stands in the way."""
    with watched(connection, at_once, rate) as mover:
        decision = mover.run(wish, table)
    if decision.blocked:
        raise Failed("; ".join(decision.blocked))
    return decision


@contextlib.contextmanager
def watched(connection: Administration, at_once: int, rate: str) -> Iterator[Mover]:
    """A mover that shows what it does."""
    from ..mover import Limits, Mover

    limits = Limits(at_once, limit_of(rate))
    with _shown() as shown:
        try:
            yield Mover(connection, limits, shown.told, shown.taken)
        except KeyboardInterrupt:
            complain("stopped looking: copies under way go on; the same command continues from there")
            raise


class _Lines:
    """What was done, a line each."""

    def __init__(self) -> None:
        self._retiring: list[int] = []

    def told(self, view: ClusterView, decision: Decision) -> None:
        if decision.retiring != self._retiring:
            self._retiring = decision.retiring
            for number in self._retiring:
                say(f"keys are to go around chain {number}: that takes up to a minute")

    def taken(self, view: ClusterView, step: Step) -> None:
        from ..placement.moves import text_of

        say(printable(text_of(step, view)))


class _Bar(_Lines):
    """The lines, and a bar below them with the bytes that are copied."""

    def __init__(self, bars: Any) -> None:
        super().__init__()
        self._bars = bars
        self._task = bars.add_task("", total=None, state="")
        self._total = 0

    def told(self, view: ClusterView, decision: Decision) -> None:
        copied = sum(moving.size * moving.done // moving.total for moving in decision.moving if moving.total)
        self._total = max(self._total, decision.bytes_left)
        done = self._total - decision.bytes_left + copied
        names = ", ".join(f"{moving.target} in chain {moving.chain}" for moving in decision.moving)
        state = f"to target {names}" if names else decision.blocked[0] if decision.blocked else ""
        if decision.retiring:
            state = f"waits until no key goes to chain {decision.retiring[0]}"
        left = decision.moves + len(decision.moving)
        self._bars.update(
            self._task,
            description=f"{left} {'member' if left == 1 else 'members'} to move",
            total=self._total or None,
            completed=done,
            state=printable(state),
        )

    def taken(self, view: ClusterView, step: Step) -> None:
        from ..placement.moves import text_of

        self._bars.console.print(printable(text_of(step, view)), highlight=False, markup=False)


@contextlib.contextmanager
def _shown() -> Iterator[_Lines]:
    if not sys.stdout.isatty():
        yield _Lines()
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    with Progress(*columns, TextColumn("{task.fields[state]}"), transient=True) as bars:
        yield _Bar(bars)
