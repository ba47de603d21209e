"""Whether a policy can be written as a Hugging Face folder again, found out before it is trained."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

from transformers import GenerationConfig

from rlkit.engine.modules import Policy
from rlkit.errors import ConfigError


def check_export(policy: Policy, tokenizer: Any) -> list[str]:
    """Whether the policy can be written as a Hugging Face folder, tried with all but the weights.

    Returns what of the model's settings is left out for it, as `drop_unsavable`. ConfigError where it cannot.
    """
    try:
        dropped = drop_unsavable(policy.lm)
        with tempfile.TemporaryDirectory() as folder:
            for part in (policy.lm.config, policy.lm.generation_config, tokenizer):
                if part is not None:
                    part.save_pretrained(folder)
    except Exception as error:  # of a model's or tokenizer's own code: it may be any
        raise ConfigError(
            f"model.path {policy.path!r} loads, but what is trained could not be written as a model again: "
            f"{type(error).__name__}: {error}\nMend the settings that this names in the model's folder"
        ) from error
    return dropped


def drop_unsavable(lm: Any) -> list[str]:
    """Take out of a model's generation config what `save_pretrained` refuses: settings that do not go together, such as
    a temperature beside `do_sample: false`.

    Returns them, as "temperature 0.9". No weight and no log-prob depends on them.
    """
    if lm.generation_config is None or _savable(lm.generation_config):
        return []
    settings, kept = lm.generation_config.to_diff_dict(), GenerationConfig()
    # One at a time, and again while something fits: a temperature does once do_sample is there.
    while fits := [name for name, value in settings.items() if _savable(_with(kept, name, value))]:
        kept = _with(kept, fits[0], settings.pop(fits[0]))
    lm.generation_config = kept
    return [f"{name} {value}" for name, value in settings.items()]


def _with(settings: GenerationConfig, name: str, value: Any) -> GenerationConfig:
    changed = copy.deepcopy(settings)
    setattr(changed, name, value)
    return changed


def _savable(settings: GenerationConfig) -> bool:
    try:
        settings.validate(strict=True)
    except (ValueError, TypeError, AttributeError):
        return False
    return True
