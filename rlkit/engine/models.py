"""Models as they stand on disk or on the hub: what is known of them unloaded, and how they are loaded."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from rlkit import hub
from rlkit.config import ModelConfig
from rlkit.embedded import resolve, wants_trust
from rlkit.engine import distributed
from rlkit.engine.adapters import add_adapters, targets
from rlkit.engine.modules import Critic, Policy
from rlkit.errors import ConfigError


def load_tokenizer(config: ModelConfig, setting: str = "model.path") -> Any:
    """The model's tokenizer. ConfigError, naming the setting that the model comes from, where there is none."""
    with _explained(config, setting):
        return AutoTokenizer.from_pretrained(resolve(config.path), trust_remote_code=config.trust_remote_code)


def positions(config: ModelConfig, setting: str = "model.path") -> int | None:
    """Tokens that prompt and response may have together; None where the model sets no limit."""
    with _explained(config, setting):
        settings = AutoConfig.from_pretrained(resolve(config.path), trust_remote_code=config.trust_remote_code)
    limit: int | None = getattr(settings.get_text_config(), "max_position_embeddings", None)
    return limit


class Shape(NamedTuple):
    """What is known of a model from its config alone."""

    parameters: int
    vocabulary: int
    width: int
    """Of the hidden states that its head reads."""
    body: int
    """Parameters without the head, unless that is the embedding too."""
    kept: int
    """Numbers that attention keeps of a token, keys and values of all layers, at most: a layer that looks at a window,
    or has a state of its own, keeps fewer."""


@functools.cache
def _unloaded(path: str, trust_remote_code: bool) -> Any:
    """The model without its weights; None where its config cannot be read from here."""
    _settle_hub(path)
    try:
        config = AutoConfig.from_pretrained(resolve(path), trust_remote_code=trust_remote_code)
    except OSError:
        return None
    except ValueError as error:
        raise ConfigError(f"model.path {path!r} cannot be loaded: {error}{wants_trust(error)}") from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def model_shape(config: ModelConfig) -> Shape | None:
    """None where its config cannot be read from here."""
    model = _unloaded(config.path, config.trust_remote_code)
    if model is None:
        return None
    settings, head = model.config.get_text_config(), model.get_output_embeddings()
    return Shape(
        parameters=_numbers(model),
        vocabulary=settings.vocab_size,
        width=0 if head is None else head.weight.shape[1],
        body=_numbers(model.base_model),
        kept=kept_of_a_token(settings),
    )


def adapter_parameters(config: ModelConfig) -> int:
    """Of the adapters that `load_policy` would add; 0 without LoRA, and where the model's config cannot be read from
    here. ConfigError for a target that is no linear layer."""
    model = _unloaded(config.path, config.trust_remote_code)
    if model is None or config.lora is None:
        return 0
    layers = (model.get_submodule(name) for name in targets(model, config.lora.targets))
    return config.lora.rank * sum(sum(layer.weight.shape) for layer in layers)


def without_numbers(config: ModelConfig) -> Any:
    """The model as `load_policy` has it, adapters and all, on PyTorch's meta device; None where its config cannot be
    read from here."""
    _settle_hub(config.path)
    try:
        settings = AutoConfig.from_pretrained(resolve(config.path), trust_remote_code=config.trust_remote_code)
    except OSError:
        return None
    _without_dropout(settings)
    dtype = getattr(torch, config.settled().dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype, trust_remote_code=config.trust_remote_code)
        _checkpoint(model, config)
        if config.lora is not None:
            add_adapters(nn.ModuleList([model]), model, config.lora)
            for name, adapter in model.named_parameters():
                if ".lora_" in name:
                    adapter.data = adapter.data.to(dtype)  # as peft has them beside weights with numbers
    return model


def kept_of_a_token(settings: Any) -> int:
    """See `Shape.kept`; `settings` of transformers' text model."""
    heads = getattr(settings, "num_attention_heads", None)
    if not heads:  # recurrent throughout
        return 0
    size = getattr(settings, "head_dim", None) or settings.hidden_size // heads
    return int(2 * settings.num_hidden_layers * (getattr(settings, "num_key_value_heads", None) or heads) * size)


def _numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def load_policy(config: ModelConfig, like: Policy | None = None, cut: dict[str, Any] | None = None) -> Policy:
    """A causal language model on the CPU, dropout off, with LoRA adapters where the config asks for them.

    like: a policy loaded from the same model, whose findings are taken over. cut: DeepSpeed's settings of ZeRO stage 3,
    where each rank is to hold its shards alone, on its device, from the start: collective. Raises ConfigError for what
    cannot be loaded, and for adapters where there can be none.
    """
    policy = Policy(_pretrained(AutoModelForCausalLM, config, cut=cut), config.path, like)
    if config.lora is not None:
        add_adapters(policy, policy.lm, config.lora)
    return policy


def load_critic(config: ModelConfig, cut: dict[str, Any] | None = None) -> Critic:
    """The model's body with a scalar head that starts at 0. As `load_policy`."""
    critic = Critic(_pretrained(AutoModel, config, "critic.path", cut), config.path)
    if config.lora is not None:
        add_adapters(critic, critic.body, config.lora)
        critic.head.requires_grad_(True)  # adapters freeze all else
    return critic


def _pretrained(kind: Any, config: ModelConfig, setting: str = "model.path", cut: dict[str, Any] | None = None) -> Any:
    path = resolve(config.path)
    with _explained(config, setting):
        settings = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        _without_dropout(settings)
        with nullcontext() if cut is None else _cutting(cut):
            model = kind.from_pretrained(
                path,
                config=settings,
                dtype=getattr(torch, config.settled().dtype),
                trust_remote_code=config.trust_remote_code,
            )
    _checkpoint(model, config)
    return model.eval()


def _without_dropout(settings: Any) -> None:
    """With it the gradient's log-probs would be of another policy than the one that sampled."""
    for key, value in settings.to_dict().items():
        if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float):
            setattr(settings, key, 0.0)


def _checkpoint(model: Any, config: ModelConfig) -> None:
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def on_hub(path: str) -> bool:
    """Whether a model of that name is looked for on the hub: it is no folder of this machine's."""
    return not path.startswith((".", "/", "~")) and not Path(resolve(path)).exists()


@contextmanager
def _cutting(settings: dict[str, Any]) -> Iterator[None]:
    """What `from_pretrained` makes within is cut by ZeRO-3."""
    from deepspeed.runtime.zero import partition_parameters
    from transformers.integrations import HfDeepSpeedConfig

    distributed.init()
    wrap = partition_parameters.zero_wrapper_for_fp_tensor_constructor

    def keep_dtype(make: Any, target_fp_dtype: torch.dtype, target_device: torch.device) -> Any:
        """DeepSpeed would round to the weights' dtype whatever is made: rotary frequencies too, that transformers
        keeps in float32."""
        return wrap(make, None, target_device)

    alive = HfDeepSpeedConfig(settings)  # transformers looks for it, for as long as it lives
    with mock.patch.object(partition_parameters, "zero_wrapper_for_fp_tensor_constructor", keep_dtype):
        yield
    del alive


def _settle_hub(path: str) -> None:
    """Before a model that is not on this machine is asked for."""
    if on_hub(path):
        hub.settle()


@contextmanager
def _explained(config: ModelConfig, setting: str = "model.path") -> Iterator[None]:
    _settle_hub(config.path)
    _refuse_adapter(config.path, setting)
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{setting} {config.path!r} has its weights in a pickle that asks for more than tensors, so it was not "
            "loaded: such a file can run any code. Take the model's safetensors, or its files from someone you trust"
        ) from error
    except (OSError, ValueError) as error:
        said = f"{setting} {config.path!r}"
        folder = Path(config.path)
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise ConfigError(f"{said} is a folder without a model: no config.json{_instead(folder)}") from error
        if config.path.startswith((".", "/", "~")) and not folder.exists():
            raise ConfigError(f"{said} does not exist (looked in {Path.cwd()})") from error
        raise ConfigError(
            f"{said} cannot be loaded: {error}{wants_trust(error)}\nGive the folder or hub id of a causal model, or "
            "embedded:s"
        ) from error


def _refuse_adapter(path: str, setting: str) -> None:
    """transformers would put a folder's adapter on its base model, and the sampler would read one of them."""
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        return
    base = json.loads(file.read_text()).get("base_model_name_or_path")
    tokenizer = path if any(Path(path).glob("tokenizer*")) else base
    raise ConfigError(
        f"{setting} {path!r} holds an adapter of {base!r}, and no model. Merge the two, and give the folder of that:\n"
        f'  python -c "from peft import AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as T; '
        f"M.from_pretrained({path!r}).merge_and_unload().save_pretrained('merged'); "
        f"T.from_pretrained({tokenizer!r}).save_pretrained('merged')\""
    )


def _instead(folder: Path) -> str:
    """Where in or beside the folder a model is, for the end of a sentence."""
    if (folder / "config.yaml").is_file():
        return " (a run's models are in its checkpoints/*/hf)"
    if inner := sorted(file.parent.name for file in folder.glob("*/config.json")):
        return f" (there is one in its folder {' and in '.join(inner)})"
    if any(folder.glob("*.gguf")):
        return " (a .gguf file is for inference alone: give the model it was made from)"
    return ""
