"""Families of models, tiny and random, and what becomes of each: the table in docs/models.md.

`python tests/families.py` tries them all and writes the table anew (a quarter of an hour).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file
from sampler_help import ask, largest_gap

from rlkit import config as configs
from rlkit import registry
from rlkit.assembly.build import build_loop
from rlkit.config import ModelConfig
from rlkit.embedded import resolve
from rlkit.engine.attention import heed_soft_cap
from rlkit.errors import RlkitError

GAP = 1e-4
PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
WEIGHTS, SAMPLERS = ("full", "LoRA"), ("transformers", "vllm")


@dataclass(frozen=True)
class Family:
    name: str
    config: Any
    """The class of its settings."""
    settings: dict[str, Any]


def _family(name: str, config: Any, **more: Any) -> Family:
    """With the settings that most share; None takes one of them out."""
    shared = {
        "vocab_size": 25, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    return Family(name, config, {key: value for key, value in {**shared, **more}.items() if value != "absent"})


_OLD = {"num_key_value_heads": "absent", "intermediate_size": "absent"}
_HEADS = {"head_dim": 32}
_EXPERTS = {"num_experts_per_tok": 2}

FAMILIES = [
    _family("Llama", hf.LlamaConfig, attention_bias=True),
    _family("Mistral, windowed", hf.MistralConfig, sliding_window=8),
    _family("Qwen2, tied", hf.Qwen2Config, tie_word_embeddings=True),
    _family("Qwen3", hf.Qwen3Config, **_HEADS),
    _family("Qwen3-MoE", hf.Qwen3MoeConfig, **_HEADS, **_EXPERTS, moe_intermediate_size=32, num_experts=4),
    _family("Qwen3.5, hybrid", hf.Qwen3_5TextConfig, **_HEADS, layer_types=["linear_attention", "full_attention"],
            linear_key_head_dim=32, linear_value_head_dim=32, linear_num_key_heads=2, linear_num_value_heads=2),
    _family("Mixtral", hf.MixtralConfig, **_EXPERTS, num_local_experts=4),
    _family("Gemma", hf.GemmaConfig, **_HEADS),
    _family("Gemma 2", hf.Gemma2Config, **_HEADS, query_pre_attn_scalar=32, sliding_window=8,
            attn_logit_softcapping=0.1, final_logit_softcapping=2.0),
    _family("Gemma 3", hf.Gemma3TextConfig, **_HEADS, query_pre_attn_scalar=32, sliding_window=8),
    _family("Phi", hf.PhiConfig, num_key_value_heads=2),
    _family("Phi-3", hf.Phi3Config),
    _family("GPT-2", hf.GPT2Config, **_OLD, bos_token_id=1),
    _family("GPT-J", hf.GPTJConfig, **_OLD, bos_token_id=1, rotary_dim=8),
    _family("GPT-NeoX (Pythia)", hf.GPTNeoXConfig, num_key_value_heads="absent"),
    _family("GPT-OSS", hf.GptOssConfig, **_HEADS, **_EXPERTS, num_local_experts=4, intermediate_size=64,
            sliding_window=8),
    _family("OPT", hf.OPTConfig, **_OLD, ffn_dim=96, word_embed_proj_dim=64, bos_token_id=1),
    _family("OPT-350m (projected)", hf.OPTConfig, **_OLD, ffn_dim=96, word_embed_proj_dim=32, bos_token_id=1,
            do_layer_norm_before=False),
    _family("Bloom", hf.BloomConfig, **_OLD, bos_token_id=1),
    _family("Falcon", hf.FalconConfig, **_OLD, bos_token_id=1),
    _family("OLMo 2", hf.Olmo2Config),
    _family("StableLM", hf.StableLmConfig),
    _family("StarCoder2", hf.Starcoder2Config),
    _family("SmolLM3", hf.SmolLM3Config),
    _family("GLM-4", hf.Glm4Config, **_HEADS),
    _family("DeepSeek-V3", hf.DeepseekV3Config, **_EXPERTS, num_key_value_heads=2, q_lora_rank=16, kv_lora_rank=512,
            qk_rope_head_dim=64, qk_nope_head_dim=16, v_head_dim=32, n_routed_experts=4, moe_intermediate_size=32,
            n_group=1, topk_group=1, first_k_dense_replace=1, n_shared_experts=1, topk_method="noaux_tc"),
    _family("Granite", hf.GraniteConfig, logits_scaling=4.0),
    _family("Cohere", hf.CohereConfig, logit_scale=0.25),
    _family("CodeGen", hf.CodeGenConfig, **_OLD, num_attention_heads=4, rotary_dim=8),
    _family("Mamba", hf.MambaConfig, state_size=8, bos_token_id=1),
]  # fmt: skip


def make(family: Family, folder: Path) -> None:
    """A model of the family with random weights that are large enough to prefer some tokens."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(family.config(**family.settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    model.generation_config = hf.GenerationConfig(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(resolve("embedded:xs")).save_pretrained(folder)


def outcome(family: Family, weights: str, sampler: str, folder: Path) -> str:
    """ "trains", if it does in every way, or the sentence it is refused with.

    AssertionError where it trains and something is not as it must be.
    """
    make(family, folder / "model")
    settings = configs.load(
        "embedded_xs",
        [
            "algo=vimpo", "reward=evens", f"plugins=[{Path(__file__).parent}/evens.py]", f"model.path={folder}/model",
            f"model.lora={'{rank: 4}' if weights == 'LoRA' else 'null'}", f"sampler={sampler}", "steps=2",
            "batch.prompts_per_step=4", "batch.samples_per_prompt=4", "sampling.max_tokens=24", "optimizer.lr=1e-2",
            "optimizer.warmup_updates=0", "eval.problems=2", f"out={folder}", "name=run",
        ],
    )  # fmt: skip
    try:
        with ExitStack() as stack:
            loop = build_loop(*configs.resolve_with_algorithm(settings), stack, resume=False)
            loop.train()
            trained = dict(loop.learner.policy.weights())
    except RlkitError as error:
        return _sentence(error, folder)
    run = folder / "run"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gaps = [line["sampler/gap_max"] for line in metrics if "sampler/gap_max" in line]
    assert len(gaps) == 2, metrics
    assert max(gaps) < GAP, gaps
    export = next((run / "checkpoints").glob("step-*")) / "hf"
    begun, written = load_file(folder / "model" / "model.safetensors"), load_file(export / "model.safetensors")
    assert begun.keys() == written.keys() == trained.keys(), begun.keys() ^ written.keys()
    assert all(torch.equal(written[name], trained[name]) for name in written)
    assert any(not torch.equal(written[name], begun[name]) for name in written), "nothing has moved"
    model, loading = hf.AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values()), loading
    prompts = [[3 + i % 9 for i in range(n)] for n in (2, 7, 12)]
    again = registry.build("samplers", sampler, {}, ModelConfig(path=str(export), dtype="float32"), 64, 0)
    try:
        completions = ask(again, prompts, [1, 2, 3])
    finally:
        again.close()
    heed_soft_cap(model)
    gap = largest_gap(model.eval(), prompts, completions, 1.0)
    assert gap < GAP, gap
    return "trains"


def _sentence(error: RlkitError, folder: Path) -> str:
    """Without what differs from one run to the next."""
    first = str(error).splitlines()[0].replace(f"{folder}/model", "...")
    return re.sub(r"\d\.\d{3,}", "x", first)


BEGIN, END = "<!-- families -->", "<!-- end -->"
COLUMNS = [(sampler, weights) for sampler in SAMPLERS for weights in WEIGHTS]


def expected() -> dict[tuple[str, str, str], str]:
    """What docs/models.md says of each family, sampler and kind of weights."""
    page = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    notes = dict(re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")
    ]
    return {
        (row[0], *column): notes.get(cell.removeprefix("refused, "), cell)
        for row in rows[1:]
        for column, cell in zip(COLUMNS, row[1:], strict=True)
    }


def table(found: dict[tuple[str, str, str], str]) -> str:
    notes: list[str] = []
    lines = [
        "| family | " + " | ".join(f"{sampler}, {weights}" for sampler, weights in COLUMNS) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for family in dict.fromkeys(name for name, *_ in found):
        cells = []
        for column in COLUMNS:
            said = found[family, *column]
            if said != "trains" and said not in notes:
                notes.append(said)
            cells.append(said if said == "trains" else f"refused, {notes.index(said) + 1}")
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))])


def main() -> None:
    """Try all, and write the page's table."""
    found = {}
    for family in FAMILIES:
        for sampler, weights in COLUMNS:
            folder = Path(tempfile.mkdtemp())
            found[family.name, sampler, weights] = outcome(family, weights, sampler, folder)
            shutil.rmtree(folder)
            print(family.name, sampler, weights, found[family.name, sampler, weights], sep=" | ", flush=True)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
