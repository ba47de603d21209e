"""An algorithm's parts as the loop calls them: what they raise, or give that their contract does not allow, is a
PluginError that names the plugin, the file and the line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from rlkit.blame import Blame, shown
from rlkit.config import RunConfig
from rlkit.errors import NotFiniteError
from rlkit.interfaces.learning import Algorithm, Batch, Metrics, State, Targets, TokenStats


class Calls:
    """The parts of `algorithm`, which is what `config` describes."""

    def __init__(self, algorithm: Algorithm, config: RunConfig) -> None:
        self._algorithm = algorithm
        algo = f"algorithm {config.algo.kind!r}"
        advantage = f"advantage {config.advantage.kind!r}" if config.advantage is not None else algo
        loss = f"loss {config.loss.kind!r}" if config.loss is not None else algo
        own = algorithm.advantage
        self._advantage = Blame(advantage, "its advantage", own)
        self._after_update = Blame(advantage, "its after_update", getattr(own, "after_update", None) or own)
        self._keep_group = Blame(advantage, "its keep_group", getattr(own, "keep_group", None) or own)
        self._policy_loss = Blame(loss, "its loss", algorithm.policy_loss)
        self._value_loss = Blame(algo, "its value loss", algorithm.value_loss)

    def advantage(self, batch: Batch, state: State) -> Targets:
        with self._advantage:
            targets = self._algorithm.advantage(batch, state)
        if wrong := wrong_targets(targets, batch, self._algorithm.gives):
            raise self._advantage.fault(wrong)
        return targets

    def check_finite(self, targets: Targets, batch: Batch) -> None:
        """NotFiniteError, which names the advantage, where what it gave is not finite: then no update is made."""
        if wrong := not_finite(targets, batch):
            raise NotFiniteError(str(self._advantage.fault(wrong)))

    def policy_loss(self, new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        with self._policy_loss:
            returned = self._algorithm.policy_loss(new, batch, targets)
        return _checked(returned, self._policy_loss)

    def value_loss(self, values: Tensor, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        assert self._algorithm.value_loss is not None
        with self._value_loss:
            returned = self._algorithm.value_loss(values, batch, targets)
        return _checked(returned, self._value_loss)

    def after_update(self, metrics: Mapping[str, float], state: State) -> None:
        with self._after_update:
            self._algorithm.after_update(metrics, state)

    def keep_group(self, rewards: Sequence[float]) -> bool:
        with self._keep_group:
            kept: object = self._algorithm.keep_group(rewards)
        if kept is None:
            raise self._keep_group.fault("returned None; it must return True or False")
        return bool(kept)


def _checked(returned: tuple[Tensor, Metrics], blame: Blame) -> tuple[Tensor, Metrics]:
    if wrong := wrong_loss(returned):
        raise blame.fault(wrong)
    return returned


def wrong_targets(targets: object, batch: Batch, gives: frozenset[str]) -> str | None:
    """What is wrong with what an advantage returned for `batch`, as the rest of a sentence that names it; None:
    nothing. `gives`: the fields that it declares to fill."""
    if not isinstance(targets, Targets):
        ends = ": does it end with `return Targets(...)`?" if targets is None else ""
        return f"returned {shown(targets)}; it must return an rlkit.Targets{ends}"
    rows, tokens = list(batch.mask.shape[:1]), list(batch.mask.shape)
    fields: list[tuple[str, Any, list[int], str]] = [
        ("advantages", targets.advantages, tokens, "[B, T]"),
        ("scores", targets.scores, rows, "[B]"),
        ("returns", targets.returns, tokens, "[B, T]"),
        ("importance", targets.importance, tokens, "[B, T]"),
        *((f"credit[{name!r}]", value, tokens, "[B, T]") for name, value in targets.credit.items()),
    ]
    for name, value, shape, meaning in fields:
        if value is None:
            if name in gives:
                return f"gave no {name}, which it declares in `gives` (by default advantages): set Targets({name}=...)"
            continue
        if not isinstance(value, Tensor):
            return f"gave {name} that are a {type(value).__name__}; they must be a tensor of {meaning}"
        if list(value.shape) != shape:
            return f"gave {name} of shape {list(value.shape)}; they must be {meaning}, here {shape}"
    for where in ("coefs", "scalars"):
        for key, number in getattr(targets, where).items():
            if not isinstance(number, Real):
                return f"gave {where}[{key!r}] that is {shown(number)}; it must be a number, as float(...) makes it"
    return None


def not_finite(targets: Targets, batch: Batch) -> str | None:
    """What of an advantage's targets is not finite, as the rest of a sentence that names it; None: nothing. Where the
    models' own statistics are not finite, the advantage is not to blame."""
    if not _finite(batch):
        return None
    for where in ("coefs", "scalars"):
        for key, number in getattr(targets, where).items():
            if not math.isfinite(number):
                return f"gave {where}[{key!r}] that is {number}; it must be finite"
    for name in ("advantages", "scores", "returns"):
        value = getattr(targets, name)
        if value is not None and (wrong := _not_finite(name, value, batch)):
            return wrong
    return None


def _not_finite(name: str, value: Tensor, batch: Batch) -> str | None:
    """Of what is not a number outside the mask no loss sees anything."""
    counted = batch.mask if value.dim() == 2 else batch.rollout.valid
    bad = ~torch.isfinite(value) & counted
    if not bad.any():
        return None
    row = int(bad.reshape(len(bad), -1).any(1).nonzero()[0])
    key, found = batch.rollout.keys[row], value[row][bad[row]].reshape(-1)[0].item()
    unit = "tokens" if value.dim() == 2 else "samples"
    return (
        f"gave {name} that are not finite for {int(bad.sum())} of {int(counted.sum())} {unit}; the first is {found}, "
        f"of the sample with prompt {key.prompt_id}, step {key.rollout_step}, index {key.index}, whose reward is "
        f"{float(batch.rollout.reward[row]):g}. A division by 0, such as by the deviation of equal rewards?"
    )


def _finite(batch: Batch) -> bool:
    stats = [
        value
        for known in (batch.old, batch.now)
        for value in (known.logprobs, known.ref_logprobs, known.token_kl, known.entropy, known.values)
        if value is not None
    ]
    return all(bool((torch.isfinite(value) | ~batch.rollout.mask).all()) for value in stats)


def wrong_loss(returned: object) -> str | None:
    """What is wrong with what a loss returned, as the rest of a sentence that names it; None: nothing."""
    if not (isinstance(returned, tuple) and len(returned) == 2):
        return f"returned {shown(returned)}; it must return two things, as in `return loss, {{}}`: a scalar and metrics"
    value, metrics = returned
    if not isinstance(value, Tensor):
        return f"returned a loss that is {shown(value)}; it must be a tensor of one number"
    if value.dim() != 0:
        return (
            f"returned a loss of shape {list(value.shape)}; it must be one number: sum it over tokens, as "
            "masked_sum(per_token, batch.mask) does, and divide by batch.n_tokens or batch.n_sequences"
        )
    if not value.requires_grad:
        return (
            "returned a loss that carries no gradient, so nothing would be learnt: compute it from "
            '`new.get("logprobs")` (or the other statistics in `new`), without .detach(), .item() or torch.no_grad()'
        )
    if not isinstance(metrics, Mapping):
        return f"returned metrics that are {shown(metrics)}; they must be a dict of name -> (sum, weight), or {{}}"
    for name, pair in metrics.items():
        if not isinstance(name, str):
            return f"returned a metric whose name is {shown(name)}; it must be text"
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            return (
                f"returned the metric {name!r} as {shown(pair)}; it must be a pair of (sum, weight), as in "
                f"{{{name!r}: (masked_sum(x, batch.mask), batch.mask.sum())}}"
            )
        for what, number in zip(("sum", "weight"), pair, strict=True):
            if not (isinstance(number, Real) or (isinstance(number, Tensor) and number.numel() == 1)):
                size = f"a tensor of shape {list(number.shape)}" if isinstance(number, Tensor) else shown(number)
                return f"returned the metric {name!r} with a {what} that is {size}; it must be one number"
    return None
