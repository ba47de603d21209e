"""Plugins held against their contracts: `rlkit check`, and the same from pytest.

    from rlkit.conformance import check_algorithm

    def test_it_keeps_its_contract():
        check_algorithm("reinforce", decay=0.5)

Each function takes a registered name, or the decorated factory itself, and the plugin's options. It returns None where
all is well. It raises ConformanceError, whose text says in sentences what is not, and ConfigError for a name that there
is not or options that cannot be. A file is loaded first, by `rlkit.registry.load(["mine.py"])`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import registry
from rlkit.conformance.findings import ConformanceError, title
from rlkit.errors import ConfigError, origin

if TYPE_CHECKING:
    from rlkit.interfaces.environments import Task
    from rlkit.interfaces.rewards import Sample

__all__ = [
    "ConformanceError",
    "check_advantage",
    "check_algorithm",
    "check_environment",
    "check_loss",
    "check_noise",
    "check_reward",
    "check_sampler",
    "check_suite",
    "check_tracker",
]

Given = str | Callable[..., Any]
"""A plugin: its registered name, or its decorated factory."""


def check_algorithm(plugin: Given, **options: Any) -> None:
    """The two laws over random batches, gradients, needs, state, order, padding, two ranks; and that it learns."""
    _check("algorithms", plugin, options)


def check_advantage(plugin: Given, **options: Any) -> None:
    """As `check_algorithm`, under a plain policy gradient."""
    _check("advantages", plugin, options)


def check_loss(plugin: Given, **options: Any) -> None:
    """As `check_algorithm`, with rewards less their group's mean as whatever the loss reads."""
    _check("losses", plugin, options)


def check_reward(plugin: Given, *, samples: Sequence[Sample] | None = None, **options: Any) -> None:
    """Range, determinism, independence of order and batch, hostile responses.

    samples: what it is called with, as its data have them; None: made ones.
    """
    _check("rewards", plugin, options, samples=samples)


def check_noise(plugin: Given, **options: Any) -> None:
    """That it follows from its arguments alone, whatever the order."""
    _check("noise", plugin, options)


def check_environment(plugin: Given, *, tasks: Sequence[Task] | None = None, **options: Any) -> None:
    """That it begins and answers, sound answers, range, determinism, hostile actions.

    tasks: what it is told, as its data have them; None: made ones.
    """
    _check("environments", plugin, options, tasks=tasks)


def check_sampler(plugin: Given, **options: Any) -> None:
    """Requests, log-probs, seeds, new weights; with the smallest model that ships."""
    _check("samplers", plugin, options)


def check_tracker(plugin: Given, **options: Any) -> None:
    """That it bears what a run may give it, and writes in the run's folder alone."""
    _check("trackers", plugin, options)


def check_suite(plugin: Given, *, folder: Path | None = None, **options: Any) -> None:
    """Its problems, and that its verifier takes its own golds.

    folder: local copies of its data; None: the hub.
    """
    _check("suites", plugin, options, folder=folder)


def _check(kind: registry.Kind, given: Given, options: dict[str, Any], **context: Any) -> None:
    from rlkit.conformance.examining import examine

    if isinstance(given, str):
        plugin = registry.find(kind, given)
    else:
        found = registry.of_factory(given)
        if found is None or found.kind != kind:
            raise ConfigError(
                f"{origin(given)} is not registered among the {kind}: decorate it, as in @rlkit.reward('mine')"
            )
        plugin = found
    wrong = [finding.wrong for finding in examine(plugin, options, **context) if finding.wrong]
    if wrong:
        raise ConformanceError("\n".join(f"{title(plugin)}: {sentence}" for sentence in wrong))
