"""`emberfs kv`: the KV cache's namespaces, what they hold, and what may be thrown away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...proto.blocks import KEY_BYTES, KEYS_MAX
from .moving import Yes, confirm
from .output import Failed, complain, console, human, name_out, parse_size, say, write_json

if TYPE_CHECKING:
    from ...kvcache import KVCache, Namespace, Usage
    from ...kvcache.core.results import NamespaceUsage
    from ...proto.gen.cluster_pb2 import KvNamespace

NO_TENANT = "-"  # on the command line: what belongs to no tenant
SILENT = "{} of {} storage servers did not answer: what they hold is not counted"

kv = typer.Typer(
    name="kv",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
_Wanted = Annotated[
    str,
    typer.Argument(
        metavar="NAMESPACE", help="Its number or name, as 'emberfs kv ns' shows it; a part of the name will do."
    ),
]


@kv.callback()
def _group() -> None:
    """The KV cache: blocks of attention state that inference workers keep for one another.

    Blocks lie in namespaces, one for each model, revision, data type and layout. An engine's connector makes its namespace when it
    starts, so there is nothing to set up here: look at what is held and how often it is found, limit tenants, and throw away what nobody
    uses. When room runs out, the blocks that were not used for longest go by themselves.
    """


@contextlib.contextmanager
def _connected() -> Iterator[KVCache]:
    """A client of the cache. Failing to connect is exit code 3."""
    from ...kvcache import KVCache
    from ...proto.errors import Status, StatusError

    try:
        made = KVCache()
    except StatusError as failed:
        raise Failed(str(failed.strerror), 2 if failed.status is Status.INVALID else 3) from failed
    with made:
        yield made


def _named(cache: KVCache, wanted: str) -> Namespace:
    """The namespace that is meant. Raises Failed for none, and for several."""
    known = cache.namespaces()
    exact = [each for each in known if wanted in (str(each.id), each.name)]
    found = exact or [each for each in known if wanted and wanted in each.name]
    if len(found) == 1:
        return found[0]
    if not found:
        raise Failed(f"no namespace is called {wanted!r} (see: emberfs kv ns)")
    raise Failed(
        f"{wanted!r} is in the names of {len(found)}: say which by its number, {', '.join(str(f.id) for f in found)}"
    )


def _warn(usage: Usage) -> None:
    if usage.servers_silent:
        complain(SILENT.format(usage.servers_silent, usage.servers))


def _hit_ratio(used: NamespaceUsage) -> float | None:
    asked = used.hits + used.misses
    return used.hits / asked if asked else None


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1%}"


# --- looking ------------------------------------------------------------------------------------------------------------------------


@kv.command("ns")
def ns(as_json: _Json = False) -> None:
    """Show the namespaces: whose they are, what they hold, how often a wanted block was there.

    Hits and misses are counted by the storage servers since they were started. 'mode' is as of a file: r to read blocks, w to put and
    delete them.
    """
    from ...kvcache.core.results import NamespaceUsage

    with _connected() as cache:
        usage = cache.usage()
        entries = sorted(cache.core.cluster.table.namespaces.values(), key=lambda entry: entry.id)
    found = [_described(entry, usage.namespaces.get(entry.id) or NamespaceUsage()) for entry in entries]
    if as_json:
        write_json(found)
        return _warn(usage)
    from rich.table import Column, Table

    columns = ("owner", "mode", "block", "blocks", "bytes", "hits")
    table = Table("ns", Column("name", overflow="fold"), *columns, box=None)
    for row in found:
        block = human(row["block_bytes"]) if row["block_bytes"] else "any"
        counts = (str(row["blocks"]), human(row["bytes"]), _percent(row["hit_ratio"]))
        table.add_row(
            str(row["namespace"]), name_out(row["name"]), _user(row["uid"]), f"{row['mode']:03o}", block, *counts
        )
    console().print(table if found else "no namespace yet: an engine's connector makes one when it starts")
    return _warn(usage)


def _described(entry: KvNamespace, used: NamespaceUsage) -> dict[str, Any]:
    fields = ("name", "tenant", "block_bytes", "ttl_s", "uid", "gid", "mode", "descriptor", "table_version")
    return {
        "namespace": entry.id,
        **{name: getattr(entry, name) for name in fields},
        "digest": entry.digest.hex(),
        "older_versions": list(entry.older_versions),
        **asdict(used),
        "hit_ratio": _hit_ratio(used),
    }


def _user(number: int) -> str:
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return str(number)


@kv.command("stats")
def stats(
    wanted: Annotated[
        str, typer.Argument(metavar="[NAMESPACE]", help="Only of this one. Default: all.", show_default=False)
    ] = "",
    as_json: _Json = False,
) -> None:
    """Show what was asked for and found, stored and evicted, by namespace and tenant; and how full the cache is.

    All numbers that only rise are since the storage servers were started. A miss is a block that a client wanted and that was not there;
    'kept' counts blocks that were put although they were there already, 'refused' those that found no room at that moment.
    """
    with _connected() as cache:
        only = _named(cache, wanted).id if wanted else 0
        usage = cache.usage()
        names = {each.id: each.name for each in cache.namespaces()}
    if only:
        usage.namespaces = {number: used for number, used in usage.namespaces.items() if number == only}
        usage.tenants = {}
    if as_json:
        found = asdict(usage)
        rows = [{"namespace": n, "name": names.get(n, ""), **asdict(used)} for n, used in usage.namespaces.items()]
        write_json({**found, "namespaces": rows})
        return _warn(usage)
    if not only:
        say(f"{human(usage.used)} used of {human(usage.capacity)}, on {usage.servers} storage servers")
        if usage.memory_budget:
            say(f"{human(usage.memory_used)} of {human(usage.memory_budget)} memory for the blocks that were used last")
    _show_counters("namespace", {names.get(number, str(number)): used for number, used in usage.namespaces.items()}, {})
    if len(usage.tenants) > 1 or usage.quotas:
        tenants = {name: usage.tenants.get(name) for name in sorted({*usage.tenants, *usage.quotas})}
        _show_counters("tenant", {name or NO_TENANT: used for name, used in tenants.items() if used}, usage.quotas)
    return _warn(usage)


def _show_counters(what: str, rows: dict[str, NamespaceUsage], quotas: dict[str, int]) -> None:
    from rich.table import Column, Table

    titles = (
        "blocks",
        "bytes",
        *(("quota",) if quotas else ()),
        "hits",
        "misses",
        "ratio",
        "puts",
        "kept",
        "refused",
        "evicted",
    )
    table = Table(Column(what, overflow="fold"), *titles, box=None)
    for name, used in rows.items():
        counts = [str(used.blocks), human(used.bytes)]
        if quotas:
            limit = quotas.get("" if name == NO_TENANT else name)
            counts.append(human(limit) if limit else "-")
        counts += [
            str(used.hits),
            str(used.misses),
            _percent(_hit_ratio(used)),
            str(used.puts),
            str(used.puts_existing),
        ]
        table.add_row(name_out(name), *counts, str(used.puts_refused), str(used.evictions + used.expired))
    if rows:
        say()
        console().print(table)


@kv.command("ls")
def ls(
    wanted: _Wanted,
    count: Annotated[int, typer.Option("-n", "--count", help="At most so many; 0: all.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines: one document a line.")] = False,
) -> None:
    """List the blocks of a namespace, a line each: key, bytes, how many blocks stand before it in its prefix, seconds left to live, and
    whether it is pinned.
    """
    with _connected() as cache:
        found = cache.list(_named(cache, wanted))
        for block in islice(found, count) if count else found:
            key, ttl = block.key.hex(), str(block.ttl_s or "-")
            if as_json:
                write_json({**asdict(block), "key": key}, lines=True)
            else:
                say(
                    f"{key}  {block.length:>10}  {block.depth:>6}  {ttl:>8}  {'pinned' if block.pinned else ''}".rstrip()
                )


# --- throwing away --------------------------------------------------------------------------------------------------------------------


@kv.command("evict")
def evict(
    wanted: _Wanted,
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY]...", help="As 'kv ls' shows them. Default: all.", show_default=False),
    ] = None,
    yes: Yes = False,
    as_json: _Json = False,
) -> None:
    """Throw blocks away now, pinned ones too: those with these keys, or all of a namespace. The namespace stays.

    Blocks that somebody holds a lease on stay until it is over.
    """
    packed = [_key(text) for text in keys or ()]
    with _connected() as cache:
        namespace = _named(cache, wanted)
        if not packed:
            confirm(f"Throw away all blocks of {namespace.name}?", yes)
            packed = [block.key for block in cache.list(namespace)]
        batches = (packed[first : first + KEYS_MAX] for first in range(0, len(packed), KEYS_MAX))
        statuses = [code for batch in batches for code in cache.delete(namespace, batch)]
    counts = _counts(statuses)
    if as_json:
        write_json(counts)
    else:
        say(
            f"blocks thrown away: {counts['evicted']}"
            + (f", {counts['missing']} were not there" if counts["missing"] else "")
        )
        if counts["leased"]:
            complain(f"{counts['leased']} are held by leases: try again when those are over")
    if counts["failed"]:
        raise Failed(f"{counts['failed']} blocks could not be reached (see: emberfs status)")


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise Failed(f"{text!r} is no key: {2 * KEY_BYTES} hexadecimal digits", 2)
    return key


def _counts(statuses: Sequence[int]) -> dict[str, int]:
    import errno

    found = {"evicted": 0, "missing": 0, "leased": 0, "failed": 0}
    words = {-errno.ENOENT: "missing", -errno.EBUSY: "leased"}
    for code in statuses:
        found["evicted" if code >= 0 else words.get(code, "failed")] += 1
    return found


@kv.command("drop")
def drop(wanted: _Wanted, yes: Yes = False) -> None:
    """Forget a namespace and all its blocks. Only who made it may, or an administrator.

    An engine that still uses it misses every block from now on, and gets a new namespace when it is started again.
    """
    with _connected() as cache:
        namespace = _named(cache, wanted)
        confirm(f"Drop namespace {namespace.id}, {namespace.name}, with all its blocks?", yes)
        cache.drop(namespace)
    say(f"{namespace.name}: dropped. Its space comes back in the background.")


@kv.command("quota")
def quota(
    tenant: Annotated[
        str,
        typer.Argument(
            help="As in 'kv stats'; '-': namespaces without a tenant. Default: show all.", show_default=False
        ),
    ] = "",
    size: Annotated[str, typer.Argument(metavar="BYTES", help="As 500G; 'none': no limit.", show_default=False)] = "",
    users: Annotated[
        list[int] | None,
        typer.Option("--user", metavar="UID", help="Who may register namespaces of the tenant; more than once."),
    ] = None,
    groups: Annotated[
        list[int] | None, typer.Option("--group", metavar="GID", help="The same, whoever is in that group.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Limit what all namespaces of a tenant may hold together, or show the limits. Only administrators set them.

    A tenant that reaches its limit goes on: what it puts then makes its own oldest blocks go, never another tenant's.

    Under the name of a tenant with a limit only administrators register namespaces, and whom --user and --group name (without them those
    who were named before). Whoever is named registers under that tenant only.
    """
    with _connected() as cache:
        if tenant:
            if not size:
                raise Failed("say how much: a size as 500G, or 'none'", 2)
            limit = 0 if size == "none" else parse_size(size)
            cache.set_quota("" if tenant == NO_TENANT else tenant, limit, users=users or (), groups=groups or ())
            return
        usage = cache.usage()
    names = sorted({*usage.tenants, *usage.quotas})
    used = {name: usage.tenants[name].bytes if name in usage.tenants else 0 for name in names}
    if as_json:
        write_json([{"tenant": name, "bytes": used[name], "quota": usage.quotas.get(name, 0)} for name in names])
        return
    from rich.table import Table

    table = Table("tenant", "bytes", "of", box=None)
    for name in names:
        limit = usage.quotas.get(name, 0)
        table.add_row(name_out(name or NO_TENANT), human(used[name]), human(limit) if limit else "no limit")
    console().print(table if names else "no quotas, and nothing is stored")
