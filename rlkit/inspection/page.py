"""Steps as a page: choose step, prompt and what colours the tokens, touch a token, filter for surprises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.errors import RlkitError
from rlkit.inspection.steps import Group, Response, Step
from rlkit.inspection.surprises import KINDS
from rlkit.inspection.words import alike, heading, label, largest, short
from rlkit.pages import as_json, render
from rlkit.wording import gold_answer, ranges, visible

SIZE = 230_000
"""Characters of data after which no further prompt of the step that was asked for goes into a page."""
OTHERS = 1_500_000
"""Characters of data of all other steps together, in equal shares."""
COLOURS = ("credit", "advantages", "value", "entropy", "token_kl")
"""What tokens can be coloured by, where it was kept; all other numbers of a token show when it is touched."""


@dataclass(frozen=True)
class View:
    """A step of one run, or of two beside each other."""

    steps: Sequence[Step]
    """Of each run."""
    rows: Sequence[Sequence[Group]]
    """For each prompt, its group in each of the steps."""
    surprises: Sequence[Mapping[str, set[int]]]
    """For each of the steps, kind -> rows."""

    @property
    def number(self) -> int:
        return self.steps[0].number


def write(file: Path, asked: View, others: Iterable[View], count: int, chosen: str | None) -> int:
    """Write the page, which begins with the step `asked` for. Returns the number of its prompts that the page holds.

    `others`: further steps, `count` of them at most. `chosen`: the kind of surprise that the page begins with. The
    first prompt of the step asked for is always held whole, and then as many as SIZE allows; of the others what fits
    into their share. Raises RlkitError where the file cannot be written.
    """
    held = {asked.number: _held(asked, SIZE)}
    if not held[asked.number]:
        held[asked.number] = [as_json(_prompt(asked.rows[0], asked.surprises))]
    views = {asked.number: asked}
    for view in others:
        if prompts := _held(view, min(SIZE, OTHERS // count)):
            views[view.number], held[view.number] = view, prompts
    numbers = sorted(views)
    head = {
        "kinds": {name: kind.label for name, kind in KINDS.items()},
        "chosen": chosen,
        "begin": numbers.index(asked.number),
    }
    steps = [_step(views[number], held[number]) for number in numbers]
    data = as_json(head)[:-1] + ',"steps":[' + ",".join(steps) + "]}"
    if file.parent.is_symlink():
        raise RlkitError(f"{file.parent} is a link: the page is written into the run's own folder alone. Remove it")
    try:
        file.parent.mkdir(exist_ok=True)
        render(
            "inspection",
            file,
            inspected=data,
            steps=asked.steps,
        )
    except OSError as error:
        raise RlkitError(f"cannot write {file}: {error}") from error
    return len(held[asked.number])


def _held(view: View, size: int) -> list[str]:
    """The first prompts of a step, as JSON, as many as fit."""
    prompts: list[str] = []
    for groups in view.rows:
        prompt = as_json(_prompt(groups, view.surprises))
        if sum(map(len, prompts)) + len(prompt) > size:
            break
        prompts.append(prompt)
    return prompts


def _step(view: View, prompts: Sequence[str]) -> str:
    head = {
        "number": view.number,
        "runs": [_run(step) for step in view.steps],
        "notes": [*dict.fromkeys(visible(note) for step in view.steps for note in step.notes)],
        "count": len(view.rows),
    }
    return as_json(head)[:-1] + ',"prompts":[' + ",".join(prompts) + "]}"


def _run(step: Step) -> dict[str, Any]:
    kept = {name for response in step.responses for name in response.series}
    names = [name for name in COLOURS if name in kept]
    credited = next((r.credited for r in step.responses if r.credited), None)
    return {
        "name": visible(step.run),
        "algorithm": visible(step.algorithm),
        "labels": {name: visible(label(step, name)) for name in sorted(kept)},
        "short": {name: visible(short(name)) for name in sorted(kept)},
        "colours": names,
        "first": credited or (names[0] if names else None),
        "oneNumber": step.one_number,
    }


def _prompt(groups: Sequence[Group], surprises: Sequence[Mapping[str, set[int]]]) -> dict[str, Any]:
    first = groups[0]
    return {
        "id": first.prompt_id,
        "occurrence": first.occurrence,
        "prompt": visible(first.prompt),
        "gold": visible(gold_answer(first.gold)),
        "groups": [
            {
                "baseline": _short(group.baseline),
                "responses": [_response(same, found) for same in alike(group.responses, _scale(group))],
            }
            for group, found in zip(groups, surprises, strict=True)
        ],
    }


def _scale(group: Group) -> float:
    return largest(n for r in group.responses if r.credited for n in r.series[r.credited])


def _response(same: Sequence[Response], found: Mapping[str, set[int]]) -> dict[str, Any]:
    response = same[0]
    return {
        "index": ranges([r.index + 1 for r in same]),
        "count": len(same),
        "reward": _short(response.reward),
        "clean": _short(response.clean_reward),
        "status": response.status,
        "correct": response.correct,
        "truncated": response.truncated,
        "valid": response.valid,
        "parts": {visible(name): _short(value) for name, value in response.parts.items()},
        "info": visible(_said(response.noted)),
        "stretches": [[part.start, part.turn is not None, visible(heading(part))] for part in response.stretches],
        "last": visible(response.last_words) if response.turns else "",
        "ids": response.tokens,
        "texts": [visible(piece.shown or piece.text) for piece in response.pieces],
        "named": [at for at, piece in enumerate(response.pieces) if piece.shown is not None],
        "series": {name: [_short(v) for v in numbers] for name, numbers in response.series.items()},
        "surprises": [kind for kind, rows in found.items() if response.row in rows],
    }


def _said(info: Mapping[str, Any]) -> str:
    """What the rewards noted, as text."""
    return " · ".join(f"{name} {_said(v) if isinstance(v, dict) else v}" for name, v in info.items())


def _short(value: float | None) -> float | int | None:
    """Four significant digits: a page shows no more."""
    if value is None:
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded
