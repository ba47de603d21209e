"""A run's rollouts, in the order that its seed decides; one as a checkpoint keeps it until it is learnt from; and one
read again from where the run has logged it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlkit.config import RunConfig
from rlkit.data import Cursor, Problem
from rlkit.errors import RlkitError
from rlkit.generation.sampled import Scored
from rlkit.interfaces.generation import Completion
from rlkit.interfaces.names import ENVIRONMENT
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.loop.dynamic_sampling import Gathered, Gatherer
from rlkit.loop.state import Place
from rlkit.records.samples import LEARNT_FROM, read


@dataclass(frozen=True)
class Taken:
    """The samples of a step."""

    step: int
    gathered: Gathered
    after: Place
    """Where the next one begins."""


def take(
    config: RunConfig, gatherer: Gatherer, problems: Sequence[Problem], step: int, place: Place, version: int | None
) -> Taken:
    """Sample and score what `step` learns from. RlkitError for samples of other weights than `version`'s, which the
    sampler has."""
    cursor = Cursor(len(problems), config.seed, place.problems)
    others = Cursor(len(problems), config.seed + 1, place.replacements)
    first = [problems[i] for i in cursor.take(config.batch.prompts_per_step)]
    gathered = gatherer.gather(first, step, lambda n: [problems[i] for i in others.take(n)])
    if version is not None:
        # A trajectory that was lost before its first turn is of no weights.
        scored = [
            one if len(one.completion.tokens) else replace(one, completion=replace(one.completion, version=version))
            for one in gathered.scored
        ]
        gathered = replace(gathered, scored=scored)
    if found := {one.completion.version for one in gathered.scored} - {version}:
        raise RlkitError(
            f"step {step}: the sampler gave samples of policy version {min(found)}, and was given the weights of "
            f"{version}: it did not take the newest weights over"
        )
    return Taken(step, gathered, Place(cursor.position, others.position))


def saved(taken: Taken) -> dict[str, Any]:
    """Plain data and tensors, to be read by `restored`."""
    gathered = taken.gathered
    scored = gathered.scored
    return {
        "step": taken.step,
        "after": asdict(taken.after),
        "samples": [
            {
                "key": asdict(one.key),
                "answer": one.problem.answer,
                "text": one.text,
                "turns": one.turns,
                # Of a trajectory, for which the environment may have gone on with it.
                "prompt": None if one.turns is None else (one.problem.text, one.problem.tokens),
                "truncated": one.completion.truncated,
                "version": one.completion.version,
                "result": asdict(replace(one.result, info={}, token_values=_plain(one.result.token_values))),
                # As in rollouts/: it may hold anything.
                "info": json.dumps(one.result.info, default=str),
            }
            for one in scored
        ],
        "lengths": torch.tensor([len(one.completion.tokens) for one in scored]),
        "tokens": torch.tensor([token for one in scored for token in one.completion.tokens], dtype=torch.int32),
        # As exact as in a Rollout.
        "logprobs": torch.tensor([number for one in scored for number in one.completion.logprobs], dtype=torch.float32),
        "rewards": [None if reward is None else float(reward) for reward in gathered.rewards],
        "replaced": gathered.replaced,
        "first": gathered.first,
        "seconds": gathered.seconds,
        "metrics": gathered.metrics,
    }


def _plain(values: Sequence[float] | None) -> list[float] | None:
    """Among several ranks they travel as arrays."""
    return None if values is None else list(values)


def stored(file: Path, step: int, after: Place, first: int, problems: Sequence[Problem]) -> Taken:
    """A step's samples from its file in a run's rollouts/, as the run has learnt from them; `first`: how many are of
    the first draw. RlkitError for a file that cannot be read, and for prompts that the data lack, or that are other
    tokens now."""
    table = read(file, LEARNT_FROM, optional=["token_values"])
    tokens, logprobs = (table[name].combine_chunks() for name in ("tokens", "sampler_logprobs"))
    rows = table.drop_columns(["tokens", "sampler_logprobs"]).to_pylist()
    read_as = {problem.id: problem.tokens for problem in problems}
    if any(
        read_as.get(row["prompt_id"], row["prompt_tokens"]) != row["prompt_tokens"]
        for row in rows
        if ENVIRONMENT not in json.loads(row["info"])
    ):
        raise RlkitError(
            f"{file}: its prompts are other tokens than they are to the model of this run: samples can only be learnt "
            "from by a model with the tokenizer of the one that gave them (model.path)"
        )
    found = {
        "step": step,
        "after": asdict(after),
        "samples": [
            {
                "key": {name: row[name] for name in ("prompt_id", "rollout_step", "occurrence", "index")},
                "answer": row["answer"],
                "text": row["response"],
                "turns": row["turns"],
                "prompt": (row["prompt"], row["prompt_tokens"]),
                "truncated": row["truncated"],
                "version": row["version"],
                "result": {
                    "value": row["clean_reward"],
                    "status": row["status"],
                    "correct": row["correct"],
                    "parts": dict(row["parts"]),
                    "token_values": row.get("token_values"),
                },
                "info": row["info"],
            }
            for row in rows
        ],
        "lengths": torch.tensor([len(row) for row in tokens]),
        "tokens": torch.tensor(tokens.flatten().to_numpy()),
        "logprobs": torch.tensor(logprobs.flatten().to_numpy()),
        "rewards": [row["reward"] for row in rows],
        "replaced": [row["replaced"] for row in rows],
        "first": first,
        # What was spent on them, and what sampling alone knows.
        "seconds": {},
        "metrics": {},
    }
    return restored(found, problems)


def restored(found: Mapping[str, Any], problems: Sequence[Problem]) -> Taken:
    """What `saved` wrote. RlkitError where the data lack a prompt of it."""
    prompts = {problem.id: problem for problem in problems}
    lengths = found["lengths"].tolist()
    tokens, logprobs = found["tokens"].split(lengths), found["logprobs"].split(lengths)
    scored = []
    for one, drawn, said in zip(found["samples"], tokens, logprobs, strict=True):
        key = SampleKey(**one["key"])
        if key.prompt_id not in prompts:
            raise RlkitError(
                f"there are samples for step {key.rollout_step} to a prompt that the data lack: go on with the data "
                "that they were sampled with"
            )
        # What is read after the scoring follows from the prompt, but for the gold, which others may share it with.
        problem = replace(prompts[key.prompt_id], answer=one["answer"])
        if (prompt := one.get("prompt")) is not None:
            problem = replace(problem, text=prompt[0], tokens=list(prompt[1]))
        turns = one.get("turns")
        completion = Completion(
            tokens=drawn.tolist(), logprobs=said.tolist(), truncated=one["truncated"], version=one["version"]
        )
        scored.append(
            Scored(
                key=key,
                problem=problem,
                completion=completion,
                text=one["text"],
                turns=None if turns is None else tuple((start, end) for start, end in turns),
                result=RewardResult(**one["result"] | {"info": json.loads(one["info"])}),
            )
        )
    rest = {name: found[name] for name in ("rewards", "replaced", "first", "seconds", "metrics")}
    return Taken(found["step"], Gathered(scored=scored, **rest), Place(**found["after"]))
