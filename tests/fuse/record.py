"""Records what the kernel sends: mounts `Tiny`, has `script.py` make its system calls and keeps every request.

    python -m emberfs.tests.fuse.record      as root; writes kernel.json beside this file

kernel.json: the kernel's release, and per session (a set of agreed abilities) the script's process and each step with what the
program saw and the requests in hexadecimal. Requests that come after their call returned (RELEASE, FORGET) belong to the step
before which they were read.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from emberfs.fuse.negotiation import WANTED, Wanted
from emberfs.fuse.protocol import Init

from . import script
from .tiny import Tiny

RECORDING = Path(__file__).parent / "kernel.json"
OLD_FORMS = (WANTED | Init.DONT_MASK | Init.SECURITY_CTX) & ~Init.SETXATTR_EXT & ~Init.CREATE_SUPP_GROUP
SESSIONS = {
    "modern": (Wanted(), list(script.STEPS)),
    "old forms": (Wanted(flags=OLD_FORMS), ["mkdir", "create", "symlink", "mknod", "setxattr"]),
}
QUIET_MS = 30  # after which no more requests of a step are expected
STEP_MS_MAX = 100_000
READ_BYTES = (1 << 20) + 8192
MNT_DETACH = 2
LIBC = ctypes.CDLL(None, use_errno=True)

Step = dict[str, Any]


class Recorder:
    """One mount: the device, the program on it, and what was read."""

    def __init__(self, wanted: Wanted, mountpoint: str) -> None:
        self.tiny = Tiny(wanted)
        self.mountpoint = mountpoint
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.frames: list[str] = []
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if LIBC.mount(b"record", mountpoint.encode(), b"fuse.record", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "mount")

    def close(self) -> None:
        LIBC.umount2(self.mountpoint.encode(), MNT_DETACH)
        os.close(self.device)

    def serve(self, timeout_ms: int, until: int | None = None) -> bool:
        """Answer requests until none comes for so long, or until the descriptor `until` is readable: then true."""
        poll = select.poll()
        poll.register(self.device, select.POLLIN)
        if until is not None:
            poll.register(until, select.POLLIN)
        while ready := dict(poll.poll(timeout_ms)):
            if self.device in ready:
                self._one()
            elif until in ready:
                return True
        return False

    def _one(self) -> None:
        try:
            count = os.readv(self.device, [self.buffer])
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT):
                return  # another reader's, or a request that was taken back
            raise
        frame = self.buffer[:count]
        self.frames.append(bytes(frame).hex())
        reply = self.tiny.answer(frame)
        if reply is not None:
            os.write(self.device, reply)
        while reply and self.tiny.push:
            os.write(self.device, self.tiny.push.pop(0))

    def take(self) -> list[str]:
        frames, self.frames = self.frames, []
        return frames


def record(wanted: Wanted, steps: list[str]) -> dict[str, Any]:
    """One session: {"pid": of the program, "steps": [{"step", "saw", "requests"}]}."""
    with tempfile.TemporaryDirectory(prefix="emberfs-record-") as mountpoint:
        recorder = Recorder(wanted, mountpoint)
        program = None
        try:
            recorder.serve(QUIET_MS)
            done: list[Step] = [{"step": "mount", "saw": None, "requests": recorder.take()}]
            program = subprocess.Popen(
                [sys.executable, script.__file__, mountpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert program.stdin and program.stdout
            for name in steps:
                program.stdin.write(name.encode() + b"\n")
                program.stdin.flush()
                if not recorder.serve(STEP_MS_MAX, program.stdout.fileno()):
                    raise TimeoutError(f"step {name} does not end")
                saw = program.stdout.readline()
                if not saw:
                    raise RuntimeError(f"step {name} failed")
                recorder.serve(QUIET_MS)
                done.append({"step": name, "saw": json.loads(saw), "requests": recorder.take()})
            return {"pid": program.pid, "steps": done}
        finally:
            if program is not None:
                program.kill()
            recorder.close()
            if program is not None:
                program.wait()


def main() -> None:
    sessions = {name: record(wanted, steps) for name, (wanted, steps) in SESSIONS.items()}
    release = os.uname().release.partition("-")[0]
    RECORDING.write_text(json.dumps({"kernel": release, "sessions": sessions}, indent=1) + "\n")
    total = sum(len(one["requests"]) for session in sessions.values() for one in session["steps"])
    print(f"{total} requests, {RECORDING.stat().st_size} bytes: {RECORDING}")


if __name__ == "__main__":
    main()
