"""The responses of one suite on disk: appended as they end, so that an evaluation goes on where it stopped.

SUITE/settings.json      what decides the responses; another evaluation must agree with it to go on here
SUITE/responses.jsonl    a JSON object for each response, with its token ids; complete ones also hold their verdict
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlkit.errors import ConfigError, RlkitError
from rlkit.files import write_text

FINGERPRINTS = {"prompts": "the prompts or golds have changed", "columns": "other columns of the data have changed"}
"""Settings whose values tell nobody anything. They change with others, and are named where nothing else is."""

Key = tuple[int, int]
"""(problem, sample), both from 0."""


class Responses:
    """The folder of one suite's responses.

    ConfigError for one that was begun with other settings, or holds responses without their tokens; RlkitError for a
    line that is no response.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.file = folder / "responses.jsonl"
        self.rows: dict[Key, dict[str, Any]] = {}
        wanted = json.loads(json.dumps(settings))
        record = folder / "settings.json"
        if record.is_file():
            _must_match(json.loads(record.read_text()), wanted, folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps(wanted, indent=2) + "\n")
        self._read()

    def _read(self) -> None:
        if not self.file.is_file():
            return
        whole, newline, cut_off = self.file.read_bytes().rpartition(b"\n")
        if cut_off:  # whoever wrote it was stopped within a line
            self.file.write_bytes(whole + newline)
        for i, line in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                row = json.loads(line)
                tokens, self.rows[row["problem"], row["sample"]] = row["tokens"], row
            except (ValueError, KeyError, TypeError) as error:
                raise RlkitError(f"{self.file}, line {i} is no response: {error}. Remove the line to go on") from error
            if not isinstance(tokens, list):
                raise ConfigError(
                    f"{self.file}, line {i} holds how many tokens the response has ({tokens}), and not which, as an "
                    f"older rlkit wrote it. Give another folder with --out, or delete {self.file.parent}"
                )

    def append(self, row: dict[str, Any]) -> None:
        """Keep one response, on disk when this returns."""
        self.rows[row["problem"], row["sample"]] = row
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def replace(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write the file anew, in the order of problems and samples."""
        ordered = sorted(rows, key=lambda row: (row["problem"], row["sample"]))
        self.rows = {(row["problem"], row["sample"]): row for row in ordered}
        write_text(self.file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows.values()))


def _must_match(there: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    differ = [key for key in sorted(there.keys() | wanted.keys()) if there.get(key) != wanted.get(key)]
    if differ:
        named = [key for key in differ if key not in FINGERPRINTS]
        said = "; ".join(f"{key} was {there.get(key)!r} and is now {wanted.get(key)!r}" for key in named)
        said = said or "; ".join(FINGERPRINTS[key] for key in differ)
        raise ConfigError(
            f"{folder} holds responses drawn with other settings: {said}. Give the same settings to go on, or another "
            "folder with --out"
        )
