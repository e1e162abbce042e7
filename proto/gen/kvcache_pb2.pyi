from emberfs.proto.gen import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MatchRequest(_message.Message):
    __slots__ = ("namespace", "chain", "chain_version", "count", "keys", "lease_ms")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    namespace: int
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    count: _containers.RepeatedScalarFieldContainer[int]
    keys: bytes
    lease_ms: int
    def __init__(self, namespace: _Optional[int] = ..., chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., count: _Optional[_Iterable[int]] = ..., keys: _Optional[bytes] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class MatchReply(_message.Message):
    __slots__ = ("run_status", "present", "length", "lease", "chains")
    RUN_STATUS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    run_status: _containers.RepeatedScalarFieldContainer[int]
    present: bytes
    length: _containers.RepeatedScalarFieldContainer[int]
    lease: int
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, run_status: _Optional[_Iterable[int]] = ..., present: _Optional[bytes] = ..., length: _Optional[_Iterable[int]] = ..., lease: _Optional[int] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("namespace", "chain", "chain_version", "count", "keys", "length", "offset", "generation")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    namespace: int
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    count: _containers.RepeatedScalarFieldContainer[int]
    keys: bytes
    length: _containers.RepeatedScalarFieldContainer[int]
    offset: _containers.RepeatedScalarFieldContainer[int]
    generation: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, namespace: _Optional[int] = ..., chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., count: _Optional[_Iterable[int]] = ..., keys: _Optional[bytes] = ..., length: _Optional[_Iterable[int]] = ..., offset: _Optional[_Iterable[int]] = ..., generation: _Optional[_Iterable[int]] = ...) -> None: ...

class GetReply(_message.Message):
    __slots__ = ("status", "generation", "checksum", "checksums", "unit", "length", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    generation: _containers.RepeatedScalarFieldContainer[int]
    checksum: _containers.RepeatedScalarFieldContainer[int]
    checksums: _containers.RepeatedScalarFieldContainer[int]
    unit: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., generation: _Optional[_Iterable[int]] = ..., checksum: _Optional[_Iterable[int]] = ..., checksums: _Optional[_Iterable[int]] = ..., unit: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ("namespace", "chain", "chain_version", "count", "keys", "length", "checksum", "depth", "ttl_s", "pin_s", "durable", "skip")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    PIN_S_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    namespace: int
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    count: _containers.RepeatedScalarFieldContainer[int]
    keys: bytes
    length: _containers.RepeatedScalarFieldContainer[int]
    checksum: _containers.RepeatedScalarFieldContainer[int]
    depth: _containers.RepeatedScalarFieldContainer[int]
    ttl_s: _containers.RepeatedScalarFieldContainer[int]
    pin_s: int
    durable: bool
    skip: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, namespace: _Optional[int] = ..., chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., count: _Optional[_Iterable[int]] = ..., keys: _Optional[bytes] = ..., length: _Optional[_Iterable[int]] = ..., checksum: _Optional[_Iterable[int]] = ..., depth: _Optional[_Iterable[int]] = ..., ttl_s: _Optional[_Iterable[int]] = ..., pin_s: _Optional[int] = ..., durable: bool = ..., skip: _Optional[_Iterable[bool]] = ...) -> None: ...

class PutReply(_message.Message):
    __slots__ = ("status", "generation", "existed", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    generation: _containers.RepeatedScalarFieldContainer[int]
    existed: bytes
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., generation: _Optional[_Iterable[int]] = ..., existed: _Optional[bytes] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class TouchRequest(_message.Message):
    __slots__ = ("namespace", "chain", "chain_version", "count", "keys", "action", "seconds", "lease_ms", "lease")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TOUCH: _ClassVar[TouchRequest.Action]
        PIN: _ClassVar[TouchRequest.Action]
        UNPIN: _ClassVar[TouchRequest.Action]
        TTL: _ClassVar[TouchRequest.Action]
        RENEW: _ClassVar[TouchRequest.Action]
        RELEASE: _ClassVar[TouchRequest.Action]
        PREFETCH: _ClassVar[TouchRequest.Action]
    TOUCH: TouchRequest.Action
    PIN: TouchRequest.Action
    UNPIN: TouchRequest.Action
    TTL: TouchRequest.Action
    RENEW: TouchRequest.Action
    RELEASE: TouchRequest.Action
    PREFETCH: TouchRequest.Action
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    namespace: int
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    count: _containers.RepeatedScalarFieldContainer[int]
    keys: bytes
    action: TouchRequest.Action
    seconds: int
    lease_ms: int
    lease: int
    def __init__(self, namespace: _Optional[int] = ..., chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., count: _Optional[_Iterable[int]] = ..., keys: _Optional[bytes] = ..., action: _Optional[_Union[TouchRequest.Action, str]] = ..., seconds: _Optional[int] = ..., lease_ms: _Optional[int] = ..., lease: _Optional[int] = ...) -> None: ...

class TouchReply(_message.Message):
    __slots__ = ("status", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("namespace", "chain", "chain_version", "count", "keys", "everything")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    EVERYTHING_FIELD_NUMBER: _ClassVar[int]
    namespace: int
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    count: _containers.RepeatedScalarFieldContainer[int]
    keys: bytes
    everything: bool
    def __init__(self, namespace: _Optional[int] = ..., chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., count: _Optional[_Iterable[int]] = ..., keys: _Optional[bytes] = ..., everything: bool = ...) -> None: ...

class DeleteReply(_message.Message):
    __slots__ = ("status", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class ListBlocksRequest(_message.Message):
    __slots__ = ("namespace", "chain", "chain_version", "after", "blocks_max")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_MAX_FIELD_NUMBER: _ClassVar[int]
    namespace: int
    chain: int
    chain_version: int
    after: bytes
    blocks_max: int
    def __init__(self, namespace: _Optional[int] = ..., chain: _Optional[int] = ..., chain_version: _Optional[int] = ..., after: _Optional[bytes] = ..., blocks_max: _Optional[int] = ...) -> None: ...

class ListBlocksReply(_message.Message):
    __slots__ = ("keys", "length", "generation", "depth", "ttl_s", "pinned", "more", "chains")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    length: _containers.RepeatedScalarFieldContainer[int]
    generation: _containers.RepeatedScalarFieldContainer[int]
    depth: _containers.RepeatedScalarFieldContainer[int]
    ttl_s: _containers.RepeatedScalarFieldContainer[int]
    pinned: _containers.RepeatedScalarFieldContainer[bool]
    more: bool
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, keys: _Optional[bytes] = ..., length: _Optional[_Iterable[int]] = ..., generation: _Optional[_Iterable[int]] = ..., depth: _Optional[_Iterable[int]] = ..., ttl_s: _Optional[_Iterable[int]] = ..., pinned: _Optional[_Iterable[bool]] = ..., more: bool = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class UsageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UsageReply(_message.Message):
    __slots__ = ("namespace", "blocks", "bytes", "pinned_bytes", "hits", "misses", "puts", "puts_existing", "puts_refused", "evictions", "expired", "bytes_read", "bytes_written", "capacity", "used", "memory_budget", "memory_used")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    PUTS_FIELD_NUMBER: _ClassVar[int]
    PUTS_EXISTING_FIELD_NUMBER: _ClassVar[int]
    PUTS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BUDGET_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_FIELD_NUMBER: _ClassVar[int]
    namespace: _containers.RepeatedScalarFieldContainer[int]
    blocks: _containers.RepeatedScalarFieldContainer[int]
    bytes: _containers.RepeatedScalarFieldContainer[int]
    pinned_bytes: _containers.RepeatedScalarFieldContainer[int]
    hits: _containers.RepeatedScalarFieldContainer[int]
    misses: _containers.RepeatedScalarFieldContainer[int]
    puts: _containers.RepeatedScalarFieldContainer[int]
    puts_existing: _containers.RepeatedScalarFieldContainer[int]
    puts_refused: _containers.RepeatedScalarFieldContainer[int]
    evictions: _containers.RepeatedScalarFieldContainer[int]
    expired: _containers.RepeatedScalarFieldContainer[int]
    bytes_read: _containers.RepeatedScalarFieldContainer[int]
    bytes_written: _containers.RepeatedScalarFieldContainer[int]
    capacity: int
    used: int
    memory_budget: int
    memory_used: int
    def __init__(self, namespace: _Optional[_Iterable[int]] = ..., blocks: _Optional[_Iterable[int]] = ..., bytes: _Optional[_Iterable[int]] = ..., pinned_bytes: _Optional[_Iterable[int]] = ..., hits: _Optional[_Iterable[int]] = ..., misses: _Optional[_Iterable[int]] = ..., puts: _Optional[_Iterable[int]] = ..., puts_existing: _Optional[_Iterable[int]] = ..., puts_refused: _Optional[_Iterable[int]] = ..., evictions: _Optional[_Iterable[int]] = ..., expired: _Optional[_Iterable[int]] = ..., bytes_read: _Optional[_Iterable[int]] = ..., bytes_written: _Optional[_Iterable[int]] = ..., capacity: _Optional[int] = ..., used: _Optional[int] = ..., memory_budget: _Optional[int] = ..., memory_used: _Optional[int] = ...) -> None: ...

class BlockEventsRequest(_message.Message):
    __slots__ = ("namespace", "after")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    namespace: int
    after: int
    def __init__(self, namespace: _Optional[int] = ..., after: _Optional[int] = ...) -> None: ...

class BlockEventsReply(_message.Message):
    __slots__ = ("last", "keys", "stored", "depth", "lost")
    LAST_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    last: int
    keys: bytes
    stored: bytes
    depth: _containers.RepeatedScalarFieldContainer[int]
    lost: bool
    def __init__(self, last: _Optional[int] = ..., keys: _Optional[bytes] = ..., stored: _Optional[bytes] = ..., depth: _Optional[_Iterable[int]] = ..., lost: bool = ...) -> None: ...
