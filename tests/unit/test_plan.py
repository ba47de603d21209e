"""What a run's plan says of checkpoints, memory and data that are few."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlkit import config as configs
from rlkit import embedded
from rlkit.assembly import run as runs
from rlkit.assembly.inputs import read_inputs
from rlkit.assembly.plan import make_plan
from rlkit.engine.memory import checkpoint_bytes, checkpoints_kept, estimate
from rlkit.engine.models import model_shape
from rlkit.errors import ConfigError
from rlkit.evaluation.on_suites import run_evaluation
from rlkit.evaluation.settings import load_settings
from rlkit.ops.head import peak_bytes


def line(settings: list[str], name: str, ranks: int = 1) -> str:
    plan = runs.plan(configs.load("embedded_xs", settings), ranks)
    return next(each for each in plan.splitlines() if each.split()[:1] == [name.split()[0]])


@pytest.mark.parametrize(
    ("steps", "every", "saved"),
    [(1, "null", 10), (20, "null", 10), (99, "null", 10), (200, "null", 20), (200, "0", 0), (7, "2", 2)],
)
def test_checkpoints_come_every_tenth_of_a_run_unless_it_says_otherwise(steps: int, every: str, saved: int) -> None:
    config = configs.load("embedded", [f"steps={steps}", f"checkpoint.every={every}"])
    assert config.checkpoint_every == saved


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (["steps=5"], 1),
        (["steps=10"], 1),
        (["steps=11"], 2),
        (["steps=500"], 2),
        (["steps=500", "checkpoint.keep=20"], 10),
        (["checkpoint.every=0", "checkpoint.keep=3"], 1),
    ],
)
def test_checkpoints_that_stay_are_counted(settings: list[str], kept: int) -> None:
    assert checkpoints_kept(configs.load("embedded", settings)) == kept


def test_the_plan_says_when_checkpoints_are_made_and_what_they_take() -> None:
    assert "every 20 steps and at the end; the newest 2 stay, about" in line(["steps=200"], "checkpoints")
    said = line(["steps=5"], "checkpoints")
    assert "every" not in said
    assert "at the end, about" in said
    config = configs.resolve(configs.load("embedded_xs"))
    plain = checkpoint_bytes(config, needs_reference=True, has_critic=False)
    shape = model_shape(config.model)
    assert shape is not None
    # Weights and two means; the policy's for `from_pretrained` too, and its head is its embedding.
    assert plain == 16 * shape.parameters
    critic = checkpoint_bytes(config, needs_reference=True, has_critic=True) - plain
    assert critic == 12 * shape.body


def test_what_ends_a_response_is_said(tmp_path: Path) -> None:
    stops = 'sampling.stop=["\\n", "</answer>"]'
    assert line([stops], "end tokens").split(maxsplit=2)[2] == "<eos> (1)"
    assert line([stops], "stop texts").split(maxsplit=2)[2] == '"\\n", "</answer>"'
    assert "stop texts" not in runs.plan(configs.load("embedded_xs"))

    endless = tmp_path / "endless"
    shutil.copytree(embedded.resolve("embedded:xs"), endless)
    for name, key in [
        ("generation_config", "eos_token_id"),
        ("config", "eos_token_id"),
        ("tokenizer_config", "eos_token"),
    ]:
        file = endless / f"{name}.json"
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key}))
    model = f"model.path={endless}"
    assert line([model, stops], "end tokens").split(maxsplit=2)[2] == "none"
    with pytest.raises(ConfigError, match=r"every response would run to its limit: set sampling\.stop to the text"):
        runs.plan(configs.load("embedded_xs", [model]))
    ask = {"model": {"path": str(endless)}, "suites": ["gsm8k"], "out": tmp_path, "sampler": "transformers"}
    with pytest.raises(ConfigError, match=r"would run to its limit: .* or set stop to the text that ends one"):
        run_evaluation(load_settings(ask), quiet=True)


def test_prompts_that_repeat_within_a_step_are_said(tmp_path: Path) -> None:
    file = tmp_path / "two.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}+1=", "answer": str(n + 1)}) + "\n" for n in (1, 2)))
    of = [f"data.path={file}"]
    assert "only 2 problems, so prompts repeat within a step" in line([*of, "batch.prompts_per_step=96"], "a step")
    assert "repeat" not in line([*of, "batch.prompts_per_step=2"], "a step")


@pytest.mark.parametrize(
    ("prompts", "budget", "ranks", "longest", "tokens"),
    [
        (2, 16384, 1, 50, 2 * 4 * 50),
        (2, 16384, 3, 50, 3 * 50),
        (64, 1000, 1, 50, 1000),
        (64, 1000, 1, 3000, 3000),
    ],
)
def test_logits_are_of_the_largest_microbatch_that_there_can_be(
    prompts: int, budget: int, ranks: int, longest: int, tokens: int
) -> None:
    settings = [f"batch.prompts_per_step={prompts}", "batch.samples_per_prompt=4"]
    settings.append(f"batch.tokens_per_microbatch={budget}")
    config = configs.resolve(configs.load("embedded_xs", settings))
    memory = estimate(config, ranks, longest=longest, needs_reference=False, has_critic=False)
    vocabulary = estimate(config, 1, longest=1, needs_reference=False, has_critic=False)
    assert memory is not None
    assert vocabulary is not None
    shape = model_shape(config.model)
    assert shape is not None
    gradient = 4 * shape.vocabulary * shape.width
    assert memory.head.training - gradient == peak_bytes(tokens, shape.vocabulary)
    assert vocabulary.head.training - gradient == peak_bytes(min(budget, prompts * 4), shape.vocabulary)


def test_rows_longer_than_a_microbatch_are_said() -> None:
    assert "micro-batches of 16384 tokens, " in line([], "engine")
    said = line(["batch.tokens_per_microbatch=30", "sampling.max_tokens=40"], "engine")
    assert "micro-batches of 30 tokens (a longer row goes alone, of up to 46), " in said


def test_logits_past_those_that_are_in_memory_at_once_cost_nothing() -> None:
    assert peak_bytes(16384, 151_936) == peak_bytes(1024, 32_768) < 64 * 2**20
    assert peak_bytes(16384, 151_936, on_gpu=True) < 2**30


def test_one_of_a_thing_is_said_as_one() -> None:
    assert line(["steps=1"], "updates").endswith("; 1 step = 1 update")
    assert line(["steps=3", "batch.epochs=2"], "updates").endswith("; 3 steps = 6 updates")


@pytest.mark.parametrize(
    ("algo", "settings", "said"),
    [
        ("grpo", [], "grpo with its defaults: surrogate clip, "),
        (
            "grpo",
            ["algo.clip_high=0.3", "algo.kl_coef=0.01"],
            "grpo with clip_high 0.3 (default 0.2), kl_coef 0.01 (def",
        ),
        ("dapo", [], "dapo with its defaults: "),
    ],
)
def test_what_differs_from_an_algorithm_s_defaults_comes_first(algo: str, settings: list[str], said: str) -> None:
    config = configs.load("embedded_xs", settings, algo)
    planned = runs.plan(config).splitlines()[0]
    assert planned.split(maxsplit=1)[1].startswith(said)
    if settings:
        assert "; as by default: surrogate clip" in planned
        assert planned.count("clip_high") == 1


def test_a_plan_is_folded_for_a_terminal_and_says_the_same() -> None:
    config, algorithm = configs.resolve_with_algorithm(configs.load("embedded_xs"))
    whole = make_plan(config, algorithm, "named", read_inputs(config, None), 1)
    narrow = make_plan(config, algorithm, "named", read_inputs(config, None), 1, columns=60)
    assert max(map(len, narrow.splitlines())) <= 60 < max(map(len, whole.splitlines()))
    assert narrow.split() == whole.split()


def test_the_first_prompt_is_what_the_model_reads_of_it_with_its_gold(tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"prompt": "1+2=", "answer": "3\x1b[2J"}) + "\n")
    planned = runs.plan(
        configs.load("embedded_xs", [f"data.path={file}", "data.template=1+1=2\n{prompt}"])
    ).splitlines()
    at = planned.index("  first prompt  1+1=2<unk>1+2=")  # its vocabulary has no line feed
    assert planned[at + 1] == "  its gold      3␛[2J"
