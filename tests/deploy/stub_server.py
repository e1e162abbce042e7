"""A server that does nothing: what `ServerProcess` starts in its tests. Run as `python -m emberfs.tests.deploy.stub_server BEHAVIOUR`."""

import json
import os
import signal
import sys


def main() -> None:
    behaviour, ready = sys.argv[1], int(sys.argv[sys.argv.index("--ready-fd") + 1])
    print("a line for the log", file=sys.stderr, flush=True)
    if behaviour == "dies":
        raise SystemExit("no good reason")
    if behaviour == "refuses":
        os.write(ready, json.dumps({"error": "the disk is made of cheese"}).encode() + b"\n")
        raise SystemExit(1)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour != "silent":
        os.write(ready, json.dumps({"node": 7, "addresses": [], "pid": os.getpid(), "cluster": "c"}).encode() + b"\n")
        os.close(ready)
    signal.pause()
    signal.pause()


if __name__ == "__main__":
    main()
