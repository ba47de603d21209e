"""Make the embedded models: warm-started on addition, so that they can show their work but mostly do not.

    python tools/make_embedded_models.py [--size s|xs] [--out FOLDER]

A minute or two on one core. Writes each model as a folder for `from_pretrained`, and CHECKSUMS and README.md
beside them. The same versions of PyTorch and transformers on the same kind of CPU give the same bytes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from rich.progress import track
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rlkit.embedded import arithmetic

HOME = Path(arithmetic.__file__).parent


@dataclass(frozen=True)
class Size:
    hidden: int
    layers: int
    intermediate: int
    heads: int


SIZES = {
    "s": Size(hidden=96, layers=3, intermediate=224, heads=3),
    "xs": Size(hidden=64, layers=2, intermediate=176, heads=2),
}


@dataclass(frozen=True)
class Stage:
    steps: int
    lr: float
    guess: float
    step_error: float


STAGES = (
    Stage(steps=400, lr=4e-3, guess=0.15, step_error=0.02),
    Stage(steps=60, lr=1e-3, guess=0.5, step_error=0.2),
)
BATCH = 128
WARMUP = 20
DECAY = 0.5
SEED = 0
TEST_PROBLEMS = 512
HEAD_DIM = 32
"""The smallest that vLLM's attention takes on a CPU."""

README = """# The embedded models

Made by `tools/make_embedded_models.py`, which wrote this page too; `CHECKSUMS` is checked with `sha256sum -c`.
Qwen3 layout, float32, head not tied to the embedding, 25 tokens, random start (seed {seed}), then a supervised warm
start on the task of `arithmetic.py` that leaves them able to show their work but mostly unwilling to.
Made with PyTorch {torch} and transformers {transformers}; licence: rlkit's.

| model | width | layers | MLP | heads | parameters | pass rate at temperature 1 | greedy | response tokens |
|---|---|---|---|---|---|---|---|---|
{rows}
Measured on {test} held-out problems, one sample each; the end token counts as a token.

| stage | steps | batch | lr | direct guesses | step errors |
|---|---|---|---|---|---|
{stages}
AdamW (0.9, 0.95), no weight decay, gradient clip 1.0. In each stage {warmup} steps of warm-up and,
over its last {decay}, a linear decay to 0. Training problems only. A direct guess is the sum without work, off by
up to 9; a step error is a column miscounted by up to 3 and carried on with.
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and one for the answer's marker."""
    vocabulary = {token: i for i, token in enumerate(arithmetic.VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=arithmetic.UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    special = (arithmetic.PAD, arithmetic.EOS, arithmetic.UNKNOWN)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(arithmetic.MARKER, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=arithmetic.EOS,
        pad_token=arithmetic.PAD,
        unk_token=arithmetic.UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def make_model(size: Size, pad: int, eos: int) -> Qwen3ForCausalLM:
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(arithmetic.VOCABULARY),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        intermediate_size=size.intermediate,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        pad_token_id=pad,
        eos_token_id=eos,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad, do_sample=True, temperature=1.0)
    return model


def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=fill)


def warm_start(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Supervised, on the training split alone; the loss is on the response."""
    rng = random.Random(SEED)
    pool = arithmetic.problems(held_out=False)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    plan = [(stage, step) for stage in STAGES for step in range(stage.steps)]
    for stage, step in track(plan, description=f"warm start of {name}"):
        inputs, labels = [], []
        for problem in rng.choices(pool, k=BATCH):
            prompt = tokenizer.encode(problem.prompt)
            text = arithmetic.demonstration(problem, rng, stage.guess, stage.step_error)
            response = [*tokenizer.encode(text), eos]
            inputs.append([*prompt, *response])
            labels.append([*[-100] * len(prompt), *response])
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * min((step + 1) / WARMUP, 1.0, (stage.steps - step) / (stage.steps * DECAY))
        loss = model(input_ids=padded(inputs, pad), labels=padded(labels, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def measure(folder: Path, temperature: float) -> tuple[float, float]:
    """Pass rate and mean response length (tokens, end token included) on held-out problems, one sample each."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = Qwen3ForCausalLM.from_pretrained(folder)
    torch.manual_seed(SEED)
    test = arithmetic.problems(held_out=True)[:TEST_PROBLEMS]
    prompts = torch.tensor([tokenizer.encode(p.prompt) for p in test])
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    out = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=32, **sampling)
    responses = out[:, prompts.shape[1] :]
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    passed = [t.rpartition(arithmetic.MARKER)[2] == p.answer for t, p in zip(texts, test, strict=True)]
    length = (responses != tokenizer.pad_token_id).sum(1).float().mean().item()
    return sum(passed) / len(passed), length


def checksums(folder: Path) -> str:
    """As `sha256sum` writes them."""
    files = sorted(f for name in SIZES for f in (folder / name).glob("*"))
    return "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(folder)}\n" for f in files)


def readme(folder: Path) -> str:
    """The recipe and what came of it, for every model in the folder."""
    rows = []
    for name, size in SIZES.items():
        if (folder / name).is_dir():
            parameters = make_model(size, 0, 1).num_parameters()
            sampled, length = measure(folder / name, temperature=1.0)
            greedy, _ = measure(folder / name, temperature=0.0)
            rows.append(
                f"| {name} | {size.hidden} | {size.layers} | {size.intermediate} | {size.heads} x {HEAD_DIM} "
                f"| {parameters:,} | {sampled:.3f} | {greedy:.3f} | {length:.1f} |\n"
            )
    stages = "".join(
        f"| {i} | {s.steps} | {BATCH} | {s.lr} | {s.guess:.0%} | {s.step_error:.0%} |\n"
        for i, s in enumerate(STAGES, 1)
    )
    return README.format(
        rows="".join(rows), stages=stages, test=TEST_PROBLEMS, warmup=WARMUP, decay=f"{DECAY:.0%}", seed=SEED,
        torch=torch.__version__.partition("+")[0], transformers=transformers.__version__,
    )  # fmt: skip


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default=None, help="Only this one.")
@click.option("--out", type=click.Path(path_type=Path), default=HOME, show_default=True)
def main(size: str | None, out: Path) -> None:
    """Make the embedded models: a minute or two on one core."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer()
    for name in [size] if size else SIZES:
        folder = out / name
        model = make_model(SIZES[name], tokenizer.pad_token_id, tokenizer.eos_token_id)
        warm_start(model, tokenizer, name)
        model.save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)
        tokenizer.save_pretrained(folder)
    (out / "CHECKSUMS").write_text(checksums(out))
    (out / "README.md").write_text(readme(out))
    click.echo((out / "README.md").read_text())
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
