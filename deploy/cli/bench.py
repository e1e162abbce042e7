"""`bench`: how fast is it here? Ratios against the bare machine, measured in the same run."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...proto.transport import choice
from .output import complain, console, painted, say, write_json

if TYPE_CHECKING:
    from rich.text import Text


class What(str, Enum):  # noqa: UP042 -- typer before 0.16 wants it so
    net = "net"
    rdma = "rdma"
    target = "target"
    meta = "meta"
    fs = "fs"
    kv = "kv"
    mount = "mount"
    memory = "memory"
    resync = "resync"
    chains = "chains"
    manager = "manager"
    sort = "sort"
    search = "search"
    ckpt = "ckpt"
    loader = "loader"
    all = "all"


def bench(
    what: Annotated[
        What,
        typer.Argument(
            help="net: messages and bulk; rdma: the same over RDMA, beside tcp; "
            "target: one storage target; meta: the namespace; fs: files; kv: the KV cache, beside files, "
            "Redis and memcached; mount: a mount of its own, beside a pass-through and the local disk; memory: of idle processes and "
            "full servers; resync: recovery; chains: replicas, and what is noticed when one fails; manager: 10,000 chains; "
            "sort: GraySort on a mount and through the client; "
            "search: an index of neighbours on a mount and through the client; ckpt: checkpoints, beside the local disk; "
            "loader: random samples for training, beside the local disk."
        ),
    ] = What.fs,
    path: Annotated[
        str, typer.Argument(help="A directory on a mount, to measure beside the local disk (fs).", show_default=False)
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes, rough figures.")] = False,
    mib: Annotated[
        int, typer.Option(help="MiB to copy (resync).", show_default="10240, or what the disk has room for")
    ] = 0,
    trace: Annotated[
        str,
        typer.Option(help="JSON lines with timestamp and hash_ids, also .gz (kv).", show_default="one that is made"),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
    keep: Annotated[str, typer.Option(help="Write the JSON into this folder too.", show_default=False)] = "",
) -> None:
    """Measure. Starts servers of its own in a temporary directory; a running cluster is left alone."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that nothing that was started stays
    names = [item.value for item in What if item is not What.all] if what is What.all else [what.value]
    if what is What.all and choice.why_not_here():
        names.remove(What.rdma.value)
    if path:
        names = [What.mount.value]
    results = []
    for name in names:
        begin = time.monotonic()
        # Any benchmark is a module of deploy/bench with run(quick=...) -> {"bench", "rows": [{"what", "value", "unit", ...}]}.
        more: dict[str, Any] = {"path": path} if path else {}
        if name == What.resync.value:
            more = {"mib": mib, "tell": complain}
        if name == What.kv.value:
            more = {"trace": trace}
        result: dict[str, Any] = importlib.import_module(f"emberfs.deploy.bench.{name}").run(quick=quick, **more)
        result = {"bench": name, **result, "seconds": round(time.monotonic() - begin, 1)}
        results.append(result)
        if not as_json:
            _print(result)
        if keep:
            folder = Path(keep)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    if as_json:
        write_json(results)


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table

    say(f"{result['bench']} ({result['seconds']} s)")
    table = Table("what", "measured", "spread", "bare machine", "ratio", "aim", box=None)
    for row in result["rows"]:
        table.add_row(*cells(row))
    if result["rows"]:
        console().print(table)
    if result.get("left_out"):
        say(result["left_out"])


def cells(row: dict[str, Any]) -> tuple[str | Text, ...]:
    """A row for people: measured and baseline with their unit, the rounds' least and greatest, the ratio, the aim; the aim is red where
    it is missed."""

    def number(value: Any) -> str:
        if not isinstance(value, (int, float)):
            return str(value or "")
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    unit = row.get("unit", "")
    baseline = f"{number(row['baseline'])} {row.get('baseline_unit', unit)}" if row.get("baseline") is not None else ""
    ratio = f"{row['ratio']:.2f}" if row.get("ratio") is not None else ""
    aim = painted(str(row.get("aim", "") or ""), "red" if row.get("met") is False else "")
    spread = "-".join(map(number, row.get("spread", ())))
    return str(row["what"]), f"{number(row['value'])} {unit}", spread, baseline, ratio, aim
