"""`emberfs xattr`: extended attributes and ACLs of one file or directory."""

from __future__ import annotations

import base64
import grp
import pwd
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ...meta.namespace import acl as acls
from ...proto.errors import StatusError
from .output import Failed, name_out, printable, say, write_json
from .paths import cluster_of

_ACL = "system.posix_acl_"
_LETTERS = {"u": acls.USER, "g": acls.GROUP, "m": acls.MASK, "o": acls.OTHER}
_OWNERS = {acls.USER: acls.USER_OBJ, acls.GROUP: acls.GROUP_OBJ}  # whom an entry without a name is about


def xattr(
    path: Annotated[str, typer.Argument(metavar="PATH")],
    wanted: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME | NAME=VALUE]...", help="What to show or to set; default: show all."),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", "-r", help="A name to remove (again for more).")
    ] = None,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="A symlink itself, not what it points at.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines; values in base64.")] = False,
) -> None:
    """Show, set or remove extended attributes.

    A name has its namespace: user.mime_type. ACLs are system.posix_acl_access and system.posix_acl_default, with values like
    u::rw-,u:alice:r--,g::r--,m::r--,o::---
    """
    names = wanted or []
    changes = [text for text in names if "=" in text]
    with cluster_of([path]) as (client, [place]):
        for name in remove or ():
            client.removexattr(place, name, follow=not no_follow)
        for text in changes:
            name, _, value = text.partition("=")
            client.setxattr(place, name, _encoded(name, value), follow=not no_follow)
        shown = [name for name in names if "=" not in name]
        if not names and not remove:
            shown = client.listxattr(place, follow=not no_follow)
        values = {name: client.getxattr(place, name, follow=not no_follow) for name in shown}
    if as_json:
        write_json({name: base64.b64encode(value).decode() for name, value in values.items()})
    elif len(names) == 1 and values:
        say(_text(*values.popitem()))
    else:
        for name, found in values.items():
            say(f"{name_out(name)}={printable(_text(name, found))}")


def _encoded(name: str, value: str) -> bytes:
    return acls.to_kernel(_acl(value)) if name.startswith(_ACL) else value.encode("utf-8", "surrogateescape")


def _text(name: str, value: bytes) -> str:
    if not name.startswith(_ACL) or (acl := acls.from_kernel(value)) is None:
        return value.decode("utf-8", "surrogateescape")
    rows: list[tuple[str, object, int]] = [("u", "", acl.owner), *(("u", *row) for row in acl.users)]
    rows += [("g", "", acl.group), *(("g", *row) for row in acl.groups)]
    if acl.mask is not None:
        rows.append(("m", "", acl.mask))
    rows.append(("o", "", acl.other))
    return ",".join(f"{letter}:{number}:{_rwx(bits)}" for letter, number, bits in rows)


def _rwx(bits: int) -> str:
    return "".join(letter if bits & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))


def _acl(text: str) -> acls.Acl:
    """The ACL of its text; a mask that is needed and missing grants what the entries under it do."""
    rows = sorted(_entry(part) for part in text.split(",") if part)
    under = [bits for tag, _, bits in rows if tag in (acls.USER, acls.GROUP_OBJ, acls.GROUP)]
    tags = {tag for tag, _, _ in rows}
    if tags & {acls.USER, acls.GROUP} and acls.MASK not in tags:
        mask = 0
        for bits in under:
            mask |= bits
        rows = sorted([*rows, (acls.MASK, acls.NO_ID, mask)])
    try:
        made = acls.from_rows([(tag, bits, number) for tag, number, bits in rows])
    except StatusError as wrong:
        raise Failed(f"{text!r}: {wrong.strerror}", 2) from wrong
    return made


def _entry(text: str) -> tuple[int, int, int]:
    """(tag, id, permissions)."""
    parts = text.split(":")
    if len(parts) == 2:
        parts.insert(1, "")
    letter, name, rights = parts if len(parts) == 3 else ("", "", "")
    tag = _LETTERS.get(letter[:1])
    if tag is None or set(rights) - set("rwx-") or (name and tag not in _OWNERS):
        raise Failed(f"{text!r} is no entry of an ACL: write it like u:alice:rw-, g::r--, m::r-- or o::---", 2)
    bits = sum(bit for right, bit in (("r", 4), ("w", 2), ("x", 1)) if right in rights)
    if not name:
        return _OWNERS.get(tag, tag), acls.NO_ID, bits
    return tag, _number(name, pwd.getpwnam if tag == acls.USER else grp.getgrnam), bits


def _number(name: str, find: Callable[[str], Any]) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return int(find(name)[2])
    except KeyError:
        raise Failed(f"{name}: this host knows nobody of that name; give the number", 2) from None
