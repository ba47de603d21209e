"""The modules that DeepSpeed wraps: a policy (a causal language model) and a critic (its body with a scalar head).

Both take padded rows and answer for chosen positions only. What is said of a token is computed inside the wrapped
forward, where ZeRO-3 has the head's weight gathered; called after it, the weight would be empty.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlkit import hub
from rlkit.config import LoraConfig, ModelConfig
from rlkit.embedded import resolve
from rlkit.errors import ConfigError
from rlkit.interfaces.names import Stat
from rlkit.ops.head import head_stats

ADAPTER = "default"


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer. ConfigError where there is none."""
    with _explained(config):
        return AutoTokenizer.from_pretrained(resolve(config.path), trust_remote_code=config.trust_remote_code)


def positions(config: ModelConfig) -> int | None:
    """Tokens that prompt and response may have together; None where the model sets no limit."""
    with _explained(config):
        settings = AutoConfig.from_pretrained(resolve(config.path), trust_remote_code=config.trust_remote_code)
    limit: int | None = getattr(settings.get_text_config(), "max_position_embeddings", None)
    return limit


@functools.cache
def _shape(path: str, trust_remote_code: bool) -> tuple[int, int] | None:
    _settle_hub(path)
    try:
        config = AutoConfig.from_pretrained(resolve(path), trust_remote_code=trust_remote_code)
    except OSError:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return sum(p.numel() for p in model.parameters()), config.get_text_config().vocab_size


def model_shape(config: ModelConfig) -> tuple[int, int] | None:
    """(parameters, vocabulary), from the model's config alone; None where it cannot be read from here."""
    return _shape(config.path, config.trust_remote_code)


def load_policy(config: ModelConfig) -> Policy:
    """A causal language model on the CPU, dropout off, with LoRA adapters where the config asks for them.

    Raises ConfigError for what cannot be loaded, for models whose logits are more than a product with the head's
    weight, and for adapters on the head.
    """
    model = _pretrained(AutoModelForCausalLM, config)
    _check_head(model, config.path)
    if config.lora is not None:
        _add_adapters(model, config.lora)
        if isinstance(model.get_output_embeddings(), BaseTunerLayer):
            raise ConfigError("model.lora.targets: adapters on the output head are not supported; leave the head out")
    return Policy(model, config.path)


def load_critic(config: ModelConfig) -> Critic:
    """The model's body with a scalar head that starts at 0. Raises as `load_policy`."""
    body = _pretrained(AutoModel, config)
    if config.lora is not None:
        _add_adapters(body, config.lora)
    return Critic(body, config.path)


class Policy(nn.Module):
    """A causal language model that says log-probs and their like of given tokens."""

    role = "policy"

    def __init__(self, lm: Any, path: str) -> None:
        super().__init__()
        self.lm = lm
        self.path = path

    @property
    def head_weight(self) -> nn.Parameter:
        """[V, d]; empty outside forward under ZeRO-3."""
        weight: nn.Parameter = self.lm.get_output_embeddings().weight
        return weight

    def forward(
        self,
        input_ids: Tensor,
        rows: Tensor,
        columns: Tensor,
        tokens: Tensor,
        *,
        want: Set[Stat] = frozenset(),
        observe: Set[Stat] = frozenset(),
        temperature: float = 1.0,
        reference: tuple[Tensor, Tensor | None] | None = None,
        adapters: bool = True,
        hidden_only: bool = False,
    ) -> dict[str, Tensor]:
        """Statistics of N tokens: token n is predicted by the hidden state at `input_ids[rows[n], columns[n]]`.

        Args:
            input_ids: [b, L] int64, padded on the right with anything.
            rows, columns, tokens: [N] int64; N may be 0.
            want: statistics; see `head_stats`.
            observe: more statistics, without gradient.
            temperature: of the distribution that was drawn from.
            reference: the reference's hidden states [N, d'] and head weight [V, d']; no weight: this head's own.
            adapters: False switches LoRA off.
            hidden_only: no statistics, but the hidden states themselves, [N, d], as "hidden".

        Returns:
            Each statistic, [N].
        """
        hidden = self._hidden(input_ids, rows, columns, adapters)
        if hidden_only:
            return {"hidden": hidden}
        weight = self.head_weight
        compared = None if reference is None else (reference[0], weight if reference[1] is None else reference[1])
        stats = head_stats(hidden, weight, tokens, want=want | observe, temperature=temperature, reference=compared)
        return {name: values if name in want else values.detach() for name, values in stats.items()}

    def _hidden(self, input_ids: Tensor, rows: Tensor, columns: Tensor, adapters: bool) -> Tensor:
        if adapters:
            return _hidden_states(self.lm.base_model, input_ids, rows, columns)
        with _adapters_off(self):
            return _hidden_states(self.lm.base_model, input_ids, rows, columns)

    def named_weights(self) -> Iterator[tuple[str, list[nn.Parameter], Callable[[], Tensor]]]:
        """For each weight of the model without adapters, or with them merged: its Hugging Face name, the parameters
        it is made of, and a function that makes it once they are gathered. Tied weights come once."""
        for name, parameter in self.lm.named_parameters():
            if ".lora_" in name:
                continue
            if not name.endswith(".base_layer.weight"):
                yield name.replace(".base_layer.", "."), [parameter], parameter.detach
                continue
            path = name.removesuffix(".base_layer.weight")
            layer = self.lm.get_submodule(path)
            parts = [parameter, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
            yield f"{path}.weight", parts, _merge(layer)

    def write(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write `weights` (of `named_weights`) as a Hugging Face folder."""
        drop_unsavable(self.lm)
        kept = {name: buffer for name, buffer in self.lm.named_buffers() if name in self.lm.state_dict()}
        self.lm.save_pretrained(folder, state_dict={**kept, **weights})
        for file in folder.glob("*.safetensors"):
            file.chmod(0o644)  # written for the user alone


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


class Critic(nn.Module):
    """The value of the state before a token, from a language model's body and a scalar head."""

    role = "critic"

    def __init__(self, body: Any, path: str) -> None:
        super().__init__()
        self.body = body
        self.head = ValueHead(body.config.get_text_config().hidden_size, body.dtype)
        self.path = path

    def forward(self, input_ids: Tensor, rows: Tensor, columns: Tensor, tokens: Tensor, **_: Any) -> dict[str, Tensor]:
        """{"values": [N]}; arguments as `Policy.forward`, of which it needs the first three."""
        return {"values": self.head(_hidden_states(self.body, input_ids, rows, columns))}


class ValueHead(nn.Module):
    """A linear head, [N, d] -> [N], computed in float32. It starts at 0: the critic knows nothing yet."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(-1)


def _hidden_states(body: Any, input_ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # No attention mask: the padding is on the right, where a causal model does not look, and without a mask
    # attention takes its fast causal path.
    hidden: Tensor = body(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden[rows, columns]


def _merge(layer: Any) -> Callable[[], Tensor]:
    return lambda: layer.base_layer.weight.detach() + layer.get_delta_weight(ADAPTER).detach()


@contextmanager
def _adapters_off(module: nn.Module) -> Iterator[None]:
    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _add_adapters(model: Any, config: LoraConfig) -> None:
    settings = PeftLoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=config.targets, bias="none"
    )
    # The start is the same in every run and on every rank, whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
        except ValueError as error:
            raise ConfigError(f"model.lora.targets {config.targets!r}: {error}") from error


def _pretrained(kind: Any, config: ModelConfig) -> Any:
    path = resolve(config.path)
    with _explained(config):
        settings = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        for key, value in settings.to_dict().items():
            # With dropout the gradient's log-probs would be of another policy than the one that sampled.
            if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float):
                setattr(settings, key, 0.0)
        model = kind.from_pretrained(
            path,
            config=settings,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=config.trust_remote_code,
        )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.eval()


def _settle_hub(path: str) -> None:
    """Before a model that is not on this machine is asked for."""
    if not path.startswith((".", "/", "~")) and not Path(resolve(path)).exists():
        hub.settle()


@contextmanager
def _explained(config: ModelConfig) -> Iterator[None]:
    _settle_hub(config.path)
    try:
        yield
    except (OSError, ValueError) as error:
        if Path(config.path).is_dir() and not (Path(config.path) / "config.json").is_file():
            hint = (
                " (a run's models are in its checkpoints/*/hf)" if (Path(config.path) / "config.yaml").is_file() else ""
            )
            raise ConfigError(
                f"model.path {config.path!r} is a folder without a model: no config.json{hint}"
            ) from error
        if config.path.startswith((".", "/", "~")) and not Path(config.path).exists():
            raise ConfigError(f"model.path {config.path!r} does not exist (looked in {Path.cwd()})") from error
        raise ConfigError(
            f"model.path {config.path!r} cannot be loaded: {error}\nGive the folder or hub id of a causal model, "
            "or embedded:s"
        ) from error


@torch.no_grad()
def _check_head(model: Any, path: str) -> None:
    """Whether hidden states times head weight are the logits: a bias, scale or cap would be lost unseen."""
    probe = torch.arange(4)[None]
    logits = model(input_ids=probe, use_cache=False).logits
    product = F.linear(model.base_model(input_ids=probe, use_cache=False).last_hidden_state, _head(model).weight)
    if not torch.allclose(logits, product, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"model.path {path!r}: {type(model).__name__} does more than multiply hidden states by its head's weight "
            "to get logits (a bias, a scale or a soft cap), and rlkit computes log-probs from that product"
        )


def _head(model: Any) -> Any:
    head = model.get_output_embeddings()
    if head is None:
        raise ConfigError(f"{type(model).__name__} has no output head: rlkit trains causal language models")
    return head
