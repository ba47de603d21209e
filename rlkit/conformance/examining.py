"""A registered plugin of any kind, held against the contract of its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import registry
from rlkit.conformance.findings import Check, Finding, made
from rlkit.conformance.rewards import elsewhere
from rlkit.interfaces.environments import Task
from rlkit.interfaces.rewards import Sample
from rlkit.registry import Plugin

if TYPE_CHECKING:
    from rlkit.conformance.subject import Rigour


def examine(
    plugin: Plugin,
    options: Mapping[str, Any],
    *,
    samples: Sequence[Sample] | None = None,
    tasks: Sequence[Task] | None = None,
    folder: Path | None = None,
    rigour: Rigour | None = None,
    begins: Callable[[str], object] = str,
) -> Iterator[Finding]:
    """Make the checks of the plugin's kind, one after the other.

    samples: what a reward is to be called with; None: made ones. tasks: what an environment is to be told; None: made
    ones. folder: local copies of a suite's data; None: the hub. rigour: how strictly an algorithm's mathematics is
    held. begins: is told of each check before it is made.
    Raises ConfigError for options that cannot be.
    """
    given = dict(options)
    if plugin.kind == "rewards" and (reason := elsewhere(plugin, given)):
        yield Finding("it keeps its contract", left_out=reason)
        return
    registry.validate_options(plugin, given, plugin.noun)
    yield from made(_checks(plugin, given, samples, tasks, folder, rigour), plugin, begins)


def _checks(
    plugin: Plugin,
    options: dict[str, Any],
    samples: Sequence[Sample] | None,
    tasks: Sequence[Task] | None,
    folder: Path | None,
    rigour: Rigour | None,
) -> Iterator[Check]:
    """A kind's checks are imported with the first that is asked for: only some need torch."""
    match plugin.kind:
        case "algorithms" | "advantages" | "losses":
            from rlkit.conformance import learning, subject

            return learning.checks(plugin, options, rigour or subject.Rigour())
        case "rewards":
            from rlkit.conformance import rewards

            return rewards.checks(plugin, options, samples)
        case "noise":
            from rlkit.conformance import noise

            return noise.checks(plugin, options)
        case "environments":
            from rlkit.conformance import environments

            return environments.checks(plugin, options, tasks)
        case "samplers":
            from rlkit.conformance import samplers

            return samplers.checks(plugin, options)
        case "trackers":
            from rlkit.conformance import trackers

            return trackers.checks(plugin, options)
        case "suites":
            from rlkit.conformance import suites

            return suites.checks(plugin, options, folder)
