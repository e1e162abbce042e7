"""`info`: where the bytes of a file lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Failed, console, human, name_out, say, write_json
from .paths import cluster_of

if TYPE_CHECKING:
    from ...client.blocking import Client

CHUNKS_SHOWN_DEFAULT = 16


def info(
    path: Annotated[str, typer.Argument()],
    chunks: Annotated[int, typer.Option(help="Show at most so many chunks (0: all).", min=0)] = CHUNKS_SHOWN_DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines: all chunks.")] = False,
) -> None:
    """Show the layout of a file: its chunks, the chains they are on, and the targets of these."""
    with cluster_of([path]) as (client, [wanted]):
        found = describe(client, wanted)
    if as_json:
        write_json(found)
        return
    say(f"  path: {name_out(found['path'])}\n inode: {found['inode']} ({found['inode']:x})    type: {found['type']}")
    layout = found["layout"]
    if found["type"] == "directory":
        size = human(layout["chunk_size"]) if layout["chunk_size"] else "the default"
        say(f"new files here get: chunks of {size}, over {layout['stripe'] or 'all'} chains")
    if found["type"] != "regular":
        return
    say(
        f"  size: {found['size']} ({human(found['size'])})    change: {found['change']}    truncate version: {found['truncate_version']}"
    )
    stripe = f"{layout['stripe']} of chain table {layout['table']}, version {layout['table_version']}"
    say(f"chunks: {len(found['chunks'])} of {human(layout['chunk_size'])}    chains: {stripe}")
    _print_chunks(found["chunks"], chunks)


def _print_chunks(chunks: list[dict[str, Any]], limit: int) -> None:
    from rich.table import Table

    table = Table("chunk", "id", "bytes", "chain", "targets", box=None)
    shown = chunks[: limit or None]
    for chunk in shown:
        targets = ", ".join(f"{t['target']} {t['state']} {t['path']}" for t in chunk["targets"])
        table.add_row(
            str(chunk["index"]),
            chunk["id"],
            str(chunk["bytes"]),
            f"{chunk['chain']} (version {chunk['version']})",
            targets,
        )
    if shown:
        console().print(table)
    if len(chunks) > len(shown):
        say(f"... and {len(chunks) - len(shown)} more (--chunks 0 shows all)")


def describe(client: Client, path: str) -> dict[str, Any]:
    """A file's attributes with its layout resolved to chunks, chains and targets, as plain values."""
    import os

    from ...proto.env import drive
    from ...proto.errors import error, status_of
    from ...proto.gen import common_pb2
    from ...proto.gen.meta_pb2 import Place, StatRequest
    from ...proto.rpc import META

    request = StatRequest(places=[Place(path=os.fsencode(path).strip(b"/"))], follow=True)
    reply = drive(client.core.cluster.meta(META.Stat, request))
    if reply.statuses and reply.statuses[0]:
        raise error(status_of(reply.statuses[0]), filename=path)
    a = reply.attributes[0]
    kind = common_pb2.FileType.Name(a.type).removeprefix("FILE_TYPE_").lower()
    found: dict[str, Any] = {"path": path, "inode": a.inode, "type": kind, "size": a.length, "change": a.change}
    found |= {"truncate_version": a.truncate_version, "sparse": a.sparse, "layout": None, "chunks": []}
    if a.type not in (common_pb2.FILE_TYPE_REGULAR, common_pb2.FILE_TYPE_DIRECTORY):
        return found
    layout = {
        name: getattr(a.layout, name) for name in ("chunk_size", "table", "table_version", "base", "stripe", "seed")
    }
    found["layout"] = {"redundancy": common_pb2.Redundancy.Name(a.layout.redundancy), **layout}
    if a.type == common_pb2.FILE_TYPE_REGULAR:
        found["chunks"] = _chunks(client, a)
    return found


def _chunks(client: Client, a: Any) -> list[dict[str, Any]]:
    from ...proto.gen import common_pb2
    from ...proto.ids import ChunkId
    from ...proto.layout import chunk_count, stripe_chains

    table = client.core.cluster.table
    chains = table.tables.get((a.layout.table, a.layout.table_version))
    if chains is None:
        raise Failed(f"the routing knows no version {a.layout.table_version} of chain table {a.layout.table}", 4)
    order = stripe_chains(chains, a.layout.base, a.layout.stripe, a.layout.seed)
    size = a.layout.chunk_size
    found = []
    for index in range(chunk_count(a.length, size)):
        chain = table.chains[order[index % len(order)]]
        targets = [
            {
                "target": member.target,
                "node": member.node,
                "state": common_pb2.TargetState.Name(member.state).removeprefix("TARGET_STATE_"),
                "path": table.targets[member.target].path if member.target in table.targets else "",
            }
            for member in chain.members
        ]
        chunk = {"index": index, "id": str(ChunkId(0, a.inode, index)), "bytes": min(size, a.length - index * size)}
        found.append({**chunk, "chain": chain.id, "version": chain.version, "targets": targets})
    return found
