"""VIMPO (arXiv 2606.20008): the policy is its own critic.

    rho_t = beta (log pi - log pi_ref)(y_t|s_t),   kappa_t = beta KL(pi(.|s_t) || pi_ref(.|s_t))
    L_V   = mean_i 1/2 [ sum_t (rho_t - sg[kappa_t]) - (R_i - mean_group R) ]^2
    A_t   = sg[ sum_{l>=t} lambda^(l-t) (rho_l - kappa_l) ], less its mean, over sqrt(var + (0.2 beta)^2)
    L_A   = token-mean of the clipped surrogate with A_t
    L     = L_V + c_A L_A

The reward enters through L_V alone. At pi = pi_ref every A_t is 0, and the floor under the whitening keeps it
so. Its mean and var are the batch's, for which the policy passes over the batch before the update; or, with
`whiten: running`, a running average of those of former updates. All else is known within the update's own forward, so
then, as with c_A = 0, there is no such pass. `value: soft` is the other reading: sum_t rho_t against
R_i - mean_group[R - beta sum_t KL_old], no actor part. `residual: turn` puts in L_V, for each turn k of a trajectory,
1/2 [ sum_{l>=k} (rho_l - sg[kappa_l]) - (G_k - V_k) ]^2, with G_k the rewards still to come and V_k what comes to the
members of the group that have stood there; its gradient goes through the turn's own tokens.
rho and kappa are in implied.py, the surrogate in losses.py.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlkit.interfaces.learning import Algorithm, Batch, Metrics, State, Targets, TokenStats
from rlkit.ops.gae import suffix_sum
from rlkit.ops.masked import group_mean, group_size, masked_mean, masked_sum, whiten
from rlkit.ops.turns import Turns, later, reward_to_go, same_state
from rlkit.registry import algorithm

from .implied import Implied, ImpliedConfig, Measured, credit
from .losses import NonNegative, Share, aggregate, clipped_surrogate, log_ratios, token_metric

ACTOR = "vimpo/actor_coef"
"""c_A, among the update's coefficients."""
MEAN, SCALE = "vimpo/running_mean", "vimpo/running_scale"
"""What `whiten: running` takes off A_t and divides by, among them too."""
WHITENED, SQUARE = "vimpo/whitened_mean", "vimpo/whitened_square"
"""What that has made of the batch, among the metrics: 0 and 1 where the batch is like those before it."""
MEMORY = 0.5
"""Weight of the past in that mean and spread. Both follow the policy as it leaves the reference, and a batch's tokens
are many: there is more trend to keep up with than chance to even out."""
RATIO_LIMIT = 0.2
"""Above it the actor part has been seen to run away."""


class VimpoConfig(ImpliedConfig):
    actor_ratio: NonNegative | None = 0.0125
    """The actor part's weight in scale-free form: c_A is set each update so that
    c_A / (beta * mean length * RMS of the targets) is this. Up to 0.1 is fine; above 0.2 it tends to run away."""
    actor_coef: NonNegative | None = None
    """c_A itself, in place of actor_ratio."""
    lam: Share = 1.0
    """lambda of A_t. The smaller it is, the lighter the actor part must be: .5 is as good as 1 at a ratio of 0.1, and
    collapses at 0.3."""
    clip_low: Share = 0.2
    """The ratio is clipped below at 1 - clip_low. With one minibatch and one epoch no clip acts."""
    clip_high: NonNegative = 0.28
    """The ratio is clipped above at 1 + clip_high."""
    residual: Literal["trajectory", "turn"] = "trajectory"
    """trajectory: one a response, of all its reward. turn: one at the beginning of each turn, of the reward of this and
    later turns, against that of the members that were in the same state, or else began a turn of that number."""
    dual_clip: Annotated[float, Field(gt=1)] | None = 10.0
    """Where A < 0, a token's loss is at most this times -A; None: unbounded."""
    whiten: Literal["batch", "running"] = "batch"
    """A_t is whitened by its mean and spread over the batch, which takes a pass of the policy before each update; or by
    a running average of those of former updates, which spares it. Without an actor part there is no such pass."""

    @property
    def has_actor(self) -> bool:
        """False: c_A is 0, whatever the batch."""
        return self.value == "mean" and bool(self.actor_coef if self.actor_coef is not None else self.actor_ratio)

    @property
    def runs(self) -> bool:
        """The whitening is by a running average."""
        return self.has_actor and self.whiten == "running"

    @property
    def floor(self) -> float:
        """Added to A_t's spread, as a square: what is well below it is noise."""
        return 0.2 * self.beta

    @property
    def measured(self) -> Measured:
        return "new" if self.value == "mean" and (self.runs or not self.has_actor) else super().measured

    @model_validator(mode="after")
    def _one_actor_weight(self) -> Self:
        if self.value == "soft":
            if self.actor_coef or (self.actor_ratio and "actor_ratio" in self.model_fields_set):
                raise ValueError(
                    "value: soft has no actor part: leave out actor_ratio and actor_coef, or set value: mean"
                )
            if self.whiten == "running":
                raise ValueError(
                    "value: soft has no actor part to whiten, and takes the KL of whole groups before the update: "
                    "leave out whiten, or set value: mean"
                )
            self.actor_ratio, self.actor_coef = None, 0.0
        elif self.actor_coef is not None:
            if self.actor_ratio is not None and "actor_ratio" in self.model_fields_set:
                raise ValueError("actor_ratio and actor_coef both set the actor part's weight: give one of them")
            self.actor_ratio = None
        elif self.actor_ratio is None:
            raise ValueError("actor_ratio is null and actor_coef is not given: give one (actor_coef: 0 turns it off)")
        return self


class VimpoPart(Implied[VimpoConfig]):
    """What advantage and loss pass between them."""

    @property
    def targets(self) -> frozenset[str]:
        given = {"returns" if self.config.residual == "turn" else "scores", "coefs"}
        return frozenset(given | {"advantages"} if self.config.has_actor and not self.config.runs else given)


@dataclass
class VimpoAdvantage(VimpoPart):
    compares_groups: ClassVar[bool] = True
    warned: bool = field(default=False, init=False)
    """A heavy actor part has been warned of. Not in `state`: a resumed run says it again."""

    @property
    def gives(self) -> frozenset[str]:
        return self.targets

    def __call__(self, batch: Batch, state: State) -> Targets:
        config, rollout, mask = self.config, batch.rollout, batch.mask
        baseline = rollout.reward
        if config.value == "soft":
            baseline = baseline - config.beta * self.kl(batch.old, mask).sum(1)
        start = group_mean(baseline, rollout.group, rollout.valid)
        if config.residual == "turn":
            turns = Turns.of(rollout)
            scores, counted = self._turn_scores(batch, turns), turns.there
            targets = Targets(returns=torch.where(mask, turns.spread(scores), 0.0))
        else:
            scores, counted = torch.where(rollout.valid, rollout.reward - start, 0.0), rollout.valid
            targets = Targets(scores=scores)
        rms = math.sqrt(float(masked_mean(scores**2, counted)))
        targets.scalars["vimpo/target_rms"] = rms
        if config.runs:
            targets.coefs |= self._running(state)
        # In the first update pi = pi_ref: there is no A_t, and nothing yet to whiten one by.
        first = config.runs and "mean" not in state
        targets.coefs[ACTOR] = 0.0 if first else self._actor_weight(batch, rms, targets.scalars)
        if config.measured != "new":
            stats = batch.old if config.measured == "old" else batch.now
            implied = self.rewards(stats.get("logprobs"), stats, mask)
            targets.credit = credit(implied, start, rollout)
            if config.has_actor:
                targets.advantages = whiten(suffix_sum(implied, mask, config.lam), mask, config.floor)
        return targets

    def _turn_scores(self, batch: Batch, turns: Turns) -> Tensor:
        """G_k - V_k, [B, K], 0 where there is no such turn.

        With c = G, or with `value: soft` G less beta times the KL to come, V_k is c_k / n + (1 - 1 / n) times the mean
        of c_k over the other members in that place, n the valid members of the group: in expectation every target is
        then smaller by the same 1 - 1 / n, however few have stood there, as it is at the first turn anyway.
        """
        rollout, there = batch.rollout, turns.there
        to_go = reward_to_go(rollout, turns, rollout.reward)
        kl = torch.zeros_like(to_go)
        if self.config.value == "soft":
            kl = self.config.beta * turns.sums(self.kl(batch.old, batch.mask).double())
            kl = kl + later(kl)
        members = group_size(rollout.group, rollout.valid, torch.float64).unsqueeze(1)

        def compared(places: Tensor) -> tuple[Tensor, Tensor]:
            """Where another member is in the place, and what the targets then are."""
            place, counted = places.flatten(), there.flatten()
            size = group_size(place, counted, torch.float64).view(there.shape)
            mean = group_mean((to_go - kl).flatten(), place, counted).view(there.shape)
            shrinks = (1 - 1 / members.clamp(min=1)) * size / (size - 1).clamp(min=1)
            return size > 1, kl + shrinks * (to_go - kl - mean)

        reached, by_turn = compared(turns.same_turn(rollout.group))
        shared, by_state = compared(same_state(rollout, turns))
        # A turn that no other member has is held against the target of the whole trajectory, that of its first turn.
        found = torch.where(shared, by_state, torch.where(reached, by_turn, by_turn[:, :1]))
        return torch.where(there, found, 0.0).to(rollout.reward.dtype)

    def after_update(self, metrics: Mapping[str, float], state: State) -> None:
        """Let mean and spread of the update's A_t enter the running ones."""
        if WHITENED not in metrics:
            return
        by = self._running(state)
        found = {
            "mean": by[MEAN] + by[SCALE] * metrics[WHITENED],
            "variance": by[SCALE] ** 2 * max(metrics[SQUARE] - metrics[WHITENED] ** 2, 0.0),
        }
        for name, value in found.items():
            state[name] = MEMORY * state.get(name, value) + (1 - MEMORY) * value

    def _running(self, state: State) -> dict[str, float]:
        """What A_t is whitened by in this update."""
        scale = math.sqrt(state.get("variance", 0.0) + self.config.floor**2)
        return {MEAN: state.get("mean", 0.0), SCALE: scale}

    def _actor_weight(self, batch: Batch, rms: float, scalars: dict[str, float]) -> float:
        """c_A. Its scale-free form goes to `scalars`, and is warned of where it is heavy."""
        config = self.config
        unit = config.beta * batch.n_tokens / max(batch.n_sequences, 1) * rms
        coef = config.actor_coef if config.actor_coef is not None else (config.actor_ratio or 0.0) * unit
        if unit > 0:  # 0: all rewards of each group are equal
            scalars["vimpo/actor_ratio"] = coef / unit
            if coef / unit > RATIO_LIMIT and not self.warned:
                self.warned = True
                warnings.warn(
                    f"vimpo: the actor part weighs more than {RATIO_LIMIT} of the value loss (vimpo/actor_ratio in the "
                    "log), where it tends to run away from the reference: lower actor_coef or actor_ratio",
                    stacklevel=3,
                )
        return coef


@dataclass
class VimpoLoss(VimpoPart):
    @property
    def reads(self) -> frozenset[str]:
        return self.targets | {"importance"}

    def __call__(self, new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        rollout, valid = batch.rollout, batch.rollout.valid
        stats = {"old": batch.old, "now": batch.now, "new": new}[self.config.measured]
        implied = self.rewards(new.get("logprobs"), stats, rollout.mask)
        if self.config.residual == "turn":
            turns = Turns.of(rollout)
            scores, counted = turns.means(targets.get("returns")), turns.there
            own = turns.sums(implied)
            residual = own + later(own).detach() - scores
        else:
            scores, counted = targets.get("scores"), valid
            residual = implied.sum(1) - scores
        squared = residual**2 / 2
        loss = masked_sum(squared, counted) / max(batch.n_valid, 1)

        explained = (scores**2 - residual.detach() ** 2, scores**2)
        metrics: Metrics = {
            "vimpo/value_loss": (masked_sum(squared.detach(), counted), valid.sum()),
            "vimpo/residual": (masked_sum(residual.detach().abs(), counted), counted.sum()),
            "vimpo/explained": (masked_sum(explained[0], counted), masked_sum(explained[1], counted)),
            "policy/kl": token_metric(self.kl(stats, rollout.mask), batch),
        }
        if self.config.has_actor:
            actor_loss, more = self._actor_loss(new, batch, targets, implied.detach())
            loss, metrics = loss + targets.coefs[ACTOR] * actor_loss, metrics | more
        return loss, metrics

    def _actor_loss(self, new: TokenStats, batch: Batch, targets: Targets, implied: Tensor) -> tuple[Tensor, Metrics]:
        config, mask = self.config, batch.rollout.mask
        metrics: Metrics = {}
        if config.runs:
            advantages = (suffix_sum(implied, mask, config.lam) - targets.coefs[MEAN]) / targets.coefs[SCALE]
            metrics[WHITENED] = (masked_sum(advantages, mask), mask.sum())
            metrics[SQUARE] = (masked_sum(advantages**2, mask), mask.sum())
        else:
            advantages = targets.get("advantages")
        surrogate, clipped = clipped_surrogate(
            log_ratios(new, batch), advantages, config.clip_low, config.clip_high, config.dual_clip
        )
        if targets.importance is not None:
            surrogate = surrogate * targets.importance
        metrics["vimpo/actor_loss"] = token_metric(surrogate, batch)
        metrics["policy/clip_share"] = token_metric(clipped, batch)
        return aggregate(surrogate, batch), metrics


@algorithm("vimpo")
def vimpo(config: VimpoConfig) -> Algorithm:
    """VIMPO (2606.20008): regresses the policy's own implied value on the reward; no critic, exact KL."""
    return Algorithm(advantage=VimpoAdvantage(config), policy_loss=VimpoLoss(config))
