from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FileType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILE_TYPE_UNSPECIFIED: _ClassVar[FileType]
    FILE_TYPE_REGULAR: _ClassVar[FileType]
    FILE_TYPE_DIRECTORY: _ClassVar[FileType]
    FILE_TYPE_SYMLINK: _ClassVar[FileType]
    FILE_TYPE_FIFO: _ClassVar[FileType]
    FILE_TYPE_SOCKET: _ClassVar[FileType]
    FILE_TYPE_CHARACTER: _ClassVar[FileType]
    FILE_TYPE_BLOCK: _ClassVar[FileType]

class Redundancy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REDUNDANCY_REPLICATED: _ClassVar[Redundancy]

class TargetState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TARGET_STATE_UNSPECIFIED: _ClassVar[TargetState]
    TARGET_STATE_SERVING: _ClassVar[TargetState]
    TARGET_STATE_LASTSRV: _ClassVar[TargetState]
    TARGET_STATE_SYNCING: _ClassVar[TargetState]
    TARGET_STATE_WAITING: _ClassVar[TargetState]
    TARGET_STATE_OFFLINE: _ClassVar[TargetState]
FILE_TYPE_UNSPECIFIED: FileType
FILE_TYPE_REGULAR: FileType
FILE_TYPE_DIRECTORY: FileType
FILE_TYPE_SYMLINK: FileType
FILE_TYPE_FIFO: FileType
FILE_TYPE_SOCKET: FileType
FILE_TYPE_CHARACTER: FileType
FILE_TYPE_BLOCK: FileType
REDUNDANCY_REPLICATED: Redundancy
TARGET_STATE_UNSPECIFIED: TargetState
TARGET_STATE_SERVING: TargetState
TARGET_STATE_LASTSRV: TargetState
TARGET_STATE_SYNCING: TargetState
TARGET_STATE_WAITING: TargetState
TARGET_STATE_OFFLINE: TargetState

class Caller(_message.Message):
    __slots__ = ("uid", "gid", "groups")
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    uid: int
    gid: int
    groups: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, uid: _Optional[int] = ..., gid: _Optional[int] = ..., groups: _Optional[_Iterable[int]] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("redundancy", "chunk_size", "table", "table_version", "base", "stripe", "seed")
    REDUNDANCY_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    redundancy: Redundancy
    chunk_size: int
    table: int
    table_version: int
    base: int
    stripe: int
    seed: int
    def __init__(self, redundancy: _Optional[_Union[Redundancy, str]] = ..., chunk_size: _Optional[int] = ..., table: _Optional[int] = ..., table_version: _Optional[int] = ..., base: _Optional[int] = ..., stripe: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Attributes(_message.Message):
    __slots__ = ("inode", "type", "mode", "uid", "gid", "nlink", "length", "atime_ns", "mtime_ns", "ctime_ns", "birth_ns", "change", "truncate_version", "sparse", "rdev", "parent", "layout", "target", "extended", "inlined", "content")
    INODE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    NLINK_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    BIRTH_NS_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    RDEV_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    EXTENDED_FIELD_NUMBER: _ClassVar[int]
    INLINED_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    inode: int
    type: FileType
    mode: int
    uid: int
    gid: int
    nlink: int
    length: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    change: int
    truncate_version: int
    sparse: bool
    rdev: int
    parent: int
    layout: Layout
    target: bytes
    extended: bool
    inlined: bool
    content: bytes
    def __init__(self, inode: _Optional[int] = ..., type: _Optional[_Union[FileType, str]] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., nlink: _Optional[int] = ..., length: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., birth_ns: _Optional[int] = ..., change: _Optional[int] = ..., truncate_version: _Optional[int] = ..., sparse: bool = ..., rdev: _Optional[int] = ..., parent: _Optional[int] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., target: _Optional[bytes] = ..., extended: bool = ..., inlined: bool = ..., content: _Optional[bytes] = ...) -> None: ...

class ChainMember(_message.Message):
    __slots__ = ("target", "node", "state", "incarnation", "power_losses")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POWER_LOSSES_FIELD_NUMBER: _ClassVar[int]
    target: int
    node: int
    state: TargetState
    incarnation: int
    power_losses: int
    def __init__(self, target: _Optional[int] = ..., node: _Optional[int] = ..., state: _Optional[_Union[TargetState, str]] = ..., incarnation: _Optional[int] = ..., power_losses: _Optional[int] = ...) -> None: ...

class Chain(_message.Message):
    __slots__ = ("id", "version", "members", "losses")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    id: int
    version: int
    members: _containers.RepeatedCompositeFieldContainer[ChainMember]
    losses: int
    def __init__(self, id: _Optional[int] = ..., version: _Optional[int] = ..., members: _Optional[_Iterable[_Union[ChainMember, _Mapping]]] = ..., losses: _Optional[int] = ...) -> None: ...
