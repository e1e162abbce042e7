"""Watching a real cluster: the iterator of the client, and the command."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import emberfs
from emberfs.deploy.local import LocalCluster


def test_a_watcher_hears_what_happens(cluster: LocalCluster) -> None:
    with emberfs.connect(cluster.url) as watching, emberfs.connect(cluster.url) as working:
        working.mkdir("/watched")
        heard: list[tuple[str, str, str]] = []
        begun = threading.Event()

        def watch() -> None:
            for event in watching.events("/watched", wait=1):
                begun.set()
                if event is not None:
                    heard.append((event.kind, event.path, event.target))
                if event is not None and event.kind == "removed":
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert begun.wait(30)
        with working.open("/watched/f", "wb") as file:
            file.write(b"content")
        working.rename("/watched/f", "/watched/g")
        working.unlink("/watched/g")
        watcher.join(60)
        assert not watcher.is_alive()
        once = [event for event, before in zip(heard, [None, *heard], strict=False) if event != before]
        assert once == [  # what is written for seconds is told more than once
            ("created", "/watched/f", ""),
            ("written", "", ""),
            ("renamed", "/watched/f", "/watched/g"),
            ("removed", "/watched/g", ""),
        ]


def test_the_command(cluster: LocalCluster) -> None:
    command = [sys.executable, "-P", "-m", "emberfs", "events", "/"]
    environment = {**os.environ, **cluster.environment, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd="/", text=True) as watcher:
        assert watcher.stdout is not None
        with emberfs.connect(cluster.url) as client:
            client.mkdir("/commands")
            lines: list[str] = []
            done = threading.Event()

            def read() -> None:
                assert watcher.stdout is not None
                lines.append(watcher.stdout.readline())
                done.set()

            threading.Thread(target=read, daemon=True).start()
            number = 0
            while not done.wait(0.5):  # until it watches
                number += 1
                client.mkdir(f"/commands/{number}")
        watcher.kill()
    assert "created" in lines[0] and "/commands/" in lines[0]
