"""As much of the Hugging Face hub, over HTTP, as an upload needs: it keeps the files that are pushed to it."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """`refuse`: a status with which every request is answered; 0: it takes what comes."""

    def __init__(self, refuse: int = 0) -> None:
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(404, {"error": "Repository not found"})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.tokens.add(self.headers["authorization"])
                if refuse:
                    self.reply(refuse, {"error": "as asked"})
                elif self.path == "/api/repos/create":
                    outer.made.append(json.loads(body))
                    self.reply(200, {"url": f"{outer.url}/{outer.made[-1]['organization']}/{outer.made[-1]['name']}"})
                elif "/preupload/" in self.path:
                    files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
                    self.reply(200, {"files": [{**f, "shouldIgnore": False} for f in files]})
                elif "/commit/" in self.path:
                    for line in map(json.loads, body.splitlines()):
                        if line["key"] == "file":
                            outer.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    url = f"{outer.url}/org/mine/commit/1"
                    self.reply(200, {"success": True, "commitUrl": url, "commitOid": "1", "hookOutput": ""})
                else:
                    self.reply(200, {})

            def reply(self, status: int, said: Any) -> None:
                content = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextlib.contextmanager
def hub(refuse: int = 0) -> Iterator[Hub]:
    server = Hub(refuse)
    try:
        yield server
    finally:
        server.close()
