"""The contract that rewards meet: a sample, what a reward function says of it, and the name it has for ever.

Apart from the other contracts, since it needs no torch: a reward's worker process starts without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, Protocol

from rlkit.errors import TokensUnknownError

Status = Literal["ok", "no_answer", "refused", "abstain", "error", "timeout", "bad_gold"]
"""How a sample's reward came about. `ok` carries its value, `no_answer` and `refused` have the value 0; the
others have no value: such a sample is left out of loss and baseline, and counted."""

VALUELESS: frozenset[Status] = frozenset({"abstain", "error", "timeout", "bad_gold"})


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Names a sample for ever: its sampling seed, its noise coins and its place in storage follow from it.

    Example: the third of eight answers to a prompt that was drawn once in step 12 is
    `SampleKey(prompt_id="9f2c...", rollout_step=12, occurrence=0, index=2)`.
    """

    prompt_id: str
    """Hash of the prompt's content: the same in every run and process."""
    rollout_step: int
    occurrence: int
    """0, or 1, 2, ... where the same prompt comes again within the step."""
    index: int
    """0 .. G-1 within its group."""

    def seed(self, run_seed: int, purpose: str) -> int:
        """A 63-bit seed that depends on the key, the run's seed and the purpose alone."""
        text = f"{run_seed}/{purpose}/{self.prompt_id}/{self.rollout_step}/{self.occurrence}/{self.index}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class UnknownTokens(Sequence[int]):
    """Stands for the tokens of a response of which only the text is known: whatever reads it raises TokensUnknownError.

    And it remembers that it was read: a reward function may catch the error (as numpy does), and would then pass for
    one that needs no tokens. `why` ends the sentence "reward 'brief' reads a response's tokens, ...".
    """

    def __init__(self, why: str) -> None:
        self.why = why
        self.was_read = False

    def _refuse(self, *_: object) -> NoReturn:
        self.was_read = True
        raise TokensUnknownError(f"a response's tokens are read, {self.why}")

    __len__ = __getitem__ = __iter__ = __contains__ = __eq__ = __add__ = __radd__ = _refuse
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "<unknown tokens>"


@dataclass(kw_only=True, slots=True)
class Sample:
    """What a reward function sees of one response.

    Example: `sample.response.endswith(sample.answer) and not sample.truncated`.
    """

    key: SampleKey
    prompt: str
    """The prompt as the model read it."""
    response: str
    """The decoded response, end token left out."""
    tokens: Sequence[int]
    """Response token ids as sampled; where they are not known, `UnknownTokens`."""
    answer: str
    """The gold answer as text, JSON where it is structured; "" where the data has none."""
    truncated: bool
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of the data set's row."""
    question: Any = None
    """The prompt's cell as the data hold it: text or chat messages, without a template. None where it is not known."""
    gold: Any = None
    """The gold's cell as the data hold it: text, a number, a list, a dict. None where there is none, and where only its
    text is known."""


@dataclass(kw_only=True, slots=True)
class RewardResult:
    """A value, or none with a status that says why.

    Example: `RewardResult(value=0.5, parts={"right": 1.0, "brief": 0.0})`, or, where there is nothing to judge,
    `RewardResult(value=None, status="abstain")`.
    """

    value: float | None
    status: Status = "ok"
    correct: bool | None = None
    """The verdict; None: the value is the highest of the reward's declared range, or, where it declares none, at least
    1."""
    parts: dict[str, float] = field(default_factory=dict)
    """Named parts of the value, logged as reward/part/NAME."""
    token_values: Sequence[float] | None = None
    """Where the reward comes on the way: each response token's share of the value, which is their sum. None: all of
    it comes at the end."""
    info: dict[str, Any] = field(default_factory=dict)
    """Anything worth keeping with the sample (the parsed answer, a judge's words)."""


class RewardFn(Protocol):
    """One result per sample, in order. A float stands for `RewardResult(value=...)`, None for `abstain`.

    It runs in worker processes, in their main thread, a few samples a call, and is killed past its deadline. May carry
    the attributes of a `RewardDeclaration`: `range`, `in_process` and `warm_up`. What it raises leaves the sample
    without a value. Example:

        def brief(samples, *, limit: int = 20):
            return [float(s.response.endswith(s.answer) and len(s.tokens) <= limit) for s in samples]
    """

    def __call__(self, samples: Sequence[Sample]) -> Sequence[RewardResult | float | None]: ...
