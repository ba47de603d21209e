"""Each kind of noise does what it says at the rate it says, and what cannot be is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkit import registry
from rlkit.config import PluginRef
from rlkit.errors import ConfigError, PluginLoadError
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.scoring.noise import Coin, Noise, apply_noise, build_noises, check_noise, parse_noise

COINS = 100_000
KINDS = {
    "group_flip": {"prob": 0.25},
    "flip": {"prob": 0.25},
    "asymmetric": {"false_positive": 0.1, "false_negative": 0.3},
    "gaussian": {"std": 0.5},
    "drop": {"prob": 0.25},
}


def noise(kind: str, **options: Any) -> Noise:
    made: Noise = registry.build("noise", kind, options)
    return made


def keys(prompts: int, samples: int = 1, step: int = 1) -> list[SampleKey]:
    return [SampleKey(f"{p:x}", step, 0, i) for p in range(prompts) for i in range(samples)]


def noisy(
    kinds: Sequence[Noise], values: Sequence[float | None], samples: int = 1, seed: int = 0
) -> list[float | None]:
    results = [RewardResult(value=v) if v is not None else RewardResult(value=None, status="abstain") for v in values]
    return apply_noise(kinds, seed, keys(len(values) // samples, samples), results, (0.0, 1.0))


def assert_rate(hits: int, of: int, prob: float) -> None:
    """Within five standard errors of a binomial."""
    assert abs(hits / of - prob) < 5 * math.sqrt(prob * (1 - prob) / of)


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two samples of uniform numbers."""
    return 12 * sum((x - 0.5) * (y - 0.5) for x, y in zip(a, b, strict=True)) / len(a)


def test_coins_are_uniform() -> None:
    drawn = [Coin(seed=3, layer=0)(key, shared=False) for key in keys(COINS)]
    assert all(0 < u < 1 for u in drawn)
    assert len(set(drawn)) == COINS
    for tenth in range(10):
        assert_rate(sum(tenth / 10 <= u < (tenth + 1) / 10 for u in drawn), COINS, 0.1)


@pytest.mark.parametrize(
    ("a", "b"), [(Coin(1, 0), Coin(2, 0)), (Coin(1, 0), Coin(1, 1)), (Coin(0, 1), Coin(1, 0))], ids=str
)
@pytest.mark.parametrize("shared", [False, True])
def test_seeds_and_layers_are_independent(a: Coin, b: Coin, shared: bool) -> None:
    some = keys(COINS // 5)
    drawn = [[coin(key, shared) for key in some] for coin in (a, b)]
    assert abs(correlation(*drawn)) < 5 / math.sqrt(len(some))


def test_steps_and_occurrences_and_neighbours_are_independent() -> None:
    n = COINS // 5
    coin = Coin(0, 0)
    first = [coin(SampleKey(f"{p:x}", 1, 0, 0), shared=False) for p in range(n)]
    for other in (
        [coin(SampleKey(f"{p:x}", 2, 0, 0), shared=False) for p in range(n)],
        [coin(SampleKey(f"{p:x}", 1, 1, 0), shared=False) for p in range(n)],
        [coin(SampleKey(f"{p:x}", 1, 0, 1), shared=False) for p in range(n)],
        [coin(SampleKey(f"{p:x}", 1, 0, 0), shared=True) for p in range(n)],
    ):
        assert abs(correlation(first, other)) < 5 / math.sqrt(n)


@pytest.mark.parametrize("prob", [0.25, 0.9])
@pytest.mark.parametrize("kind", ["group_flip", "flip", "drop"])
def test_the_rate_over_100_000_coins(kind: str, prob: float) -> None:
    values = noisy([noise(kind, prob=prob)], [1.0] * COINS)
    assert set(values) == {1.0, None if kind == "drop" else 0.0}
    assert_rate(sum(v != 1.0 for v in values), COINS, prob)


def test_asymmetric_has_two_rates() -> None:
    kinds = [noise("asymmetric", false_positive=0.1, false_negative=0.3)]
    assert_rate(sum(v == 1.0 for v in noisy(kinds, [0.0] * COINS)), COINS, 0.1)
    assert_rate(sum(v == 0.0 for v in noisy(kinds, [1.0] * COINS)), COINS, 0.3)


def test_gaussian_has_its_moments_and_differs_within_a_group() -> None:
    added = [v - 0.3 for v in noisy([noise("gaussian", std=0.5)], [0.3] * COINS, samples=8) if v is not None]
    assert abs(sum(added) / COINS) < 5 * 0.5 / math.sqrt(COINS)
    assert abs(sum(a * a for a in added) / COINS - 0.25) < 5 * 0.25 * math.sqrt(2 / COINS)
    assert_rate(sum(a > 0.5 for a in added), COINS, 0.158655)
    assert len(set(added)) == COINS


@pytest.mark.parametrize("prob", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["group_flip", "flip", "drop"])
def test_certainties_are_certain(kind: str, prob: float) -> None:
    flipped = None if kind == "drop" else 0.75
    assert set(noisy([noise(kind, prob=prob)], [0.25] * 2000)) == {flipped if prob else 0.25}


def test_a_flip_mirrors_the_declared_range() -> None:
    key, result = keys(1), [RewardResult(value=-0.5)]
    for kind in ("group_flip", "flip"):
        assert apply_noise([noise(kind, prob=1)], 0, key, result, (-1.0, 2.0)) == [1.5]
    assert apply_noise([noise("asymmetric", false_positive=1, false_negative=0)], 0, key, result, (-1.0, 2.0)) == [1.5]
    assert apply_noise([noise("asymmetric", false_positive=0, false_negative=1)], 0, key, result, (-1.0, 2.0)) == [-0.5]


def test_group_kinds_share_a_coin_within_a_group_and_others_do_not() -> None:
    grouped = noisy([noise("group_flip", prob=0.5)], [1.0] * 8000, samples=8)
    alone = noisy([noise("flip", prob=0.5)], [1.0] * 8000, samples=8)
    groups = [set(grouped[i : i + 8]) for i in range(0, 8000, 8)]
    assert all(len(group) == 1 for group in groups)
    assert_rate(sum(group == {0.0} for group in groups), 1000, 0.5)
    mixed = sum(len(set(alone[i : i + 8])) == 2 for i in range(0, 8000, 8))
    assert_rate(mixed, 1000, 1 - 2 / 2**8)


def test_layers_stack_in_order_with_coins_of_their_own() -> None:
    once = noise("flip", prob=0.25)
    assert_rate(sum(v == 0.0 for v in noisy([once, once], [1.0] * COINS)), COINS, 2 * 0.25 * 0.75)
    certain = [noise("flip", prob=1), noise("asymmetric", false_positive=1, false_negative=0)]
    assert set(noisy(certain, [1.0] * 100)) == {1.0}
    assert set(noisy(certain[::-1], [1.0] * 100)) == {0.0}
    # What a layer drops, no later one brings back.
    assert set(noisy([noise("drop", prob=1), once], [1.0] * 100)) == {None}


def test_no_value_stays_none_and_clean_results_stay_as_they_are() -> None:
    results = [RewardResult(value=1.0, correct=True), RewardResult(value=None, status="timeout")]
    kinds = [noise(kind, **options) for kind, options in KINDS.items()]
    assert apply_noise([noise("flip", prob=1)], 0, keys(2), results, (0.0, 1.0)) == [0.0, None]
    apply_noise(kinds, 0, keys(2), results, (0.0, 1.0))
    assert results == [RewardResult(value=1.0, correct=True), RewardResult(value=None, status="timeout")]
    assert apply_noise([], 0, keys(2), results, None) == [1.0, None]
    with pytest.raises(ValueError, match="zip"):
        apply_noise(kinds, 0, keys(3), results, (0.0, 1.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [1.5, -0.1, math.nan, math.inf])
def test_rates_that_cannot_be_are_refused(kind: str, wrong: float) -> None:
    for option in KINDS[kind]:
        if kind == "gaussian" and wrong == 1.5:
            continue
        with pytest.raises(ConfigError, match=rf"noise\.{option}': input should be .*got {wrong}"):
            registry.build("noise", kind, {**KINDS[kind], option: wrong})


def test_unknown_kinds_and_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"flop.*did you mean 'flip'"):
        registry.build("noise", "flop", {})
    with pytest.raises(ConfigError, match=r"probability.*'noise'"):
        registry.build("noise", "flip", {"probability": 0.1, "prob": 0.1})
    with pytest.raises(ConfigError, match=r"noise\.prob.*missing"):
        registry.build("noise", "flip", {})


@pytest.mark.parametrize("kind", ["group_flip", "flip", "asymmetric"])
def test_a_flip_needs_a_declared_range(kind: str) -> None:
    stack = [noise("gaussian", std=1), noise(kind, **KINDS[kind])]
    with pytest.raises(ConfigError, match=r"item 2.*reward 'judge' declares no range.*judge\.range = \(0\.0, 1\.0\)"):
        check_noise(stack, None, "judge")
    check_noise(stack, (0.0, 1.0), "judge")
    check_noise([noise("gaussian", std=1), noise("drop", prob=0.5)], None, "judge")


def test_command_line_form() -> None:
    assert parse_noise("group_flip:0.25") == {"kind": "group_flip", "prob": 0.25}
    assert parse_noise("asymmetric:0.1, 3e-1") == {"kind": "asymmetric", "false_positive": 0.1, "false_negative": 0.3}
    for kind, options in KINDS.items():
        text = f"{kind}:{','.join(map(str, options.values()))}"
        assert parse_noise(text) == {"kind": kind, **options}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("group_flip", "prob is missing; expected group_flip:PROB"),
        ("asymmetric:0.1", "false_negative is missing; expected asymmetric:FALSE_POSITIVE,FALSE_NEGATIVE"),
        ("flip:", "expected flip:PROB"),
        ("flip:a lot", "expected flip:PROB"),
        ("flip:nan", "expected flip:PROB"),
        ("flip:0.1,0.2", "expected flip:PROB"),
        ("flip:1.5", "--noise flip:1.5: 'prob': input should be less than or equal to 1 (got 1.5); expected flip:PROB"),
        ("group_flip:2", "--noise group_flip:2: 'prob': input should be less than or equal to 1 (got 2); expected"),
        (
            "asymmetric:2,.1",
            "--noise asymmetric:2,.1: 'false_positive': input should be less than or equal to 1 (got 2)",
        ),
        ("group-flip:0.25", "did you mean 'group_flip'"),
        ("", "unknown noise"),
    ],
)
def test_mistakes_on_the_command_line_are_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_noise(text)
    assert said in str(error.value)


def test_a_kind_of_the_users_own_as_the_docs_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    page = (Path(__file__).resolve().parents[2] / "docs" / "noise.md").read_text()
    found = re.search(r"```python\n(# stuck\.py\n.*?)```", page, re.DOTALL)
    assert found is not None
    (tmp_path / "stuck.py").write_text(found[1])
    registry.load([str(tmp_path / "stuck.py")])
    assert {"stuck", *KINDS} <= set(registry.names("noise"))
    assert parse_noise("stuck:1") == {"kind": "stuck", "prob": 1.0}
    assert noisy([noise("stuck", prob=1, at=0.5)], [0.0, 1.0]) == [0.5, 0.5]
    groups = noisy([noise("stuck", prob=0.5)], [1.0] * 8000, samples=8)
    assert all(len(set(groups[i : i + 8])) == 1 for i in range(0, 8000, 8))


def test_the_docs_table_is_the_code_s() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "noise.md").read_text()
    for kind in KINDS:
        options = ", ".join(f"`{name}`" for name in registry.find("noise", kind).options.model_fields)
        assert f"| `{kind}` | {options} |" in page


def test_a_function_that_is_the_noise_itself_is_told_what_a_noise_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))

    @registry.noise("bare_here")
    def bare(value: float, key: Any, coin: Any, range: Any, *, prob: float = 0.1) -> float:
        return value

    with pytest.raises(PluginLoadError) as refused:
        build_noises([PluginRef(kind="bare_here")])
    assert re.fullmatch(
        r"noise 'bare_here', .*test_noise\.py:\d+: its factory takes value, key, coin, range, which nobody gives it: "
        r"it is called with its options, and must return the noise: an object with an attribute `needs_range` that is "
        r"called with \(value, key, coin, range\) and gives the noisy value\. `rlkit new noise NAME` writes one, .*",
        str(refused.value),
    )


def test_a_noise_that_says_nothing_of_the_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    registry.noise("undeclared_here")(lambda: lambda value, key, coin, range: value)
    with pytest.raises(PluginLoadError, match=r"noise 'undeclared_here', .*: it has no `needs_range`: say needs_range"):
        build_noises([PluginRef(kind="undeclared_here")])
