"""The names of what models say of a token: the one list, for contracts, engine and files alike. Needs no torch."""

from __future__ import annotations

from typing import Literal, get_args

Stat = Literal["logprobs", "ref_logprobs", "token_kl", "entropy", "values"]
"""See `TokenStats` for what each is."""

STATS: tuple[Stat, ...] = get_args(Stat)
