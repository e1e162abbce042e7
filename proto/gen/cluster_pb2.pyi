from emberfs.proto.gen import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_KIND_UNSPECIFIED: _ClassVar[NodeKind]
    NODE_KIND_META: _ClassVar[NodeKind]
    NODE_KIND_STORAGE: _ClassVar[NodeKind]

class LocalState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOCAL_STATE_UNSPECIFIED: _ClassVar[LocalState]
    LOCAL_STATE_UPTODATE: _ClassVar[LocalState]
    LOCAL_STATE_ONLINE: _ClassVar[LocalState]
    LOCAL_STATE_OFFLINE: _ClassVar[LocalState]
NODE_KIND_UNSPECIFIED: NodeKind
NODE_KIND_META: NodeKind
NODE_KIND_STORAGE: NodeKind
LOCAL_STATE_UNSPECIFIED: LocalState
LOCAL_STATE_UPTODATE: LocalState
LOCAL_STATE_ONLINE: LocalState
LOCAL_STATE_OFFLINE: LocalState

class Node(_message.Message):
    __slots__ = ("id", "kind", "addresses", "host", "name", "process", "software", "draining", "rack")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    id: int
    kind: NodeKind
    addresses: _containers.RepeatedScalarFieldContainer[str]
    host: str
    name: str
    process: int
    software: str
    draining: bool
    rack: str
    def __init__(self, id: _Optional[int] = ..., kind: _Optional[_Union[NodeKind, str]] = ..., addresses: _Optional[_Iterable[str]] = ..., host: _Optional[str] = ..., name: _Optional[str] = ..., process: _Optional[int] = ..., software: _Optional[str] = ..., draining: bool = ..., rack: _Optional[str] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("id", "node", "incarnation", "capacity", "used", "state", "path", "damaged", "full", "disabled", "chunks", "sync_done", "sync_total", "disk", "table", "power_losses")
    ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    SYNC_DONE_FIELD_NUMBER: _ClassVar[int]
    SYNC_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    POWER_LOSSES_FIELD_NUMBER: _ClassVar[int]
    id: int
    node: int
    incarnation: int
    capacity: int
    used: int
    state: LocalState
    path: str
    damaged: bool
    full: bool
    disabled: bool
    chunks: int
    sync_done: int
    sync_total: int
    disk: int
    table: int
    power_losses: int
    def __init__(self, id: _Optional[int] = ..., node: _Optional[int] = ..., incarnation: _Optional[int] = ..., capacity: _Optional[int] = ..., used: _Optional[int] = ..., state: _Optional[_Union[LocalState, str]] = ..., path: _Optional[str] = ..., damaged: bool = ..., full: bool = ..., disabled: bool = ..., chunks: _Optional[int] = ..., sync_done: _Optional[int] = ..., sync_total: _Optional[int] = ..., disk: _Optional[int] = ..., table: _Optional[int] = ..., power_losses: _Optional[int] = ...) -> None: ...

class ChainTable(_message.Message):
    __slots__ = ("id", "version", "chains", "replicas")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    id: int
    version: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    replicas: int
    def __init__(self, id: _Optional[int] = ..., version: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ..., replicas: _Optional[int] = ...) -> None: ...

class Routing(_message.Message):
    __slots__ = ("version", "since", "cluster", "nodes", "targets", "chains", "tables", "removed_nodes", "ended_clients", "capability_epoch", "capability_key", "removed_targets", "namespaces", "removed_namespaces", "quotas")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NODES_FIELD_NUMBER: _ClassVar[int]
    ENDED_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_KEY_FIELD_NUMBER: _ClassVar[int]
    REMOVED_TARGETS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    version: int
    since: int
    cluster: str
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    chains: _containers.RepeatedCompositeFieldContainer[_common_pb2.Chain]
    tables: _containers.RepeatedCompositeFieldContainer[ChainTable]
    removed_nodes: _containers.RepeatedScalarFieldContainer[int]
    ended_clients: _containers.RepeatedScalarFieldContainer[bytes]
    capability_epoch: int
    capability_key: bytes
    removed_targets: _containers.RepeatedScalarFieldContainer[int]
    namespaces: _containers.RepeatedCompositeFieldContainer[KvNamespace]
    removed_namespaces: _containers.RepeatedScalarFieldContainer[int]
    quotas: _containers.RepeatedCompositeFieldContainer[TenantQuota]
    def __init__(self, version: _Optional[int] = ..., since: _Optional[int] = ..., cluster: _Optional[str] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., chains: _Optional[_Iterable[_Union[_common_pb2.Chain, _Mapping]]] = ..., tables: _Optional[_Iterable[_Union[ChainTable, _Mapping]]] = ..., removed_nodes: _Optional[_Iterable[int]] = ..., ended_clients: _Optional[_Iterable[bytes]] = ..., capability_epoch: _Optional[int] = ..., capability_key: _Optional[bytes] = ..., removed_targets: _Optional[_Iterable[int]] = ..., namespaces: _Optional[_Iterable[_Union[KvNamespace, _Mapping]]] = ..., removed_namespaces: _Optional[_Iterable[int]] = ..., quotas: _Optional[_Iterable[_Union[TenantQuota, _Mapping]]] = ...) -> None: ...

class GetRoutingRequest(_message.Message):
    __slots__ = ("since",)
    SINCE_FIELD_NUMBER: _ClassVar[int]
    since: int
    def __init__(self, since: _Optional[int] = ...) -> None: ...

class RegisterNodeRequest(_message.Message):
    __slots__ = ("node", "targets", "spare", "dropped", "number", "spare_blocks", "replaces")
    NODE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    SPARE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SPARE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    node: Node
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    spare: bool
    dropped: _containers.RepeatedScalarFieldContainer[int]
    number: int
    spare_blocks: bool
    replaces: int
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., spare: bool = ..., dropped: _Optional[_Iterable[int]] = ..., number: _Optional[int] = ..., spare_blocks: bool = ..., replaces: _Optional[int] = ...) -> None: ...

class RegisterNodeReply(_message.Message):
    __slots__ = ("node", "routing", "lease_ms", "held_by")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    HELD_BY_FIELD_NUMBER: _ClassVar[int]
    node: int
    routing: Routing
    lease_ms: int
    held_by: int
    def __init__(self, node: _Optional[int] = ..., routing: _Optional[_Union[Routing, _Mapping]] = ..., lease_ms: _Optional[int] = ..., held_by: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("node", "process", "routing_version", "targets", "chain", "chain_version", "unreached", "unreached_version", "number")
    NODE_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    ROUTING_VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    UNREACHED_FIELD_NUMBER: _ClassVar[int]
    UNREACHED_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    node: int
    process: int
    routing_version: int
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    chain: _containers.RepeatedScalarFieldContainer[int]
    chain_version: _containers.RepeatedScalarFieldContainer[int]
    unreached: _containers.RepeatedScalarFieldContainer[int]
    unreached_version: _containers.RepeatedScalarFieldContainer[int]
    number: int
    def __init__(self, node: _Optional[int] = ..., process: _Optional[int] = ..., routing_version: _Optional[int] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., chain: _Optional[_Iterable[int]] = ..., chain_version: _Optional[_Iterable[int]] = ..., unreached: _Optional[_Iterable[int]] = ..., unreached_version: _Optional[_Iterable[int]] = ..., number: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("routing", "lease_ms")
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    routing: Routing
    lease_ms: int
    def __init__(self, routing: _Optional[_Union[Routing, _Mapping]] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class RenewClientRequest(_message.Message):
    __slots__ = ("open_inodes", "acknowledged_request", "routing_version", "name", "reported", "renewal")
    OPEN_INODES_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_REQUEST_FIELD_NUMBER: _ClassVar[int]
    ROUTING_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    RENEWAL_FIELD_NUMBER: _ClassVar[int]
    open_inodes: _containers.RepeatedScalarFieldContainer[int]
    acknowledged_request: int
    routing_version: int
    name: str
    reported: bytes
    renewal: int
    def __init__(self, open_inodes: _Optional[_Iterable[int]] = ..., acknowledged_request: _Optional[int] = ..., routing_version: _Optional[int] = ..., name: _Optional[str] = ..., reported: _Optional[bytes] = ..., renewal: _Optional[int] = ...) -> None: ...

class RenewClientReply(_message.Message):
    __slots__ = ("lease_ms", "epoch", "routing", "mark", "report_ms")
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    MARK_FIELD_NUMBER: _ClassVar[int]
    REPORT_MS_FIELD_NUMBER: _ClassVar[int]
    lease_ms: int
    epoch: int
    routing: Routing
    mark: bytes
    report_ms: int
    def __init__(self, lease_ms: _Optional[int] = ..., epoch: _Optional[int] = ..., routing: _Optional[_Union[Routing, _Mapping]] = ..., mark: _Optional[bytes] = ..., report_ms: _Optional[int] = ...) -> None: ...

class EndClientRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EndClientReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("routing", "clients", "inodes", "primary", "started_ns", "gc_pending", "silent_nodes")
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    STARTED_NS_FIELD_NUMBER: _ClassVar[int]
    GC_PENDING_FIELD_NUMBER: _ClassVar[int]
    SILENT_NODES_FIELD_NUMBER: _ClassVar[int]
    routing: Routing
    clients: int
    inodes: int
    primary: str
    started_ns: int
    gc_pending: int
    silent_nodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, routing: _Optional[_Union[Routing, _Mapping]] = ..., clients: _Optional[int] = ..., inodes: _Optional[int] = ..., primary: _Optional[str] = ..., started_ns: _Optional[int] = ..., gc_pending: _Optional[int] = ..., silent_nodes: _Optional[_Iterable[int]] = ...) -> None: ...

class CreateChainsRequest(_message.Message):
    __slots__ = ("chains", "table")
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    chains: _containers.RepeatedCompositeFieldContainer[ChainMembers]
    table: int
    def __init__(self, chains: _Optional[_Iterable[_Union[ChainMembers, _Mapping]]] = ..., table: _Optional[int] = ...) -> None: ...

class KvNamespace(_message.Message):
    __slots__ = ("id", "digest", "descriptor", "name", "tenant", "block_bytes", "ttl_s", "uid", "gid", "mode", "table_version", "older_versions", "changed_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    OLDER_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_S_FIELD_NUMBER: _ClassVar[int]
    id: int
    digest: bytes
    descriptor: str
    name: str
    tenant: str
    block_bytes: int
    ttl_s: int
    uid: int
    gid: int
    mode: int
    table_version: int
    older_versions: _containers.RepeatedScalarFieldContainer[int]
    changed_s: int
    def __init__(self, id: _Optional[int] = ..., digest: _Optional[bytes] = ..., descriptor: _Optional[str] = ..., name: _Optional[str] = ..., tenant: _Optional[str] = ..., block_bytes: _Optional[int] = ..., ttl_s: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., mode: _Optional[int] = ..., table_version: _Optional[int] = ..., older_versions: _Optional[_Iterable[int]] = ..., changed_s: _Optional[int] = ...) -> None: ...

class TenantQuota(_message.Message):
    __slots__ = ("tenant", "bytes", "uids", "gids")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    UIDS_FIELD_NUMBER: _ClassVar[int]
    GIDS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    bytes: int
    uids: _containers.RepeatedScalarFieldContainer[int]
    gids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tenant: _Optional[str] = ..., bytes: _Optional[int] = ..., uids: _Optional[_Iterable[int]] = ..., gids: _Optional[_Iterable[int]] = ...) -> None: ...

class PutNamespaceRequest(_message.Message):
    __slots__ = ("namespace", "routing_version")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ROUTING_VERSION_FIELD_NUMBER: _ClassVar[int]
    namespace: KvNamespace
    routing_version: int
    def __init__(self, namespace: _Optional[_Union[KvNamespace, _Mapping]] = ..., routing_version: _Optional[int] = ...) -> None: ...

class PutNamespaceReply(_message.Message):
    __slots__ = ("namespace", "routing")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    namespace: KvNamespace
    routing: Routing
    def __init__(self, namespace: _Optional[_Union[KvNamespace, _Mapping]] = ..., routing: _Optional[_Union[Routing, _Mapping]] = ...) -> None: ...

class DropNamespaceRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class DropNamespaceReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetTenantQuotaRequest(_message.Message):
    __slots__ = ("quota",)
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    quota: TenantQuota
    def __init__(self, quota: _Optional[_Union[TenantQuota, _Mapping]] = ...) -> None: ...

class SetTenantQuotaReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ChainMembers(_message.Message):
    __slots__ = ("targets",)
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, targets: _Optional[_Iterable[int]] = ...) -> None: ...

class CreateChainsReply(_message.Message):
    __slots__ = ("chains", "table_version")
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    chains: _containers.RepeatedScalarFieldContainer[int]
    table_version: int
    def __init__(self, chains: _Optional[_Iterable[int]] = ..., table_version: _Optional[int] = ...) -> None: ...

class ChangeChainRequest(_message.Message):
    __slots__ = ("chain", "version", "add", "remove", "revive")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    REVIVE_FIELD_NUMBER: _ClassVar[int]
    chain: int
    version: int
    add: int
    remove: int
    revive: int
    def __init__(self, chain: _Optional[int] = ..., version: _Optional[int] = ..., add: _Optional[int] = ..., remove: _Optional[int] = ..., revive: _Optional[int] = ...) -> None: ...

class ChangeChainReply(_message.Message):
    __slots__ = ("chain",)
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    chain: _common_pb2.Chain
    def __init__(self, chain: _Optional[_Union[_common_pb2.Chain, _Mapping]] = ...) -> None: ...

class SetTargetRequest(_message.Message):
    __slots__ = ("target", "disabled")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    target: int
    disabled: bool
    def __init__(self, target: _Optional[int] = ..., disabled: bool = ...) -> None: ...

class SetTargetReply(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: Target
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ...) -> None: ...

class RemoveNodeRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: int
    def __init__(self, node: _Optional[int] = ...) -> None: ...

class RemoveNodeReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetNodeRequest(_message.Message):
    __slots__ = ("node", "draining")
    NODE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    node: int
    draining: bool
    def __init__(self, node: _Optional[int] = ..., draining: bool = ...) -> None: ...

class SetNodeReply(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: Node
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ...) -> None: ...

class BackUpMetadataRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BackUpMetadataReply(_message.Message):
    __slots__ = ("number", "bytes", "chain")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    number: int
    bytes: int
    chain: int
    def __init__(self, number: _Optional[int] = ..., bytes: _Optional[int] = ..., chain: _Optional[int] = ...) -> None: ...

class FreezeMetadataRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FreezeMetadataReply(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...
