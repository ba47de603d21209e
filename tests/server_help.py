"""Stand-ins for vLLM servers: one that answers as its test says, and one before a real server, which spoils answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from local_server import Handling, Http

Spoiled = Callable[[str, dict[str, Any]], Any]
"""(path, JSON) -> None: answer as usual; a number: with that status and nothing else; "cut": break the connection; an
Event: wait for it first; anything else: answer with that."""


class Standing(Http):
    """A server of `answers`, a function of (method, path, JSON) that gives status and JSON, or bytes; `spoiled` goes
    first."""

    def __init__(self, answers: Callable[[str, str, dict[str, Any]], tuple[int, Any]], spoiled: Spoiled) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(Handling):
            def do_POST(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("content-length", 0)))
                body = json.loads(content) if content else {}
                path = self.path
                outer.asked.append((path, body))
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                said = outer.spoiled(path, body)
                if said == "cut":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if isinstance(said, threading.Event):
                    said.wait(20)
                    said = None
                if isinstance(said, int):
                    self.send(said, {"error": "as asked"})
                elif said is not None:
                    self.send(200, said)
                else:
                    self.send(*answers(self.command, path, body))

        self.spoiled = spoiled
        super().__init__(Handler)

    def generated(self) -> list[dict[str, Any]]:
        return [body for path, body in self.asked if path == "/inference/v1/generate"]


def before(url: str, spoiled: Spoiled = lambda path, body: None) -> Standing:
    """In front of a real server: what is not spoiled is the real one's."""
    client = httpx.Client(timeout=120)
    standing: Standing

    def answers(method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        owner = next((h["x-rlkit-owner"] for h in reversed(standing.headers) if "x-rlkit-owner" in h), "")
        reply = client.request(method, url + path, json=body or None, headers={"x-rlkit-owner": owner})
        return reply.status_code, reply.content

    standing = Standing(answers, spoiled)
    return standing


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """A real server in a process of its own, until `close`."""

    def __init__(self, log: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        with log.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlkit", "serve", *arguments, "--port", str(self.port)],
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | (environment or {}),
            )

    def wait(self) -> None:
        """Until it says that it is up."""
        while "the server is up" not in self.said():
            assert self._process.poll() is None, self.said()
            time.sleep(0.2)

    def said(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def kill_engine(self) -> None:
        """Only the process that computes, not the one that answers."""
        os.kill(self.processes(b"EngineCore")[0], signal.SIGKILL)

    def processes(self, of: bytes) -> list[int]:
        """Those of it with this in their command lines."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(folder.name)) == self._process.pid and of in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def close(self) -> None:
        """As an operator would."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
