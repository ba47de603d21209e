"""Verdicts on answers that are on disk already: verifiers held against each other, and against what is written."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.config import RewardRef, ScoringConfig
from rlkit.data import reading
from rlkit.errors import ConfigError
from rlkit.golds import gold_cell, gold_text
from rlkit.interfaces.declarations import EnvironmentDeclaration
from rlkit.interfaces.rewards import Sample, SampleKey, UnknownTokens
from rlkit.records import samples
from rlkit.records.folder import RunFolder
from rlkit.scoring import Scorer, WeightedReward

RECORDED = "recorded"
"""What the verdicts are called that a run wrote down."""


RESPONSE, TOKENS = "response", "tokens"
"""Where a run, and `rlkit eval`, put down a response and its token ids."""


def scorer(
    rewards: Sequence[RewardRef],
    config: ScoringConfig,
    plugins: Sequence[str] = (),
    environment: EnvironmentDeclaration | None = None,
) -> Scorer:
    """Runs a verifier, or a sum of several, in worker processes; close it when done. Samples without a value never
    stop it.

    Raises ConfigError for an unknown reward.
    """
    return Scorer(
        [WeightedReward(reward.kind, reward.options, reward.weight) for reward in rewards],
        plugins,
        config.model_copy(update={"max_no_value": 1.0}),
        environment,
    )


@dataclass(frozen=True)
class Answered:
    """A response with its gold, and where it stands."""

    where: str
    sample: Sample
    expected: bool | None
    """The verdict that the data holds; None where it holds none."""


def read(
    path: Path,
    response: str = RESPONSE,
    answer: str = "answer",
    expected: str | None = None,
    tokenizer: Any = None,
) -> list[Answered]:
    """The rollouts of a run's folder, or the rows of a .json, .jsonl or .parquet file.

    The names are of columns. For a run, `expected` is the verdict of its own reward unless another is named.
    `tokenizer`: encodes responses whose tokens nobody has stored; None: those in a column `tokens` are used, and
    without it a reward that reads tokens is an error. Raises ConfigError for what cannot be read, for a column that is
    not there, and for a tokenizer given for a run, which has stored its tokens.
    """
    if path.is_dir() and response == RESPONSE and tokenizer is not None:
        raise ConfigError(f"{path} is a run, and holds the tokens that were sampled: leave out --model")
    files = [*samples.step_files(RunFolder(path).rollouts).values()] if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path} is no run: it holds no rollouts/step-*.parquet. Give a run's folder or a file")
    verdict = expected or ("correct" if path.is_dir() else None)
    found = []
    for file in files:
        rows = _rollouts(file, response, answer, verdict) if path.is_dir() else reading.read_rows(str(file))
        for i, row in enumerate(rows, 1):
            where = f"{file}, row {i}"
            cell = reading.column(row, answer, "--answer", where)
            gold = gold_text(cell, f"{where}, column {answer!r}")
            text = reading.column(row, response, "--response", where)
            if not isinstance(text, str):
                raise ConfigError(f"{where}, column {response!r}: expected text, got {type(text).__name__}")
            said = None
            if verdict is not None:
                said = _verdict(reading.column(row, verdict, "--expected", where), f"{where}, column {verdict!r}")
            rest = {key: value for key, value in row.items() if key not in (response, answer, verdict)}
            tokens = _stored(rest) if response == RESPONSE and tokenizer is None else None
            if tokens is None:
                tokens = UnknownTokens(
                    f"which {path} does not hold: give the model whose tokens they are, with --model"
                )
            name = f"{file.stem} row {i}" if path.is_dir() else f"row {i}"
            sample = _sample(i - 1, text, tokens, gold, rest)
            if not path.is_dir():  # a run has stored texts: the prompt with its template, and its gold
                sample.question, sample.gold = row.get("prompt"), gold_cell(cell)
            found.append(Answered(name, sample, said))
    if tokenizer is not None and found:
        encoded = tokenizer([a.sample.response for a in found], add_special_tokens=False)["input_ids"]
        for one, ids in zip(found, encoded, strict=True):
            one.sample.tokens = ids
    return found


def _stored(row: dict[str, Any]) -> Sequence[int] | None:
    """Takes the response's tokens out of a row, and None where it has no list of them."""
    if not isinstance(row.get(TOKENS), list) or not all(isinstance(token, int) for token in row[TOKENS]):
        return None
    tokens: list[int] = row.pop(TOKENS)
    return tokens


def _rollouts(file: Path, response: str, answer: str, verdict: str | None) -> list[reading.Row]:
    """A step's samples, without what is said of each token: that is most of the file."""
    names = samples.column_names(file)
    options = {response: "--response", answer: "--answer", verdict or "correct": "--expected"}
    for name, option in options.items():
        reading.column(dict.fromkeys(names), name, option, str(file))
    wanted = [name for name in (*options, TOKENS, "prompt", "truncated") if name in names]
    rows: list[reading.Row] = samples.read(file, wanted).to_pylist()
    return rows


def _sample(i: int, response: str, tokens: Sequence[int], answer: str, columns: Mapping[str, Any]) -> Sample:
    return Sample(
        key=SampleKey(prompt_id=f"row {i + 1}", rollout_step=0, occurrence=0, index=i),
        prompt=str(columns.get("prompt", "")),
        response=response,
        tokens=tokens,
        answer=answer,
        truncated=bool(columns.get("truncated", False)),
        columns=columns,
    )


def _verdict(value: Any, where: str) -> bool:
    if value is None:  # a run's sample without a value
        return False
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise ConfigError(f"{where}: expected a verdict (true or false, 1 or 0), got {str(value)[:40]!r}")


def compare(
    answered: Sequence[Answered],
    rewards: Sequence[str],
    config: ScoringConfig | None = None,
    plugins: Sequence[str] = (),
    recorded: str = "expected",
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Score every response with every reward; plain data for JSON and for `report`.

    `options` of each reward, by its name. `rewards`: what each says (correct, without a value, by status; the mean of
    its values, where they are not all 0 or 1). `agreement`: each pair of them, and each
    with the verdicts in the data, which are called `recorded`. `disagreements`: the rows on which not all agree. No
    value counts as wrong, as in evaluation. TokensUnknownError where a reward reads tokens that the data does not hold.
    """
    if len(set(rewards)) < len(rewards):
        raise ConfigError(f"--reward: {', '.join(rewards)}: each only once")
    samples = [a.sample for a in answered]
    results = {}
    for name in rewards:
        with scorer(
            [RewardRef(kind=name, **(options or {}).get(name, {}))], config or ScoringConfig(), plugins
        ) as verifier:
            results[name] = verifier.score(samples)
    verdicts = {name: [bool(r.correct) for r in scored] for name, scored in results.items()}
    if answered and all(a.expected is not None for a in answered):
        verdicts[recorded] = [bool(a.expected) for a in answered]
    rows = []
    for i, a in enumerate(answered):
        if len({said[i] for said in verdicts.values()}) > 1:
            rows.append(
                {
                    "where": a.where,
                    "response": a.sample.response[-200:],
                    "answer": a.sample.answer,
                    "verdicts": {name: said[i] for name, said in verdicts.items()},
                    "statuses": {name: scored[i].status for name, scored in results.items()},
                }
            )
    return {
        "rows": len(answered),
        "rewards": {
            name: {
                "correct": sum(verdicts[name]),
                "no_value": sum(r.value is None for r in scored),
                "statuses": dict(Counter(r.status for r in scored)),
                **_graded([r.value for r in scored if r.value is not None]),
            }
            for name, scored in results.items()
        },
        "agreement": [_agreement(a, b, verdicts) for a, b in itertools.combinations(verdicts, 2)],
        "disagreements": rows,
    }


def _graded(values: Sequence[float]) -> dict[str, float]:
    """The mean, of values that say more than right or wrong."""
    return {} if set(values) <= {0.0, 1.0} else {"mean": statistics.fmean(values)}


def _agreement(a: str, b: str, verdicts: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    pairs = Counter(zip(verdicts[a], verdicts[b], strict=True))
    agree = pairs[True, True] + pairs[False, False]
    return {
        "between": [a, b],
        "share": agree / max(pairs.total(), 1),
        "both_correct": pairs[True, True],
        "both_wrong": pairs[False, False],
        f"only_{a}": pairs[True, False],
        f"only_{b}": pairs[False, True],
    }


def report(compared: Mapping[str, Any], show: int = 20) -> str:
    """What `compare` found, for a terminal, with the first `show` disagreements."""
    lines = [f"{compared['rows']} responses"]
    for name, said in compared["rewards"].items():
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(said["statuses"].items()))
        share = said["correct"] / max(compared["rows"], 1)
        lines.append(f"  {name}: {said['correct']} correct ({share:.1%}); status: {statuses}")
        if "mean" in said:
            lines.append(f"  {name}: {said['mean']:.4g} on average, of those with a value")
        if said["no_value"]:
            lines.append(f"  {name}: {said['no_value']} without a value, counted as wrong")
    for pair in compared["agreement"]:
        a, b = pair["between"]
        lines.append(
            f"  {a} and {b} agree on {pair['share']:.2%}; correct to {a} alone: {pair[f'only_{a}']}, "
            f"to {b} alone: {pair[f'only_{b}']}"
        )
    rows = compared["disagreements"]
    lines += [f"{len(rows)} disagreements" + (f", the first {show}" if len(rows) > show else "")] if rows else []
    for row in rows[:show]:
        said = ", ".join(f"{name} {'correct' if v else 'wrong'}" for name, v in row["verdicts"].items())
        end = json.dumps(row["response"][-70:], ensure_ascii=False)
        lines.append(f"  {row['where']}: {said}; gold {row['answer'][:60]!r}, response ends {end}")
    return "\n".join(lines)
