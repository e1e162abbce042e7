from emberfs.proto.gen import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Purpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PURPOSE_CALLS: _ClassVar[Purpose]
    PURPOSE_REGION: _ClassVar[Purpose]
PURPOSE_CALLS: Purpose
PURPOSE_REGION: Purpose

class Hello(_message.Message):
    __slots__ = ("protocol", "cluster", "features", "client", "host", "nonce", "purpose", "region", "software")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    cluster: str
    features: int
    client: bytes
    host: str
    nonce: bytes
    purpose: Purpose
    region: RegionOffer
    software: str
    def __init__(self, protocol: _Optional[int] = ..., cluster: _Optional[str] = ..., features: _Optional[int] = ..., client: _Optional[bytes] = ..., host: _Optional[str] = ..., nonce: _Optional[bytes] = ..., purpose: _Optional[_Union[Purpose, str]] = ..., region: _Optional[_Union[RegionOffer, _Mapping]] = ..., software: _Optional[str] = ...) -> None: ...

class RegionOffer(_message.Message):
    __slots__ = ("id", "size", "sealed")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    id: int
    size: int
    sealed: bool
    def __init__(self, id: _Optional[int] = ..., size: _Optional[int] = ..., sealed: bool = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("protocol", "cluster", "features", "challenge", "proof", "host", "node", "software", "message_bytes_max", "bulk_bytes_max", "requests_in_flight_max", "process")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    BULK_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_IN_FLIGHT_MAX_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    cluster: str
    features: int
    challenge: bytes
    proof: bytes
    host: str
    node: int
    software: str
    message_bytes_max: int
    bulk_bytes_max: int
    requests_in_flight_max: int
    process: int
    def __init__(self, protocol: _Optional[int] = ..., cluster: _Optional[str] = ..., features: _Optional[int] = ..., challenge: _Optional[bytes] = ..., proof: _Optional[bytes] = ..., host: _Optional[str] = ..., node: _Optional[int] = ..., software: _Optional[str] = ..., message_bytes_max: _Optional[int] = ..., bulk_bytes_max: _Optional[int] = ..., requests_in_flight_max: _Optional[int] = ..., process: _Optional[int] = ...) -> None: ...

class HelloProof(_message.Message):
    __slots__ = ("proof", "identity")
    PROOF_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    proof: bytes
    identity: _common_pb2.Caller
    def __init__(self, proof: _Optional[bytes] = ..., identity: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("status", "message", "chain", "retry_after_ms", "primary")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    status: int
    message: str
    chain: _common_pb2.Chain
    retry_after_ms: int
    primary: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, status: _Optional[int] = ..., message: _Optional[str] = ..., chain: _Optional[_Union[_common_pb2.Chain, _Mapping]] = ..., retry_after_ms: _Optional[int] = ..., primary: _Optional[_Iterable[str]] = ...) -> None: ...

class Subscribe(_message.Message):
    __slots__ = ("subscription", "topic", "since")
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    subscription: int
    topic: str
    since: int
    def __init__(self, subscription: _Optional[int] = ..., topic: _Optional[str] = ..., since: _Optional[int] = ...) -> None: ...

class SubscribeReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Unsubscribe(_message.Message):
    __slots__ = ("subscription",)
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    subscription: int
    def __init__(self, subscription: _Optional[int] = ...) -> None: ...

class UnsubscribeReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Notice(_message.Message):
    __slots__ = ("subscription", "version", "resync", "body")
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESYNC_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    subscription: int
    version: int
    resync: bool
    body: bytes
    def __init__(self, subscription: _Optional[int] = ..., version: _Optional[int] = ..., resync: bool = ..., body: _Optional[bytes] = ...) -> None: ...

class RdmaConnect(_message.Message):
    __slots__ = ("queue",)
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    queue: RdmaQueue
    def __init__(self, queue: _Optional[_Union[RdmaQueue, _Mapping]] = ...) -> None: ...

class RdmaConnectReply(_message.Message):
    __slots__ = ("queue",)
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    queue: RdmaQueue
    def __init__(self, queue: _Optional[_Union[RdmaQueue, _Mapping]] = ...) -> None: ...

class RdmaQueue(_message.Message):
    __slots__ = ("number", "sequence", "gid", "lid", "infiniband", "mtu", "receives", "receive_bytes", "reads")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    LID_FIELD_NUMBER: _ClassVar[int]
    INFINIBAND_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    RECEIVES_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    number: int
    sequence: int
    gid: bytes
    lid: int
    infiniband: bool
    mtu: int
    receives: int
    receive_bytes: int
    reads: int
    def __init__(self, number: _Optional[int] = ..., sequence: _Optional[int] = ..., gid: _Optional[bytes] = ..., lid: _Optional[int] = ..., infiniband: bool = ..., mtu: _Optional[int] = ..., receives: _Optional[int] = ..., receive_bytes: _Optional[int] = ..., reads: _Optional[int] = ...) -> None: ...

class RdmaRegion(_message.Message):
    __slots__ = ("id", "address", "length", "window", "index", "key")
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    id: int
    address: int
    length: int
    window: int
    index: int
    key: int
    def __init__(self, id: _Optional[int] = ..., address: _Optional[int] = ..., length: _Optional[int] = ..., window: _Optional[int] = ..., index: _Optional[int] = ..., key: _Optional[int] = ...) -> None: ...

class RdmaWithdraw(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[_Iterable[int]] = ...) -> None: ...
