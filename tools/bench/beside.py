"""A plugin for benchmarks and tests: transformers' sampler as one that may work while the learner does, which on a CPU
it may. The two share the cores: it shows what `schedule: one_ahead` learns, not what it gains."""

from __future__ import annotations

from rlkit import sampler
from rlkit.config import ModelConfig
from rlkit.generation.transformers import TransformersConfig, _Transformers
from rlkit.interfaces.generation import Sampler


class _Beside(_Transformers):
    beside_training = True


@sampler("beside")
def beside(config: TransformersConfig, model: ModelConfig, context: int, seed: int) -> Sampler:
    """transformers, in a thread of its own"""
    return _Beside(config, model, context)
