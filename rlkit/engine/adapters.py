"""LoRA adapters by peft: on which layers, switched off, merged, written alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlkit.config import LoraConfig
from rlkit.errors import ConfigError, nearest

ADAPTER = "default"
DOWN, UP, SCALE = ".lora_A", ".lora_B", ".lora_scale"
"""After the name of a weight: its adapter's parts, where they are given out beside it."""
BYPASSED = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}
"""Families whose kernels read the weights of these layers past their modules, so that adapters would do nothing."""
BYPASSED_LAYERS = {"x_proj", "dt_proj", "out_proj"}
EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Layers of a mixture's experts, by the names that adapters of older transformers have for them: where peft loads an
adapter of other layers of these names, it takes them for the experts."""


def add_adapters(module: nn.Module, model: Any, config: LoraConfig) -> None:
    """Put adapters on layers of `model`, which stands somewhere in `module`.

    ConfigError for a target that is no linear layer, or that is an output head tied to the embedding.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    prefix = next(name for name, part in module.named_modules() if part is model)
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=[f"{prefix}.{name}" for name in targets(model, config.targets)],
        bias="none",
    )
    # The start is the same in every run and on every rank, whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Not on the model itself: of a mixture peft would take its dense layers for experts, by their names.
        inject_adapter_in_model(settings, module, adapter_name=ADAPTER)


def targets(model: Any, wanted: list[str] | str) -> list[str]:
    """Full names of the layers that get adapters."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    linear = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and not _bypassed(model, name)
        and not (layer is head and (tied or isinstance(wanted, str)))
    ]
    if isinstance(wanted, str):
        return linear
    chosen = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in wanted}
    for target, layers in chosen.items():
        if not layers:
            raise ConfigError(_unfit(model, target, sorted({name.rpartition(".")[2] for name in linear})))
    matched = {name for layers in chosen.values() for name in layers}
    return [name for name in linear if name in matched]


def _bypassed(model: Any, name: str) -> bool:
    return model.config.model_type in BYPASSED and name.rpartition(".")[2] in BYPASSED_LAYERS


def _unfit(model: Any, target: str, known: list[str]) -> str:
    found = [(name, layer) for name, layer in model.named_modules() if f".{name}".endswith(f".{target}")]
    listed = f"this model's linear layers are {', '.join(known)}"
    said = f"model.lora.targets: {target!r}"
    if not found:
        packed = any(".experts." in name for name, _ in model.named_parameters())
        experts = ". Its experts are packed into one tensor a layer, and get no adapters" if packed else ""
        return f"{said} is no layer of {type(model).__name__}{nearest(target, known)}{experts}"
    name, layer = found[0]
    if layer is model.get_output_embeddings():
        return f"{said}: this model's output head is its embedding too, and adapters would change one alone; {listed}"
    if _bypassed(model, name):
        return f"{said}: {type(model).__name__} reads this layer's weights past the adapters; {listed}"
    return f"{said} names a layer of class {type(layer).__name__}, and adapters go on linear layers; {listed}"


def adapted(layer: Any) -> bool:
    """Whether it is a layer with adapters. peft's class for them is not asked: it would be imported by every run."""
    return hasattr(layer, "lora_A")


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    layers: list[Any] = [layer for layer in module.modules() if adapted(layer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def weight_of(model: Any, name: str) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
    """The parameters that a weight or buffer is made of, and a function that makes it, adapters merged."""
    if not name.endswith(".base_layer.weight"):
        owner, _, attribute = name.rpartition(".")
        tensor = getattr(model.get_submodule(owner), attribute)
        return [tensor] if isinstance(tensor, nn.Parameter) else [], tensor.detach
    layer = model.get_submodule(name.removesuffix(".base_layer.weight"))
    parts = [layer.base_layer.weight, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
    return parts, lambda: merged_weight(layer).detach()


def merged_weight(layer: Any) -> Tensor:
    """The weight of a layer with its adapters in it, in its own dtype: added up in float32, since what they add, small
    beside the weight, would be rounded twice in bfloat16."""
    return merge(
        layer.base_layer.weight,
        layer.lora_A[ADAPTER].weight,
        layer.lora_B[ADAPTER].weight,
        layer.scaling[ADAPTER],
        turned=layer.fan_in_fan_out,
    )


def merge(weight: Tensor, down: Tensor, up: Tensor, scale: float, *, turned: bool = False) -> Tensor:
    """See `merged_weight`; `turned`: the weight is [in, out]."""
    added = up.float() @ down.float() * scale
    return (weight.float() + (added.T if turned else added)).to(weight.dtype)


def parts_of(model: Any, name: str) -> tuple[list[nn.Parameter], Callable[[], dict[str, Tensor]]] | None:
    """Of a weight with an adapter: the parameters, and a function that gives it and the adapter's parts, each under its
    name; None where there is no adapter, or the weight is [in, out]."""
    if not name.endswith(".base_layer.weight"):
        return None
    layer = model.get_submodule(name.removesuffix(".base_layer.weight"))
    if layer.fan_in_fan_out:
        return None
    own = name.replace(".base_layer.", ".")
    weight, down, up = layer.base_layer.weight, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    scale = torch.tensor(layer.scaling[ADAPTER], dtype=torch.float64)
    return [weight, down, up], lambda: {
        own: weight.detach(),
        own + DOWN: down.detach(),
        own + UP: up.detach(),
        own + SCALE: scale,
    }


def merged(weights: Mapping[str, Tensor], among: Set[str]) -> Iterator[tuple[str, Tensor]]:
    """The weights that have to do with the names in `among`, each with its adapter in it where it has one."""
    for name, weight in weights.items():
        if not name.endswith((DOWN, UP, SCALE)) and not among.isdisjoint((name, name + DOWN, name + UP, name + SCALE)):
            if name + DOWN in weights:
                weight = merge(weight, weights[name + DOWN], weights[name + UP], float(weights[name + SCALE]))
            yield name, weight


def adapter_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Those of a model's adapters, under peft's names on disk; none where peft could not load them as they are."""
    packed = any(".experts." in name for name, _ in model.named_parameters())
    if packed and any(name.rpartition(".")[2] in EXPERTS for name, layer in model.named_modules() if adapted(layer)):
        return {}
    return {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }


def write_adapter(folder: Path, model: Any, weights: Mapping[str, Tensor], base: str) -> None:
    """Write the adapters of `model` as peft's folder, which goes on the model `base`; `weights` as
    `adapter_parameters` names them."""
    from peft import LoraConfig as PeftLoraConfig
    from safetensors.torch import save_file

    layers = {name: layer for name, layer in model.named_modules() if adapted(layer)}
    layer: Any = next(iter(layers.values()))
    folder.mkdir(parents=True)
    PeftLoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=layer.r[ADAPTER],
        lora_alpha=layer.lora_alpha[ADAPTER],
        target_modules=_short(model, layers),
        inference_mode=True,
    ).save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    save_file(dict(weights), file, metadata={"format": "pt"})
    file.chmod(0o644)  # written for the user alone


def _short(model: Any, layers: Mapping[str, Any]) -> list[str]:
    """The last parts of the layers' names, where no other layer of the model has such a name; else whole names."""
    own = {name.rpartition(".")[2] for name in layers}
    # What stands within an adapted layer is the adapter's.
    named = {
        name.removesuffix(".base_layer")
        for name, _ in model.named_modules()
        if name.removesuffix(".base_layer").rpartition(".")[2] in own and ".lora_" not in name
    }
    return sorted(own if named == layers.keys() else layers)
