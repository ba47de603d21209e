"""Which passes over a rollout follow from what an algorithm needs: the only place that decides it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Literal

from rlkit.config import RunConfig
from rlkit.engine.memory import states_bytes
from rlkit.engine.reference import COMPARED
from rlkit.interfaces.declarations import Needs
from rlkit.interfaces.learning import Algorithm, TokenStats
from rlkit.interfaces.names import Stat
from rlkit.wording import size

LOGPROBS: frozenset[Stat] = frozenset({"logprobs"})
REFERENCE: frozenset[Stat] = frozenset({"ref_logprobs"})
"""The reference's own, which do not change within a rollout."""
VALUES: frozenset[Stat] = frozenset({"values"})
"""The critic's."""

OWN: frozenset[Stat] = frozenset({"logprobs", "token_kl", "entropy"})
"""For which the policy must pass; for the reference's alone it need not."""

KEPT_BYTES = 4 * 2**30
"""Of host memory that a rollout's hidden states may take on a rank. They are reckoned from the config, for the longest
responses, so that all ranks, a resumed run and the plan decide alike."""

Role = Literal["policy", "reference", "critic"]


@dataclass(frozen=True)
class Passes:
    """What is computed of a rollout, and when. `learner.py` makes these passes, the plan prints them."""

    rollout: frozenset[Stat]
    """Without gradient, once, at the weights with which the learner begins on the rollout."""
    update: frozenset[Stat]
    """Without gradient, before each optimizer update, at the weights about to be updated."""
    grad: frozenset[Stat]
    """In the forward with gradient."""
    observe: frozenset[Stat] = frozenset()
    """In the forward with gradient too, but without gradient."""
    known: frozenset[Stat] = frozenset()
    """Asked for before an update or with gradient, and known from the first pass."""
    once: bool = True
    """The rollout makes one update, so the weights about to be updated are those with which it began."""
    epochs: int = 1
    """How often the updates go through the rollout."""
    critic: bool = False
    """A critic learns."""
    stays: bool = False
    """A row is on the same rank in every pass."""
    states: int | None = None
    """Bytes on a rank, at most, of the reference's hidden states; None: not known here."""

    def now(self, old: TokenStats, measured: TokenStats) -> TokenStats:
        """`Batch.now` of an optimizer batch: `old` its rows of the first pass, `measured` those of `update`."""
        if self.once:
            return old
        return replace(measured, **{stat: getattr(old, stat) for stat in self.known})

    def forwards(self) -> dict[Role, tuple[int, int]]:
        """Model -> how often each sequence of the rollout passes through it: without gradient, and with. Models that
        nothing passes through are left out."""
        learnt = self.grad | self.observe
        epochs = self.epochs

        def without(stats: frozenset[Stat]) -> int:
            return bool(self.rollout & stats) + epochs * bool(self.update & stats)

        counts: dict[Role, tuple[int, int]] = {
            "policy": (without(OWN), epochs * bool(learnt)),
            "reference": (1 if self.keeps else without(COMPARED) + epochs * bool(learnt & COMPARED), 0),
            "critic": (without(VALUES), epochs * self.critic),
        }
        return {role: count for role, count in counts.items() if any(count)}

    @property
    def keeps(self) -> bool:
        """The reference's hidden states are computed once, before the first pass, and kept for all that compare."""
        return self._reuses and self._why_not is None

    @property
    def _reuses(self) -> bool:
        """More than one pass reads the reference's hidden states, which its log-probs alone do not take."""
        stages = (self.rollout - VALUES, *self.epochs * (self.update, self.grad | self.observe))
        return sum(bool(stage & COMPARED) and stage != REFERENCE for stage in stages) > 1

    @property
    def _why_not(self) -> str | None:
        """What keeps the states from being kept."""
        if not self.stays:
            return "rows change ranks between passes"
        if self.states is None:
            return "their size is not known here"
        return f"{size(self.states)} are over {size(KEPT_BYTES)}" if self.states > KEPT_BYTES else None

    def lines(self) -> list[str]:
        """For people."""
        named = {
            "once a rollout": self.rollout,
            "each update": self.update,
            "gradient": self.grad,
            "beside it": self.observe,
        }
        said = [f"{when}: {', '.join(sorted(stats))}" for when, stats in named.items() if stats]
        if self._reuses:
            why_not = self._why_not
            said.append("the reference's hidden states are " + (f"not kept ({why_not})" if why_not else "kept"))
        counts = [
            f"{role} {sum(count)} forward" + (f", {count[1]} backward" if count[1] else "")
            for role, count in self.forwards().items()
        ]
        return [*said, "each sequence: " + " + ".join(counts)]


def passes_of(algorithm: Algorithm, config: RunConfig, ranks: int, width: int | None, *, learns: bool = True) -> Passes:
    """The passes of a step. `width`: of the policy's hidden states; None: not known. `learns`: see `plan_passes`."""
    return plan_passes(
        algorithm.needs,
        config.batch.minibatches,
        config.batch.epochs,
        critic=algorithm.value_loss is not None,
        learns=learns,
        corrects=config.corrects is not None,
        ranks=ranks,
        states=None if width is None else states_bytes(config, ranks, width),
    )


def plan_passes(
    needs: Needs,
    minibatches: int = 1,
    epochs: int = 1,
    *,
    critic: bool = False,
    learns: bool = True,
    corrects: bool = False,
    ranks: int = 1,
    states: int | None = None,
) -> Passes:
    """The passes of a rollout that makes an optimizer update for each minibatch of each epoch.

    With one update the weights about to be updated are those with which the rollout began, so what is needed `now`
    comes from the first pass, and the ratio's log-probs from the gradient's own forward. With several only a first
    pass gives these.

    The reference's log-probs come with a KL over the whole vocabulary, for which the reference passes anyway; where
    some are asked for without one, all are known from a first pass.

    A pass that compares reads the reference's hidden states. Where several do, these are kept between them, if there is
    room, and if no other rank asks for them: with several ranks, each minibatch is dealt out anew.

    Args:
        critic: one learns beside the policy.
        learns: False: the policy makes no forward with gradient (a critic warms up alone), which would show how far
            the sampler's log-probs are from its own.
        corrects: the weights of a correction are of the first pass's log-probs.
        states: bytes of the reference's hidden states on a rank; None: not known.
    """
    once = minibatches * epochs == 1
    first: Set[Stat] = needs.old | (needs.now if once else LOGPROBS)
    update: frozenset[Stat] = frozenset() if once else needs.now
    grad, observe = (needs.grad, needs.observe - needs.grad) if learns else (frozenset[Stat](), frozenset[Stat]())
    if corrects or not learns:
        first = first | LOGPROBS
    asked = [stage & COMPARED for stage in (update, grad | observe)]
    known = frozenset[Stat]()
    if REFERENCE in asked or first >= REFERENCE:
        known = REFERENCE & (update | grad | observe)
    return Passes(
        rollout=frozenset(first | known),
        update=update - known,
        grad=grad - known,
        observe=observe - known,
        known=known,
        once=once,
        epochs=epochs,
        critic=critic,
        stays=ranks == 1 or minibatches == 1,
        states=states,
    )
