"""What a series of numbers is called for people, and how one of them is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlkit import wording
from rlkit.inspection.steps import Response, Step, Stretch

_NAMES = {
    "credit": "credit, what it adds to V",
    "entropy": "entropy of the policy, nats",
    "token_kl": "KL to the reference, nats",
    "logprobs": "log-prob",
    "ref_logprobs": "log-prob of the reference",
    "sampler_logprobs": "log-prob as sampled",
    "token_reward": "reward of the token",
}
_SHORT = {
    "advantages": "advantage",
    "token_kl": "KL",
    "logprobs": "log-prob",
    "ref_logprobs": "reference's",
    "sampler_logprobs": "sampler's",
    "token_reward": "reward",
}
DASH = "\u2013"


def label(step: Step, name: str) -> str:
    """The series in the algorithm's words."""
    if name == "value":
        return "critic's value V(s_t)" if step.has_critic else "implied value V(s_t)"
    if name == "advantages":
        return "advantage, one number for all tokens" if step.one_number else "advantage A_t"
    return _NAMES.get(name, name)


def short(name: str) -> str:
    """The series in a word."""
    return _SHORT.get(name, name)


def heading(stretch: Stretch) -> str:
    """What stands above a part of a trajectory."""
    if stretch.turn is None:
        return "the environment"
    said = [f"turn {stretch.turn}"]
    said += [f"reward {wording.number(stretch.reward)}"] if stretch.reward else []
    said += [f"credit {wording.number(stretch.credit)}"] if stretch.credit is not None else []
    return " · ".join(said)


def largest(numbers: Iterable[float | None]) -> float:
    """The largest size among them: the end of a scale that is symmetric around 0. 0 where there is none."""
    return max((abs(number) for number in numbers if number is not None), default=0.0)


def decimals(scale: float) -> int:
    """Decimals that show two digits of a number as large as `scale`."""
    return min(12, wording.decimals(scale, 2))


def signed(number: float | None, places: int) -> str:
    """+0.0059, -0.35, 0; a dash for None."""
    if number is None:
        return DASH
    written = f"{number:+.{places}f}"
    return written if float(written) else "0"


def alike(responses: Sequence[Response], scale: float) -> list[list[Response]]:
    """The responses of a group, those together that nobody could tell apart: same tokens, rewards, facts, and credit
    to two digits of `scale`. Late in a run most of a group are."""
    found: dict[tuple[object, ...], list[Response]] = {}
    for r in responses:
        credits = [signed(c, decimals(scale)) for c in r.series.get(r.credited or "", [])]
        facts = (r.reward, r.clean_reward, r.status, r.correct, r.truncated, r.valid, str(r.parts), str(r.info))
        found.setdefault((*r.tokens, *facts, *r.series, *credits), []).append(r)
    return list(found.values())
