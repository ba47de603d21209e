"""An evaluation put together: of a run, whose settings it takes over, or of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit import registry
from rlkit.errors import ConfigError, RlkitError, nearest
from rlkit.records.folder import RunFolder


def evaluate(
    model: str,
    suites: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    *,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    quiet: bool = False,
    trusts: bool = False,
) -> dict[str, Any]:
    """Measure a model (path, hub id or a run's folder) on suites, or on data of one's own; returns what results.json
    holds.

    `given`: fields of EvaluationConfig; None stands for not given. `trusts`: code in the model's folder may run.
    Raises ConfigError for what cannot be, and RlkitError where it was interrupted, which it goes on from when it is
    called again, or for what goes wrong later.
    """
    registry.load(list(plugins))
    known = registry.names("suites")
    for name in suites:
        if name not in known:
            raise ConfigError(f"unknown suite {name!r}{nearest(name, known)}")
    from rlkit.assembly.run import prepare_environment
    from rlkit.assembly.sampling import model_of

    prepare_environment()
    settings: dict[str, Any] = {
        "model": model_of(model, trusts).model_dump(),
        "suites": list(suites),
        "out": _folder(model),
        "plugins": [],
        **_as_in_training(model, own_data=not suites),
        **{key: value for key, value in (given or {}).items() if value is not None},
    }
    settings["plugins"] = list(dict.fromkeys([*settings["plugins"], *plugins]))
    from rlkit.evaluation.on_suites import run_evaluation
    from rlkit.evaluation.settings import load_settings

    config = load_settings(settings, overrides)
    try:
        return run_evaluation(config, quiet)
    except KeyboardInterrupt as stopped:
        raise RlkitError(f"stopped. The same command goes on from the responses in {config.out}") from stopped


def _as_in_training(model: str, own_data: bool) -> dict[str, Any]:
    """How a run puts questions, ends responses and judges answers, where the model is one's: of suites, which have that
    themselves, the chat template's arguments, whether it keeps the past, and the stop texts alone."""
    if not RunFolder.is_one(Path(model)):
        return {}
    run = RunFolder(Path(model)).read_config()
    keys = ["chat_template_kwargs", *(("prompt", "answer", "template", "system", "chat") if own_data else ())]
    settings = {key: getattr(run.data, key) for key in keys} | {"stop": run.sampling.stop}
    if own_data:
        settings |= {"reward": [ref.model_dump() for ref in run.reward], "plugins": run.plugins}
    if own_data and run.environment is not None:
        settings |= {"environment": run.environment.model_dump(), "conversation": run.conversation.model_dump()}
    elif run.conversation.keep_past:
        settings |= {"conversation": {"keep_past": True}}
    return settings


def _folder(model: str) -> Path:
    if RunFolder.is_one(Path(model)):
        run = RunFolder(Path(model))
        return run.evaluations / run.newest_checkpoint().name
    return Path("evals") / model.rstrip("/").replace("embedded:", "").rpartition("/")[2]
