"""Responses that deserve a second look. Each kind is a function from a step to its rows in the step's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlkit.inspection.steps import Response, Step
from rlkit.interfaces.rewards import VALUELESS


def reward_without_answer(step: Step) -> set[int]:
    """A reward of 1 or more, as the loss saw it, though no answer was found.

    None was found where the status is `no_answer`, where the response is blank, and where a reward that notes the
    answer it read (`answer` in `info`) for others in the step has none here, or a blank one.
    """
    reads = {name for response in step.responses for name in _answers(response)}

    def nothing_found(response: Response) -> bool:
        answers = _answers(response)
        return (
            response.status == "no_answer"
            or not response.text.strip()
            or any(not str(answers.get(name) or "").strip() for name in reads)
        )

    return {r.row for r in step.responses if r.reward is not None and r.reward >= 1 and nothing_found(r)}


def _answers(response: Response) -> dict[str, Any]:
    """Reward -> the answer it read; a single reward has no name."""
    if "answer" in response.info:
        return {"": response.info["answer"]}
    said = {name: info for name, info in response.info.items() if isinstance(info, dict)}
    return {name: info["answer"] for name, info in said.items() if "answer" in info}


def credit_at_end(step: Step) -> set[int]:
    """The last of the policy's tokens is credited most, more than any other; of two tokens or more."""
    return {r.row for r in step.responses if (at := _most_credited(r)) is not None and at == _acts(r)[-1]}


def credit_on_space(step: Step) -> set[int]:
    """The token credited most, more than any other, is white space."""
    return {
        r.row
        for r in step.responses
        if (at := _most_credited(r)) is not None and r.pieces[at].text and not r.pieces[at].text.strip()
    }


def _acts(response: Response) -> list[int]:
    return [at for at, acts in enumerate(response.mask) if acts]


def _most_credited(response: Response) -> int | None:
    """None where nothing was kept, where no token stands out, and where none is credited above 0."""
    if response.credited is None:
        return None
    numbers = [(v, at) for at, v in enumerate(response.series[response.credited]) if v is not None]
    numbers.sort(reverse=True)
    return numbers[0][1] if len(numbers) > 1 and numbers[0][0] > max(0.0, numbers[1][0]) else None


def longest(step: Step) -> set[int]:
    """As many tokens as the longest response of the step, where few (a tenth at most) have as many."""
    lengths = {r.row: len(r.tokens) for r in step.responses}
    most = {row for row, length in lengths.items() if length == max(lengths.values())}
    return most if len(most) <= max(1, len(lengths) // 10) < len(lengths) else set()


def no_value(step: Step) -> set[int]:
    """The verifier gave no value: the status says why."""
    return {r.row for r in step.responses if r.status in VALUELESS}


def disagreement(step: Step) -> set[int]:
    """Verdict and reward, or two verifiers, say different things. Noise has no part in it: clean rewards count.

    Verdict and reward: it is called correct and its clean reward lies below the middle between the lowest and the
    highest of the step, or it is called wrong and lies above. Two verifiers, where the run has several rewards: of
    those that note the answer they read (`NAME.answer` in `info`) for any response of the step, one gives more than
    0 and another does not. A reward that reads no answer, on format or length say, is no verifier.
    """
    clean = [r.clean_reward for r in step.responses if r.clean_reward is not None]
    middle = (min(clean) + max(clean)) / 2 if clean else 0.0
    verifiers = {name for response in step.responses for name in _answers(response) if name}

    def differs(response: Response) -> bool:
        if response.clean_reward is None or response.correct is None:
            return False
        below, above = response.clean_reward < middle, response.clean_reward > middle
        said = {value > 0 for name, value in response.parts.items() if name in verifiers}
        return (below if response.correct else above) or len(said) > 1

    return {response.row for response in step.responses if differs(response)}


def noise(step: Step) -> set[int]:
    """Noise has changed the reward, or taken it away."""
    return {r.row for r in step.responses if r.reward != r.clean_reward}


@dataclass(frozen=True)
class Kind:
    """A kind of surprise."""

    label: str
    """For a button: what such responses are."""
    find: Callable[[Step], set[int]]


KINDS = {
    "reward-without-answer": Kind("reward 1, no answer", reward_without_answer),
    "credit-at-end": Kind("most credit on the last token", credit_at_end),
    "credit-on-space": Kind("most credit on white space", credit_on_space),
    "longest": Kind("longest", longest),
    "no-value": Kind("no value", no_value),
    "disagreement": Kind("verifiers disagree", disagreement),
    "noise": Kind("changed by noise", noise),
}


def find_all(step: Step) -> dict[str, set[int]]:
    """Kind -> rows, for each of KINDS."""
    return {name: kind.find(step) for name, kind in KINDS.items()}
