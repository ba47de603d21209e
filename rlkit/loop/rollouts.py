"""A run's rollouts, in the order that its seed decides; and one as a checkpoint keeps it until it is learnt from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from rlkit.config import RunConfig
from rlkit.data import Cursor, Problem
from rlkit.errors import RlkitError
from rlkit.generation.collector import Scored
from rlkit.interfaces.generation import Completion
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.loop.dynamic_sampling import Gathered, Gatherer
from rlkit.loop.state import Place


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
                f"the checkpoint holds samples for step {key.rollout_step} to a prompt that the data lack: resume the "
                "run with the data that it was sampled with"
            )
        completion = Completion(
            tokens=drawn.tolist(), logprobs=said.tolist(), truncated=one["truncated"], version=one["version"]
        )
        scored.append(
            Scored(
                key=key,
                # What is read after the scoring follows from the prompt, but for the gold, which others may share it
                # with.
                problem=replace(prompts[key.prompt_id], answer=one["answer"]),
                completion=completion,
                text=one["text"],
                result=RewardResult(**one["result"] | {"info": json.loads(one["info"])}),
            )
        )
    rest = {name: found[name] for name in ("rewards", "replaced", "first", "seconds", "metrics")}
    return Taken(found["step"], Gathered(scored=scored, **rest), Place(**found["after"]))
