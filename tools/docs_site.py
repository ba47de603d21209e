"""What mkdocs does besides: pages and excerpts that the code writes, formulas as MathML, no links out of docs/. See
mkdocs.yml."""

from __future__ import annotations

import ast
import html
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import config_table

import rlkit
from rlkit import registry

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
CODE = re.compile(r"<!-- code: (\S+):(\w+) -->")
"""`<!-- code: algorithms/vimpo.py:VimpoLoss -->`: here the code can be unfolded."""
ROOT = Path(__file__).resolve().parents[1]
OUTWARD = re.compile(
    r"\[([^\]]*)\]\((?:\.\./)+(?:(?:tests|rlkit|tools|algorithms|rewards|configs)/[^)]*|[A-Z]+\.\w+)\)"
)


def on_files(files: Files, config: Any) -> Files:
    pages = {"cli": _command_line(), "config-keys": _config_keys(), "python": _python()}
    for name, content in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    security = (ROOT / "SECURITY.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "security.md", content=security))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A link to a file of the checkout, which the site does not have, becomes its text."""
    return OUTWARD.sub(r"\1", CODE.sub(_excerpt, markdown))


def _excerpt(found: re.Match[str]) -> str:
    """A function or a class as it stands in its file; KeyError where it is not there."""
    lines = (ROOT / found[1]).read_text().splitlines()
    written: dict[str, Any] = {getattr(node, "name", ""): node for node in ast.parse("\n".join(lines)).body}
    node = written[found[2]]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    block = "```python\n" + "\n".join(lines[first - 1 : node.end_lineno]) + "\n```"
    return f'\n\n??? quote "{found[2]}"\n\n{textwrap.indent(block, "    ")}\n\n'


def on_page_content(content: str, **_: Any) -> str:
    # mkdocs-click's word for an option without a default.
    return FORMULA.sub(_mathml, content.replace("<code>Sentinel.UNSET</code>", ""))


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[2] == "[" else "inline"
    return str(latex2mathml.converter.convert(html.unescape(found[3]).strip(), display=display))


def _command_line() -> str:
    return (
        "# Command line\n\n::: mkdocs-click\n    :module: rlkit.cli\n    :command: main\n    :prog_name: rlkit\n"
        "    :depth: 1\n    :style: table\n"
    )


def _config_keys() -> str:
    parts = [
        "# Config keys\n\nEvery setting of a run, then the options of every plugin, as the code has them. "
        "[Configuration](../configuration.md) says how settings come together. `null`: off, or decided by rlkit."
        "\n\n## A run\n",
        config_table.config_table(bounds=True),
    ]
    for kind in registry.KINDS:
        parts.append(f"\n## {kind.capitalize()}\n")
        for name in registry.names(kind):
            plugin = registry.find(kind, name)
            parts.append(f"\n### `{name}` ({kind})\n\n{plugin.summary}\n")
            if plugin.options.model_fields:
                parts.append(config_table.options_table(kind, name, bounds=True))
    return "\n".join(parts) + "\n"


def _python() -> str:
    """The public names, each with its docstring; whatever `rlkit` makes public is here."""
    parts = [
        "# Python\n\nWhat `import rlkit` gives. Everything else may change without notice: see "
        "[stability](../stability.md).\n"
    ]
    for name in sorted(rlkit.__all__, key=lambda name: (name[0].isupper(), name)):
        parts.append(f"::: rlkit.{name}\n")
    return "\n".join(parts)
