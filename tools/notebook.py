"""Run the code cells of a notebook where you stand, and keep what they show. Needs no Jupyter.

    rlkit run embedded_xs --name first && python tools/notebook.py docs/examples/reading_a_run.ipynb

A cell shows what it prints, and the value of its last expression as text, as HTML or, for a matplotlib figure, as a
picture.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def execute(notebook: dict[str, Any]) -> None:
    """Run its code cells in order, in one namespace, and put what they show into their outputs. What a cell raises is
    raised here."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        printed, value = _run("".join(cell["source"]), namespace, f"cell {number}")
        shown = [{"output_type": "stream", "name": "stdout", "text": _lines(printed)}] if printed else []
        if value is not None:
            shown.append(
                {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": _data(value)}
            )
        cell |= {"execution_count": number, "outputs": shown}


def _run(source: str, namespace: dict[str, Any], name: str) -> tuple[str, Any]:
    """What it prints, and the value of its last line where that is an expression."""
    *statements, last = ast.parse(source, name).body
    if not isinstance(last, ast.Expr):
        statements.append(last)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(statements, []), name, "exec"), namespace)
        value = (
            eval(compile(ast.Expression(last.value), name, "eval"), namespace) if isinstance(last, ast.Expr) else None
        )
    return printed.getvalue(), value


def _data(value: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"text/plain": _lines(repr(value))}
    if hasattr(value, "_repr_html_") and (page := value._repr_html_()):
        data["text/html"] = _lines(page)
    if hasattr(value, "savefig"):
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=80, metadata={"Software": None})
        data["image/png"] = base64.b64encode(picture.getvalue()).decode()
    return data


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    read = json.loads(file.read_text())
    execute(read)
    file.write_text(json.dumps(read, indent=1, ensure_ascii=False) + "\n")
