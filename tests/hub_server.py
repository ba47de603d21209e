"""As much of the Hugging Face hub, over HTTP, as uploads and downloads need: it keeps the files that are pushed to it,
and offers those it is given."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from local_server import Handling, Http

SHA = "0" * 40


class Hub(Http):
    """`refuse`: a status with which every request is answered; 0: it takes what comes. `offers`: files of the model
    org/there."""

    def __init__(self, refuse: int = 0, offers: Mapping[str, bytes] | None = None) -> None:
        self.taken: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        outer = self

        class Handler(Handling):
            def do_GET(self) -> None:
                there, _, file = self.path.partition("/resolve/")
                file = file.partition("/")[2]
                if offers and self.path.startswith("/api/models/org/there/tree/"):
                    sizes = [(name, len(content)) for name, content in offers.items()]
                    self.send(200, [{"type": "file", "path": name, "size": size, "oid": SHA} for name, size in sizes])
                elif offers and self.path.startswith("/api/models/org/there"):
                    files = [{"rfilename": name} for name in offers]
                    self.send(200, {"id": "org/there", "sha": SHA, "siblings": files})
                elif offers and there == "/org/there" and file in offers:
                    outer.taken += [file] * (self.command == "GET")
                    self.send(200, offers[file], {"etag": f'"{file}"', "x-repo-commit": SHA})
                else:
                    self.send(404, {"error": "Repository not found"})

            do_HEAD = do_GET

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.tokens.add(self.headers["authorization"])
                if refuse:
                    self.send(refuse, {"error": "as asked"})
                elif self.path == "/api/repos/create":
                    outer.made.append(json.loads(body))
                    self.send(200, {"url": f"{outer.url}/{outer.made[-1]['organization']}/{outer.made[-1]['name']}"})
                elif "/preupload/" in self.path:
                    files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
                    self.send(200, {"files": [{**f, "shouldIgnore": False} for f in files]})
                elif "/commit/" in self.path:
                    for line in map(json.loads, body.splitlines()):
                        if line["key"] == "file":
                            outer.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    url = f"{outer.url}/org/mine/commit/1"
                    self.send(200, {"success": True, "commitUrl": url, "commitOid": "1", "hookOutput": ""})
                else:
                    self.send(200, {})

        super().__init__(Handler)


def used(server: Hub, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """By Hugging Face's libraries in this process, with a cache of its own."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "ENDPOINT", server.url)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setenv("HF_ENDPOINT", server.url)


def hub(refuse: int = 0, offers: Mapping[str, bytes] | None = None) -> contextlib.closing[Hub]:
    return contextlib.closing(Hub(refuse, offers))
