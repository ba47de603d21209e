"""A real HTTP server in a thread, which answers as its test says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[int, dict[str, Any]], Any]
"""(number of the request, from 0; its JSON) -> the reply: something for JSON, bytes, an int for a bare status with
that number, (status, headers, JSON), or a threading.Event that it waits for without answering."""


class Handling(BaseHTTPRequestHandler):
    """What handlers share: replies, and silence."""

    def send(self, status: int, said: Any, headers: Mapping[str, str] | None = None) -> None:
        """`said`: bytes, or something for JSON."""
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class Listening(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024
    """Connections that come at once; with the usual 5 the kernel resets one now and then."""


class Http:
    """A server at `url`, until `close`."""

    def __init__(self, handler: type[Handling]) -> None:
        self._http = Listening(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class Server(Http):
    def __init__(self, answer: Answer) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(Handling):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    outer.paths.append(self.path)
                    outer.at_once += 1
                    outer.most_at_once = max(outer.at_once, outer.most_at_once)
                try:
                    self.reply(answer(number, body))
                finally:
                    with outer._lock:
                        outer.at_once -= 1

            def reply(self, said: Any) -> None:
                status, headers = 200, {}
                if isinstance(said, threading.Event):
                    said.wait(20)
                    return
                if isinstance(said, int):
                    status, said = said, {"error": "as asked"}
                elif isinstance(said, tuple):
                    status, headers, said = said
                self.send(status, said, headers)

        super().__init__(Handler)


def serving(answer: Answer) -> contextlib.closing[Server]:
    return contextlib.closing(Server(answer))
