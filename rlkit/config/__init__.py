"""A run's settings: YAML in, resolved YAML out.

A run needs a model, data and a reward; the presets in `configs/` give them. sections.py and run.py have every
setting and its default, keys.py says what each is, reading.py takes them from files and the command line, resolving.py
holds them against plugins and each other.
"""

from __future__ import annotations

from rlkit.config.keys import SHORT, full_name
from rlkit.config.reading import load, parse_value, parse_yaml, presets, read_yaml, set_key
from rlkit.config.resolving import (
    beside_refused,
    build_algorithm,
    resolve,
    resolve_ref,
    resolve_rewards,
    resolve_with_algorithm,
)
from rlkit.config.run import RunConfig
from rlkit.config.sections import (
    AnyRewards,
    AverageReference,
    BatchConfig,
    CheckpointConfig,
    ConversationConfig,
    CopyReference,
    CorrectionConfig,
    CriticConfig,
    DataConfig,
    Decay,
    EngineConfig,
    EvalConfig,
    FrozenReference,
    LoraConfig,
    ModelConfig,
    NoReference,
    OptimizerConfig,
    PluginRef,
    Positive,
    Ref,
    Reference,
    RefillConfig,
    ReplayConfig,
    RewardRef,
    Rewards,
    SamplingConfig,
    ScoringConfig,
    Section,
    StopTexts,
)

__all__ = [
    "SHORT",
    "AnyRewards",
    "AverageReference",
    "BatchConfig",
    "CheckpointConfig",
    "ConversationConfig",
    "CopyReference",
    "CorrectionConfig",
    "CriticConfig",
    "DataConfig",
    "Decay",
    "EngineConfig",
    "EvalConfig",
    "FrozenReference",
    "LoraConfig",
    "ModelConfig",
    "NoReference",
    "OptimizerConfig",
    "PluginRef",
    "Positive",
    "Ref",
    "Reference",
    "RefillConfig",
    "ReplayConfig",
    "RewardRef",
    "Rewards",
    "RunConfig",
    "SamplingConfig",
    "ScoringConfig",
    "Section",
    "StopTexts",
    "beside_refused",
    "build_algorithm",
    "full_name",
    "load",
    "parse_value",
    "parse_yaml",
    "presets",
    "read_yaml",
    "resolve",
    "resolve_ref",
    "resolve_rewards",
    "resolve_with_algorithm",
    "set_key",
]
