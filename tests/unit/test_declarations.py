"""What plugins declare: read from functions and objects alike, held to its type, and never misspelt in silence."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel

from rlkit import registry
from rlkit.config import ScoringConfig
from rlkit.errors import ConfigError
from rlkit.interfaces.declarations import (
    AdvantageDeclaration,
    LossDeclaration,
    Needs,
    RewardDeclaration,
    advantage_declaration,
    loss_declaration,
    reward_declaration,
)
from rlkit.interfaces.learning import Algorithm, Targets, TokenStats
from rlkit.interfaces.names import STATS, TARGETS
from rlkit.interfaces.rewards import Sample
from rlkit.scoring import Scorer, WeightedReward, score

READERS: dict[type[Any], Callable[[object, str], Any]] = {
    AdvantageDeclaration: advantage_declaration,
    LossDeclaration: loss_declaration,
    RewardDeclaration: reward_declaration,
}
DECLARATIONS = [(kind, each.name) for kind in READERS for each in dataclasses.fields(kind)]
SOUND: dict[str, Any] = {
    "needs": Needs(now=frozenset({"token_kl"})),
    "gives": frozenset({"scores"}),
    "reads": frozenset({"returns", "scores"}),
    "compares_groups": True,
    "leaves_out_truncated": True,
    "keep_group": any,
    "after_update": print,
    "range": (-1.0, 2.0),
    "in_process": True,
    "warm_up": print,
}


def function(**attributes: Any) -> Callable[..., Any]:
    def compute(*_: object) -> None: ...

    vars(compute).update(attributes)
    return compute


class Empty:
    def __call__(self, *_: object) -> None: ...


def in_the_instance(**attributes: Any) -> object:
    made = Empty()
    vars(made).update(attributes)
    return made


def in_the_class(**attributes: Any) -> object:
    return type("Made", (Empty,), {k: staticmethod(v) if callable(v) else v for k, v in attributes.items()})()


def as_properties(**attributes: Any) -> object:
    return type("Made", (Empty,), {k: property(lambda self, v=v: v) for k, v in attributes.items()})()


def wrapped_in_a_partial(**attributes: Any) -> object:
    """As the registry makes it of a reward function and its options."""
    made = function(**attributes)
    return functools.update_wrapper(functools.partial(made, 1), made)


def of_a_method(**attributes: Any) -> object:
    return type("Made", (), {"compute": function(**attributes)})().compute


FUNCTIONS = [function, wrapped_in_a_partial, of_a_method]
OBJECTS = [in_the_instance, in_the_class, as_properties]


@pytest.mark.parametrize("make", [*FUNCTIONS, *OBJECTS])
@pytest.mark.parametrize("kind", READERS)
def test_what_is_declared_is_read_wherever_it_stands(kind: type[Any], make: Callable[..., object]) -> None:
    names = [each.name for each in dataclasses.fields(kind)]
    assert READERS[kind](make(), "it") == kind()
    for some in (names, *([name] for name in names)):
        declared = READERS[kind](make(**{name: SOUND[name] for name in some}), "it")
        assert declared == kind(**{name: SOUND[name] for name in some})


def test_what_counts_where_nothing_is_declared() -> None:
    assert advantage_declaration(function(), "it") == AdvantageDeclaration(
        needs=Needs(),
        gives=frozenset({"advantages"}),
        compares_groups=False,
        leaves_out_truncated=False,
        keep_group=None,
        after_update=None,
    )
    assert loss_declaration(function(), "it") == LossDeclaration(needs=Needs(), reads=frozenset({"advantages"}))
    assert reward_declaration(function(), "it") == RewardDeclaration(range=None, in_process=False, warm_up=None)
    assert reward_declaration(in_the_instance(range=None, warm_up=None), "it") == RewardDeclaration()


def near_misses(name: str) -> st.SearchStrategy[str]:
    """A letter too few or too many, two neighbours swapped, or words joined in another way."""
    at = st.integers(0, len(name) - 1)
    camel = name.split("_")[0] + "".join(word.title() for word in name.split("_")[1:])
    return st.one_of(
        at.map(lambda i: name[:i] + name[i + 1 :]),
        st.tuples(at, st.sampled_from("aegnrstu_")).map(lambda x: name[: x[0] + 1] + x[1] + name[x[0] + 1 :]),
        at.map(lambda i: name[:i] + name[i + 1 : i + 2] + name[i] + name[i + 2 :]),
        st.sampled_from([name.replace("_", ""), camel, name.capitalize(), name + "s"]),
    )


@given(data=st.data(), declaration=st.sampled_from(DECLARATIONS), make=st.sampled_from([*FUNCTIONS, *OBJECTS]))
def test_a_near_miss_is_an_error_that_names_the_nearest(
    data: st.DataObject, declaration: tuple[type[Any], str], make: Callable[..., object]
) -> None:
    kind, name = declaration
    misspelt = data.draw(near_misses(name))
    assume(misspelt != name and not misspelt.startswith("_"))
    with pytest.raises(ConfigError) as caught:
        READERS[kind](make(**{misspelt: SOUND[name]}), "plugin 'mine'")
    said = str(caught.value)
    assert said.startswith("plugin 'mine', test_declarations:")
    assert repr(misspelt) in said
    assert repr(name) in said
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("make", OBJECTS)
@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "name",
    [
        "grouped", "group", "given", "giver", "ready", "reader", "heads", "beads", "seeds", "needed", "deeds", "weeds",
        "process", "processed", "warmup_steps", "warmed", "warm", "arrange", "strange", "angle", "change", "orders",
        "truncated", "leaves", "keep", "compare", "RANGE", "NEEDS", "_need", "_ranges", "usage", "config", "values",
    ],
)  # fmt: skip
def test_an_object_has_attributes_of_its_own(name: str, kind: type[Any], make: Callable[..., object]) -> None:
    assert READERS[kind](make(**{name: 1}), "it") == kind()


@pytest.mark.parametrize("kind", READERS)
def test_no_declaration_is_taken_for_another_s_misspelling(kind: type[Any]) -> None:
    """One object may serve as an advantage and as a loss."""
    everything = in_the_instance(**SOUND)
    assert READERS[kind](everything, "it") == kind(**{k: v for k, v in SOUND.items() if k in kind.__match_args__})


def test_objects_of_large_classes_raise_no_false_alarm() -> None:
    class Settings(BaseModel):
        beta: float = 1.0

    for made in (torch.nn.Linear(1, 1), Settings(), {}, [], torch.zeros(1), registry):
        for kind, read in READERS.items():
            assert read(made, "it") == kind()


@pytest.mark.parametrize("make", FUNCTIONS)
@pytest.mark.parametrize("kind", READERS)
def test_a_function_carries_declarations_alone(kind: type[Any], make: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match=r"attributes of a function are declarations, or begin with an underscore"):
        READERS[kind](make(grouped=True), "it")
    assert READERS[kind](make(_grouped=True), "it") == kind()


def test_the_message_shows_the_function_s_line_and_what_there_is() -> None:
    made = function(weighted=True)
    line = made.__code__.co_firstlineno
    with pytest.raises(ConfigError) as caught:
        reward_declaration(made, "reward 'mine'")
    assert str(caught.value) == (
        f"reward 'mine', test_declarations:function.<locals>.compute ({__file__}:{line}): attributes of a function are "
        "declarations, or begin with an underscore; 'weighted' is neither; known: in_process, range, warm_up"
    )
    with pytest.raises(ConfigError) as caught:
        advantage_declaration(in_the_instance(compare_groups=True), "advantage 'mine'")
    assert str(caught.value) == (
        f"advantage 'mine', test_declarations:Empty ({__file__}): its attribute 'compare_groups' is nearly the "
        "declaration 'compares_groups', and declares nothing. Write 'compares_groups'; or, if it is meant to be "
        "something else, give it a name less like that"
    )


def test_what_a_decorator_puts_on_a_function_may_stay_but_near_misses_are_named() -> None:
    made = function(range=(0.0, 1.0))

    @functools.wraps(made)
    def retried(*arguments: object) -> None: ...

    retried.statistics = {}  # type: ignore[attr-defined]
    assert reward_declaration(retried, "it").range == (0.0, 1.0)
    retried.inprocess = True  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="'inprocess' is nearly the declaration 'in_process'"):
        reward_declaration(retried, "it")


WRONG: list[tuple[str, Any, str]] = [
    ("needs", {"token_kl"}, "must be an rlkit.Needs"),
    ("needs", lambda: Needs(), "must be an rlkit.Needs"),
    ("needs", Needs(old=frozenset({"logprob"})), r"'logprob' is no statistic \(old\); did you mean 'logprobs'"),  # type: ignore[arg-type]
    ("needs", Needs(now=frozenset({"tokenkl"})), r"'tokenkl' is no statistic \(now\); did you mean 'token_kl'"),  # type: ignore[arg-type]
    ("needs", Needs(grad="entropy"), "must be a set of names"),  # type: ignore[arg-type]
    ("needs", Needs(observe=frozenset({"kl"})), r"'kl' is no statistic \(observe\)"),  # type: ignore[arg-type]
    ("gives", "advantages", "must be a set of names"),
    ("gives", ["advantages"], "must be a set of names"),
    ("gives", frozenset({"score"}), "'score' is no field of Targets; did you mean 'scores'"),
    ("reads", frozenset({"return", "scores"}), "'return' is no field of Targets; did you mean 'returns'"),
    ("reads", frozenset({1}), "'1' is no field of Targets"),
    ("compares_groups", 1, "must be True or False"),
    ("compares_groups", "yes", "must be True or False"),
    ("leaves_out_truncated", None, "must be True or False"),
    ("in_process", 0, "must be True or False"),
    ("keep_group", True, "must be a function"),
    ("after_update", {"mean": 0.0}, "must be a function"),
    ("warm_up", "later", "must be a function"),
    *(
        ("range", wrong, "must be two finite numbers, the lowest value first")
        for wrong in (
            1.0, (0.0,), (0.0, 1.0, 2.0), {0.0, 1.0}, "01", (0.0, None), ("0", "1"), (0.0, math.inf), (-math.inf, 0.0),
            (math.nan, 1.0), (0.0, math.nan), (1.0, 0.0), (0, 1j),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("make", [function, in_the_instance, as_properties])
@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_a_declaration_of_another_type_or_value_is_refused(
    name: str, value: Any, said: str, make: Callable[..., object]
) -> None:
    for kind in (kind for kind, each in DECLARATIONS if each == name):
        with pytest.raises(ConfigError, match=said) as caught:
            READERS[kind](make(**{name: value}), "plugin 'mine'")
        assert str(caught.value).startswith("plugin 'mine', test_declarations:")
        assert f": {name} is " in str(caught.value)
        assert type(value).__name__ in str(caught.value)
        assert caught.value.exit_code == 2


def test_sound_values_of_other_forms_pass() -> None:
    assert reward_declaration(function(range=[0, 0]), "it").range == (0, 0)
    assert reward_declaration(function(range=(-(10**400), 10**400)), "it").range is not None
    assert advantage_declaration(function(gives={"scores"}), "it").gives == frozenset({"scores"})
    assert loss_declaration(function(needs=Needs(old={"values"})), "it").needs == Needs(old=frozenset({"values"}))  # type: ignore[arg-type]
    for stat in STATS:
        assert loss_declaration(function(needs=Needs(grad=frozenset({stat}))), "it").needs.grad == {stat}
    assert {each.name for each in dataclasses.fields(Targets)} == set(TARGETS)
    for name in TARGETS:
        assert loss_declaration(function(reads={name}), "it").reads == {name}


def test_a_property_that_fails_is_no_missing_declaration() -> None:
    class Mine(Empty):
        @property
        def needs(self) -> Needs:
            return self.confg.needs  # type: ignore[attr-defined,no-any-return]

    with pytest.raises(AttributeError, match="confg"):
        loss_declaration(Mine(), "it")


def test_an_object_that_passes_attributes_on_declares_what_is_behind_it() -> None:
    class Outer(Empty):
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    inner = in_the_instance(range=(0.0, 3.0))
    assert reward_declaration(Outer(), "it").range == (0.0, 3.0)


def test_of_a_class_is_told_what_needs_no_object() -> None:
    class Sound(Empty):
        range = (0.0, 1.0)
        needs = 3

        @property
        def in_process(self) -> bool:
            return True

        def warm_up(self) -> None: ...

    assert reward_declaration(Sound, "it") == RewardDeclaration(range=(0.0, 1.0))
    with pytest.raises(ConfigError, match="'ranges' is nearly the declaration 'range'"):
        reward_declaration(type("Misspelt", (Empty,), {"ranges": (0.0, 1.0)}), "it")
    with pytest.raises(ConfigError, match="range is 1 "):
        reward_declaration(type("Wrong", (Empty,), {"range": 1}), "it")


def test_an_algorithm_is_what_its_parts_declare() -> None:
    keep: Callable[[Sequence[float]], bool] = any
    advantage = function(
        needs=Needs(old=frozenset({"entropy"})), gives={"scores", "returns"}, compares_groups=True, keep_group=keep
    )
    loss = function(needs=Needs(grad=frozenset({"token_kl"})), reads={"scores"})
    critic = function(needs=Needs(old=frozenset({"values"})))
    made = Algorithm(advantage=advantage, policy_loss=loss, value_loss=critic)
    assert made.needs == Needs(old=frozenset({"entropy", "values"}), grad=frozenset({"logprobs", "token_kl"}))
    assert made.gives == made.reads == {"scores", "returns"}
    assert made.compares_groups
    assert not made.leaves_out_truncated
    assert Algorithm(advantage=function(leaves_out_truncated=True), policy_loss=function()).leaves_out_truncated
    plain = Algorithm(advantage=function(), policy_loss=function(), value_loss=None)
    assert (plain.needs, plain.gives, plain.reads) == (Needs(), {"advantages"}, {"advantages"})


@pytest.mark.parametrize("part", ["advantage", "policy_loss", "value_loss"])
def test_an_algorithm_with_a_misspelt_part_says_which(part: str) -> None:
    parts = {"advantage": function(), "policy_loss": function(), part: function(need=Needs())}
    with pytest.raises(ConfigError, match=rf"the {part.replace('_', ' ')}, .*'need' is neither; did you mean 'needs'"):
        _ = Algorithm(**parts).needs


def test_a_reward_is_checked_before_it_scores() -> None:
    with pytest.raises(ConfigError, match=r"reward 'mine', .*'ranges' is neither; did you mean 'range'"):
        score(function(ranges=(0.0, 1.0)), "mine", [None])  # type: ignore[list-item]

    @registry.reward("declarations_late")
    class Late:
        def __init__(self, *, range: tuple[float, float]) -> None:
            self.range = range

        def __call__(self, samples: Sequence[Sample]) -> list[float]:
            return [0.0 for _ in samples]

    with pytest.raises(ConfigError, match=r"reward 'declarations_late', .*Late .*: range is \(1\.0, 0\.0\) \(tuple\)"):
        Scorer([WeightedReward("declarations_late", {"range": (1.0, 0.0)})], [], ScoringConfig())
    with Scorer([WeightedReward("declarations_late", {"range": (0.0, 1.0)}, 2.0)], [], ScoringConfig()) as scorer:
        assert scorer.range == (0.0, 2.0)


def test_a_statistic_or_a_target_of_a_wrong_name_is_named_with_the_nearest() -> None:
    with pytest.raises(KeyError, match=r"no statistic 'logprob'; did you mean 'logprobs'"):
        TokenStats().get("logprob")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match=r"no 'advantage'; did you mean 'advantages'"):
        Targets().get("advantage")  # type: ignore[arg-type]
