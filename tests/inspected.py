"""A run's folder with samples and credit written by hand, for the tests of what looks inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from rlkit.config import RunConfig, load
from rlkit.inspection.steps import Piece, Step, load_step
from rlkit.interfaces.learning import Rollout, Targets, TokenStats
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.records.folder import RunFolder

EOS = 1


@dataclass
class Sampled:
    """A response to be written into a run's folder."""

    tokens: list[int]
    text: str
    result: RewardResult = field(default_factory=lambda: RewardResult(value=1.0, correct=True, info={"answer": "4"}))
    noisy: float | None = None
    """None: as the result says."""
    credit: list[float] | None = None
    value: list[float] | None = None
    advantages: list[float] | None = None
    valid: bool = True
    others: tuple[int, ...] = ()
    """Columns of tokens that the policy did not choose."""
    truncated: bool = False
    turns: tuple[tuple[int, int], ...] | None = None
    """Of a conversation, what the policy chose; None: all is one."""


def config(algo: str = "vimpo", **more: Any) -> RunConfig:
    return load({"algo": {"kind": algo}, "model": {"path": "embedded:xs"}, "reward": "final_answer",
                 "data": {"path": "embedded:arithmetic"}, **more})  # fmt: skip


def padded(rows: Sequence[list[float] | None], width: int) -> torch.Tensor:
    return torch.tensor([(row or [])[:width] + [0.0] * (width - len(row or [])) for row in rows])


def write(
    folder: RunFolder, step: int, groups: Sequence[Sequence[Sampled]], prompts: Sequence[str] | None = None,
    values: bool = False, credit: bool = True,
) -> None:  # fmt: skip
    """A step of these groups; `values`: a critic said the values."""
    samples = [sample for group in groups for sample in group]
    number = [at for at, group in enumerate(groups) for _ in group]
    prompts = prompts or [f"{at}+2=" for at, _ in enumerate(groups)]
    width = max(len(s.tokens) for s in samples)
    length = torch.tensor([len(s.tokens) for s in samples])
    valid = torch.tensor([s.valid and s.result.value is not None for s in samples])
    mask = (torch.arange(width) < length[:, None]) & valid[:, None]
    for row, sample in enumerate(samples):
        mask[row, list(sample.others)] = False
        for (_, end), (start, _) in pairwise(sample.turns or ()):
            mask[row, end:start] = False
    rewards = [s.result.value or 0.0 for s in samples]
    rollout = Rollout(
        keys=[SampleKey(f"{n:04x}ab", step, 0, number[:at].count(n)) for at, n in enumerate(number)],
        prompt_tokens=[torch.tensor([2])] * len(samples),
        tokens=torch.tensor([s.tokens + [0] * (width - len(s.tokens)) for s in samples]),
        length=length,
        mask=mask,
        valid=valid,
        group=torch.tensor(number),
        reward=torch.tensor([r if s.noisy is None else s.noisy for s, r in zip(samples, rewards, strict=True)]),
        clean_reward=torch.tensor(rewards),
        sampler_logprobs=torch.full((len(samples), width), -0.5),
        version=torch.zeros(len(samples), dtype=torch.long),
        truncated=torch.tensor([s.truncated for s in samples]),
        turns=[list(s.turns or [(0, len(s.tokens))]) for s in samples],
    )
    folder.log_rollout(
        step, rollout, prompts=[prompts[n] for n in number], answers=["4"] * len(samples),
        texts=[s.text for s in samples], results=[s.result for s in samples],
        rewards=[s.result.value if s.noisy is None else s.noisy for s in samples],
        stats=TokenStats(values=padded([s.value for s in samples], width)) if values else None,
    )  # fmt: skip
    if credit:
        kept = {name: [getattr(s, name) for s in samples] for name in ("credit", "value", "advantages")}
        tensors = {name: padded(rows, width) for name, rows in kept.items() if any(row is not None for row in rows)}
        targets = Targets(advantages=tensors.pop("advantages", None), credit=tensors)
        folder.log_credit(step, rollout, [(list(range(len(samples))), targets)])


def wrong(**more: Any) -> RewardResult:
    return RewardResult(**{"value": 0.0, "correct": False, "info": {"answer": "5"}} | more)


def as_letters(ids: Sequence[int], text: str) -> list[Piece]:
    """A character a token; the end token has none."""
    return [Piece(text[at]) if at < len(text) else Piece("", "<eos>") for at, _ in enumerate(ids)]


def loaded(folder: RunFolder, step: int = 1) -> Step:
    return load_step(folder, step, as_letters)


def letters(text: str, **more: Any) -> Sampled:
    """A response of a token a character and an end token."""
    return Sampled([*range(2, 2 + len(text)), EOS], text, **more)


def conversation(**more: Any) -> Sampled:
    """6 and 4<eos>, and between them + of the environment's."""
    said = {
        "ended": "done", "counts": {"calls": 1.0}, "last": "well done",
        "turns": [{"reward": 0.5, "info": {}}, {"reward": 0.0, "info": {}}],
    }  # fmt: skip
    result = RewardResult(value=0.5, correct=True, info={"environment": said})
    return Sampled([9, 13, 7, 1], "6+4", result, turns=((0, 1), (2, 4)), **more)


TWO = [9, 13, 2, 7, 1]
"""6+#### 4<eos>"""


def two_plus(**more: Any) -> Sampled:
    return Sampled(TWO, "6+#### 4", **more)
