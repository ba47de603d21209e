"""A look inside a run: a step's responses, coloured by what the algorithm credits each token.

samples.py reads a step from a run's folder, texts.py gives tokens their texts, surprises.py finds what deserves a
second look, terminal.py and page.py show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlkit.errors import ConfigError, nearest
from rlkit.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

    from rlkit.inspection.steps import Group, Step


def inspect(
    console: Console,
    runs: Sequence[Path],
    *,
    step: int | None = None,
    prompt: str | None = None,
    surprise: str | None = None,
) -> Path:
    """Print a step of one run, or of two side by side, and write it as a page, whose path is printed and returned.

    `prompt` is how a prompt's id begins, `surprise` a name in `surprises.KINDS`. Raises ConfigError for what does
    not exist, RlkitError for files that cannot be read or written.
    """
    from rlkit.inspection import page, terminal
    from rlkit.inspection.steps import choose_step, find_prompts, in_common, load_step
    from rlkit.inspection.surprises import KINDS, find_all
    from rlkit.inspection.texts import Texts
    from rlkit.records.folder import RunFolder

    if surprise is not None and surprise not in KINDS:
        raise ConfigError(f"--surprise: unknown kind {surprise!r}{nearest(surprise, KINDS)}. All: {', '.join(KINDS)}")
    folders = [RunFolder.open(run) for run in runs]
    number = choose_step(folders, step)
    texts = {config.path: Texts.of(config) for config in (folder.read_config().model for folder in folders)}
    steps = [load_step(folder, number, texts[folder.read_config().model.path]) for folder in folders]
    rows: list[tuple[Group, ...]] = list(in_common(*steps)) if len(steps) > 1 else [(g,) for g in steps[0].groups]
    if prompt is not None:
        wanted = {group.key for group in find_prompts([groups[0] for groups in rows], prompt)}
        rows = [groups for groups in rows if groups[0].key in wanted]

    found = [find_all(step) for step in steps]
    only = [None if surprise is None else kinds[surprise] for kinds in found]
    shown = [groups for groups in rows if surprise is None or _any(groups, only)]
    if not shown:
        where = "this prompt" if prompt is not None else f"step {number}"
        console.print(f"{where} has no response of the kind {surprise} ({KINDS[surprise or ''].label})", markup=False)
    printed = shown if prompt is not None else shown[: terminal.PROMPTS]
    terminal.show(console, steps, printed, only)

    file = folders[0].inspection / f"{_name(steps, prompt)}.html"
    held = page.write(file, steps, rows, found, surprise)
    console.print()
    if len(printed) < len(shown):
        rest = ", ".join(groups[0].prompt_id for groups in shown[len(printed) :][:3])
        more = counted(len(shown) - len(printed), "prompt")
        console.print(f"{more} more in this step; see another with --prompt ID (such as {rest})", markup=False)
    some = f" (the first {held} of {len(rows)} prompts)" if held < len(rows) else ""
    console.print(f"page{some}: {file}", markup=False, soft_wrap=True)
    return file


def _any(groups: Sequence[Group], only: Sequence[set[int] | None]) -> bool:
    return any(response.row in (kept or ()) for g, kept in zip(groups, only, strict=True) for response in g.responses)


def _name(steps: Sequence[Step], prompt: str | None) -> str:
    from rlkit.records.samples import step_name

    name = step_name(steps[0].number)
    if len(steps) > 1:
        name += f"-with-{steps[1].run}"
    return name + (f"-{prompt}" if prompt is not None else "")
