"""The names that engines import from 3FS's `hf3fs_fuse.io`."""

from emberfs.kvcache.adapters.hf3fs import (
    Iovec,
    Ring,
    deregister_fd,
    extract_mount_point,
    make_ioring,
    make_iovec,
    register_fd,
)

__all__ = ["Iovec", "Ring", "deregister_fd", "extract_mount_point", "make_ioring", "make_iovec", "register_fd"]
