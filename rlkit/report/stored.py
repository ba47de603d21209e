"""The samples of a run as its page holds them, as they stand in its rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.errors import RlkitError
from rlkit.interfaces.rewards import VALUELESS
from rlkit.pages import as_json
from rlkit.records.folder import RunFolder
from rlkit.records.samples import read, step_files
from rlkit.wording import gold_answer, visible

STEPS = 100
"""Steps that are shown; of more, so many that are evenly spaced, the first and the last among them."""
SIZE = 2_000_000
"""Characters of samples that a page holds, in equal shares for its steps; one sample of each is always held."""
LONGEST = 3000
"""Characters of a text that the page shows; of a longer one, the beginning and, since the answer is there, the end."""
COLUMNS = (
    *("prompt_id", "index", "prompt", "answer", "response", "reward", "clean_reward", "status", "correct", "valid"),
    *("truncated", "parts"),
)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What the page's browser of samples has."""

    json: str
    """{"prompts": [[id, text, gold], ...], "samples": [{...}, ...]}; a sample names its prompt by its place."""
    held: int
    count: int
    """Samples of the steps that are shown."""
    damaged: Sequence[str]
    """What is wrong with the files that cannot be read."""


def stored(run: RunFolder, steps: Sequence[int]) -> Stored:
    """The samples of these steps, as far as they find room."""
    files = step_files(run.rollouts)
    prompts: dict[tuple[str, str, str], int] = {}
    texts: list[str] = []
    samples: list[str] = []
    damaged: list[str] = []
    used = count = 0
    for done, step in enumerate(steps, 1):
        try:
            rows = read(files[step], COLUMNS).to_pylist()
        except RlkitError as error:
            damaged.append(str(error))
            continue
        count += len(rows)
        for number, row in enumerate(rows):
            key = (row["prompt_id"], _cut(row["prompt"]), _cut(gold_answer(row["answer"])))
            new = [] if key in prompts else [as_json(key)]
            sample = as_json(_sample(step, prompts.get(key, len(prompts)), row))
            used += len(sample) + sum(map(len, new))
            if number and used > SIZE * done / len(steps):
                used -= len(sample) + sum(map(len, new))
                break
            prompts.setdefault(key, len(prompts))
            texts += new
            samples.append(sample)
    json = f'{{"prompts":[{",".join(texts)}],"samples":[{",".join(samples)}]}}'
    return Stored(json=json, held=len(samples), count=count, damaged=damaged)


def _sample(step: int, prompt: int, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "step": step,
        "prompt": prompt,
        "index": row["index"],
        "response": _cut(row["response"]),
        # None: no value; the loss then saw nothing.
        "clean": None if row["status"] in VALUELESS else row["clean_reward"],
        "reward": row["reward"] if row["valid"] else None,
        "status": row["status"],
        "correct": row["correct"],
        "truncated": row["truncated"],
        "parts": {visible(name): value for name, value in row["parts"] or []},
    }


def _cut(text: str) -> str:
    left_out = len(text) - LONGEST
    if left_out <= 0:
        return visible(text)
    cut = f"{text[: LONGEST * 2 // 3]}\n[... {left_out:,} characters left out ...]\n{text[-(LONGEST // 3) :]}"
    return visible(cut)
