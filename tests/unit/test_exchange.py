"""What passes between ranks: ragged and empty shares, more ranks than groups; the same everywhere, bit for bit."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from light_ranks import on_ranks
from random_batches import fresh_seed
from torch import Tensor

from rlkit import registry
from rlkit.config import ConversationConfig, PluginRef, ScoringConfig
from rlkit.data import Problem
from rlkit.engine import distributed
from rlkit.engine.shares import put_together
from rlkit.errors import RlkitError
from rlkit.generation.acting import declared, setting_of
from rlkit.generation.assemble import assemble
from rlkit.generation.collector import Collector
from rlkit.generation.sampled import Draw, Scored, deal, draws
from rlkit.interfaces.generation import Completion, Request, SamplingParams
from rlkit.interfaces.learning import Rollout
from rlkit.interfaces.rewards import RewardResult, Sample
from rlkit.scoring import Scorer

ACTING = str(Path(__file__).parents[1] / "acting.py")
PARAMS = SamplingParams(max_tokens=20)
RANKS = [2, 5]

Found = Callable[[int, str], list[Any]]


@pytest.fixture(scope="module")
def found() -> Found:
    """What each of so many ranks finds; they start once for all tests."""
    made = {ranks: on_ranks(ranks, everything) for ranks in RANKS}
    return lambda ranks, what: [of_rank[what] for of_rank in made[ranks]]


def everything() -> dict[str, Any]:
    return {job.__name__: job() for job in (flat, on_main, collected, conversed, measured, failed)}


def wanted_of(groups: int, samples: int) -> list[Draw]:
    """The first problem comes twice, where there are two groups or more."""
    problems = [
        Problem(id=f"p{n}", text=f"prompt {n}", tokens=[n, n + 1], answer=str(n), columns={"n": n})
        for n in range(max(1, groups - 1))
    ]
    return draws([*problems, problems[0]][:groups], samples, step=3)


# Who samples what


@pytest.mark.parametrize("repeat", range(20))
def test_every_sample_is_dealt_once_and_none_has_more_than_its_part(repeat: int) -> None:
    rng = random.Random(fresh_seed())
    groups, samples, ranks = rng.randint(0, 9), rng.randint(1, 6), rng.randint(1, 40)
    wanted = wanted_of(groups, samples)
    shares = deal(wanted, ranks)
    assert len(shares) == ranks
    assert sorted(at for share in shares for at in share) == list(range(len(wanted)))
    largest = max(map(len, shares))
    if ranks <= groups:
        assert largest == samples * math.ceil(groups / ranks)
        for share in shares:
            names = [(wanted[at].key.prompt_id, wanted[at].key.occurrence) for at in share]
            assert all(names.count(name) == samples for name in names)
    elif groups:
        assert largest == math.ceil(samples / (ranks // groups))


# From rank to rank


KINDS = [torch.float32, torch.int32, torch.int64]


def sizes_of(ranks: int) -> list[list[int]]:
    """How many numbers each rank has, several times."""
    return [[3 * rank % 7 for rank in range(ranks)], [0] * ranks, [2] * ranks, [0] * (ranks - 1) + [5]]


def numbers_of(rank: int, size: int, kind: torch.dtype) -> Tensor:
    numbers = torch.arange(size).to(kind) + 100 * rank
    if kind.is_floating_point and size:
        numbers[0] = -0.0 if rank else math.nan
    return numbers


def flat() -> list[list[Tensor]]:
    rank, ranks = distributed.rank(), distributed.world_size()
    return [
        distributed.gather_flat(numbers_of(rank, sizes[rank], kind), sizes)
        for sizes in sizes_of(ranks)
        for kind in KINDS
    ]


def on_main() -> list[str] | None:
    return distributed.gather_objects_on_main("a" * distributed.rank())


@pytest.mark.parametrize("ranks", RANKS)
def test_arrays_of_any_length_are_the_same_everywhere(ranks: int, found: Found) -> None:
    expected = [
        [numbers_of(rank, size, kind) for rank, size in enumerate(sizes)] for sizes in sizes_of(ranks) for kind in KINDS
    ]
    for of_rank in found(ranks, "flat"):
        assert bits(of_rank) == bits(expected)


@pytest.mark.parametrize("ranks", RANKS)
def test_what_the_main_rank_alone_needs_goes_to_no_other(ranks: int, found: Found) -> None:
    assert found(ranks, "on_main") == [["a" * rank for rank in range(ranks)], *[None] * (ranks - 1)]


# From sampler to rollout


class Seeded:
    """Sampler, tokenizer and scorer: all follows from a sample's seed, and completions end in any order."""

    def __init__(self) -> None:
        self.waiting: list[Sample] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        order = list(range(len(requests)))
        random.Random(distributed.rank()).shuffle(order)
        for at in order:
            rng = np.random.default_rng(requests[at].seed)
            length = int(rng.integers(1, 20))
            yield (
                at,
                Completion(
                    tokens=rng.integers(0, 2**31 - 1, length).tolist(),
                    logprobs=(-rng.exponential(size=length)).tolist(),
                    truncated=bool(rng.random() < 0.3),
                    version=int(rng.integers(5)),
                ),
            )

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return f"é{sum(tokens)}"

    def submit(self, sample: Sample, _acted: Any = None) -> None:
        assert isinstance(sample.tokens, list)  # what a reward function may have to write as JSON
        self.waiting.append(sample)

    def finish(self, **_: Any) -> list[RewardResult]:
        results = [self._judged(sample) for sample in self.waiting]
        self.waiting = []
        return results

    def _judged(self, sample: Sample) -> RewardResult:
        rng = random.Random(str(sample.key))
        if rng.random() < 0.2:
            return RewardResult(value=None, status="abstain", info={"why": sample.response})
        shares = [rng.random() for _ in sample.tokens] if rng.random() < 0.5 else None
        value = sum(shares) if shares else rng.random()
        info = {"answer": sample.response}
        return RewardResult(value=value, correct=value > 0.5, parts={"a": value}, token_values=shares, info=info)


SHAPES = [(7, 3), (2, 5), (1, 2), (1, 1), (0, 1)]
"""Groups, and samples in each: fewer of both than ranks, too."""


def collected() -> list[tuple[list[Scored], Rollout | None]]:
    seeded: Any = Seeded()
    made = []
    for shape in SHAPES:
        wanted = wanted_of(*shape)
        scored, _ = Collector(seeded, seeded, seeded, seed=11).collect(wanted, PARAMS, "train")
        made.append((scored, assemble(scored, compares_groups=True) if wanted else None))
    return made


class Speaks(Seeded):
    """A sum's result, which is right now and then."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return f"#### {2 + sum(tokens) % 17}"


class Letters:
    """Glue: a token a letter."""

    def opening(self, question: Any, said: Any) -> tuple[str, list[int]]:
        return f"{question} {said}", [*map(ord, f"{question} {said}")]

    def between(self, turn: Sequence[int], said: Any) -> list[int]:
        return [*map(ord, said)]


def conversed() -> list[tuple[list[Scored], Rollout]]:
    """As `collected`, of trajectories that an environment opens."""
    registry.load([ACTING])
    speaks: Any = Speaks()
    glue: Any = Letters()
    ref = PluginRef.model_validate({"kind": "sums", "opens": "Well"})
    environment = declared(ref)
    assert environment is not None
    made = []
    with ExitStack() as stack:
        setting = setting_of(ref, environment, ConversationConfig(), glue, 500, [ACTING], stack)
        scorer = stack.enter_context(Scorer([], [ACTING], ScoringConfig(), environment))
        for groups, samples in ((7, 3), (1, 2)):
            wanted = wanted_of(groups, samples)
            wanted = [replace(d, problem=replace(d.problem, question=f"{d.problem.answer}+3=")) for d in wanted]
            params = replace(PARAMS, max_tokens=60)
            scored, _ = Collector(speaks, scorer, speaks, seed=11, setting=setting).collect(wanted, params, "train")
            made.append((scored, assemble(scored)))
    return made


def bits(value: Any) -> Any:
    """What can be compared, of a rollout's column or a response's numbers."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    return [bits(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("ranks", RANKS)
def test_a_rollout_is_the_same_on_any_number_of_ranks(ranks: int, found: Found) -> None:
    alone = collected()
    for shape, (scored, _) in zip(SHAPES, alone, strict=True):
        assert [s.key for s in scored] == [draw.key for draw in wanted_of(*shape)]
    for rank, of_rank in enumerate(found(ranks, "collected")):
        assert_same(rank, of_rank, alone)


@pytest.mark.parametrize("ranks", RANKS)
def test_conversations_are_the_same_on_any_number_of_ranks(ranks: int, found: Found) -> None:
    alone = conversed()
    several = [one for scored, _ in alone for one in scored if len(one.turns or ()) > 1]
    assert several
    assert any(one.result.token_values for one in several)
    assert all(one.problem.text.endswith("+3= Well") for one in several)
    for rank, of_rank in enumerate(found(ranks, "conversed")):
        assert_same(rank, of_rank, alone)


def assert_same(rank: int, of_rank: Sequence[Any], alone: Sequence[Any]) -> None:
    for (scored, rollout), (others, expected) in zip(of_rank, alone, strict=True):
        for one, other in zip(scored, others, strict=True):
            assert (one.key, one.completion, one.turns) == (other.key, other.completion, other.turns)
            assert one.problem.tokens == other.problem.tokens
            # Texts and what a verifier said are for the files that the main rank writes.
            if rank:
                assert (one.text, one.result.info) == ("", {})
            else:
                assert (one.text, one.problem, one.result.info) == (other.text, other.problem, other.result.info)
            values = None if one.result.token_values is None else pytest.approx(other.result.token_values, rel=1e-6)
            assert replace(other.result, token_values=values, info=one.result.info) == one.result
        if rollout is not None and expected is not None:
            for name in Rollout.__dataclass_fields__:
                assert bits(getattr(rollout, name)) == bits(getattr(expected, name)), name


def test_what_has_been_sampled_before_stays_on_its_rank_and_comes_first() -> None:
    seeded: Any = Seeded()
    collector = Collector(seeded, seeded, seeded, seed=11)
    old, new = wanted_of(3, 2)[:2], wanted_of(3, 2)[2:]
    before = collector.sample(old, PARAMS, "train")
    scored, _ = collector.collect(new, PARAMS, "train", unscored=before)
    whole, _ = collector.collect([*old, *new], PARAMS, "train")
    assert scored == whole


class Failing(Seeded):
    """On the last rank, in the middle of its share."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for number, pair in enumerate(super().generate(requests)):
            if number == 1 and distributed.rank() == distributed.world_size() - 1:
                raise RlkitError(f"vLLM lacks memory on rank {distributed.rank()}")
            yield pair


def failed() -> str:
    failing: Any = Failing()
    try:
        Collector(failing, failing, failing, seed=11).collect(wanted_of(7, 3), PARAMS, "train")
    except RlkitError as error:
        return str(error)
    return "nothing was raised"


@pytest.mark.parametrize("ranks", RANKS)
def test_what_fails_while_one_rank_samples_is_raised_on_all(ranks: int, found: Found) -> None:
    """So that all of them save what is done before they end."""
    assert found(ranks, "failed") == [f"vLLM lacks memory on rank {ranks - 1}"] * ranks


# What a measuring pass gives


def ragged_mask() -> Tensor:
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[:, 0] = True
    mask[[1, 3]] = False  # without a value, and in nobody's share
    return mask


def shares_of(ranks: int) -> list[list[list[int]]]:
    """How the rows are dealt out, several times; the last rows of all count nothing."""
    rows = [4, 0, 6, 2, 5]
    return [[rows[rank::ranks] for rank in range(ranks)], [*[[] for _ in range(ranks - 1)], rows], [[]] * ranks]


def numbers_at(mask: Tensor, kinds: int) -> Tensor:
    return torch.randn(kinds, *mask.shape, generator=torch.Generator().manual_seed(5)) * mask


def measured() -> list[Tensor]:
    """Each rank has the numbers of its rows alone."""
    made = []
    for kinds in (1, 3):
        for shares in shares_of(distributed.world_size()):
            mask = ragged_mask() & torch.tensor(any(shares))
            numbers = numbers_at(mask, kinds)
            mine = [torch.empty(kinds, 0), *(numbers[:, row, mask[row]] for row in shares[distributed.rank()])]
            made.append(put_together(torch.cat(mine, dim=1), shares, mask))
    return made


@pytest.mark.parametrize("ranks", [1, *RANKS])
def test_statistics_of_ragged_rows_are_whole_everywhere(ranks: int, found: Found) -> None:
    expected = [
        numbers_at(ragged_mask() & torch.tensor(any(shares)), kinds) for kinds in (1, 3) for shares in shares_of(ranks)
    ]
    for of_rank in found(ranks, "measured") if ranks > 1 else [measured()]:
        assert all(torch.equal(one, other) for one, other in zip(of_rank, expected, strict=True))
