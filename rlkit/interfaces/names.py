"""The names that contracts, engine and files share, each list once. Needs no torch."""

from __future__ import annotations

from typing import Literal, get_args

Stat = Literal["logprobs", "ref_logprobs", "token_kl", "entropy", "values"]
"""What models say of a token: see `TokenStats`."""

STATS: tuple[Stat, ...] = get_args(Stat)

TARGETS = ("advantages", "scores", "returns", "importance", "coefs", "scalars", "credit")
"""What an advantage hands to the losses: the fields of `Targets`."""

ENVIRONMENT = "environment"
"""Of a trajectory: what its environment's rewards are called among others, and where in a sample's info it stands what
the environment said: {"ended", "counts", "last", "turns"}."""
