"""A plugin for tests: transformers' sampler as one that may work while the learner does. On a CPU it may."""

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
