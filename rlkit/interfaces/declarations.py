"""What a plugin declares of itself by attributes: each declaration with its type, checked in one place. Needs no torch.

A function of the user's needs no class for it: `compute.compares_groups = True`. So a misspelt attribute would be a
silence; here it is an error that names the nearest declaration. A function, which has no use for other attributes,
carries declarations alone; an object may have any attributes of its own, but for near misses of a declaration.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

from rlkit.errors import ConfigError, nearest, origin
from rlkit.interfaces.names import STATS, TARGETS, Stat

NEAR = 0.85
"""Likeness (difflib's ratio) from which an object's attribute is held to be a misspelt declaration: `need`, `ranges`,
`warmup`. Words of their own stay below: `given`, `ready`, `heads`, `process`."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What an algorithm asks the engine for, and when; what nobody needs is not computed.

    `old.logprobs` needs no asking where only the loss reads it: with one update per rollout the engine
    sets it to the gradient forward's own log-probs, detached, and makes no pass; with several it is computed.
    The reference stands still within a rollout, so `ref_logprobs` are the same wherever they are asked for. Which
    passes follow from this is said in `rlkit/engine/passes.py`.

    Example: `loss.needs = Needs(now=frozenset({"token_kl"}))`.
    """

    old: frozenset[Stat] = frozenset()
    """Without gradient, once per rollout, at the weights with which the learner begins on it."""
    now: frozenset[Stat] = frozenset()
    """Without gradient, on the whole optimizer batch, at the weights about to be updated."""
    grad: frozenset[Stat] = frozenset({"logprobs"})
    """Within the gradient forward."""
    observe: frozenset[Stat] = frozenset()
    """Within the gradient forward too, but without gradient: it spares a pass where nothing before the update reads
    it."""

    @property
    def reference(self) -> bool:
        """True: something is compared with a reference policy."""
        return not {"ref_logprobs", "token_kl"}.isdisjoint(self.old | self.now | self.grad | self.observe)

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.old | other.old, self.now | other.now, self.grad | other.grad, self.observe | other.observe)


@dataclass(frozen=True, slots=True)
class AdvantageDeclaration:
    needs: Needs = Needs()
    """What models say of the tokens that it reads."""
    gives: frozenset[str] = frozenset({"advantages"})
    """Fields of Targets that it fills."""
    compares_groups: bool = False
    """A sample is judged against the others of its group, so a group needs two valid ones."""
    leaves_out_truncated: bool = False
    """Truncated samples are invalid, so they are out of loss, baseline and counts."""
    keep_group: Callable[[Sequence[float]], bool] | None = None
    """Whether a group is worth learning from, by the rewards of its valid samples; None: where they are not
    all equal. Dynamic sampling (`batch.refill`) replaces the others."""
    after_update: Callable[[Mapping[str, float], dict[str, Any]], object] | None = None
    """Called after each update of the policy with its metrics, which are means over all rows and ranks, and the
    algorithm's state: what the losses found may be remembered there."""


@dataclass(frozen=True, slots=True)
class LossDeclaration:
    """Of a policy's loss or a critic's."""

    needs: Needs = Needs()
    """What models say of the tokens that it reads."""
    reads: frozenset[str] = frozenset({"advantages"})
    """Fields of Targets that it uses."""


@dataclass(frozen=True, slots=True)
class RewardDeclaration:
    range: tuple[float, float] | None = None
    """The lowest and the highest value that it gives; None: it does not say."""
    in_process: bool = False
    """It is called in the trainer's process, without a deadline."""
    warm_up: Callable[[], object] | None = None
    """What a worker process calls before the first sample."""


@dataclass(frozen=True, slots=True)
class EnvironmentDeclaration:
    range: tuple[float, float] | None = None
    """The lowest and the highest sum of rewards that a trajectory gets; None: it does not say."""
    tools: Sequence[Mapping[str, Any]] = ()
    """JSON schemas of the functions that the model may call, for the chat template."""
    cut: bool = False
    """It has a method of that name, which is told where a trajectory ends before it has said so."""


Declaration = TypeVar("Declaration", AdvantageDeclaration, LossDeclaration, RewardDeclaration, EnvironmentDeclaration)


def advantage_declaration(advantage: object, name: str) -> AdvantageDeclaration:
    """What an advantage declares. `name` says in messages what it is.

    Raises ConfigError, as the other two do, for a declaration of another type or value than it has, for an attribute
    of a function that is none, and for one of an object that is nearly one.
    """
    return _read(advantage, name, AdvantageDeclaration())


def loss_declaration(loss: object, name: str, reads: frozenset[str] = frozenset({"advantages"})) -> LossDeclaration:
    """What a loss declares; `reads` is what counts where it does not say what it reads."""
    return _read(loss, name, LossDeclaration(reads=reads))


def reward_declaration(reward: object, name: str) -> RewardDeclaration:
    """What a reward declares. Of a class, what can be said before there is an object of it."""
    return _read(reward, name, RewardDeclaration())


def environment_declaration(environment: object, name: str) -> EnvironmentDeclaration:
    """What an environment declares. Of a class, what can be said before there is an object of it."""
    return _read(environment, name, EnvironmentDeclaration())


def _read(part: object, name: str, default: Declaration) -> Declaration:
    where = f"{name}, {origin(part)}"
    known = [each.name for each in dataclasses.fields(default)]
    _refuse_misspelt(part, known, where)
    given = {}
    for each in known:
        try:
            value = getattr(part, each)
        except AttributeError:
            if each in dir(part):  # a property, which failed in itself
                raise
            if not isinstance(part, functools.partial):
                continue
            # A partial has what it is a part of declares, unless it says otherwise itself.
            given[each] = getattr(_read(part.func, name, default), each)
            continue
        if inspect.isclass(part) and hasattr(value, "__get__"):
            continue  # a property or a method: it takes an object to say more
        try:
            given[each] = _CHECKS[each](value)
        except ValueError as error:
            raise ConfigError(f"{where}: {each} is {str(value)[:60]} ({type(value).__name__}), but {error}") from error
    return dataclasses.replace(default, **given)


def _refuse_misspelt(part: object, known: Sequence[str], where: str) -> None:
    plain = _is_plain(part)
    for name in getattr(part, "__dict__", ()) if plain else dir(part):
        if name.startswith("_") or name in known:
            continue
        if plain:
            raise ConfigError(
                f"{where}: attributes of a function are declarations, or begin with an underscore; {name!r} is "
                f"neither{nearest(name, known)}"
            )
        if near := [each for each in known if _near(name, each)]:
            raise ConfigError(
                f"{where}: its attribute {name!r} is nearly the declaration {near[0]!r}, and declares nothing. Write "
                f"{near[0]!r}; or, if it is meant to be something else, give it a name less like that"
            )


def _is_plain(part: object) -> bool:
    """A function as its user wrote it; one that a decorator has made may carry what the decorator put there."""
    while isinstance(part, functools.partial):
        part = part.func
    return inspect.isroutine(part) and not hasattr(part, "__wrapped__")


def _near(name: str, declared: str) -> bool:
    name = re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name)  # warmUp
    swapped = [declared[:i] + declared[i + 1] + declared[i] + declared[i + 2 :] for i in range(len(declared) - 1)]
    return name in swapped or difflib.SequenceMatcher(None, name, declared).ratio() >= NEAR


def _needs(value: object) -> Needs:
    if not isinstance(value, Needs):
        raise ValueError("must be an rlkit.Needs, as in Needs(now=frozenset({'token_kl'}))")
    when = [each.name for each in dataclasses.fields(Needs)]
    return Needs(**{each: _names(getattr(value, each), STATS, f"statistic ({each})") for each in when})


def _targets(value: object) -> frozenset[str]:
    return _names(value, TARGETS, "field of Targets")


def _names(value: object, known: Sequence[str], what: str) -> frozenset[Any]:
    if not isinstance(value, Set):
        raise ValueError(f"must be a set of names, as in frozenset({{{known[0]!r}}})")
    if wrong := sorted(str(name) for name in value if name not in known):
        raise ValueError(f"{wrong[0]!r} is no {what}{nearest(wrong[0], known)}")
    return frozenset(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be True or False")
    return value


def _pair(value: Any) -> tuple[Any, Any] | None:
    if value is None:
        return None
    sound = isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(end, Real) for end in value)
    if not sound or not -math.inf < value[0] <= value[1] < math.inf:
        raise ValueError("must be two finite numbers, the lowest value first, as in (0.0, 1.0)")
    return value[0], value[1]


def _schemas(value: object) -> Sequence[Mapping[str, Any]]:
    sound = isinstance(value, (tuple, list)) and all(isinstance(each, Mapping) for each in value)
    if not sound:
        raise ValueError("must be a list of JSON schemas, each a dict")
    try:
        found: list[dict[str, Any]] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"must be JSON: {error}") from error
    return found


def _function(value: object) -> Callable[..., Any] | None:
    if value is not None and not callable(value):
        raise ValueError("must be a function")
    return value


def _method(value: object) -> bool:
    if value is not None and not callable(value):
        raise ValueError("must be a method, cut(self, unheard)")
    return value is not None


_CHECKS: dict[str, Callable[[object], Any]] = {
    "needs": _needs,
    "gives": _targets,
    "reads": _targets,
    "compares_groups": _flag,
    "leaves_out_truncated": _flag,
    "keep_group": _function,
    "after_update": _function,
    "range": _pair,
    "in_process": _flag,
    "warm_up": _function,
    "tools": _schemas,
    "cut": _method,
}
