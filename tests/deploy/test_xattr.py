"""Extended attributes and ACLs on the command line, on a real cluster."""

from __future__ import annotations

import base64
from collections.abc import Callable

from emberfs.deploy.local import LocalCluster

from .command import Command


def test_xattr(make_cluster: Callable[..., LocalCluster]) -> None:
    run = Command(make_cluster().environment)
    run("put", "-", "/f", data=b"x")
    run("mkdir", "/d")
    assert run("xattr", "/f").text == ""
    run("xattr", "/f", "user.kind=a b=c", "user.other=")
    assert run("xattr", "/f").text == "user.kind=a b=c\nuser.other=\n"
    assert run("xattr", "/f", "user.kind").text == "a b=c\n"
    assert run("xattr", "/f", "--json").json == {"user.kind": base64.b64encode(b"a b=c").decode(), "user.other": ""}
    run("xattr", "/f", "--remove", "user.kind", "-r", "user.other")
    run.fail(1, "xattr", "/f", "user.kind")
    run("xattr", "/f", "system.posix_acl_access=u::rw,u:root:r,g:7:rx,g::-,o::")
    assert run("xattr", "/f").text == "system.posix_acl_access=u::rw-,u:0:r--,g::---,g:7:r-x,m::r-x,o::---\n"
    run("xattr", "/d", "system.posix_acl_default=u::rwx,g::r-x,o::---")
    run("put", "-", "/d/f", data=b"x")
    [row] = run("ls", "--json", "/d").json
    assert row["mode"] & 0o007 == 0
    run.fail(2, "xattr", "/f", "system.posix_acl_access=x::r")
    run.fail(2, "xattr", "/f", "system.posix_acl_access=u::r,g::r")
    run.fail(2, "xattr", "/f", "system.posix_acl_access=u::r,g::r,o::r,u:nobody-of-that-name:r")
