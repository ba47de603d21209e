"""Which passes over a rollout follow from what an algorithm needs: the only place that decides it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace

from rlkit.interfaces.declarations import Needs
from rlkit.interfaces.learning import TokenStats
from rlkit.interfaces.names import Stat

LOGPROBS: frozenset[Stat] = frozenset({"logprobs"})
REFERENCE: frozenset[Stat] = frozenset({"ref_logprobs"})
"""The reference's own, which do not change within a rollout."""


@dataclass(frozen=True)
class Passes:
    """What is computed of a rollout, and when. `learner.py` makes these passes, the plan prints them."""

    rollout: frozenset[Stat]
    """Without gradient, once, at the weights with which the learner begins on the rollout."""
    update: frozenset[Stat]
    """Without gradient, before each optimizer update, at the weights about to be updated."""
    grad: frozenset[Stat]
    """In the forward with gradient."""
    known: frozenset[Stat] = frozenset()
    """Asked for before an update or with gradient, and known from the first pass."""
    once: bool = True
    """The rollout makes one update, so the weights about to be updated are those with which it began."""

    def now(self, old: TokenStats, measured: TokenStats) -> TokenStats:
        """`Batch.now` of an optimizer batch: `old` its rows of the first pass, `measured` those of `update`."""
        if self.once:
            return old
        return replace(measured, **{stat: getattr(old, stat) for stat in self.known})

    def lines(self) -> list[str]:
        """For people."""
        named = {"once a rollout": self.rollout, "each update": self.update, "gradient": self.grad}
        return [f"{when}: {', '.join(sorted(stats))}" for when, stats in named.items() if stats]


def plan_passes(needs: Needs, updates: int, *, learns: bool = True, corrects: bool = False) -> Passes:
    """The passes of a rollout that makes so many optimizer updates.

    With one update the weights about to be updated are those with which the rollout began, so what is needed `now`
    comes from the first pass, and the ratio's log-probs from the gradient's own forward. With several only a first
    pass gives these.

    Args:
        learns: False: the policy makes no forward with gradient (a critic warms up alone), which would show how far
            the sampler's log-probs are from its own.
        corrects: the weights of a correction are of the first pass's log-probs.
    """
    once = updates == 1
    first: Set[Stat] = needs.old | (needs.now if once else LOGPROBS)
    if corrects or not learns:
        first = first | LOGPROBS
    known = REFERENCE & (needs.now | needs.grad)
    return Passes(
        rollout=frozenset(first | known),
        update=frozenset() if once else needs.now - REFERENCE,
        grad=needs.grad - REFERENCE,
        known=known,
        once=once,
    )
