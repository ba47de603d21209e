"""A step as a page of its own: choose a prompt and what colours the tokens, touch a token, filter for surprises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.errors import RlkitError
from rlkit.inspection.steps import Group, Response, Step
from rlkit.inspection.surprises import KINDS
from rlkit.inspection.words import alike, label, largest, short
from rlkit.pages import as_json, render
from rlkit.wording import gold_answer, ranges, visible

SIZE = 230_000
"""Characters of data after which no further prompt goes into a page: with its frame it stays below 300 KB."""
COLOURS = ("credit", "advantages", "value", "entropy", "token_kl")
"""What tokens can be coloured by, where it was kept; all other numbers of a token show when it is touched."""


def write(
    file: Path,
    steps: Sequence[Step],
    rows: Sequence[Sequence[Group]],
    surprises: Sequence[Mapping[str, set[int]]],
    chosen: str | None,
) -> int:
    """Write the page: for each prompt, its group in each of the steps. Returns the number of prompts that it holds.

    `surprises`: for each step, kind -> rows. `chosen`: the kind that the page begins with. The first prompt is always
    held whole, and then as many as SIZE allows. Raises RlkitError where the file cannot be written.
    """
    prompts: list[str] = []
    for groups in rows:
        prompt = as_json(_prompt(groups, surprises))
        if prompts and sum(map(len, prompts)) + len(prompt) > SIZE:
            break
        prompts.append(prompt)
    head = {
        "runs": [_run(step) for step in steps],
        "kinds": {name: kind.label for name, kind in KINDS.items()},
        "chosen": chosen,
    }
    data = as_json(head)[:-1] + ',"prompts":[' + ",".join(prompts) + "]}"
    try:
        file.parent.mkdir(exist_ok=True)
        render(
            "inspection",
            file,
            inspected=data,
            steps=steps,
            notes=dict.fromkeys(note for step in steps for note in step.notes),
            held=len(prompts),
            count=len(rows),
        )
    except OSError as error:
        raise RlkitError(f"cannot write {file}: {error}") from error
    return len(prompts)


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
        "info": visible(_said(response.info)),
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
