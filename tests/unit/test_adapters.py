"""Adapters go where they are asked for, or the target is refused; merged, they are what the model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, make
from peft import AutoPeftModelForCausalLM
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from rlkit.config import LoraConfig, ModelConfig
from rlkit.engine.adapters import merged
from rlkit.engine.models import load_critic, load_policy
from rlkit.errors import ConfigError


def loaded(name: str, folder: Path, targets: Any, critic: bool = False) -> Any:
    make(next(family for family in FAMILIES if family.name == name), folder)
    lora = LoraConfig(rank=4, alpha=8, targets=targets)
    config = ModelConfig(path=str(folder), dtype="float32", lora=lora)
    return load_critic(config) if critic else load_policy(config)


def adapted(module: Any) -> set[str]:
    return {name for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


@pytest.mark.parametrize(
    ("family", "targets", "layers"),
    [
        ("Llama", ["q_proj", "1.mlp.down_proj"],
         {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"}),
        ("Llama", ["0.self_attn.v_proj", "lm_head"], {"layers.0.self_attn.v_proj", "lm_head"}),
        ("Qwen3-MoE", ["o_proj"], {"layers.0.self_attn.o_proj", "layers.1.self_attn.o_proj"}),
        # Of the dense layer and of the shared expert alone: peft would take these names for the experts'.
        ("DeepSeek-V3", ["gate_proj"], {"layers.0.mlp.gate_proj", "layers.1.mlp.shared_experts.gate_proj"}),
        ("GPT-2", ["c_proj"], {f"h.{i}.{part}.c_proj" for i in (0, 1) for part in ("attn", "mlp")}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("critic", [False, True])
def test_the_named_layers_get_adapters(
    family: str, targets: list[str], layers: set[str], critic: bool, tmp_path: Path
) -> None:
    if critic and "lm_head" in targets:
        pytest.skip("a critic has no output head")
    prefix = "body." if critic else "lm.transformer." if family == "GPT-2" else "lm.model."
    expected = {"lm.lm_head" if layer == "lm_head" else prefix + layer for layer in layers}
    assert adapted(loaded(family, tmp_path, targets, critic)) == expected


def test_all_linear_is_every_linear_layer_but_the_head(tmp_path: Path) -> None:
    kinds = {name.rpartition(".")[2] for name in adapted(loaded("Llama", tmp_path, "all-linear"))}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("family", "target", "said"),
    [
        ("Llama", "v_prj", "is no layer of LlamaForCausalLM; did you mean 'v_proj'"),
        ("Llama", "proj", "is no layer of LlamaForCausalLM; did you mean"),
        ("Llama", "attention", "known: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"),
        ("Llama", "embed_tokens", "a layer of class Embedding, and adapters go on linear layers"),
        ("Llama", "self_attn", "a layer of class LlamaAttention, and adapters go on linear layers"),
        (
            "Qwen2, tied",
            "lm_head",
            "this model's output head is its embedding too, and adapters would change one alone",
        ),
        ("Qwen3-MoE", "gate_proj", "Its experts are packed into one tensor a layer, and get no adapters"),
        ("Mamba", "out_proj", "MambaForCausalLM reads this layer's weights past the adapters; .* in_proj"),
    ],
)
def test_a_target_that_cannot_be_is_refused(family: str, target: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"model.lora.targets: '{target}'.*{said}"):
        loaded(family, tmp_path, ["q_proj", target] if family != "Mamba" else [target])


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("Llama", "all-linear"), ("Llama", ["lm_head"]), ("Phi", ["lm_head", "dense"]), ("GPT-2", "all-linear"),
        ("Phi", "all-linear"), ("DeepSeek-V3", "all-linear"), ("Mamba", "all-linear"),
    ],
)  # fmt: skip
def test_merged_weights_do_what_the_adapters_did(family: str, targets: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = loaded(family, tmp_path / "model", targets)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    policy.write(tmp_path / "merged", {n: w for _, make in policy.weight_groups() for n, w in make().items()})
    ids = torch.randint(3, 25, (2, 9))
    with torch.no_grad():
        ours = policy.lm(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits
    torch.testing.assert_close(merged, ours, rtol=1e-4, atol=1e-4)
    n, tokens = torch.arange(8), ids[0, 1:]
    place = (ids[:1], torch.zeros(8, dtype=torch.long), n, tokens)
    for adapters, logits in ((True, ours), (False, plain)):
        found = policy(*place, want={"logprobs"}, adapters=adapters)["logprobs"]
        expected = logits[0, :-1].log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-4)
    assert (ours - plain).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["Llama", "GPT-2"])
def test_merged_weights_are_rounded_once(family: str, tmp_path: Path) -> None:
    make(next(each for each in FAMILIES if each.name == family), tmp_path)
    lora = LoraConfig(rank=4, alpha=8, targets="all-linear")
    policy = load_policy(ModelConfig(path=str(tmp_path), dtype="bfloat16", lora=lora))
    torch.manual_seed(1)
    wrong = counted = 0
    for name, layer in policy.lm.named_modules():
        if isinstance(layer, LoraLayer):
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.01)
            added = 2 * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
            exact = layer.base_layer.weight.double() + (added.T if family == "GPT-2" else added)
            found = {n: w for _, make in policy.weight_groups() for n, w in make().items()}[f"{name}.weight"]
            assert found.dtype == torch.bfloat16
            wrong += int((found != exact.bfloat16()).sum())
            counted += found.numel()
    assert counted > 1000
    assert wrong < 2e-4 * counted, "rounded to bfloat16 before they are added, one in twenty is another number"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "targets", "alone"),
    [
        ("Llama", "all-linear", 14),
        ("Qwen3", ["q_proj", "lm_head"], 3),
        ("GPT-2", "all-linear", 0),
        ("Gemma 3", ["o_proj"], 2),
    ],
)
def test_adapters_beside_their_weights_come_to_the_merged_ones(
    family: str, targets: Any, alone: int, dtype: Any, tmp_path: Path
) -> None:
    """Bit for bit. GPT-2's layers are turned, and come merged."""
    make(next(each for each in FAMILIES if each.name == family), tmp_path)
    policy = load_policy(
        ModelConfig(path=str(tmp_path), dtype=dtype, lora=LoraConfig(rank=3, alpha=7, targets=targets))
    )

    def given(apart: bool) -> dict[str, torch.Tensor]:
        return {name: part.clone() for _, make in policy.weight_groups(apart) for name, part in make().items()}

    def change() -> None:
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.data.normal_()

    change()
    whole, parts = given(False), given(True)
    assert sum(name.endswith(".lora_A") for name in parts) == alone
    once = dict(merged(parts, parts.keys()))
    assert once.keys() == whole.keys()
    assert all(torch.equal(once[name], whole[name]) for name in whole)
    change()
    now = given(True)
    changed = {name for name, part in now.items() if not torch.equal(part, parts[name])}
    assert alone == 0 or changed == {name for name in parts if name.endswith((".lora_A", ".lora_B"))}
    once |= dict(merged(now, changed))
    assert all(torch.equal(once[name], weight) for name, weight in given(False).items())


def test_adapters_on_the_head_learn_what_a_plain_forward_pass_would(tmp_path: Path) -> None:
    policy = loaded("Llama", tmp_path, ["lm_head", "q_proj"])
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    ids, columns, rows = torch.randint(3, 25, (1, 9)), torch.arange(8), torch.zeros(8, dtype=torch.long)
    learnt = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert any("lm_head.lora_A" in name for name in learnt)
    ours = torch.autograd.grad(
        policy(ids, rows, columns, ids[0, 1:], want={"logprobs"})["logprobs"].sum(), learnt.values()
    )
    plain = policy.lm(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum()
    for one, other in zip(ours, torch.autograd.grad(plain, learnt.values()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "targets", "named"),
    [
        ("Llama", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        # Another layer has a down_proj too, which gets none.
        ("Llama", ["1.mlp.down_proj", "o_proj"],
         {"model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"}),
        ("Qwen3-MoE", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("GPT-2", ["c_proj"], {"c_proj"}),
    ],
)  # fmt: skip
def test_peft_loads_the_adapters_that_are_written(family: str, targets: Any, named: set[str], tmp_path: Path) -> None:
    policy = loaded(family, tmp_path / "model", targets)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.adapters().values():
            parameter.normal_(0, 0.2)
    policy.write_adapter(tmp_path / "adapter", {n: p.detach().clone() for n, p in policy.adapters().items()})
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert set(again.peft_config["default"].target_modules) == named
    tokens = torch.tensor([[3, 4, 5, 6, 7, 8]])
    with torch.no_grad():
        merged, ours = again(input_ids=tokens).logits, policy.lm.eval()(input_ids=tokens).logits
        bare = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(input_ids=tokens).logits
    torch.testing.assert_close(merged, ours)
    assert (ours - bare).abs().max() > 0.1


def test_what_peft_would_take_for_experts_is_not_written(tmp_path: Path) -> None:
    policy = loaded("DeepSeek-V3", tmp_path, "all-linear")
    assert any(".lora_" in name for name, _ in policy.named_parameters())
    assert not policy.adapters()
