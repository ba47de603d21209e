"""Configs made from the schema: keys that exist with values that their types allow, and now and then one that they do
not. Whatever is added to the schema is tried from then on. `tools/fuzz.py` makes many, a test a few.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlkit import registry
from rlkit.config import PluginRef, RunConfig

BASE: dict[str, Any] = {
    "algo": "grpo",
    "model": {"path": "embedded:xs", "dtype": "float32"},
    "data": {"path": "embedded:arithmetic"},
    "reward": "final_answer",
    "steps": 2,
    "batch": {"prompts_per_step": 4, "samples_per_prompt": 2, "tokens_per_microbatch": 512},
    "optimizer": {"lr": 3e-4, "warmup_updates": 0},
    "engine": {"zero_stage": 0},
    "sampling": {"max_tokens": 8},
    "eval": {"problems": 2},
}
"""Two steps of it take a second."""

LEFT = {
    "name", "out", "plugins", "steps", "trackers", "sampler", "eval.suites", "eval.suite_data", "model.path",
    "data.path", "data.eval_path", "data.subset", "critic.path", "data.chat_template_kwargs", "sampling.max_tokens",
    "scoring.memory_gib", "eval.problems", "eval.samples", "batch.refill", "replay.run", "replay.first",
}  # fmt: skip
"""Keys that take a file, a server or long: they have tests of their own."""

NUMBERS = {
    "optimizer.lr": [1e-5, 1e-3], "critic.optimizer.lr": [1e-5, 1e-3], "scoring.timeout_s": [2.0, 9.0],
    "scoring.workers": [1, 2], "engine.timeout_minutes": [1.0, 5.0], "batch.prompts_per_step": [1, 2, 3, 6],
    "batch.samples_per_prompt": [1, 2, 3], "batch.minibatches": [1, 2, 3], "batch.epochs": [1, 2],
    "batch.tokens_per_microbatch": [1, 30, 512], "model.lora.rank": [1, 4],
}  # fmt: skip
"""Where a type allows what would take for ever."""

ENDLESS = {"batch.epochs", "scoring.workers"}
"""So many are allowed, and would be made."""

WRONG: list[Any] = [None, -1, 0, 1.5, "", "nonsense", [], {}, True, float("nan"), 10**30]


def configs() -> st.SearchStrategy[dict[str, Any]]:
    """Plain data: `BASE` with one to six other settings, one of twelve of a wrong kind."""
    changes = st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=6, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({key: _value(key, KEYS[key]) for key in chosen})
    )
    return changes.map(_changed)


def _changed(changes: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for key, value in changes.items():
        section, *path = config, *key.split(".")
        for name in path[:-1]:
            below = section.get(name)
            if not isinstance(below, dict):
                below = section[name] = {} if below is None else {"kind": below}
            section = below
        section[path[-1]] = value
    return config


def _keys(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        key = before + name
        if key in LEFT:
            continue
        inner = [each for each in _alternatives(field.annotation) if _is_section(each)]
        if len(inner) == 1:
            yield from _keys(inner[0], key + ".")
        else:
            yield key, field


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, PluginRef)


def _alternatives(kind: Any) -> list[Any]:
    """What a union is one of; without the notes to a type."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [one for each in get_args(kind) for one in _alternatives(each)]
    return [kind]


def _value(key: str, field: FieldInfo) -> st.SearchStrategy[Any]:
    right = _plugin(key)
    if right is None:
        right = st.sampled_from(NUMBERS[key]) if key in NUMBERS else _of(field.annotation, field.metadata)
    wrong = [each for each in WRONG if key not in ENDLESS or each != 10**30]
    return st.integers(0, 11).flatmap(lambda at: st.sampled_from(wrong) if at == 0 else right)


def _plugin(key: str) -> st.SearchStrategy[Any] | None:
    """Of a key that names a plugin: one of them, with some of its options."""
    kinds: dict[str, registry.Kind] = {
        "algo": "algorithms", "advantage": "advantages", "loss": "losses", "noise": "noise", "reward": "rewards",
    }  # fmt: skip
    if key not in kinds:
        return None
    one = st.sampled_from(_named(kinds[key])).flatmap(lambda name: _ref(kinds[key], name))
    return st.lists(one, max_size=2) if key in ("noise", "reward") else one


def _named(kind: registry.Kind) -> list[str]:
    # A judge and a reward model need a server or a model, `code` a sandbox.
    return [name for name in registry.names(kind) if name not in ("judge", "reward_model", "code", "function")]


def _ref(kind: registry.Kind, name: str) -> st.SearchStrategy[dict[str, Any]]:
    options = registry.find(kind, name).options.model_fields
    if not options:
        return st.just({"kind": name})
    chosen = st.lists(st.sampled_from(sorted(options)), max_size=2, unique=True)
    return chosen.flatmap(
        lambda keys: st.fixed_dictionaries(
            {"kind": st.just(name)} | {key: _value(f"{kind}.{name}.{key}", options[key]) for key in keys}
        )
    )


def _of(kind: Any, notes: Any = ()) -> st.SearchStrategy[Any]:
    """Values that a type allows."""
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return _of(inner, [*more, *notes])
    if get_origin(kind) in (Union, types.UnionType):
        return st.one_of([_of(each, notes) for each in get_args(kind)])
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind is type(None):
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind in (int, float):
        return _number(kind, [part for note in notes for part in getattr(note, "metadata", [note])])
    if kind is str:
        return st.sampled_from(["mean", "x", "answer", "prompt", "{prompt}=", "train", "test"])
    if kind is Path:
        return st.just("somewhere")
    if get_origin(kind) is list:
        return st.lists(_of(get_args(kind)[0]), max_size=2)
    if get_origin(kind) is tuple:
        return st.tuples(*map(_of, get_args(kind))).map(list)
    if get_origin(kind) is dict:
        return st.just({})
    if _is_section(kind):
        return st.fixed_dictionaries(
            {}, optional={name: _of(field.annotation, field.metadata) for name, field in kind.model_fields.items()}
        )
    return st.sampled_from(WRONG)


def _number(kind: type, notes: Any) -> st.SearchStrategy[Any]:
    low, high = 0.0, 4.0
    for note in notes:
        if isinstance(note, Ge):
            low = float(note.ge)  # type: ignore[arg-type]
        elif isinstance(note, Gt):
            low = float(note.gt) + (1 if kind is int else 1e-3)  # type: ignore[arg-type]
        elif isinstance(note, Le):
            high = float(note.le)  # type: ignore[arg-type]
        elif isinstance(note, Lt):
            high = float(note.lt) - 1e-3  # type: ignore[arg-type]
    high = max(low, high)
    return st.integers(int(low), int(high)) if kind is int else st.floats(low, high)


KEYS = dict(_keys(RunConfig))
"""Those that are tried, by their names with dots."""
