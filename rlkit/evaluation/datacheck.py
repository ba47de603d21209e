"""What is wrong with a data set before a run finds out: `rlkit data check`."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlkit import registry
from rlkit.config import RewardRef, ScoringConfig
from rlkit.data import reading
from rlkit.data.prompts import continues
from rlkit.data.reading import ANSWERS, NO_GOLDS, PROMPTS
from rlkit.errors import ConfigError
from rlkit.evaluation import suites
from rlkit.evaluation.gold_check import bad_golds
from rlkit.evaluation.verify import scorer
from rlkit.golds import gold_text
from rlkit.wording import counted, some

_OPENING = 8
"""Words by which a suite's question is looked for inside longer prompts."""


def check(
    path: str,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    tokenizer: Any = None,
    reward: str | None = None,
    folder: Path | None = None,
    with_suites: bool = True,
    plugins: Sequence[str] = (),
) -> dict[str, Any]:
    """Plain data for JSON and for `report`; rows count from 1.

    `tokenizer`: None counts lengths in characters. `reward`: the one that golds are checked with; None leaves that
    out. `with_suites`: look for questions of evaluation suites, in `folder` if they have local copies. Raises
    ConfigError for what cannot be read, and for a named column that is not there; TokensUnknownError for a reward that
    reads a response's tokens.
    """
    rows = reading.read_rows(path)
    if not rows:
        raise ConfigError(f"{path} holds no rows")
    prompt = prompt or reading.present(rows, PROMPTS, "--prompt", path)
    if answer != NO_GOLDS:
        answer = answer or reading.present(rows, ANSWERS, f"--answer ({NO_GOLDS}: the data has no golds)", path)
    wheres = [f"{path}, row {i}" for i in range(1, len(rows) + 1)]
    prompts = reading.questions(rows, prompt, "--prompt", path)
    questions = [_text(each) for each in prompts]
    cells = reading.golds(rows, None if answer == NO_GOLDS else answer, "--answer", path)
    golds = [gold_text(cell, w) for cell, w in zip(cells, wheres, strict=True)]
    found: dict[str, Any] = {
        "file": path,
        "rows": len(rows),
        "columns": dict(Counter(name for row in rows for name in row)),
        "prompt": prompt,
        "answer": answer,
        "lengths": _lengths(questions, tokenizer),
        "duplicates": _duplicates(questions),
        "empty_golds": [i for i, gold in enumerate(golds, 1) if not gold.strip() and answer != NO_GOLDS],
        "continued": sum(map(continues, prompts)),
        "empty_prompts": [i for i, question in enumerate(questions, 1) if not question.strip()],
        "overlap": {},
        "suites_not_read": {},
    }
    if reward is not None:
        with scorer([RewardRef(kind=reward)], ScoringConfig(), plugins) as verifier:
            bad = bad_golds(verifier, [(cell, dict(r)) for cell, r in zip(cells, rows, strict=True)])
        found["reward"] = reward
        found["bad_golds"] = [{"row": b.row, "gold": b.gold, "status": b.status} for b in bad]
    for name in registry.names("suites") if with_suites else ():
        try:
            suite = suites.find(name)
            theirs = [_text(reading.cell(row, suite.prompt) or "") for row in suites.rows_of(name, suite, folder)]
        except ConfigError as error:
            found["suites_not_read"][name] = str(error).partition("\n")[0]
            continue
        found["overlap"][name] = [{"row": i + 1, "problem": j + 1} for i, j in overlap(questions, theirs)]
    return found


def _text(prompt: Any) -> str:
    """The question in a cell: text, or chat messages, of which the user's count."""
    if isinstance(prompt, list):
        return "\n".join(
            str(m.get("content", "")) for m in prompt if isinstance(m, Mapping) and m.get("role") == "user"
        )
    return str(prompt)


def _lengths(questions: Sequence[str], tokenizer: Any) -> dict[str, Any]:
    sizes = [len(q) for q in questions]
    if tokenizer is not None:
        sizes = [len(ids) for ids in tokenizer(list(questions), add_special_tokens=False)["input_ids"]]
    low, median, high, top = np.quantile(sizes, [0, 0.5, 0.95, 1], method="inverted_cdf")
    unit = "characters" if tokenizer is None else "tokens"
    return {"unit": unit, "min": int(low), "median": int(median), "p95": int(high), "max": int(top)}


def _duplicates(questions: Sequence[str]) -> list[list[int]]:
    """Rows with one question, each list of them in order."""
    seen: dict[str, list[int]] = defaultdict(list)
    for i, question in enumerate(questions, 1):
        seen[question.strip()].append(i)
    return [rows for rows in seen.values() if len(rows) > 1]


def words(text: str) -> list[str]:
    """Lower case, punctuation dropped, cut at white space."""
    return re.sub(r"[^\w\s]|_", "", text.lower()).split()


def overlap(questions: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(i, j) where question i is problem j of `theirs`, or holds it whole, after normalising by `words`.

    A problem of fewer than eight words counts only where it is the whole question, and one without any not at all.
    """
    whole: dict[tuple[str, ...], list[int]] = defaultdict(list)
    opening: dict[tuple[str, ...], list[tuple[int, list[str]]]] = defaultdict(list)
    for j, problem in enumerate(theirs):
        its = words(problem)
        if len(its) >= _OPENING:
            opening[tuple(its[:_OPENING])].append((j, its))
        elif its:
            whole[tuple(its)].append(j)
    for i, question in enumerate(questions):
        mine = words(question)
        hits = set(whole.get(tuple(mine), ()))
        for at in range(len(mine) - _OPENING + 1):
            for j, its in opening.get(tuple(mine[at : at + _OPENING]), ()):
                if mine[at : at + len(its)] == its:
                    hits.add(j)
        yield from ((i, j) for j in sorted(hits))


def report(found: Mapping[str, Any], show: int = 10) -> str:
    """What `check` found, for a terminal, with the first `show` rows of each fault."""
    rows, lengths = found["rows"], found["lengths"]
    columns = ", ".join(name if count == rows else f"{name} (in {count})" for name, count in found["columns"].items())
    lines = [
        f"{found['file']}: {rows} rows",
        f"  columns: {columns}",
        f"  prompt column {found['prompt']}, answer column {found['answer']}",
        *(
            [f"  prompts that end in an assistant's message, which the model goes on with: {found['continued']}"]
            if found["continued"]
            else []
        ),
        f"  prompt length in {lengths['unit']}: shortest {lengths['min']}, median {lengths['median']}, 95 % at most "
        f"{lengths['p95']}, longest {lengths['max']}",
        f"  repeated prompts: {_some([' = '.join(map(str, same)) for same in found['duplicates']], show)}",
        _in_rows("empty prompts", found["empty_prompts"], show),
        _in_rows("empty golds", found["empty_golds"], show),
    ]
    if "bad_golds" in found:
        bad = [
            f"row {b['row']} {json.dumps(b['gold'][-60:], ensure_ascii=False)} ({b['status']})"
            for b in found["bad_golds"]
        ]
        lines.append(f"  golds that {found['reward']} does not take for right: {_some(bad, show)}")
    else:
        lines.append("  golds were not verified: name a verifier with --reward")
    for name, hits in found["overlap"].items():
        said = [f"row {hit['row']} is problem {hit['problem']}" for hit in hits]
        lines.append(f"  overlap with {name}: {_some(said, show)}")
    first, *others = found["suites_not_read"] or [None]
    if first is not None:
        lines.append(f"  overlap with {first}: NOT CHECKED: {found['suites_not_read'][first]}")
        either = f"nor with {', '.join(others)}; " if others else ""
        lines.append(f"    {either}give local copies with --data, or leave this out with --no-overlap")
    return "\n".join(lines)


def _in_rows(fault: str, rows: Sequence[int], show: int) -> str:
    return f"  {fault} in {counted(len(rows), 'row')}: {some(rows, show)}" if rows else f"  {fault}: none"


def _some(items: Sequence[str], show: int) -> str:
    if not items:
        return "none"
    return f"{len(items)}: " + "; ".join(items[:show]) + ("; ..." if len(items) > show else "")
