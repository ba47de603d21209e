"""The contracts of learning, which algorithms meet: plain dataclasses and protocols.

Conventions. B counts whole sequences; T is the longest response. Column t of a [B, T] tensor is the
state before token y_t, and y_t itself. Rows are padded on the right; the prompt is not in T. A Rollout
and what is derived from it live on the CPU in float32 and are the same on every rank.

Points in time of the policy, as seen from one rollout: its `sampler_logprobs` are of the behaviour, what the
sampler drew from; `old` are the weights with which the learner begins on the rollout (in a synchronous run
those that sampled it), `now` those about to be updated, `grad` the forward with gradient. The reference
policy is timeless within a rollout: its log-probs are computed once, whoever asks for them and when.

Two laws hold for every algorithm, and `rlkit check` (`rlkit.conformance`) holds it to them:

1. The loss does not depend on how the batch is cut: the sum of the loss over any parts of an optimizer
   batch is the loss of the whole.
2. What is not there does not count: padding and invalid samples enter nothing; environment tokens are
   context, and enter no sum, no statistic and no power of lambda.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor

from rlkit.errors import nearest
from rlkit.interfaces.declarations import (
    AdvantageDeclaration,
    LossDeclaration,
    Needs,
    advantage_declaration,
    loss_declaration,
)
from rlkit.interfaces.names import STATS, TARGETS, Stat
from rlkit.interfaces.rewards import SampleKey

D = TypeVar("D")

Metrics = dict[str, tuple[Tensor, Tensor]]
"""Name -> (sum, weight), both scalars. Sums and weights are added over micro-batches and ranks; then the
mean is sum / weight."""

State = dict[str, Any]
"""What an algorithm remembers between updates: numbers, strings and tensors, saved with a checkpoint."""


class Rows:
    """A dataclass whose tensors and lists have one entry a sequence; nested ones and tensors in dicts are cut alike."""

    def _map(self, f: Callable[[Any], Any]) -> Self:
        changes: dict[str, Any] = {}
        for spec in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, spec.name)
            if isinstance(value, Rows):
                changes[spec.name] = value._map(f)
            elif isinstance(value, (Tensor, list)):
                changes[spec.name] = f(value)
            elif isinstance(value, dict):
                changes[spec.name] = {k: f(v) if isinstance(v, Tensor) else v for k, v in value.items()}
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def rows(self, index: Sequence[int]) -> Self:
        """The given sequences, in the given order."""
        at = torch.as_tensor(index, dtype=torch.long)
        return self._map(lambda v: v[at.to(v.device)] if isinstance(v, Tensor) else [v[i] for i in index])

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda v: v.to(device) if isinstance(v, Tensor) else v)


@dataclass(kw_only=True, slots=True)
class Rollout(Rows):
    """One sampled batch: everything that is known of it before a model looks at it again.

    A sequence is a trajectory: what the policy said, and between its turns what an environment said. Example: to
    the prompt "47+85=" the policy calls a calculator with three tokens, is told the result in two, and answers with
    three more. Then of this row `length` is 8, `turns` is [(0, 3), (5, 8)], and `mask` is

        column   0  1  2  3  4  5  6  7  8 ...
        mask     1  1  1  0  0  1  1  1  0 ...

    Columns 3 and 4 are context: they are in `tokens`, and enter no sum, no statistic and no power of lambda.
    """

    keys: list[SampleKey]
    prompt_tokens: list[Tensor]
    """B tensors of token ids, [P_i] each."""
    tokens: Tensor
    """[B, T] int64, as sampled (end-of-sequence and tool output included); never decoded and encoded again."""
    length: Tensor
    """[B] int64: tokens that exist, 1 .. T."""
    mask: Tensor
    """[B, T] bool: the policy chose this token, and the sample is valid."""
    valid: Tensor
    """[B] bool: it has a reward and is not left out for being truncated, and so is another of its group, where the
    algorithm asks for that: see `Algorithm.leaves_out_truncated` and `Algorithm.compares_groups`."""
    group: Tensor
    """[B] int64: sequences with one number answer the same prompt. Any numbers, in any order; groups of any size."""
    reward: Tensor
    """[B] float: what the loss sees; 0 where there is no value (and then `valid` is False)."""
    clean_reward: Tensor
    """[B] float: the reward before noise."""
    token_reward: Tensor | None = None
    """[B, T] float, sums to `reward`; None: all of it at the policy's last token."""
    sampler_logprobs: Tensor
    """[B, T] float: log-prob of the distribution that was drawn from; 0 outside the policy's tokens."""
    version: Tensor
    """[B] int64: the lowest policy version that sampled one of its tokens."""
    last_version: Tensor | None = None
    """[B] int64: the highest; None: the same."""
    turns: list[list[tuple[int, int]]] | None = None
    """B lists of the policy's turns, each the columns [start, end) of one; None: each response is one turn."""
    truncated: Tensor
    """[B] bool: ended by the length limit, not by an end token."""

    @property
    def action_counts(self) -> Tensor:
        """[B] int64: tokens in `mask`."""
        return self.mask.sum(1)


@dataclass(kw_only=True, slots=True)
class TokenStats(Rows):
    """What models say of the rows. Each is [b, T] float, 0 outside `mask`; None = not asked for.

    All are of the whole distribution at the sampler's temperature: softmax in float32 over the vocabulary. Example of
    reading one, in a loss that asked for it: `new.get("logprobs") - batch.old.get("logprobs")`.
    """

    logprobs: Tensor | None = None
    """log pi(y_t | s_t)."""
    ref_logprobs: Tensor | None = None
    """log pi_ref(y_t | s_t)."""
    token_kl: Tensor | None = None
    """KL(pi(.|s_t) || pi_ref(.|s_t)) in nats, exact over the whole vocabulary."""
    entropy: Tensor | None = None
    """Entropy of pi(.|s_t), in nats."""
    values: Tensor | None = None
    """The critic's V(s_t)."""

    def get(self, stat: Stat) -> Tensor:
        """The tensor; KeyError, naming it, where nobody asked for it, or where there is none of the name."""
        if stat not in STATS:
            raise KeyError(f"there is no statistic {stat!r}{nearest(stat, STATS)}")
        value: Tensor | None = getattr(self, stat)
        if value is None:
            raise KeyError(f"{stat!r} was not computed: name it in `needs`")
        return value


@dataclass(kw_only=True, slots=True)
class Batch(Rows):
    """An optimizer batch (whole groups), or some rows of one.

    Example: the mean over all tokens that count is `(term * batch.mask).sum() / batch.n_tokens`, whatever these rows.
    """

    rollout: Rollout
    old: TokenStats = field(default_factory=TokenStats)
    now: TokenStats = field(default_factory=TokenStats)
    n_sequences: int
    """Sequences with a token in `mask`, in the whole optimizer batch over all ranks. Divide by this for a sequence
    mean."""
    n_tokens: int
    """Tokens in `mask` of the whole optimizer batch, over all ranks. Divide by this for a token mean."""
    n_valid: int = 0
    """Valid sequences of the whole optimizer batch, those included of which a correction has left no token. Divide by
    this what is of whole trajectories. 0 stands for `n_sequences`."""
    kept: Tensor | None = None
    """[b, T] bool: the tokens that a correction has left to the losses; None: all. The advantage sees none of it."""
    update: int = 0
    """Optimizer updates the policy has made so far."""
    progress: float = 0.0
    """Share of the policy's planned updates that are made, 0 .. 1."""

    def __post_init__(self) -> None:
        self.n_valid = self.n_valid or self.n_sequences

    @property
    def mask(self) -> Tensor:
        """[b, T] bool: the tokens that count. In the losses less than `rollout.mask` where a correction masks."""
        return self.rollout.mask if self.kept is None else self.rollout.mask & self.kept


@dataclass(kw_only=True, slots=True)
class Targets(Rows):
    """What an Advantage hands to the losses. Detached.

    Example: `Targets(advantages=(reward - baseline)[:, None] * batch.mask)`.
    """

    advantages: Tensor | None = None
    """[b, T] float."""
    scores: Tensor | None = None
    """[b] float: per-sequence targets, such as VIMPO's R_i - mean_group R."""
    returns: Tensor | None = None
    """[b, T] float: what a critic should predict."""
    importance: Tensor | None = None
    """[b, T] float: weights of the surrogate's tokens, for a mismatch between sampler and learner or for staleness.
    Set after the advantage, by the run's `correction`."""
    coefs: dict[str, float] = field(default_factory=dict)
    """Numbers that the losses use in this update, such as VIMPO's c_A."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Numbers to log under their names. No loss reads them."""
    credit: dict[str, Tensor] = field(default_factory=dict)
    """What the algorithm credits each token, for people to look at (`rlkit inspect`): name -> [b, T] float, 0 outside
    `mask`. No loss reads it. Two names are known by what they mean: `value`, the worth of the state before the token,
    and `credit`, what the token adds to it, both in units of reward. `advantages` are kept without being named here."""

    def get(self, name: Literal["advantages", "scores", "returns", "importance"]) -> Tensor:
        """The tensor; KeyError, naming it, where the Advantage did not give it, or where there is none of the name."""
        if name not in TARGETS:
            raise KeyError(f"Targets have no {name!r}{nearest(name, TARGETS)}")
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise KeyError(f"the advantage gave no {name!r}")
        return value


class Advantage(Protocol):
    """Sees the whole optimizer batch over all ranks. It and its `after_update` alone may change `state`.

    May carry the attributes of an `AdvantageDeclaration`. Returns the `Targets`. Example:

        def advantage(batch, state):
            reward, valid = batch.rollout.reward, batch.rollout.valid
            return Targets(advantages=(reward - reward[valid].mean())[:, None] * batch.mask)
    """

    def __call__(self, batch: Batch, state: State) -> Targets: ...


class PolicyLoss(Protocol):
    """Sees any rows. Additive over sequences: sums, divided only by `batch.n_sequences` or `batch.n_tokens`.

    May carry the attributes of a `LossDeclaration`. Returns the loss, a scalar, and metrics. Example:

        def loss(new, batch, targets):
            gain = new.get("logprobs") * targets.get("advantages")
            return -gain[batch.mask].sum() / batch.n_tokens, {}
    """

    def __call__(self, new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]: ...


class ValueLoss(Protocol):
    """The critic's loss, on its own engine. `values` is [b, T], with gradient. Additive as a PolicyLoss.

    May carry the attributes of a `LossDeclaration`; where it does not say what it reads, that is "returns". Returns the
    loss, a scalar, and metrics. Example:

        def loss(values, batch, targets):
            error = (values - targets.get("returns"))[batch.mask] ** 2
            return error.sum() / batch.n_tokens, {}
    """

    def __call__(self, values: Tensor, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]: ...


@dataclass(kw_only=True, slots=True)
class Algorithm:
    """What a registered algorithm's factory returns. The trainer knows no more of it than this.

    Example: `Algorithm(advantage=advantage, policy_loss=loss)`; its parts are an `Advantage` and a `PolicyLoss`. What
    they need of the models, they declare themselves. Raises ConfigError, when it is used, for a declaration that cannot
    be.
    """

    advantage: Advantage
    policy_loss: PolicyLoss
    value_loss: ValueLoss | None = None
    """Present: a critic is built, and trained with it."""
    critic_warmup_steps: int = 0
    """Steps at the start in which the critic alone learns."""
    reference: Mapping[str, Any] = field(default_factory=lambda: {"kind": "frozen"})
    """The reference that the method goes with, as the config's `reference` says it. A config that names one has its
    way; where nothing needs a reference, none is kept."""
    refill: int = 0
    """Rounds of dynamic sampling that the method goes with, as the config's `batch.refill.limit` says it."""
    _read: dict[str, tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Part -> the part, and what it declares: reading that takes as long as a small update."""

    @property
    def needs(self) -> Needs:
        needs = self._advantage.needs
        for loss in self._losses:
            needs = needs | loss.needs
        return needs

    @property
    def compares_groups(self) -> bool:
        """True: a sample is judged against the others of its group, so a group needs two valid ones."""
        return self._advantage.compares_groups

    @property
    def leaves_out_truncated(self) -> bool:
        """True: truncated samples are invalid, so they are out of loss, baseline and counts."""
        return self._advantage.leaves_out_truncated

    def keep_group(self, rewards: Sequence[float]) -> bool:
        """Whether a group whose valid samples have these rewards is worth learning from; without a say of the
        advantage, where they are not all equal."""
        own = self._advantage.keep_group
        return own(rewards) if own is not None else len(set(rewards)) > 1

    def after_update(self, metrics: Mapping[str, float], state: State) -> None:
        """Let the advantage remember what an update of the policy has found; `metrics` are the losses' means."""
        remember = self._advantage.after_update
        if remember is not None:
            remember(metrics, state)

    @property
    def gives(self) -> frozenset[str]:
        """Fields of Targets that the advantage fills."""
        return self._advantage.gives

    @property
    def reads(self) -> frozenset[str]:
        """Fields of Targets that the losses use, of those that an advantage may fill."""
        return frozenset().union(*(loss.reads for loss in self._losses)) - {"importance"}

    @property
    def reads_importance(self) -> bool:
        """True: the policy's loss multiplies its tokens by `Targets.importance`."""
        return "importance" in self._losses[0].reads

    @property
    def _advantage(self) -> AdvantageDeclaration:
        return self._declared("advantage", advantage_declaration)

    @property
    def _losses(self) -> list[LossDeclaration]:
        losses = [self._declared("policy_loss", loss_declaration)]
        if self.value_loss is not None:
            losses.append(self._declared("value_loss", partial(loss_declaration, reads=frozenset({"returns"}))))
        return losses

    def _declared(self, part: str, read: Callable[[object, str], D]) -> D:
        of, declaration = self._read.get(part, (None, None))
        if of is not getattr(self, part):
            of = getattr(self, part)
            declaration = read(of, f"the {part.replace('_', ' ')}")
            self._read[part] = of, declaration
        found: D = declaration
        return found
