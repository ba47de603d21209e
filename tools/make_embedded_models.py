"""Make the embedded models: warm-started on their task, so that they can do it but mostly do not.

    python tools/make_embedded_models.py [--task arithmetic|countdown|sorting|turns] [--size s|xs] [--out FOLDER]

Three minutes or four on one core for all. Writes each model as a folder for `from_pretrained`, and CHECKSUMS and
README.md beside them. The same versions of PyTorch and transformers on the same kind of CPU give the same bytes.
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

from rlkit import embedded, registry
from rlkit.embedded import arithmetic, calculator, countdown, guessing, keys, sorting, task
from rlkit.interfaces.environments import Task
from rlkit.interfaces.rewards import Sample, SampleKey

HOME = Path(embedded.__file__).parent


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


@dataclass(frozen=True)
class Lesson:
    task: task.Answered
    reward: str

    def pieces(self, problem: Any, rng: random.Random, stage: Stage) -> list[str]:
        """A text to learn from, in turns: not the model's, the model's, not the model's, ..."""
        return [problem.prompt, self.task.demonstration(problem, rng, stage.guess, stage.step_error)]

    def measure(self, folder: Path, temperature: float) -> tuple[float, float]:
        return measure_answers(folder, self, temperature)


@dataclass(frozen=True)
class Game:
    task: task.Played
    environment: str
    options: dict[str, Any]

    def pieces(self, problem: Any, rng: random.Random, stage: Stage) -> list[str]:
        environment = registry.build("environments", self.environment, self.options)
        turns, said, done = list[str](), [environment.start(game(problem), rng.getrandbits(32))], False
        while not done:
            turns.append(self.task.move(problem, turns, said[1:], rng, stage.guess, stage.step_error))
            observation = environment.step(turns[-1])
            said.append(observation.text)
            done = observation.done
        # What is said at the end no model reads.
        return [piece for pair in zip([problem.prompt, *said[1:-1]], turns, strict=True) for piece in pair]

    def measure(self, folder: Path, temperature: float) -> tuple[float, float]:
        return measure_play(folder, self, temperature)


def game(problem: Any) -> Task:
    return Task(question=problem.prompt, answer=problem.answer, gold=problem.answer, columns=problem.columns)


@dataclass(frozen=True)
class Recipe:
    lessons: dict[str, Lesson | Game]
    stages: tuple[Stage, ...]


TASKS = {
    "arithmetic": Recipe(
        {"arithmetic": Lesson(arithmetic, "final_answer")},
        (
            Stage(steps=400, lr=4e-3, guess=0.15, step_error=0.02),
            Stage(steps=60, lr=1e-3, guess=0.5, step_error=0.2),
        ),
    ),
    "countdown": Recipe(
        {"countdown": Lesson(countdown, "countdown")},
        (
            Stage(steps=520, lr=4e-3, guess=0.05, step_error=0.0),
            Stage(steps=50, lr=1e-3, guess=0.3, step_error=0.1),
        ),
    ),
    "sorting": Recipe(
        {"sorting": Lesson(sorting, "sorting")},
        (
            Stage(steps=500, lr=4e-3, guess=0.1, step_error=0.02),
            Stage(steps=60, lr=1e-3, guess=0.4, step_error=0.15),
        ),
    ),
    "turns": Recipe(
        {
            "guessing": Game(guessing, "guessing", {"guesses": 5, "higher": "+", "lower": "-"}),
            "calculator": Game(calculator, "calculator", {}),
            "keys": Game(keys, "keys", {}),
        },
        (
            Stage(steps=1200, lr=4e-3, guess=0.15, step_error=0.02),
            Stage(steps=80, lr=1e-3, guess=0.7, step_error=0.2),
        ),
    ),
}


@dataclass(frozen=True)
class Made:
    """A model that ships."""

    name: str
    task: str
    size: str

    @property
    def recipe(self) -> Recipe:
        return TASKS[self.task]


MODELS = (
    Made("s", "arithmetic", "s"),
    Made("xs", "arithmetic", "xs"),
    Made("xs-countdown", "countdown", "xs"),
    Made("xs-sorting", "sorting", "xs"),
    Made("xs-turns", "turns", "xs"),
)
BATCH = 128
WARMUP = 20
DECAY = 0.5
SEED = 0
TEST_PROBLEMS = 512
MAX_TOKENS = 48
HEAD_DIM = 32
"""The smallest that vLLM's attention takes on a CPU."""

README = """# The embedded models

Made by `tools/make_embedded_models.py`, which wrote this page too; `CHECKSUMS` is checked with `sha256sum -c`.
Qwen3 layout, float32, head not tied to the embedding, 25 tokens, random start (seed {seed}), then a supervised warm
start on their task (`arithmetic.py`, `countdown.py`, `sorting.py`; of several turns: `guessing.py`, `calculator.py`,
`keys.py`, all three by one model) that leaves them able to do it but mostly unwilling to. Made with PyTorch {torch} and
transformers {transformers}; licence: rlkit's.

| model | task | width | layers | MLP | heads | parameters | pass rate at temperature 1 | greedy | response tokens |
|---|---|---|---|---|---|---|---|---|---|
{rows}
Measured on {test} held-out problems, or as many as there are, one sample each; the end token counts as a token, and
what an environment says does not.

| task | stage | steps | batch | lr | guesses | step errors |
|---|---|---|---|---|---|---|
{stages}
AdamW (0.9, 0.95), no weight decay, gradient clip 1.0. In each stage {warmup} steps of warm-up and,
over its last {decay}, a linear decay to 0. Training problems only. A guess is an answer without work, and mostly
wrong: a sum off by up to 9, any expression, the numbers in any order. A step error is a column miscounted by up to 3,
another operation, or two neighbours in the wrong order, and carried on with. The tasks of several turns have 42 games
each in a batch, the loss on the turns of the model; a guess is there a game of numbers within the bounds, an answer
without a call, or any digit for work, a step error a middle missed by up to 3, a wrong call, a result that is off, or a
digit too low; of the keys any is picked as often as another.
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and one for the answer's marker."""
    vocabulary = {token: i for i, token in enumerate(task.VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=task.UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    special = (task.PAD, task.EOS, task.UNKNOWN)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(task.MARKER, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=task.EOS,
        pad_token=task.PAD,
        unk_token=task.UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def make_model(size: Size, pad: int, eos: int) -> Qwen3ForCausalLM:
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(task.VOCABULARY),
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


def warm_start(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, made: Made) -> None:
    """Supervised, on the training split alone; the loss is on what the model says."""
    rng = random.Random(SEED)
    lessons = made.recipe.lessons.values()
    pools = [lesson.task.problems(held_out=False) for lesson in lessons]
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    plan = [(stage, step) for stage in made.recipe.stages for step in range(stage.steps)]
    for stage, step in track(plan, description=f"warm start of {made.name}"):
        inputs, labels = [], []
        for lesson, pool in zip(lessons, pools, strict=True):
            for problem in rng.choices(pool, k=BATCH // len(pools)):
                row: list[int] = []
                labelled: list[int] = []
                for i, piece in enumerate(lesson.pieces(problem, rng, stage)):
                    tokens = tokenizer.encode(piece) + [eos] * (i % 2)
                    row += tokens
                    labelled += tokens if i % 2 else [-100] * len(tokens)
                inputs.append(row)
                labels.append(labelled)
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * min((step + 1) / WARMUP, 1.0, (stage.steps - step) / (stage.steps * DECAY))
        loss = model(input_ids=padded(inputs, pad), labels=padded(labels, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def measure_answers(folder: Path, lesson: Lesson, temperature: float) -> tuple[float, float]:
    """Pass rate and mean response length (tokens, end token included) on held-out problems, one sample each."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = Qwen3ForCausalLM.from_pretrained(folder)
    torch.manual_seed(SEED)
    test = lesson.task.problems(held_out=True)[:TEST_PROBLEMS]
    prompts = tokenizer([p.prompt for p in test], padding=True, return_tensors="pt", return_token_type_ids=False)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    out = model.generate(**prompts, max_new_tokens=MAX_TOKENS, **sampling)
    responses = out[:, prompts["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    samples = [
        Sample(
            key=SampleKey(p.prompt, 0, 0, 0), prompt=p.prompt, response=text, tokens=[], answer=p.answer,
            truncated=False, columns=p.columns,
        )
        for p, text in zip(test, texts, strict=True)
    ]  # fmt: skip
    results = registry.build("rewards", lesson.reward, {})(samples)
    length = (responses != tokenizer.pad_token_id).sum(1).float().mean().item()
    return sum(r.value for r in results) / len(results), length


@torch.no_grad()
def measure_play(folder: Path, game_: Game, temperature: float) -> tuple[float, float]:
    """As `measure_answers`, of trajectories; their length is that of the model's turns."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = Qwen3ForCausalLM.from_pretrained(folder)
    torch.manual_seed(SEED)
    test = game_.task.problems(held_out=True)[:TEST_PROBLEMS]
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    environments = [registry.build("environments", game_.environment, game_.options) for _ in test]
    for seed, (problem, environment) in enumerate(zip(test, environments, strict=True)):
        environment.start(game(problem), seed)
    contexts = [tokenizer.encode(problem.prompt) for problem in test]
    acting, right, spoken = list(range(len(test))), 0, 0
    while acting:
        asked = tokenizer.pad({"input_ids": [contexts[i] for i in acting]}, return_tensors="pt")
        out = model.generate(**asked, max_new_tokens=MAX_TOKENS, **sampling)[:, asked["input_ids"].shape[1] :]
        going = []
        for i, row in zip(acting, out.tolist(), strict=True):
            turn = row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row
            spoken += len(turn)
            observation = environments[i].step(tokenizer.decode(turn, skip_special_tokens=True))
            right += bool(observation.correct)
            if not observation.done:
                contexts[i] += turn + tokenizer.encode(observation.text)
                going.append(i)
        acting = going
    return right / len(test), spoken / len(test)


def checksums(folder: Path) -> str:
    """As `sha256sum` writes them."""
    files = sorted(f for made in MODELS for f in (folder / made.name).glob("*"))
    return "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(folder)}\n" for f in files)


def readme(folder: Path) -> str:
    """The recipe and what came of it, for every model in the folder."""
    rows = []
    for made in MODELS:
        if (folder / made.name).is_dir():
            size = SIZES[made.size]
            parameters = make_model(size, 0, 1).num_parameters()
            for name, lesson in made.recipe.lessons.items():
                sampled, length = lesson.measure(folder / made.name, temperature=1.0)
                greedy, _ = lesson.measure(folder / made.name, temperature=0.0)
                rows.append(
                    f"| {made.name} | {name} | {size.hidden} | {size.layers} | {size.intermediate} "
                    f"| {size.heads} x {HEAD_DIM} | {parameters:,} | {sampled:.3f} | {greedy:.3f} | {length:.1f} |\n"
                )
    stages = "".join(
        f"| {name} | {i} | {s.steps} | {BATCH} | {s.lr} | {s.guess:.0%} | {s.step_error:.0%} |\n"
        for name, recipe in TASKS.items()
        for i, s in enumerate(recipe.stages, 1)
    )
    return README.format(
        rows="".join(rows), stages=stages, test=TEST_PROBLEMS, warmup=WARMUP, decay=f"{DECAY:.0%}", seed=SEED,
        torch=torch.__version__.partition("+")[0], transformers=transformers.__version__,
    )  # fmt: skip


@click.command()
@click.option("--task", "only", type=click.Choice(list(TASKS)), default=None, help="Only this task's models.")
@click.option("--size", type=click.Choice(list(SIZES)), default=None, help="Only models of this size.")
@click.option("--out", type=click.Path(path_type=Path), default=HOME, show_default=True)
def main(only: str | None, size: str | None, out: Path) -> None:
    """Make the embedded models: two or three minutes on one core."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    chosen = [made for made in MODELS if only in (None, made.task) and size in (None, made.size)]
    if not chosen:
        raise click.UsageError(f"no {size} model is made for {only}")
    tokenizer = make_tokenizer()
    for made in chosen:
        folder = out / made.name
        model = make_model(SIZES[made.size], tokenizer.pad_token_id, tokenizer.eos_token_id)
        warm_start(model, tokenizer, made)
        model.save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)
        tokenizer.save_pretrained(folder)
    (out / "CHECKSUMS").write_text(checksums(out))
    (out / "README.md").write_text(readme(out))
    click.echo((out / "README.md").read_text())
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
