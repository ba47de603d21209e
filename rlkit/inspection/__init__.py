"""A look inside a run: a step's responses, coloured by what the algorithm credits each token.

samples.py reads a step from a run's folder, texts.py gives tokens their texts, surprises.py finds what deserves a
second look, terminal.py and page.py show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlkit.errors import ConfigError, RlkitError, nearest
from rlkit.wording import counted, visible

if TYPE_CHECKING:
    from rich.console import Console

    from rlkit.inspection.page import View
    from rlkit.inspection.steps import Group, Step

STEPS = 20
"""On a page, evenly spaced; and the one that was asked for."""


def inspect(
    console: Console,
    runs: Sequence[Path],
    *,
    step: int | None = None,
    prompt: str | None = None,
    surprise: str | None = None,
    trusts: bool = False,
) -> Path:
    """Print a step of one run, or of two side by side, and write it and others as a page, whose path is printed and
    returned.

    `prompt` is how a prompt's id begins, `surprise` a name in `surprises.KINDS`. `trusts`:
    code in the folder of a model may run, for its tokenizer. Raises ConfigError for what does
    not exist, RlkitError for files that cannot be read or written.
    """
    from rlkit.inspection import page, terminal
    from rlkit.inspection.steps import choose_step, common_steps, load_step
    from rlkit.inspection.surprises import KINDS
    from rlkit.inspection.texts import Texts
    from rlkit.records.folder import RunFolder
    from rlkit.records.samples import evenly

    if surprise is not None and surprise not in KINDS:
        raise ConfigError(f"--surprise: unknown kind {surprise!r}{nearest(surprise, KINDS)}. All: {', '.join(KINDS)}")
    folders = [RunFolder.open(run) for run in runs]
    number = choose_step(folders, step)
    models = [folder.read_config().model for folder in folders]
    texts = {model.path: Texts.of(model, trusts) for model in models}

    def load(number: int) -> list[Step]:
        return [load_step(folder, number, texts[model.path]) for folder, model in zip(folders, models, strict=True)]

    steps = load(number)
    view = _view(steps, prompt)
    rows, found = view.rows, view.surprises
    only = [None if surprise is None else kinds[surprise] for kinds in found]
    shown = [groups for groups in rows if surprise is None or _any(groups, only)]
    if not shown:
        where = "this prompt" if prompt is not None else f"step {number}"
        console.print(f"{where} has no response of the kind {surprise} ({KINDS[surprise or ''].label})", markup=False)
    printed = shown if prompt is not None else shown[: terminal.PROMPTS]
    terminal.show(console, steps, printed, only)

    file = folders[0].inspection / f"{_name(steps, prompt)}.html"
    numbers = [each for each in evenly(common_steps(folders), STEPS) if each != number]
    others = (made for each in numbers if (made := _other(load, each, prompt)) is not None)
    held = page.write(file, view, others, len(numbers), surprise)
    console.print()
    if len(printed) < len(shown):
        rest = ", ".join(groups[0].prompt_id for groups in shown[len(printed) :][:3])
        more = counted(len(shown) - len(printed), "prompt")
        said = f"{more} more in this step; see another with --prompt ID (such as {rest})"
        console.print(visible(said), markup=False)
    some = f" (the first {held} of {len(rows)} prompts)" if held < len(rows) else ""
    console.print(visible(f"page{some}: {file}"), markup=False, soft_wrap=True)
    return file


def _view(steps: Sequence[Step], prompt: str | None) -> View:
    """ConfigError where the steps have no prompt in common, or not this one."""
    from rlkit.inspection.page import View
    from rlkit.inspection.steps import find_prompts, in_common
    from rlkit.inspection.surprises import find_all

    rows: list[tuple[Group, ...]] = list(in_common(*steps)) if len(steps) > 1 else [(g,) for g in steps[0].groups]
    if prompt is not None:
        wanted = {group.key for group in find_prompts([groups[0] for groups in rows], prompt)}
        rows = [groups for groups in rows if groups[0].key in wanted]
    return View(steps, rows, [find_all(step) for step in steps])


def _other(load: Callable[[int], list[Step]], number: int, prompt: str | None) -> View | None:
    """A step beside the one asked for; None where it cannot be read, or has not what was asked for."""
    try:
        return _view(load(number), prompt)
    except RlkitError:
        return None


def _any(groups: Sequence[Group], only: Sequence[set[int] | None]) -> bool:
    return any(response.row in (kept or ()) for g, kept in zip(groups, only, strict=True) for response in g.responses)


def _name(steps: Sequence[Step], prompt: str | None) -> str:
    name = "steps"
    if len(steps) > 1:
        name += f"-with-{steps[1].run}"
    return name + (f"-{prompt}" if prompt is not None else "")
