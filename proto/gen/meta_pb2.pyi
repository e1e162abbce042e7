from emberfs.proto.gen import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RemoveKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REMOVE_KIND_UNSPECIFIED: _ClassVar[RemoveKind]
    REMOVE_KIND_UNLINK: _ClassVar[RemoveKind]
    REMOVE_KIND_RMDIR: _ClassVar[RemoveKind]
    REMOVE_KIND_TREE: _ClassVar[RemoveKind]

class LockKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOCK_KIND_UNSPECIFIED: _ClassVar[LockKind]
    LOCK_KIND_FLOCK: _ClassVar[LockKind]
    LOCK_KIND_POSIX: _ClassVar[LockKind]

class LockType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOCK_TYPE_UNSPECIFIED: _ClassVar[LockType]
    LOCK_TYPE_SHARED: _ClassVar[LockType]
    LOCK_TYPE_EXCLUSIVE: _ClassVar[LockType]
    LOCK_TYPE_UNLOCK: _ClassVar[LockType]

class TokenAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKEN_ACTION_UNSPECIFIED: _ClassVar[TokenAction]
    TOKEN_ACTION_TAKE: _ClassVar[TokenAction]
    TOKEN_ACTION_GIVE: _ClassVar[TokenAction]

class QuotaKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUOTA_KIND_UNSPECIFIED: _ClassVar[QuotaKind]
    QUOTA_KIND_DIRECTORY: _ClassVar[QuotaKind]
    QUOTA_KIND_USER: _ClassVar[QuotaKind]
    QUOTA_KIND_GROUP: _ClassVar[QuotaKind]

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_CREATED: _ClassVar[EventKind]
    EVENT_KIND_REMOVED: _ClassVar[EventKind]
    EVENT_KIND_RENAMED: _ClassVar[EventKind]
    EVENT_KIND_LINKED: _ClassVar[EventKind]
    EVENT_KIND_CHANGED: _ClassVar[EventKind]
    EVENT_KIND_WRITTEN: _ClassVar[EventKind]
REMOVE_KIND_UNSPECIFIED: RemoveKind
REMOVE_KIND_UNLINK: RemoveKind
REMOVE_KIND_RMDIR: RemoveKind
REMOVE_KIND_TREE: RemoveKind
LOCK_KIND_UNSPECIFIED: LockKind
LOCK_KIND_FLOCK: LockKind
LOCK_KIND_POSIX: LockKind
LOCK_TYPE_UNSPECIFIED: LockType
LOCK_TYPE_SHARED: LockType
LOCK_TYPE_EXCLUSIVE: LockType
LOCK_TYPE_UNLOCK: LockType
TOKEN_ACTION_UNSPECIFIED: TokenAction
TOKEN_ACTION_TAKE: TokenAction
TOKEN_ACTION_GIVE: TokenAction
QUOTA_KIND_UNSPECIFIED: QuotaKind
QUOTA_KIND_DIRECTORY: QuotaKind
QUOTA_KIND_USER: QuotaKind
QUOTA_KIND_GROUP: QuotaKind
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_CREATED: EventKind
EVENT_KIND_REMOVED: EventKind
EVENT_KIND_RENAMED: EventKind
EVENT_KIND_LINKED: EventKind
EVENT_KIND_CHANGED: EventKind
EVENT_KIND_WRITTEN: EventKind

class Place(_message.Message):
    __slots__ = ("parent", "path")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    parent: int
    path: bytes
    def __init__(self, parent: _Optional[int] = ..., path: _Optional[bytes] = ...) -> None: ...

class StatRequest(_message.Message):
    __slots__ = ("caller", "places", "follow", "content", "lease")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    places: _containers.RepeatedCompositeFieldContainer[Place]
    follow: bool
    content: bool
    lease: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., places: _Optional[_Iterable[_Union[Place, _Mapping]]] = ..., follow: bool = ..., content: bool = ..., lease: bool = ...) -> None: ...

class StatReply(_message.Message):
    __slots__ = ("statuses", "attributes", "leased")
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedScalarFieldContainer[int]
    attributes: _containers.RepeatedCompositeFieldContainer[_common_pb2.Attributes]
    leased: bool
    def __init__(self, statuses: _Optional[_Iterable[int]] = ..., attributes: _Optional[_Iterable[_Union[_common_pb2.Attributes, _Mapping]]] = ..., leased: bool = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("caller", "request_id", "place", "flags", "mode", "chunk_size", "stripe", "parents", "unnamed", "capability", "umask", "ended", "lease")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    UNNAMED_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    UMASK_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    place: Place
    flags: int
    mode: int
    chunk_size: int
    stripe: int
    parents: bool
    unnamed: bool
    capability: bytes
    umask: int
    ended: EndedSessions
    lease: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., flags: _Optional[int] = ..., mode: _Optional[int] = ..., chunk_size: _Optional[int] = ..., stripe: _Optional[int] = ..., parents: bool = ..., unnamed: bool = ..., capability: _Optional[bytes] = ..., umask: _Optional[int] = ..., ended: _Optional[_Union[EndedSessions, _Mapping]] = ..., lease: bool = ...) -> None: ...

class EndedSessions(_message.Message):
    __slots__ = ("inodes", "sessions")
    INODES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    inodes: _containers.RepeatedScalarFieldContainer[int]
    sessions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, inodes: _Optional[_Iterable[int]] = ..., sessions: _Optional[_Iterable[int]] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("attributes", "created", "session", "capability", "capability_ms", "length_max", "inline_max", "atime_due", "leased")
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_MS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_MAX_FIELD_NUMBER: _ClassVar[int]
    INLINE_MAX_FIELD_NUMBER: _ClassVar[int]
    ATIME_DUE_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    created: bool
    session: int
    capability: bytes
    capability_ms: int
    length_max: int
    inline_max: int
    atime_due: bool
    leased: bool
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ..., created: bool = ..., session: _Optional[int] = ..., capability: _Optional[bytes] = ..., capability_ms: _Optional[int] = ..., length_max: _Optional[int] = ..., inline_max: _Optional[int] = ..., atime_due: bool = ..., leased: bool = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("request_id", "inode", "session", "written", "length", "truncate_version", "sparse", "mtime_ns", "discard", "token", "inlined", "reading", "ended", "times")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    INLINED_FIELD_NUMBER: _ClassVar[int]
    READING_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    inode: int
    session: int
    written: bool
    length: int
    truncate_version: int
    sparse: bool
    mtime_ns: int
    discard: bool
    token: bool
    inlined: InlineWrites
    reading: bool
    ended: EndedSessions
    times: TimesSet
    def __init__(self, request_id: _Optional[int] = ..., inode: _Optional[int] = ..., session: _Optional[int] = ..., written: bool = ..., length: _Optional[int] = ..., truncate_version: _Optional[int] = ..., sparse: bool = ..., mtime_ns: _Optional[int] = ..., discard: bool = ..., token: bool = ..., inlined: _Optional[_Union[InlineWrites, _Mapping]] = ..., reading: bool = ..., ended: _Optional[_Union[EndedSessions, _Mapping]] = ..., times: _Optional[_Union[TimesSet, _Mapping]] = ...) -> None: ...

class CloseReply(_message.Message):
    __slots__ = ("attributes", "length_max", "kept")
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_MAX_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    length_max: int
    kept: bool
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ..., length_max: _Optional[int] = ..., kept: bool = ...) -> None: ...

class SyncFileRequest(_message.Message):
    __slots__ = ("request_id", "inode", "session", "written", "length", "truncate_version", "sparse", "durable", "inlined", "mtime_ns", "times")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    INLINED_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    inode: int
    session: int
    written: bool
    length: int
    truncate_version: int
    sparse: bool
    durable: bool
    inlined: InlineWrites
    mtime_ns: int
    times: TimesSet
    def __init__(self, request_id: _Optional[int] = ..., inode: _Optional[int] = ..., session: _Optional[int] = ..., written: bool = ..., length: _Optional[int] = ..., truncate_version: _Optional[int] = ..., sparse: bool = ..., durable: bool = ..., inlined: _Optional[_Union[InlineWrites, _Mapping]] = ..., mtime_ns: _Optional[int] = ..., times: _Optional[_Union[TimesSet, _Mapping]] = ...) -> None: ...

class TimesSet(_message.Message):
    __slots__ = ("atime_ns", "mtime_ns", "ctime_ns", "alone")
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    alone: bool
    def __init__(self, atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., alone: bool = ...) -> None: ...

class SyncFileReply(_message.Message):
    __slots__ = ("attributes", "length_max")
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_MAX_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    length_max: int
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ..., length_max: _Optional[int] = ...) -> None: ...

class CreateRequest(_message.Message):
    __slots__ = ("caller", "request_id", "entries", "parents", "exist_ok", "umask", "lease")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    EXIST_OK_FIELD_NUMBER: _ClassVar[int]
    UMASK_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    entries: _containers.RepeatedCompositeFieldContainer[NewEntry]
    parents: bool
    exist_ok: bool
    umask: int
    lease: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[NewEntry, _Mapping]]] = ..., parents: bool = ..., exist_ok: bool = ..., umask: _Optional[int] = ..., lease: bool = ...) -> None: ...

class NewEntry(_message.Message):
    __slots__ = ("place", "type", "mode", "target", "rdev", "chunk_size", "stripe", "content")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    RDEV_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    place: Place
    type: _common_pb2.FileType
    mode: int
    target: bytes
    rdev: int
    chunk_size: int
    stripe: int
    content: bytes
    def __init__(self, place: _Optional[_Union[Place, _Mapping]] = ..., type: _Optional[_Union[_common_pb2.FileType, str]] = ..., mode: _Optional[int] = ..., target: _Optional[bytes] = ..., rdev: _Optional[int] = ..., chunk_size: _Optional[int] = ..., stripe: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class CreateReply(_message.Message):
    __slots__ = ("statuses", "attributes", "leased", "whole")
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedScalarFieldContainer[int]
    attributes: _containers.RepeatedCompositeFieldContainer[_common_pb2.Attributes]
    leased: bool
    whole: bool
    def __init__(self, statuses: _Optional[_Iterable[int]] = ..., attributes: _Optional[_Iterable[_Union[_common_pb2.Attributes, _Mapping]]] = ..., leased: bool = ..., whole: bool = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("caller", "request_id", "places", "kind", "forever")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FOREVER_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    places: _containers.RepeatedCompositeFieldContainer[Place]
    kind: RemoveKind
    forever: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., places: _Optional[_Iterable[_Union[Place, _Mapping]]] = ..., kind: _Optional[_Union[RemoveKind, str]] = ..., forever: bool = ...) -> None: ...

class RemoveReply(_message.Message):
    __slots__ = ("statuses", "attributes", "inodes", "at_ns")
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedScalarFieldContainer[int]
    attributes: _containers.RepeatedCompositeFieldContainer[_common_pb2.Attributes]
    inodes: _containers.RepeatedScalarFieldContainer[int]
    at_ns: int
    def __init__(self, statuses: _Optional[_Iterable[int]] = ..., attributes: _Optional[_Iterable[_Union[_common_pb2.Attributes, _Mapping]]] = ..., inodes: _Optional[_Iterable[int]] = ..., at_ns: _Optional[int] = ...) -> None: ...

class RenameRequest(_message.Message):
    __slots__ = ("caller", "request_id", "source", "target", "flags", "sources", "targets")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    source: Place
    target: Place
    flags: int
    sources: _containers.RepeatedCompositeFieldContainer[Place]
    targets: _containers.RepeatedCompositeFieldContainer[Place]
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., source: _Optional[_Union[Place, _Mapping]] = ..., target: _Optional[_Union[Place, _Mapping]] = ..., flags: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[Place, _Mapping]]] = ..., targets: _Optional[_Iterable[_Union[Place, _Mapping]]] = ...) -> None: ...

class RenameReply(_message.Message):
    __slots__ = ("attributes", "statuses", "replaced", "other")
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    statuses: _containers.RepeatedScalarFieldContainer[int]
    replaced: _common_pb2.Attributes
    other: int
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ..., statuses: _Optional[_Iterable[int]] = ..., replaced: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ..., other: _Optional[int] = ...) -> None: ...

class LinkRequest(_message.Message):
    __slots__ = ("caller", "request_id", "source", "target", "follow")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    source: Place
    target: Place
    follow: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., source: _Optional[_Union[Place, _Mapping]] = ..., target: _Optional[_Union[Place, _Mapping]] = ..., follow: bool = ...) -> None: ...

class LinkReply(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ...) -> None: ...

class SetAttributesRequest(_message.Message):
    __slots__ = ("caller", "request_id", "place", "follow", "mode", "uid", "gid", "atime_ns", "mtime_ns", "atime_now", "mtime_now", "chunk_size", "stripe", "trash", "settle")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    ATIME_NOW_FIELD_NUMBER: _ClassVar[int]
    MTIME_NOW_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    TRASH_FIELD_NUMBER: _ClassVar[int]
    SETTLE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    place: Place
    follow: bool
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    atime_now: bool
    mtime_now: bool
    chunk_size: int
    stripe: int
    trash: int
    settle: SyncFileRequest
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., follow: bool = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., atime_now: bool = ..., mtime_now: bool = ..., chunk_size: _Optional[int] = ..., stripe: _Optional[int] = ..., trash: _Optional[int] = ..., settle: _Optional[_Union[SyncFileRequest, _Mapping]] = ...) -> None: ...

class SetAttributesReply(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ...) -> None: ...

class TruncateRequest(_message.Message):
    __slots__ = ("caller", "request_id", "place", "length", "session")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    place: Place
    length: int
    session: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., length: _Optional[int] = ..., session: _Optional[int] = ...) -> None: ...

class TruncateReply(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ...) -> None: ...

class ReadDirectoryRequest(_message.Message):
    __slots__ = ("caller", "place", "cookie", "entries_max", "attributes", "lease")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_MAX_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    place: Place
    cookie: bytes
    entries_max: int
    attributes: bool
    lease: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., cookie: _Optional[bytes] = ..., entries_max: _Optional[int] = ..., attributes: bool = ..., lease: bool = ...) -> None: ...

class ReadDirectoryReply(_message.Message):
    __slots__ = ("names", "inodes", "types", "attributes", "cookie", "end", "directory", "leased")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[bytes]
    inodes: _containers.RepeatedScalarFieldContainer[int]
    types: _containers.RepeatedScalarFieldContainer[_common_pb2.FileType]
    attributes: _containers.RepeatedCompositeFieldContainer[_common_pb2.Attributes]
    cookie: bytes
    end: bool
    directory: _common_pb2.Attributes
    leased: bool
    def __init__(self, names: _Optional[_Iterable[bytes]] = ..., inodes: _Optional[_Iterable[int]] = ..., types: _Optional[_Iterable[_Union[_common_pb2.FileType, str]]] = ..., attributes: _Optional[_Iterable[_Union[_common_pb2.Attributes, _Mapping]]] = ..., cookie: _Optional[bytes] = ..., end: bool = ..., directory: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ..., leased: bool = ...) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("caller", "place", "depth_max", "cookie", "entries_max")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    DEPTH_MAX_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_MAX_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    place: Place
    depth_max: int
    cookie: bytes
    entries_max: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., depth_max: _Optional[int] = ..., cookie: _Optional[bytes] = ..., entries_max: _Optional[int] = ...) -> None: ...

class FindReply(_message.Message):
    __slots__ = ("paths", "attributes", "cookie", "end", "denied")
    PATHS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    DENIED_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedScalarFieldContainer[bytes]
    attributes: _containers.RepeatedCompositeFieldContainer[_common_pb2.Attributes]
    cookie: bytes
    end: bool
    denied: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, paths: _Optional[_Iterable[bytes]] = ..., attributes: _Optional[_Iterable[_Union[_common_pb2.Attributes, _Mapping]]] = ..., cookie: _Optional[bytes] = ..., end: bool = ..., denied: _Optional[_Iterable[bytes]] = ...) -> None: ...

class StatFsRequest(_message.Message):
    __slots__ = ("caller",)
    CALLER_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ...) -> None: ...

class StatFsReply(_message.Message):
    __slots__ = ("bytes_total", "bytes_free", "inodes_used", "name_bytes_max")
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_FREE_FIELD_NUMBER: _ClassVar[int]
    INODES_USED_FIELD_NUMBER: _ClassVar[int]
    NAME_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    bytes_total: int
    bytes_free: int
    inodes_used: int
    name_bytes_max: int
    def __init__(self, bytes_total: _Optional[int] = ..., bytes_free: _Optional[int] = ..., inodes_used: _Optional[int] = ..., name_bytes_max: _Optional[int] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("caller", "request_id", "inodes", "targets", "exclusive")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    inodes: _containers.RepeatedScalarFieldContainer[int]
    targets: _containers.RepeatedCompositeFieldContainer[Place]
    exclusive: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., inodes: _Optional[_Iterable[int]] = ..., targets: _Optional[_Iterable[_Union[Place, _Mapping]]] = ..., exclusive: bool = ...) -> None: ...

class PublishReply(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _containers.RepeatedCompositeFieldContainer[_common_pb2.Attributes]
    def __init__(self, attributes: _Optional[_Iterable[_Union[_common_pb2.Attributes, _Mapping]]] = ...) -> None: ...

class SyncNamespaceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SyncNamespaceReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloneFileRequest(_message.Message):
    __slots__ = ("caller", "request_id", "source", "target", "session", "keep_layout")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    KEEP_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    source: int
    target: int
    session: int
    keep_layout: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., source: _Optional[int] = ..., target: _Optional[int] = ..., session: _Optional[int] = ..., keep_layout: bool = ...) -> None: ...

class CloneFileReply(_message.Message):
    __slots__ = ("shares", "source", "target")
    SHARES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    shares: bool
    source: _common_pb2.Attributes
    target: _common_pb2.Attributes
    def __init__(self, shares: bool = ..., source: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ..., target: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ...) -> None: ...

class AllocateRequest(_message.Message):
    __slots__ = ("caller", "request_id", "inode", "session", "mode", "offset", "length")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    inode: int
    session: int
    mode: int
    offset: int
    length: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., inode: _Optional[int] = ..., session: _Optional[int] = ..., mode: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class AllocateReply(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ...) -> None: ...

class GetXattrRequest(_message.Message):
    __slots__ = ("caller", "place", "follow", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    place: Place
    follow: bool
    name: bytes
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., follow: bool = ..., name: _Optional[bytes] = ...) -> None: ...

class GetXattrReply(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    def __init__(self, value: _Optional[bytes] = ...) -> None: ...

class ListXattrsRequest(_message.Message):
    __slots__ = ("caller", "place", "follow")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    place: Place
    follow: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., follow: bool = ...) -> None: ...

class ListXattrsReply(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, names: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SetXattrRequest(_message.Message):
    __slots__ = ("caller", "request_id", "place", "follow", "name", "value", "flags")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    place: Place
    follow: bool
    name: bytes
    value: bytes
    flags: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., follow: bool = ..., name: _Optional[bytes] = ..., value: _Optional[bytes] = ..., flags: _Optional[int] = ...) -> None: ...

class SetXattrReply(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ...) -> None: ...

class RemoveXattrRequest(_message.Message):
    __slots__ = ("caller", "request_id", "place", "follow", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    place: Place
    follow: bool
    name: bytes
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., follow: bool = ..., name: _Optional[bytes] = ...) -> None: ...

class RemoveXattrReply(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ...) -> None: ...

class AccessRequest(_message.Message):
    __slots__ = ("caller", "place", "follow", "mask")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    place: Place
    follow: bool
    mask: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., follow: bool = ..., mask: _Optional[int] = ...) -> None: ...

class AccessReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LockRequest(_message.Message):
    __slots__ = ("caller", "request_id", "inode", "kind", "type", "owner", "start", "length", "pid", "number", "withdraw", "capability", "wait", "recalled")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    RECALLED_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    inode: int
    kind: LockKind
    type: LockType
    owner: int
    start: int
    length: int
    pid: int
    number: int
    withdraw: int
    capability: bytes
    wait: bool
    recalled: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., inode: _Optional[int] = ..., kind: _Optional[_Union[LockKind, str]] = ..., type: _Optional[_Union[LockType, str]] = ..., owner: _Optional[int] = ..., start: _Optional[int] = ..., length: _Optional[int] = ..., pid: _Optional[int] = ..., number: _Optional[int] = ..., withdraw: _Optional[int] = ..., capability: _Optional[bytes] = ..., wait: bool = ..., recalled: bool = ...) -> None: ...

class LockReply(_message.Message):
    __slots__ = ("attributes", "waiting")
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    waiting: bool
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ..., waiting: bool = ...) -> None: ...

class TestLockRequest(_message.Message):
    __slots__ = ("caller", "inode", "kind", "type", "owner", "start", "length")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    inode: int
    kind: LockKind
    type: LockType
    owner: int
    start: int
    length: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., kind: _Optional[_Union[LockKind, str]] = ..., type: _Optional[_Union[LockType, str]] = ..., owner: _Optional[int] = ..., start: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class TestLockReply(_message.Message):
    __slots__ = ("type", "start", "length", "pid", "owner")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    type: LockType
    start: int
    length: int
    pid: int
    owner: int
    def __init__(self, type: _Optional[_Union[LockType, str]] = ..., start: _Optional[int] = ..., length: _Optional[int] = ..., pid: _Optional[int] = ..., owner: _Optional[int] = ...) -> None: ...

class AppendRequest(_message.Message):
    __slots__ = ("request_id", "inode", "session", "action", "written", "length", "truncate_version", "sparse")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    inode: int
    session: int
    action: TokenAction
    written: bool
    length: int
    truncate_version: int
    sparse: bool
    def __init__(self, request_id: _Optional[int] = ..., inode: _Optional[int] = ..., session: _Optional[int] = ..., action: _Optional[_Union[TokenAction, str]] = ..., written: bool = ..., length: _Optional[int] = ..., truncate_version: _Optional[int] = ..., sparse: bool = ...) -> None: ...

class AppendReply(_message.Message):
    __slots__ = ("attributes", "waiting")
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    waiting: bool
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ..., waiting: bool = ...) -> None: ...

class WatchTokensRequest(_message.Message):
    __slots__ = ("inodes",)
    INODES_FIELD_NUMBER: _ClassVar[int]
    inodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, inodes: _Optional[_Iterable[int]] = ...) -> None: ...

class WatchTokensReply(_message.Message):
    __slots__ = ("wanted",)
    WANTED_FIELD_NUMBER: _ClassVar[int]
    wanted: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, wanted: _Optional[_Iterable[int]] = ...) -> None: ...

class TrashEntry(_message.Message):
    __slots__ = ("expires", "inode", "parent", "name", "removed_ns", "remover", "attributes", "path")
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NS_FIELD_NUMBER: _ClassVar[int]
    REMOVER_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    expires: int
    inode: int
    parent: int
    name: bytes
    removed_ns: int
    remover: int
    attributes: _common_pb2.Attributes
    path: bytes
    def __init__(self, expires: _Optional[int] = ..., inode: _Optional[int] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., removed_ns: _Optional[int] = ..., remover: _Optional[int] = ..., attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ..., path: _Optional[bytes] = ...) -> None: ...

class ListTrashRequest(_message.Message):
    __slots__ = ("caller", "cookie", "entries_max")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_MAX_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    cookie: bytes
    entries_max: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., cookie: _Optional[bytes] = ..., entries_max: _Optional[int] = ...) -> None: ...

class ListTrashReply(_message.Message):
    __slots__ = ("entries", "cookie", "end")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[TrashEntry]
    cookie: bytes
    end: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[TrashEntry, _Mapping]]] = ..., cookie: _Optional[bytes] = ..., end: bool = ...) -> None: ...

class RestoreTrashRequest(_message.Message):
    __slots__ = ("caller", "request_id", "expires", "inode", "target")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    expires: int
    inode: int
    target: Place
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., expires: _Optional[int] = ..., inode: _Optional[int] = ..., target: _Optional[_Union[Place, _Mapping]] = ...) -> None: ...

class RestoreTrashReply(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ...) -> None: ...

class PurgeTrashRequest(_message.Message):
    __slots__ = ("caller", "request_id", "expires", "inodes")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    expires: _containers.RepeatedScalarFieldContainer[int]
    inodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., expires: _Optional[_Iterable[int]] = ..., inodes: _Optional[_Iterable[int]] = ...) -> None: ...

class PurgeTrashReply(_message.Message):
    __slots__ = ("statuses",)
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, statuses: _Optional[_Iterable[int]] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("kind", "id", "bytes_max", "inodes_max", "bytes_used", "inodes_used", "counting", "path")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    INODES_MAX_FIELD_NUMBER: _ClassVar[int]
    BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    INODES_USED_FIELD_NUMBER: _ClassVar[int]
    COUNTING_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    kind: QuotaKind
    id: int
    bytes_max: int
    inodes_max: int
    bytes_used: int
    inodes_used: int
    counting: bool
    path: bytes
    def __init__(self, kind: _Optional[_Union[QuotaKind, str]] = ..., id: _Optional[int] = ..., bytes_max: _Optional[int] = ..., inodes_max: _Optional[int] = ..., bytes_used: _Optional[int] = ..., inodes_used: _Optional[int] = ..., counting: bool = ..., path: _Optional[bytes] = ...) -> None: ...

class SetQuotaRequest(_message.Message):
    __slots__ = ("caller", "request_id", "kind", "id", "place", "bytes_max", "inodes_max", "remove")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    INODES_MAX_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    kind: QuotaKind
    id: int
    place: Place
    bytes_max: int
    inodes_max: int
    remove: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., kind: _Optional[_Union[QuotaKind, str]] = ..., id: _Optional[int] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., bytes_max: _Optional[int] = ..., inodes_max: _Optional[int] = ..., remove: bool = ...) -> None: ...

class SetQuotaReply(_message.Message):
    __slots__ = ("quota",)
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    quota: Quota
    def __init__(self, quota: _Optional[_Union[Quota, _Mapping]] = ...) -> None: ...

class ListQuotasRequest(_message.Message):
    __slots__ = ("caller",)
    CALLER_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ...) -> None: ...

class ListQuotasReply(_message.Message):
    __slots__ = ("quotas",)
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    def __init__(self, quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ...) -> None: ...

class GrowRequest(_message.Message):
    __slots__ = ("request_id", "inode", "session")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    inode: int
    session: int
    def __init__(self, request_id: _Optional[int] = ..., inode: _Optional[int] = ..., session: _Optional[int] = ...) -> None: ...

class GrowReply(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _common_pb2.Attributes
    def __init__(self, attributes: _Optional[_Union[_common_pb2.Attributes, _Mapping]] = ...) -> None: ...

class InlineWrites(_message.Message):
    __slots__ = ("offsets", "pieces")
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    offsets: _containers.RepeatedScalarFieldContainer[int]
    pieces: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, offsets: _Optional[_Iterable[int]] = ..., pieces: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ReadTimesRequest(_message.Message):
    __slots__ = ("caller", "request_id", "inodes")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    request_id: int
    inodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., request_id: _Optional[int] = ..., inodes: _Optional[_Iterable[int]] = ...) -> None: ...

class ReadTimesReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Event(_message.Message):
    __slots__ = ("kind", "inode", "time_ns", "path", "target")
    KIND_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    kind: EventKind
    inode: int
    time_ns: int
    path: bytes
    target: bytes
    def __init__(self, kind: _Optional[_Union[EventKind, str]] = ..., inode: _Optional[int] = ..., time_ns: _Optional[int] = ..., path: _Optional[bytes] = ..., target: _Optional[bytes] = ...) -> None: ...

class ReadEventsRequest(_message.Message):
    __slots__ = ("caller", "place", "cookie", "entries_max", "wait_ms")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_MAX_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    place: Place
    cookie: bytes
    entries_max: int
    wait_ms: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., cookie: _Optional[bytes] = ..., entries_max: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class ReadEventsReply(_message.Message):
    __slots__ = ("events", "cookie", "lost")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    cookie: bytes
    lost: bool
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., cookie: _Optional[bytes] = ..., lost: bool = ...) -> None: ...

class SettleSessionsRequest(_message.Message):
    __slots__ = ("keep",)
    KEEP_FIELD_NUMBER: _ClassVar[int]
    keep: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, keep: _Optional[_Iterable[int]] = ...) -> None: ...

class SettleSessionsReply(_message.Message):
    __slots__ = ("settled",)
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    settled: int
    def __init__(self, settled: _Optional[int] = ...) -> None: ...

class WatchLeasesRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: int
    def __init__(self, session: _Optional[int] = ...) -> None: ...

class WatchLeasesReply(_message.Message):
    __slots__ = ("granting", "fresh", "everything", "changed", "dropped", "locks")
    GRANTING_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    EVERYTHING_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    LOCKS_FIELD_NUMBER: _ClassVar[int]
    granting: bool
    fresh: bool
    everything: bool
    changed: EndedLeases
    dropped: EndedLeases
    locks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, granting: bool = ..., fresh: bool = ..., everything: bool = ..., changed: _Optional[_Union[EndedLeases, _Mapping]] = ..., dropped: _Optional[_Union[EndedLeases, _Mapping]] = ..., locks: _Optional[_Iterable[int]] = ...) -> None: ...

class EndedLeases(_message.Message):
    __slots__ = ("inodes", "directories", "names")
    INODES_FIELD_NUMBER: _ClassVar[int]
    DIRECTORIES_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    inodes: _containers.RepeatedScalarFieldContainer[int]
    directories: _containers.RepeatedScalarFieldContainer[int]
    names: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, inodes: _Optional[_Iterable[int]] = ..., directories: _Optional[_Iterable[int]] = ..., names: _Optional[_Iterable[bytes]] = ...) -> None: ...
