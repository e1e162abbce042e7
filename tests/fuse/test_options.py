"""Mount options: what is understood, what is ignored because others read it, what is refused and how."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberfs.fuse import options
from emberfs.fuse.options import MountOptions, parse
from emberfs.proto.errors import StatusError


def refusal(text: str) -> str:
    with pytest.raises(StatusError) as refused:
        parse([text])
    return str(refused.value.strerror)


def test_nothing_said_is_the_default() -> None:
    assert parse([]) == parse([""]) == parse(["defaults"]) == MountOptions()
    assert MountOptions().mount_flags == options.MS_NOSUID | options.MS_NODEV


def test_later_words_win_over_earlier_ones() -> None:
    assert parse(["ro", "rw"]).read_only is False
    assert parse(["strict,attr_timeout=0.5"]).attr_timeout == 0.5
    assert parse(["attr_timeout=0.5,strict"]).attr_timeout == 0
    found = parse(["noatime,relatime"])
    assert found.noatime is False and found.mount_flags & options.MS_RELATIME
    assert (
        parse(["relatime,strictatime"]).mount_flags & (options.MS_RELATIME | options.MS_STRICTATIME)
        == options.MS_STRICTATIME
    )


def test_flags_of_mount() -> None:
    found = parse(["ro,noatime,dev,suid,noexec,sync"])
    assert found.mount_flags == options.MS_RDONLY | options.MS_NOATIME | options.MS_NOEXEC | options.MS_SYNCHRONOUS


def test_what_only_fstab_and_systemd_read_changes_nothing() -> None:
    assert parse(["_netdev,nofail,noauto,x-systemd.automount,x-gvfs-name=a b,user,comment=c"]) == MountOptions()


def test_values() -> None:
    found = parse(["uid=1000,gid=0,readahead=8M,timeout=5,memory=1g,max_workers=1,secret_file=/etc/s,fsname=a\\,b"])
    assert (found.uid, found.gid, found.readahead, found.timeout, found.memory) == (1000, 0, 8 << 20, 5.0, 1 << 30)
    assert (found.secret_file, found.fsname) == ("/etc/s", "a,b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("allow_othr", "did you mean allow_other?"),
        ("ro=1", "takes no value"),
        ("uid", "needs a value: uid="),
        ("uid=", "a value is missing"),
        ("uid=root", "whole number"),
        ("uid=4294967295", "whole number"),
        ("attr_timeout=-1", "seconds"),
        ("attr_timeout=1e9", "seconds"),
        ("readahead=4X", "size"),
        ("max_workers=0", "one process"),
        ("max_workers=4", "several mounts"),
        ("secret=abc", "secret_file="),
        ("password=abc", "secret_file="),
        ("remount,ro", "unmount it"),
        ("allow_other,allow_root", "exclude each other"),
        ("x" * 5000, "at most"),
    ],
)
def test_refusals_say_what_to_do(text: str, says: str) -> None:
    assert says in refusal(text)


def test_a_refusal_does_not_repeat_a_secret() -> None:
    assert "hunter2" not in refusal("secret=hunter2")


def test_who_mounts_decides_who_may_use_it() -> None:
    assert parse([]).for_user(0).allow_other is True
    assert parse([]).for_user(1000).allow_other is False
    assert parse(["noallow_other"]).for_user(0).kernel_lets_others_in is False
    root_too = parse(["allow_root"]).for_user(1000)
    assert root_too.kernel_lets_others_in and not root_too.allow_other and root_too.owner == 1000


@given(st.lists(st.sampled_from(sorted({*options.WORDS, *(f"{name}=1" for name in options.VALUES)})), max_size=8))
def test_any_known_options_are_understood_or_refused_with_a_sentence(words: list[str]) -> None:
    try:
        found = parse([",".join(words)])
    except StatusError as refused:
        assert str(refused.strerror)
    else:
        assert 0 <= found.attr_timeout <= options.TIMEOUT_SECONDS_MAX


@given(st.text(max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    with contextlib.suppress(StatusError):
        parse([text])
