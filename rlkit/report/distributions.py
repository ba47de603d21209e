"""How rewards, lengths, groups and credit are spread within a step: counts, from the files of the steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rlkit.errors import RlkitError
from rlkit.interfaces.rewards import VALUELESS
from rlkit.pages import Chart, Series
from rlkit.records.folder import RunFolder
from rlkit.records.samples import read
from rlkit.wording import number

BINS = 24
FEW = 12
"""Values that differ: with no more of them, each has a bar of its own."""
SAME = 1e-3
"""Numbers that differ by less, relative to the largest, are one for a picture: ratios of a float32 run are all 1."""
FACTS = ["group", "reward", "clean_reward", "status", "correct", "valid"]
COLUMNS = (*FACTS, "tokens", "mask")

Array = NDArray[np.float64]

Values = Mapping[str, Sequence[float] | Array]
"""Numbers of a step, by what they are called beside the others."""


@dataclass(frozen=True)
class Histogram:
    title: str
    of: str
    """What is counted."""
    bins: Sequence[str]
    names: Sequence[str]
    """What is counted apart, and stacked."""
    counts: Sequence[Sequence[Sequence[int]]]
    """[steps][names][bins]"""


@dataclass
class Step:
    """What a step's files say: for each title, its numbers."""

    number: int
    passed: list[float] = field(default_factory=list)
    """Of each group with a verdict: the share of its responses that are right."""
    values: dict[str, Values] = field(default_factory=dict)


TITLES = {
    "Reward, clean": "responses",
    "Reward with noise, as the loss sees it": "responses",
    "Response length in tokens": "responses",
    "Pass rate of a prompt": "prompts",
    "Spread of rewards within a group (standard deviation)": "groups",
    "Advantage of a token": "tokens",
    "Ratio of trainer to sampler before the updates": "tokens",
}
"""Title -> what is counted."""


def read_steps(run: RunFolder, steps: Sequence[int]) -> list[Step]:
    """What is spread in each of them; steps whose files cannot be read are left out."""
    found = []
    for step in steps:
        try:
            found.append(_read(run, step))
        except RlkitError:  # the page's samples say so
            continue
    return found


def _read(run: RunFolder, step: int) -> Step:
    table = read(run.rollout_file(step), COLUMNS, optional=("logprobs", "sampler_logprobs"))
    # What is kept of tokens stays in arrays: there are too many of them for lists.
    rows = table.select(FACTS).append_column("length", pc.list_value_length(table["tokens"])).to_pylist()
    said = {True: "right", False: "wrong", None: "no verdict"}
    clean = [row["clean_reward"] for row in rows if row["status"] not in VALUELESS]
    seen = [row["reward"] for row in rows if row["valid"]]
    noisy = any(row["reward"] != row["clean_reward"] for row in rows if row["valid"])
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    verdicts = [[row["correct"] for row in each if row["correct"] is not None] for each in groups.values()]
    passed = [sum(each) / len(each) for each in verdicts if each]
    inside = [[row["reward"] for row in each if row["valid"]] for each in groups.values()]
    lengths: dict[str, list[float]] = {name: [] for name in said.values()}
    for row in rows:
        lengths[said[row["correct"]]].append(row["length"])
    values: tuple[Values, ...] = (
        {"responses": clean},
        {"responses": seen if noisy else []},
        {name: each for name, each in lengths.items() if each},
        {"prompts": passed},
        {"groups": [float(np.std(each)) for each in inside if len(each) > 1]},
        {"tokens": _advantages(run, step, table["mask"])},
        {"tokens": _ratios(table)},
    )
    return Step(step, passed, dict(zip(TITLES, values, strict=True)))


def _advantages(run: RunFolder, step: int, mask: pa.ChunkedArray) -> Array:
    try:
        kept = read(run.credit_file(step), ["row"], optional=("advantages",))
    except RlkitError:
        return np.zeros(0)
    if "advantages" not in kept.column_names:
        return np.zeros(0)
    acts = _flat(mask.take(kept["row"]))
    return _finite(_flat(kept["advantages"])[acts])


def _ratios(table: pa.Table) -> Array:
    if not {"logprobs", "sampler_logprobs"} <= {*table.column_names}:
        return np.zeros(0)
    kept = table.filter(pc.is_valid(table["logprobs"]))
    gap = _flat(kept["logprobs"]) - _flat(kept["sampler_logprobs"])
    # exp(50) is off any chart, and does not overflow.
    return np.asarray(np.exp(np.minimum(_finite(gap[_flat(kept["mask"])]), 50)))


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    """The numbers of all rows, one after the other."""
    return np.asarray(pc.list_flatten(column).to_numpy())


def _finite(values: Array) -> Array:
    return np.asarray(values[np.isfinite(values)])


def histograms(steps: Sequence[Step]) -> list[Histogram]:
    """One for each title of which the steps have numbers that are not all the same; bins are shared by the steps."""
    return [made for title, of in TITLES.items() if (made := _histogram(title, of, steps)) is not None]


def _histogram(title: str, of: str, steps: Sequence[Step]) -> Histogram | None:
    names = list(dict.fromkeys(name for step in steps for name in step.values[title]))
    found = [np.asarray(each, dtype=np.float64) for step in steps for each in step.values[title].values()]
    every = np.concatenate(found) if found else np.zeros(0)
    if not len(every) or np.ptp(every) <= SAME * np.abs(every).max():
        return None
    distinct = np.unique(every.round(6))
    few = len(distinct) <= FEW
    edges = (
        np.concatenate([[-np.inf], (distinct[1:] + distinct[:-1]) / 2, [np.inf]])
        if few
        else np.linspace(every.min(), every.max(), BINS + 1)
    )
    bins = (
        [number(v) for v in distinct] if few else [f"{number(a)} to {number(b)}" for a, b in itertools.pairwise(edges)]
    )
    counts = [[_counted(step.values[title].get(name, ()), edges) for name in names] for step in steps]
    return Histogram(title, of, bins, names, counts)


def _counted(values: Sequence[float] | Array, edges: Array) -> list[int]:
    """How many lie in each bin; what is on an inner edge belongs to the bin above."""
    places = np.clip(np.searchsorted(edges, np.asarray(values, dtype=np.float64), side="right") - 1, 0, len(edges) - 2)
    return [int(count) for count in np.bincount(places, minlength=len(edges) - 1)]


def by_prompt(steps: Sequence[Step]) -> Chart | None:
    """Share of a step's prompts whose responses are never, sometimes or always right."""
    there = [step for step in steps if step.passed]
    kinds = {
        "never": lambda rate: rate == 0,
        "sometimes": lambda rate: 0 < rate < 1,
        "always": lambda rate: rate == 1,
    }
    x = [step.number for step in there]
    shown = [
        Series(
            name, x, [sum(map(holds, step.passed)) / len(step.passed) for step in there], color=color, marks=len(x) < 25
        )
        for color, (name, holds) in enumerate(kinds.items())
    ]
    title = "Prompts whose responses are never, sometimes or always right"
    return Chart(title, shown, y_label="share of prompts", y_min=0, y_max=1) if there else None
