"""As much of wandb's server as a run needs to begin, to stream its history and to end; it can be away for a while."""

from __future__ import annotations

import json
from typing import Any

from local_server import Handling, Http

ANSWERS: dict[str, Any] = {
    "UpsertBucket": {
        "upsertBucket": {
            "bucket": {
                "id": "b",
                "name": "run",
                "displayName": "run",
                "description": "",
                "config": "{}",
                "sweepName": None,
                "historyLineCount": 0,
                "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}},
            },
            "inserted": True,
        }
    },
    "OrganizationCoreWeave": {"entity": {"organization": {"coreWeaveOrganizationId": None}}},
    "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}},
}
"""By a part of the query's name."""


class WandbServer(Http):
    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        """What has been logged, as it came."""
        self.away = False
        """Every request is answered with status 503."""
        self.refused = 0
        outer = self

        class Handler(Handling):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if outer.away:
                    outer.refused += 1
                    self.send(503, {"error": "away"})
                elif self.path.endswith("/graphql"):
                    asked = json.loads(body)
                    data = next((answer for name, answer in ANSWERS.items() if name in asked["query"]), {})
                    if "upsertBucket" in data:
                        bucket = data["upsertBucket"]["bucket"] | {"name": asked["variables"]["name"]}
                        data = {"upsertBucket": {"bucket": bucket, "inserted": True}}
                    self.send(200, {"data": data})
                else:
                    if self.path.endswith("/file_stream"):
                        rows = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
                        outer.history += map(json.loads, rows)
                    self.send(200, {"exitcode": None, "limits": {}})

            def do_GET(self) -> None:
                self.send(200, {})

        super().__init__(Handler)
