"""Layouts against the figures of `linux/fuse.h` and, where it is installed, the header itself; parsers against any bytes; negotiation."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberfs.fuse import negotiation, protocol, replies, requests, structs
from emberfs.fuse.negotiation import Agreement, Wanted, settle
from emberfs.fuse.protocol import (
    BODY_BYTES_MIN,
    IN_HEADER,
    IN_HEADER_BYTES,
    OUT_HEADER,
    Init,
    Notify,
    Opcode,
    ProtocolError,
    check,
)
from emberfs.fuse.requests import Extensions, InitIn

from .decoding import DECODERS, decode
from .record import RECORDING

HEADER = Path("/usr/include/linux/fuse.h")

# Our structure, the header's name for it, its size (sizeof, protocol 7.45).
SIZES: dict[str, tuple[str, int]] = {
    "ATTR": ("fuse_attr", 88),
    "ATTR_OUT": ("fuse_attr_out", 104),
    "ENTRY_OUT": ("fuse_entry_out", 128),
    "OPEN_OUT": ("fuse_open_out", 16),
    "WRITE_OUT": ("fuse_write_out", 8),
    "COPY_FILE_RANGE_OUT": ("fuse_copy_file_range_out", 8),
    "STATFS_OUT": ("fuse_statfs_out", 80),
    "GETXATTR_OUT": ("fuse_getxattr_out", 8),
    "LK_OUT": ("fuse_lk_out", 24),
    "INIT_OUT": ("fuse_init_out", 64),
    "BMAP_OUT": ("fuse_bmap_out", 8),
    "IOCTL_OUT": ("fuse_ioctl_out", 16),
    "IOCTL_IOVEC": ("fuse_ioctl_iovec", 16),
    "POLL_OUT": ("fuse_poll_out", 8),
    "LSEEK_OUT": ("fuse_lseek_out", 8),
    "DIRENT": ("fuse_dirent", 24),
    "STATX_OUT": ("fuse_statx_out", 288),
    "FORGET_IN": ("fuse_forget_in", 8),
    "FORGET_ONE": ("fuse_forget_one", 16),
    "BATCH_FORGET_IN": ("fuse_batch_forget_in", 8),
    "GETATTR_IN": ("fuse_getattr_in", 16),
    "SETATTR_IN": ("fuse_setattr_in", 88),
    "MKNOD_IN": ("fuse_mknod_in", 16),
    "MKDIR_IN": ("fuse_mkdir_in", 8),
    "RENAME_IN": ("fuse_rename_in", 8),
    "RENAME2_IN": ("fuse_rename2_in", 16),
    "LINK_IN": ("fuse_link_in", 8),
    "OPEN_IN": ("fuse_open_in", 8),
    "CREATE_IN": ("fuse_create_in", 16),
    "RELEASE_IN": ("fuse_release_in", 24),
    "FLUSH_IN": ("fuse_flush_in", 24),
    "READ_IN": ("fuse_read_in", 40),
    "WRITE_IN": ("fuse_write_in", 40),
    "FSYNC_IN": ("fuse_fsync_in", 16),
    "SETXATTR_IN": ("fuse_setxattr_in", 16),
    "GETXATTR_IN": ("fuse_getxattr_in", 8),
    "LK_IN": ("fuse_lk_in", 48),
    "ACCESS_IN": ("fuse_access_in", 8),
    "INTERRUPT_IN": ("fuse_interrupt_in", 8),
    "BMAP_IN": ("fuse_bmap_in", 16),
    "IOCTL_IN": ("fuse_ioctl_in", 32),
    "POLL_IN": ("fuse_poll_in", 24),
    "FALLOCATE_IN": ("fuse_fallocate_in", 32),
    "LSEEK_IN": ("fuse_lseek_in", 24),
    "COPY_FILE_RANGE_IN": ("fuse_copy_file_range_in", 56),
    "STATX_IN": ("fuse_statx_in", 24),
    "SETUPMAPPING_IN": ("fuse_setupmapping_in", 40),
    "REMOVEMAPPING_IN": ("fuse_removemapping_in", 4),
    "REMOVEMAPPING_ONE": ("fuse_removemapping_one", 16),
    "SYNCFS_IN": ("fuse_syncfs_in", 8),
    "NOTIFY_RETRIEVE_IN": ("fuse_notify_retrieve_in", 40),
    "EXTENSION": ("fuse_ext_header", 8),
    "SECURITY_LABEL": ("fuse_secctx", 8),
    "NOTIFY_POLL_OUT": ("fuse_notify_poll_wakeup_out", 8),
    "NOTIFY_INVAL_INODE_OUT": ("fuse_notify_inval_inode_out", 24),
    "NOTIFY_INVAL_ENTRY_OUT": ("fuse_notify_inval_entry_out", 16),
    "NOTIFY_DELETE_OUT": ("fuse_notify_delete_out", 24),
    "NOTIFY_STORE_OUT": ("fuse_notify_store_out", 24),
    "NOTIFY_RETRIEVE_OUT": ("fuse_notify_retrieve_out", 32),
    "NOTIFY_PRUNE_OUT": ("fuse_notify_prune_out", 16),
    "BACKING_MAP": ("fuse_backing_map", 16),
    "IN_HEADER": ("fuse_in_header", 40),
    "OUT_HEADER": ("fuse_out_header", 16),
}
# Members that mean nothing, by the header's ways of naming them.
UNUSED = re.compile(r"padding|dummy\d*|unused\d*|spare|__spare\d|reserved|__reserved")


def layout_of(name: str) -> Struct:
    found = getattr(structs, name, None) or getattr(protocol, name)
    assert isinstance(found, Struct)
    return found


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_header(name: str) -> None:
    assert layout_of(name).size == SIZES[name][1]


def test_every_structure_has_its_size_in_the_table() -> None:
    """What has none: parts of a structure, and combinations of several."""
    parts = {"INIT_IN", "INIT_IN_FLAGS2", "SETXATTR_IN_SHORT", "GROUPS_HEAD", "CREATE_OUT", "CLONE_ARGUMENT"}
    assert {name for name, value in vars(structs).items() if isinstance(value, Struct)} - parts <= set(SIZES)


def test_device_ioctls_are_those_of_the_macros() -> None:
    """`_IOR(229, 0, uint32_t)` and so on: direction, size of the argument, magic, number."""

    def ioctl(direction: int, number: int, size: int) -> int:
        return direction << 30 | size << 16 | 229 << 8 | number

    assert ioctl(2, 0, structs.CLONE_ARGUMENT.size) == protocol.DEV_IOC_CLONE
    assert ioctl(1, 1, structs.BACKING_MAP.size) == protocol.DEV_IOC_BACKING_OPEN
    assert ioctl(1, 2, 4) == protocol.DEV_IOC_BACKING_CLOSE
    assert ioctl(0, 3, 0) == protocol.DEV_IOC_SYNC_INIT


# --- the header of this machine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def header() -> str:
    if not HEADER.exists():
        pytest.skip("linux/fuse.h is not installed")
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)


def members(header: str, name: str) -> Iterator[tuple[int, int, bool]]:
    """(offset, bytes, whether it means something) of each member; the header pads by hand, so there are no holes."""
    match = re.search(rf"struct {name} {{(.*?)\n}};", header, flags=re.S)
    assert match, name
    at = 0
    for kind, member, count in re.findall(r"([\w ]+?)\s+(\w+)(?:\[(\d*)\])?;", match[1]):
        if "struct " in kind:
            inner = list(members(header, kind.split()[-1]))
            yield from ((at + offset, width, used) for offset, width, used in inner)
            at += sum(width for _, width, _ in inner)
            continue
        bits = re.search(r"\d+", kind)
        width = int(bits[0]) // 8 if bits else 1  # uint32_t, __u32, char
        for _ in range(int(count) if count else 0 if count == "" and member == "name" else 1):
            yield at, width, not UNUSED.fullmatch(member)
            at += width


def fields(layout: Struct) -> list[tuple[int, int]]:
    """(offset, bytes) of each field, without padding."""
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([A-Za-z])", layout.format):
        for _ in range(int(count or 1)):
            width = struct.calcsize("=" + code)
            if code != "x":
                found.append((at, width))
            at += width
    return found


def test_fields_lie_where_the_header_says(header: str) -> None:
    compared = 0
    for ours, (theirs, size) in SIZES.items():
        if f"struct {theirs} {{" not in header:
            continue  # a header older than the structure
        all_members = list(members(header, theirs))
        assert sum(width for _, width, _ in all_members) == size, theirs
        meant = [(at, width) for at, width, used in all_members if used]
        mine = fields(layout_of(ours))
        places = {(at, width) for at, width, _ in all_members}
        for field in meant:
            assert field in mine, (ours, field)
        for field in mine:  # a newer meaning of what was unused
            assert field in places or ours in {"INIT_OUT", "IN_HEADER"}, (ours, field)
        compared += 1
    assert compared > 50


def test_numbers_are_those_of_the_header(header: str) -> None:
    bits = {
        name: eval(value.replace("ULL", ""))
        for name, value in re.findall(r"#define (\w+)\s+(\(1(?:ULL)? << \d+\))", header)
    }
    codes = {name: int(value) for name, value in re.findall(r"(FUSE_\w+)\s*= (\d+),", header)}
    ours = {f"FUSE_{code.name}": code.value for code in Opcode} | {
        f"FUSE_NOTIFY_{code.name}": code.value for code in Notify
    }
    for name, value in codes.items():
        if name.endswith(("RESERVED", "CODE_MAX", "NR_SECCTX")) or name == "FUSE_EXT_GROUPS":
            continue
        assert ours[name] == value, name
    abilities = {name.removeprefix("FUSE_"): value for name, value in bits.items()}
    for ability in Init:
        assert abilities.get(ability.name or "", ability.value) == ability.value
    for prefix, enum in (("FATTR_", protocol.SetAttr), ("FOPEN_", protocol.OpenReply)):
        theirs = {name.removeprefix(prefix): value for name, value in bits.items() if name.startswith(prefix)}
        theirs = {name.replace("LOCKOWNER", "LOCK_OWNER"): value for name, value in theirs.items()}
        assert theirs.items() <= {flag.name: flag.value for flag in enum}.items()


# --- requests ---------------------------------------------------------------------------------------------------------------------


def frame(opcode: int, body: bytes = b"", *, extensions: bytes = b"", unique: int = 2) -> bytes:
    size = IN_HEADER_BYTES + len(body) + len(extensions)
    return IN_HEADER.pack(size, opcode, unique, 1, 10, 20, 30, len(extensions) // 8) + body + extensions


def recorded() -> list[bytes]:
    sessions = json.loads(RECORDING.read_text())["sessions"].values()
    return [bytes.fromhex(text) for session in sessions for step in session["steps"] for text in step["requests"]]


FRAMES = recorded()


def test_every_operation_has_a_least_length_and_a_decoder() -> None:
    assert set(BODY_BYTES_MIN) == set(Opcode)
    assert set(DECODERS) == set(Opcode) - {Opcode.SETXATTR}


@pytest.mark.parametrize("opcode", Opcode)
def test_the_least_length_is_enough_to_decode(opcode: Opcode) -> None:
    """What `check` lets pass has room for the fixed part: `unpack_from` in an operation cannot fail."""
    decode(frame(opcode, bytes(BODY_BYTES_MIN[opcode])), agreed=0)
    if BODY_BYTES_MIN[opcode]:
        with pytest.raises(ProtocolError) as refused:
            decode(frame(opcode, bytes(BODY_BYTES_MIN[opcode] - 1)), agreed=0)
        assert refused.value.unique == 2


def test_an_unknown_operation_passes() -> None:
    assert check(frame(99, b"whatever"), 48)[1] == 99
    assert check(frame(2**32 - 1), 40)[1] == 2**32 - 1


@pytest.mark.parametrize("cut", [0, 1, 16, 39])
def test_less_than_a_header_is_refused(cut: int) -> None:
    with pytest.raises(ProtocolError) as refused:
        check(frame(Opcode.STATFS), cut)
    assert refused.value.unique == 0


def test_a_length_that_was_not_read_is_refused() -> None:
    with pytest.raises(ProtocolError, match="says 48 bytes, but 47 were read"):
        check(frame(Opcode.ACCESS, bytes(8)), 47)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FRAMES), st.integers(0, 200))
def test_no_cut_of_a_request_does_more_than_be_refused(whole: bytes, cut: int) -> None:
    """The length in the header is mended, so that what is checked is the body."""
    short = whole[: min(cut, len(whole))]
    if len(short) >= IN_HEADER_BYTES:
        short = struct.pack("=I", len(short)) + short[4:]
    with suppress(ProtocolError):
        decode(short)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(FRAMES), st.lists(st.tuples(st.integers(4, 2000), st.integers(0, 255)), max_size=6), st.booleans()
)
def test_no_change_of_a_request_does_more_than_be_refused(
    whole: bytes, changes: list[tuple[int, int]], extended: bool
) -> None:
    changed = bytearray(whole)
    for at, value in changes:
        changed[4 + at % (len(changed) - 4)] = value
    with suppress(ProtocolError):
        decode(bytes(changed), Init.SETXATTR_EXT if extended else 0)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(list(Opcode)), st.binary(max_size=200), st.integers(0, 30))
def test_no_bytes_do_more_than_be_refused(opcode: Opcode, body: bytes, words: int) -> None:
    length = IN_HEADER_BYTES + len(body)
    with suppress(ProtocolError):
        decode(IN_HEADER.pack(length, opcode, 2, 1, 0, 0, 0, words) + body)


texts = st.binary(min_size=1, max_size=255).filter(lambda text: b"\0" not in text)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@given(texts, texts, u64, u32)
def test_names_come_out_as_they_went_in(one: bytes, other: bytes, parent: int, flags: int) -> None:
    tail = one + b"\0" + other + b"\0"
    assert requests.Symlink.parse(tail) == (one, other)
    assert requests.Rename.parse(structs.RENAME_IN.pack(parent) + tail) == (parent, 0, one, other)
    assert requests.Rename.parse2(structs.RENAME2_IN.pack(parent, flags) + tail) == (parent, flags, one, other)
    with pytest.raises(ProtocolError):
        requests.name(tail)
    with pytest.raises(ProtocolError):
        requests.names(tail[:-1])


@given(texts, st.binary(max_size=100), u32)
def test_both_forms_of_setxattr(name: bytes, value: bytes, flags: int) -> None:
    tail = name + b"\0" + value
    short, long = structs.SETXATTR_IN_SHORT.pack(len(value), flags), structs.SETXATTR_IN.pack(len(value), flags, 1)
    assert requests.Setxattr.parse(short + tail, 0) == (flags, 0, name, value)
    assert requests.Setxattr.parse(long + tail, Init.SETXATTR_EXT) == (flags, 1, name, value)
    with pytest.raises(ProtocolError):
        requests.Setxattr.parse(long + tail + b"x", Init.SETXATTR_EXT)


@given(st.lists(st.tuples(u64, u64), max_size=50))
def test_forgets(items: list[tuple[int, int]]) -> None:
    body = structs.BATCH_FORGET_IN.pack(len(items)) + b"".join(structs.FORGET_ONE.pack(*item) for item in items)
    assert requests.forgets(body) == items
    if items:
        with pytest.raises(ProtocolError):
            requests.forgets(body[:-1])


def padded(text: bytes) -> bytes:
    return text + bytes(-len(text) % 8)


@given(st.lists(st.tuples(texts, st.binary(max_size=40)), max_size=4), st.lists(u32, max_size=10), st.booleans())
def test_extensions(labels: list[tuple[bytes, bytes]], groups: list[int], unknown: bool) -> None:
    """`fuse_secctx_header` and its labels; `fuse_supp_groups`; and a type of some later kernel between them."""
    content = b"".join(structs.SECURITY_LABEL.pack(len(value)) + name + b"\0" + value for name, value in labels)
    tail = padded(structs.EXTENSION.pack(8 + len(content), len(labels)) + content)
    if unknown:
        tail += structs.EXTENSION.pack(16, 77) + bytes(8)
    listed = struct.pack(f"={1 + len(groups)}I", len(groups), *groups)
    tail += padded(structs.EXTENSION.pack(8 + len(listed), protocol.EXTENSION_GROUPS) + listed)
    assert Extensions.parse(tail) == (tuple(labels), tuple(groups))


# --- replies ----------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(u64, u64, st.integers(0, 15), texts), max_size=12))
def test_directory_entries_lie_on_multiples_of_eight(items: list[tuple[int, int, int, bytes]]) -> None:
    plain = b"".join(replies.pack_dirent(*item) for item in items)
    assert len(plain) == sum(replies.dirent_bytes(name) for *_, name in items)
    at, found = 0, []
    while at < len(plain):
        ino, offset, length, kind = structs.DIRENT.unpack_from(plain, at)
        found.append((ino, offset, kind, plain[at + 24 : at + 24 + length]))
        at += (24 + length + 7) & ~7  # FUSE_DIRENT_SIZE
    assert found == items
    plus = [replies.pack_direntplus(replies.NO_ENTRY, *item) for item in items]
    assert [len(one) for one in plus] == [replies.direntplus_bytes(name) for *_, name in items]
    assert b"".join(one[128:] for one in plus) == plain


def test_errors_and_data() -> None:
    assert replies.error(5, 2) == OUT_HEADER.pack(16, -2, 5)
    assert replies.data_header(5, 4096) == OUT_HEADER.pack(16 + 4096, 0, 5)
    assert replies.data_header(5) == OUT_HEADER.pack(16, 0, 5)


@pytest.mark.parametrize(
    ("sent", "code", "body"),
    [
        (replies.notify_inval_inode(9, 0, -1), 2, struct.pack("=Qqq", 9, 0, -1)),
        (replies.notify_inval_entry(1, b"name", 1), 3, struct.pack("=QII", 1, 4, 1) + b"name\0"),
        (replies.notify_retrieve(77, 9, 4096, 10), 5, struct.pack("=QQQII", 77, 9, 4096, 10, 0)),
        (replies.notify_delete(1, 9, b"name"), 6, struct.pack("=QQII", 1, 9, 4, 0) + b"name\0"),
        (replies.notify_poll(3), 1, struct.pack("=Q", 3)),
        (replies.notify_plain(Notify.RESEND), 7, b""),
        (replies.notify_plain(Notify.INC_EPOCH), 8, b""),
        (replies.notify_prune([4, 5]), 9, struct.pack("=IIQQQ", 2, 0, 0, 4, 5)),
        (replies.notify_store_header(9, 4096, 3) + b"abc", 4, struct.pack("=QQII", 9, 4096, 3, 0) + b"abc"),
    ],
    ids=lambda value: Notify(value).name if isinstance(value, int) else "",
)
def test_notifications(sent: bytes, code: int, body: bytes) -> None:
    assert OUT_HEADER.unpack_from(sent) == (len(sent), code, 0)
    assert sent[16:] == body


@given(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
def test_devices(major: int, minor: int) -> None:
    assert structs.decode_device(structs.encode_device(major, minor)) == (major, minor)


# --- negotiation ------------------------------------------------------------------------------------------------------------------


negotiate = partial(negotiation.negotiate, page_bytes=4096)


def agreed(reply: bytes) -> dict[str, int]:
    names = [
        "major",
        "minor",
        "max_readahead",
        "flags",
        "max_background",
        "congestion_threshold",
        "max_write",
        "time_gran",
        "max_pages",
    ]
    names += ["map_alignment", "flags2", "max_stack_depth", "request_timeout"]
    return dict(zip(names, structs.INIT_OUT.unpack(reply), strict=True))


ALL = (1 << 43) - 1


def test_what_a_new_kernel_is_told() -> None:
    agreement = negotiate(InitIn(7, 45, 131072, ALL), Wanted(max_write=1 << 20), max_pages_limit=256)
    told = agreed(agreement.reply)
    assert (told["major"], told["minor"], told["max_write"], told["max_pages"]) == (7, 45, 1 << 20, 256)
    assert told["flags"] | told["flags2"] << 32 == agreement.flags == negotiation.WANTED
    assert told["time_gran"] == 1
    assert agreement.buffer_bytes >= (1 << 20) + 4096
    assert not agreement.again


def test_requests_grow_no_longer_than_the_limit_of_the_machine() -> None:
    agreement = negotiate(InitIn(7, 45, 0, ALL), Wanted(max_write=4 << 20), max_pages_limit=256)
    assert (agreement.max_pages, agreement.max_write) == (256, 1 << 20)
    agreement = negotiate(InitIn(7, 45, 0, ALL), Wanted(max_write=4 << 20), max_pages_limit=2048)
    assert (agreement.max_pages, agreement.max_write) == (1024, 4 << 20)
    agreement = negotiate(InitIn(7, 45, 0, ALL & ~Init.MAX_PAGES), Wanted(), max_pages_limit=256)
    assert (agreement.max_write, agreed(agreement.reply)["max_pages"]) == (32 * 4096, 0)


def test_a_newer_major_is_asked_to_come_down() -> None:
    """ "If the kernel supports a larger major version, then userspace shall reply with the major version it supports, ignore the
    rest of the INIT message and expect a new INIT message from the kernel with a matching major version." """
    agreement = negotiate(InitIn.parse(struct.pack("=II", 8, 3)), Wanted(), max_pages_limit=256)
    assert agreement.again
    assert agreed(agreement.reply)["major"] == 7


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (7, 0), (6, 99)])
def test_an_old_kernel_is_refused_with_a_reason(major: int, minor: int) -> None:
    with pytest.raises(ProtocolError, match=rf"FUSE {major}\.{minor}: at least 7\.31"):
        negotiate(InitIn(major, minor, 0, ALL), Wanted(), max_pages_limit=256)


def test_a_newer_minor_is_answered_with_ours() -> None:
    assert agreed(negotiate(InitIn(7, 99, 0, ALL), Wanted()).reply)["minor"] == 45


def test_the_upper_half_needs_its_flag() -> None:
    old = struct.pack("=IIII", 7, 35, 4096, 0xFFFFFFFF & ~Init.INIT_EXT)
    kernel = InitIn.parse(old + bytes([255]) * 48)
    assert kernel.flags < 1 << 32
    assert agreed(negotiate(kernel, Wanted()).reply)["flags2"] == 0


@pytest.mark.parametrize(
    ("wanted", "offered", "minor", "without"),
    [
        (Init.EXPLICIT_INVAL_DATA | Init.AUTO_INVAL_DATA, ALL, 45, Init.AUTO_INVAL_DATA),
        (Init.EXPLICIT_INVAL_DATA | Init.AUTO_INVAL_DATA, Init.AUTO_INVAL_DATA, 45, Init.EXPLICIT_INVAL_DATA),
        (Init.READDIRPLUS_AUTO, ALL, 45, Init.READDIRPLUS_AUTO),
        (Init.HANDLE_KILLPRIV | Init.HANDLE_KILLPRIV_V2, ALL, 45, Init.HANDLE_KILLPRIV),
        (Init.WRITEBACK_CACHE | Init.PASSTHROUGH | Init.INIT_EXT, ALL, 45, Init.PASSTHROUGH),
        (Init.SECURITY_CTX | Init.INIT_EXT, ALL, 37, Init.SECURITY_CTX),
        (Init.SECURITY_CTX, ALL, 45, Init.SECURITY_CTX),
    ],
)
def test_abilities_that_exclude_each_other(wanted: Init, offered: int, minor: int, without: Init) -> None:
    assert settle(Init(offered), wanted, minor) == wanted & ~without


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=8, max_size=80), st.integers(0, ALL), st.integers(0, 1 << 24), st.integers(0, 5000))
def test_any_init_is_answered_or_refused(body: bytes, wanted: int, max_write: int, limit: int) -> None:
    kernel = InitIn.parse(body)
    try:
        agreement: Agreement = negotiate(
            InitIn(7, kernel.minor, *kernel[2:]), Wanted(Init(wanted), max_write=max_write), max_pages_limit=limit
        )
    except ProtocolError:
        return
    assert len(agreement.reply) == 64
    assert agreement.flags & ~wanted == 0
    assert agreement.flags & ~kernel.flags == 0
    assert agreement.max_write <= max(1, agreement.max_pages) * 4096
