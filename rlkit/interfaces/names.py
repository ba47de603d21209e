"""The names that contracts, engine and files share, each list once. Needs no torch."""

from __future__ import annotations

from typing import Literal, get_args

Stat = Literal["logprobs", "ref_logprobs", "token_kl", "entropy", "values"]
"""What models say of a token: see `TokenStats`."""

Target = Literal["advantages", "scores", "returns", "importance", "coefs"]
"""What losses read: the fields of `Targets` but those for the log and for people."""

STATS: tuple[Stat, ...] = get_args(Stat)
TARGETS: tuple[Target, ...] = get_args(Target)
