"""docs/metrics.md names every metric that the code writes, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WRITERS = ("rlkit/loop/*.py", "rlkit/engine/*.py", "rlkit/evaluation/in_training.py", "algorithms/*.py")
METRIC = re.compile(r"[a-z_*]+(/[\w@*]+)+")


def texts(tree: ast.AST) -> Iterator[str]:
    """Every text in the code; what an f-string fills in is a star."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def written() -> set[str]:
    files = [file for pattern in WRITERS for file in ROOT.glob(pattern)]
    names = {text for file in files for text in texts(ast.parse(file.read_text())) if METRIC.fullmatch(text)}
    names -= {name for name in names if name.endswith("_")}  # a beginning that is looked for
    roles = {name for name in names if name.startswith("*/")}
    return (names - roles) | {role + name[1:] for name in roles for role in ("policy", "critic")}


def test_the_glossary_is_what_the_code_writes() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    named = [re.sub("[A-Z]+", "*", name) for name in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)]
    assert len(named) == len(set(named))
    found = written()
    assert len(found) > 50
    assert set(named) == found


def test_a_line_of_the_glossary_has_all_its_cells() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.count("|") != 6] == []
