from emberfs.proto.gen import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReadRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "inode", "index", "offset", "length", "capabilities", "capability", "tenant", "version")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    inode: _containers.RepeatedScalarFieldContainer[int]
    index: _containers.RepeatedScalarFieldContainer[int]
    offset: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    capabilities: _containers.RepeatedScalarFieldContainer[bytes]
    capability: _containers.RepeatedScalarFieldContainer[int]
    tenant: int
    version: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., inode: _Optional[_Iterable[int]] = ..., index: _Optional[_Iterable[int]] = ..., offset: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., capabilities: _Optional[_Iterable[bytes]] = ..., capability: _Optional[_Iterable[int]] = ..., tenant: _Optional[int] = ..., version: _Optional[_Iterable[int]] = ...) -> None: ...

class ReadReply(_message.Message):
    __slots__ = ("status", "returned", "checksums", "checksum", "unit", "commit_version", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    returned: _containers.RepeatedScalarFieldContainer[int]
    checksums: _containers.RepeatedScalarFieldContainer[int]
    checksum: _containers.RepeatedScalarFieldContainer[int]
    unit: _containers.RepeatedScalarFieldContainer[int]
    commit_version: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., returned: _Optional[_Iterable[int]] = ..., checksums: _Optional[_Iterable[int]] = ..., checksum: _Optional[_Iterable[int]] = ..., unit: _Optional[_Iterable[int]] = ..., commit_version: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "inode", "index", "offset", "length", "checksum", "channel", "sequence", "truncate_version", "chunk_size", "capabilities", "capability", "tenant", "client", "sync")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    inode: _containers.RepeatedScalarFieldContainer[int]
    index: _containers.RepeatedScalarFieldContainer[int]
    offset: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    checksum: _containers.RepeatedScalarFieldContainer[int]
    channel: _containers.RepeatedScalarFieldContainer[int]
    sequence: _containers.RepeatedScalarFieldContainer[int]
    truncate_version: _containers.RepeatedScalarFieldContainer[int]
    chunk_size: _containers.RepeatedScalarFieldContainer[int]
    capabilities: _containers.RepeatedScalarFieldContainer[bytes]
    capability: _containers.RepeatedScalarFieldContainer[int]
    tenant: int
    client: bytes
    sync: bool
    def __init__(self, chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., inode: _Optional[_Iterable[int]] = ..., index: _Optional[_Iterable[int]] = ..., offset: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., checksum: _Optional[_Iterable[int]] = ..., channel: _Optional[_Iterable[int]] = ..., sequence: _Optional[_Iterable[int]] = ..., truncate_version: _Optional[_Iterable[int]] = ..., chunk_size: _Optional[_Iterable[int]] = ..., capabilities: _Optional[_Iterable[bytes]] = ..., capability: _Optional[_Iterable[int]] = ..., tenant: _Optional[int] = ..., client: _Optional[bytes] = ..., sync: bool = ...) -> None: ...

class WriteReply(_message.Message):
    __slots__ = ("status", "commit_version", "chunk_length", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    commit_version: _containers.RepeatedScalarFieldContainer[int]
    chunk_length: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., commit_version: _Optional[_Iterable[int]] = ..., chunk_length: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class TruncateChunkRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "inode", "index", "length", "truncate_version", "channel", "sequence", "tenant", "chunk_size")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    inode: _containers.RepeatedScalarFieldContainer[int]
    index: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    truncate_version: _containers.RepeatedScalarFieldContainer[int]
    channel: _containers.RepeatedScalarFieldContainer[int]
    sequence: _containers.RepeatedScalarFieldContainer[int]
    tenant: int
    chunk_size: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., inode: _Optional[_Iterable[int]] = ..., index: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., truncate_version: _Optional[_Iterable[int]] = ..., channel: _Optional[_Iterable[int]] = ..., sequence: _Optional[_Iterable[int]] = ..., tenant: _Optional[int] = ..., chunk_size: _Optional[_Iterable[int]] = ...) -> None: ...

class TruncateChunkReply(_message.Message):
    __slots__ = ("status", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class RemoveChunksRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "inode", "first", "last", "chunks_max", "tenant", "truncate_version")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_MAX_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    inode: _containers.RepeatedScalarFieldContainer[int]
    first: _containers.RepeatedScalarFieldContainer[int]
    last: _containers.RepeatedScalarFieldContainer[int]
    chunks_max: int
    tenant: int
    truncate_version: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., inode: _Optional[_Iterable[int]] = ..., first: _Optional[_Iterable[int]] = ..., last: _Optional[_Iterable[int]] = ..., chunks_max: _Optional[int] = ..., tenant: _Optional[int] = ..., truncate_version: _Optional[_Iterable[int]] = ...) -> None: ...

class RemoveChunksReply(_message.Message):
    __slots__ = ("status", "removed", "more", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    removed: _containers.RepeatedScalarFieldContainer[int]
    more: _containers.RepeatedScalarFieldContainer[bool]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., removed: _Optional[_Iterable[int]] = ..., more: _Optional[_Iterable[bool]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class QueryLastRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "inode", "truncate_version", "tenant", "routing_version")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ROUTING_VERSION_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    inode: _containers.RepeatedScalarFieldContainer[int]
    truncate_version: _containers.RepeatedScalarFieldContainer[int]
    tenant: int
    routing_version: int
    def __init__(self, chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., inode: _Optional[_Iterable[int]] = ..., truncate_version: _Optional[_Iterable[int]] = ..., tenant: _Optional[int] = ..., routing_version: _Optional[int] = ...) -> None: ...

class QueryLastReply(_message.Message):
    __slots__ = ("status", "found", "index", "length", "chunks", "bytes", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    found: _containers.RepeatedScalarFieldContainer[bool]
    index: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    chunks: _containers.RepeatedScalarFieldContainer[int]
    bytes: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., found: _Optional[_Iterable[bool]] = ..., index: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., chunks: _Optional[_Iterable[int]] = ..., bytes: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("chain", "chain_version")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ...) -> None: ...

class SyncReply(_message.Message):
    __slots__ = ("status", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class SpaceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SpaceReply(_message.Message):
    __slots__ = ("target", "capacity", "used", "chunks", "bytes_read", "bytes_written", "peer", "peer_transport", "peer_reason")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PEER_TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    PEER_REASON_FIELD_NUMBER: _ClassVar[int]
    target: _containers.RepeatedScalarFieldContainer[int]
    capacity: _containers.RepeatedScalarFieldContainer[int]
    used: _containers.RepeatedScalarFieldContainer[int]
    chunks: _containers.RepeatedScalarFieldContainer[int]
    bytes_read: _containers.RepeatedScalarFieldContainer[int]
    bytes_written: _containers.RepeatedScalarFieldContainer[int]
    peer: _containers.RepeatedScalarFieldContainer[str]
    peer_transport: _containers.RepeatedScalarFieldContainer[str]
    peer_reason: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, target: _Optional[_Iterable[int]] = ..., capacity: _Optional[_Iterable[int]] = ..., used: _Optional[_Iterable[int]] = ..., chunks: _Optional[_Iterable[int]] = ..., bytes_read: _Optional[_Iterable[int]] = ..., bytes_written: _Optional[_Iterable[int]] = ..., peer: _Optional[_Iterable[str]] = ..., peer_transport: _Optional[_Iterable[str]] = ..., peer_reason: _Optional[_Iterable[str]] = ...) -> None: ...

class ReportCorruptionRequest(_message.Message):
    __slots__ = ("chain", "target", "inode", "index", "tenant")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[int]
    target: _containers.RepeatedScalarFieldContainer[int]
    inode: _containers.RepeatedScalarFieldContainer[int]
    index: _containers.RepeatedScalarFieldContainer[int]
    tenant: int
    def __init__(self, chain: _Optional[_Iterable[int]] = ..., target: _Optional[_Iterable[int]] = ..., inode: _Optional[_Iterable[int]] = ..., index: _Optional[_Iterable[int]] = ..., tenant: _Optional[int] = ...) -> None: ...

class ReportCorruptionReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ForwardRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "target", "session", "kind", "chunks", "offset", "length", "checksum", "truncate_version", "chunk_size", "version_chain", "version_number", "clients", "client", "channel", "sequence", "number", "units", "entry", "sources", "source_chain", "source_number", "block")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    VERSION_CHAIN_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_CHAIN_FIELD_NUMBER: _ClassVar[int]
    SOURCE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    chain: int
    chain_version: int
    target: int
    session: int
    kind: _containers.RepeatedScalarFieldContainer[int]
    chunks: bytes
    offset: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    checksum: _containers.RepeatedScalarFieldContainer[int]
    truncate_version: _containers.RepeatedScalarFieldContainer[int]
    chunk_size: _containers.RepeatedScalarFieldContainer[int]
    version_chain: _containers.RepeatedScalarFieldContainer[int]
    version_number: _containers.RepeatedScalarFieldContainer[int]
    clients: _containers.RepeatedScalarFieldContainer[bytes]
    client: _containers.RepeatedScalarFieldContainer[int]
    channel: _containers.RepeatedScalarFieldContainer[int]
    sequence: _containers.RepeatedScalarFieldContainer[int]
    number: int
    units: _containers.RepeatedScalarFieldContainer[bytes]
    entry: _common_pb2.Chain
    sources: bytes
    source_chain: _containers.RepeatedScalarFieldContainer[int]
    source_number: _containers.RepeatedScalarFieldContainer[int]
    block: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, chain: _Optional[int] = ..., chain_version: _Optional[int] = ..., target: _Optional[int] = ..., session: _Optional[int] = ..., kind: _Optional[_Iterable[int]] = ..., chunks: _Optional[bytes] = ..., offset: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., checksum: _Optional[_Iterable[int]] = ..., truncate_version: _Optional[_Iterable[int]] = ..., chunk_size: _Optional[_Iterable[int]] = ..., version_chain: _Optional[_Iterable[int]] = ..., version_number: _Optional[_Iterable[int]] = ..., clients: _Optional[_Iterable[bytes]] = ..., client: _Optional[_Iterable[int]] = ..., channel: _Optional[_Iterable[int]] = ..., sequence: _Optional[_Iterable[int]] = ..., number: _Optional[int] = ..., units: _Optional[_Iterable[bytes]] = ..., entry: _Optional[_Union[_common_pb2.Chain, _Mapping]] = ..., sources: _Optional[bytes] = ..., source_chain: _Optional[_Iterable[int]] = ..., source_number: _Optional[_Iterable[int]] = ..., block: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ForwardReply(_message.Message):
    __slots__ = ("status", "number", "length", "checksum", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    number: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    checksum: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., number: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., checksum: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class CommittedRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "chunks")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    chain: int
    chain_version: int
    chunks: bytes
    def __init__(self, chain: _Optional[int] = ..., chain_version: _Optional[int] = ..., chunks: _Optional[bytes] = ...) -> None: ...

class CommittedReply(_message.Message):
    __slots__ = ("status", "number", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: int
    number: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[int] = ..., number: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class ListChunksRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "first", "last", "chunks_max")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_MAX_FIELD_NUMBER: _ClassVar[int]
    chain: int
    chain_version: int
    first: bytes
    last: bytes
    chunks_max: int
    def __init__(self, chain: _Optional[int] = ..., chain_version: _Optional[int] = ..., first: _Optional[bytes] = ..., last: _Optional[bytes] = ..., chunks_max: _Optional[int] = ...) -> None: ...

class ListChunksReply(_message.Message):
    __slots__ = ("status", "chunks", "number", "version_chain", "length", "truncate_version", "checksum", "pending", "more", "chains", "block")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    VERSION_CHAIN_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    status: int
    chunks: bytes
    number: _containers.RepeatedScalarFieldContainer[int]
    version_chain: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    truncate_version: _containers.RepeatedScalarFieldContainer[int]
    checksum: _containers.RepeatedScalarFieldContainer[int]
    pending: _containers.RepeatedScalarFieldContainer[bool]
    more: bool
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    block: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, status: _Optional[int] = ..., chunks: _Optional[bytes] = ..., number: _Optional[_Iterable[int]] = ..., version_chain: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., truncate_version: _Optional[_Iterable[int]] = ..., checksum: _Optional[_Iterable[int]] = ..., pending: _Optional[_Iterable[bool]] = ..., more: bool = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ..., block: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PutRecordsRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "clients", "channel", "sequence", "number", "length", "files", "truncate_version", "version_floor")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FLOOR_FIELD_NUMBER: _ClassVar[int]
    chain: int
    chain_version: int
    clients: bytes
    channel: _containers.RepeatedScalarFieldContainer[int]
    sequence: _containers.RepeatedScalarFieldContainer[int]
    number: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    files: bytes
    truncate_version: _containers.RepeatedScalarFieldContainer[int]
    version_floor: int
    def __init__(self, chain: _Optional[int] = ..., chain_version: _Optional[int] = ..., clients: _Optional[bytes] = ..., channel: _Optional[_Iterable[int]] = ..., sequence: _Optional[_Iterable[int]] = ..., number: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., files: _Optional[bytes] = ..., truncate_version: _Optional[_Iterable[int]] = ..., version_floor: _Optional[int] = ...) -> None: ...

class PutRecordsReply(_message.Message):
    __slots__ = ("status", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: int
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[int] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class FinishSyncRequest(_message.Message):
    __slots__ = ("chain", "chain_version")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    chain: int
    chain_version: int
    def __init__(self, chain: _Optional[int] = ..., chain_version: _Optional[int] = ...) -> None: ...

class FinishSyncReply(_message.Message):
    __slots__ = ("status", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: int
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[int] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class AddTargetRequest(_message.Message):
    __slots__ = ("capacity", "path", "table")
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    capacity: int
    path: str
    table: int
    def __init__(self, capacity: _Optional[int] = ..., path: _Optional[str] = ..., table: _Optional[int] = ...) -> None: ...

class AddTargetReply(_message.Message):
    __slots__ = ("target", "path")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    target: int
    path: str
    def __init__(self, target: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class DropTargetRequest(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: int
    def __init__(self, target: _Optional[int] = ...) -> None: ...

class DropTargetReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloneRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "source_inode", "source_index", "source_truncate_version", "inode", "index", "length", "channel", "sequence", "truncate_version", "chunk_size", "capabilities", "capability", "source_capabilities", "source_capability", "tenant")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_INODE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    SOURCE_TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    source_inode: _containers.RepeatedScalarFieldContainer[int]
    source_index: _containers.RepeatedScalarFieldContainer[int]
    source_truncate_version: _containers.RepeatedScalarFieldContainer[int]
    inode: _containers.RepeatedScalarFieldContainer[int]
    index: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    channel: _containers.RepeatedScalarFieldContainer[int]
    sequence: _containers.RepeatedScalarFieldContainer[int]
    truncate_version: _containers.RepeatedScalarFieldContainer[int]
    chunk_size: _containers.RepeatedScalarFieldContainer[int]
    capabilities: _containers.RepeatedScalarFieldContainer[bytes]
    capability: _containers.RepeatedScalarFieldContainer[int]
    source_capabilities: _containers.RepeatedScalarFieldContainer[bytes]
    source_capability: _containers.RepeatedScalarFieldContainer[int]
    tenant: int
    def __init__(self, chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., source_inode: _Optional[_Iterable[int]] = ..., source_index: _Optional[_Iterable[int]] = ..., source_truncate_version: _Optional[_Iterable[int]] = ..., inode: _Optional[_Iterable[int]] = ..., index: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., channel: _Optional[_Iterable[int]] = ..., sequence: _Optional[_Iterable[int]] = ..., truncate_version: _Optional[_Iterable[int]] = ..., chunk_size: _Optional[_Iterable[int]] = ..., capabilities: _Optional[_Iterable[bytes]] = ..., capability: _Optional[_Iterable[int]] = ..., source_capabilities: _Optional[_Iterable[bytes]] = ..., source_capability: _Optional[_Iterable[int]] = ..., tenant: _Optional[int] = ...) -> None: ...

class CloneReply(_message.Message):
    __slots__ = ("status", "commit_version", "chunk_length", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    commit_version: _containers.RepeatedScalarFieldContainer[int]
    chunk_length: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., commit_version: _Optional[_Iterable[int]] = ..., chunk_length: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class ExtentsRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "inode", "first", "last", "chunks_max", "capabilities", "capability", "tenant")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_MAX_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    inode: _containers.RepeatedScalarFieldContainer[int]
    first: _containers.RepeatedScalarFieldContainer[int]
    last: _containers.RepeatedScalarFieldContainer[int]
    chunks_max: int
    capabilities: _containers.RepeatedScalarFieldContainer[bytes]
    capability: _containers.RepeatedScalarFieldContainer[int]
    tenant: int
    def __init__(self, chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., inode: _Optional[_Iterable[int]] = ..., first: _Optional[_Iterable[int]] = ..., last: _Optional[_Iterable[int]] = ..., chunks_max: _Optional[int] = ..., capabilities: _Optional[_Iterable[bytes]] = ..., capability: _Optional[_Iterable[int]] = ..., tenant: _Optional[int] = ...) -> None: ...

class ExtentsReply(_message.Message):
    __slots__ = ("status", "chunks", "more", "index", "length", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    chunks: _containers.RepeatedScalarFieldContainer[int]
    more: _containers.RepeatedScalarFieldContainer[bool]
    index: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., chunks: _Optional[_Iterable[int]] = ..., more: _Optional[_Iterable[bool]] = ..., index: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...

class FenceRequest(_message.Message):
    __slots__ = ("chain", "chain_version", "sequence")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    sequence: int
    def __init__(self, chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., sequence: _Optional[int] = ...) -> None: ...

class FenceReply(_message.Message):
    __slots__ = ("status", "chains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    def __init__(self, status: _Optional[_Iterable[int]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ...) -> None: ...
