"""Bulk by one-sided RDMA, frames by SEND and RECV over a reliable-connected queue pair.

A connection begins on TCP, with the hello and the proofs of every other; then the client offers a queue pair (`upgrade.py`) and both go on
over it. The TCP socket stays open and silent: its end is the end of the connection, as everywhere. Frames are one stream of bytes,
cut into SENDs as credits allow (`credits.py`, `socket.py`). Bulk does not travel in the stream: the client names registered memory, the
server writes a read's bytes straight into it (RDMA WRITE) and fetches a write's bytes out of it (RDMA READ) (`sinks.py`).

Nothing here is imported by a process that does not use it, and nothing of it is loaded where the machine has no device.
"""
