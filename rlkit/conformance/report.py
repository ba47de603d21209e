"""What the checks of a plugin have found, for a terminal and as data."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from rlkit.conformance.findings import Finding
from rlkit.registry import Plugin
from rlkit.wording import counted

INDENT = " " * 12


def line(finding: Finding, width: int | None = None) -> str:
    """One check: how it went, what it says, and, where it failed, what was found. width: columns to break it at."""
    if finding.wrong:
        said, *table = f"  FAILED    {finding.says}: {finding.wrong}".splitlines()
    elif finding.left_out:
        said, *table = f"  left out  {finding.says}: {finding.left_out}".splitlines()
    else:
        said, *table = f"  ok        {finding.says}{f' ({finding.note})' if finding.note else ''}".splitlines()
    broken = textwrap.wrap(said, width, subsequent_indent=INDENT) if width else [said]
    return "\n".join([*broken, *(INDENT + row for row in table)])


def summary(plugin: Plugin, findings: Sequence[Finding]) -> str:
    """The plugin in a sentence."""
    whose = f"{plugin.noun} {plugin.name!r}"
    failed = sum(bool(finding.wrong) for finding in findings)
    left = sum(bool(finding.left_out) for finding in findings)
    if failed:
        rest = "; those that come after it could not be made" if findings[-1].ends else ""
        return f"{whose} fails {failed} of {counted(len(findings), 'check')}{rest}"
    if left == len(findings):
        return f"{whose} was not checked"
    return f"{whose} passes {counted(len(findings) - left, 'check')}" + (f"; {left} left out" if left else "")


def as_data(plugin: Plugin, findings: Sequence[Finding]) -> dict[str, Any]:
    """For JSON. `passed` of a check is None where it was left out."""
    file, number = plugin.place or (None, None)
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "file": None if file is None else str(file),
        "line": number,
        "passed": not any(finding.wrong for finding in findings),
        "checks": [
            {
                "check": finding.says,
                "passed": None if finding.left_out else not finding.wrong,
                "said": finding.wrong or finding.left_out or finding.note,
            }
            for finding in findings
        ],
    }
