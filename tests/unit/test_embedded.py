"""The models and the task that ship: whole, loadable, and warm-started to the level their README says."""

from __future__ import annotations

import hashlib
import importlib
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit import config as configs
from rlkit import embedded, registry
from rlkit.embedded import arithmetic, task
from rlkit.errors import ConfigError
from rlkit.interfaces.rewards import Sample, SampleKey

HOME = Path(embedded.__file__).parent


def test_resolve_gives_a_folder_and_leaves_other_paths_alone() -> None:
    assert Path(embedded.resolve("embedded:s")).is_dir()
    assert embedded.resolve("Qwen/Qwen3-4B-Base") == "Qwen/Qwen3-4B-Base"
    with pytest.raises(ConfigError, match=r"embedded:xl.*did you mean.*'embedded:xs'"):
        embedded.resolve("embedded:xl")


def test_checksums_hold_for_every_file_that_ships() -> None:
    listed = {}
    for line in (HOME / "CHECKSUMS").read_text().splitlines():
        digest, name = line.split("  ")
        listed[name] = digest
    shipped = {str(f.relative_to(HOME)): f for name in embedded.MODELS for f in (HOME / name).iterdir()}
    assert listed.keys() == shipped.keys()
    for name, file in shipped.items():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == listed[name], name
    assert sum(file.stat().st_size for file in shipped.values()) < 3_000_000


def test_splits_are_disjoint_and_whole() -> None:
    train, test = arithmetic.problems(held_out=False), arithmetic.problems(held_out=True)
    assert not set(train) & set(test)
    assert len(train) + len(test) == 90 * 90
    assert 0.18 < len(test) / 8100 < 0.22
    # Any first n are a fair sample: the first fifth of the test split has its share of small numbers.
    assert 0.35 < sum(p.a < 50 for p in test[:300]) / 300 < 0.55


def test_clean_demonstrations_are_worked_and_right() -> None:
    rng = random.Random(1)
    assert arithmetic.demonstration(arithmetic.Addition(47, 85), rng, 0, 0) == "7+5+0=12;4+8+1=13;#### 132"
    for problem in rng.sample(arithmetic.problems(held_out=False), 200):
        text = arithmetic.demonstration(problem, rng, 0, 0)
        assert text.rpartition("#### ")[2] == str(problem.a + problem.b)
        for a, b, carry, total in re.findall(r"(\d)\+(\d)\+(\d)=(\d+);", text):
            assert int(a) + int(b) + int(carry) == int(total)


def test_noisy_demonstrations_guess_and_err_at_the_rates_asked_for() -> None:
    rng = random.Random(2)
    pool = arithmetic.problems(held_out=False)
    texts = [(p, arithmetic.demonstration(p, rng, 0.5, 0.2)) for p in rng.choices(pool, k=4000)]
    worked = [(p, t) for p, t in texts if ";" in t]
    assert abs(len(worked) / len(texts) - 0.5) < 0.04
    right = sum(t.rpartition("#### ")[2] == p.answer for p, t in worked) / len(worked)
    assert abs(right - 0.64) < 0.06


@pytest.mark.parametrize("name", embedded.MODELS)
def test_tokenizer_round_trips(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve(f"embedded:{name}"))
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(25)] == list(task.VOCABULARY)
    text = "47+85=7+5+0=12;4+8+1=13;#### 132"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text) - len("#### ") + 1
    for spaced in ("1 + 2 = ", " (1, 2)", "#### "):
        assert tokenizer.decode(tokenizer.encode(spaced)) == spaced
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer.encode("1x") == [4, tokenizer.unk_token_id]


REWARDS = {"arithmetic": "final_answer", "countdown": "countdown", "sorting": "sorting"}


@pytest.mark.parametrize("name", [name for name in embedded.MODELS if name != "xs-turns"])
def test_model_starts_where_its_readme_says(name: str) -> None:
    folder = embedded.resolve(f"embedded:{name}")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    row = next(line for line in (HOME / "README.md").read_text().splitlines() if line.startswith(f"| {name} |"))
    taught, recorded = row.split("|")[2].strip(), float(row.split("|")[8])
    assert 0.05 < recorded < 0.4
    torch.manual_seed(3)
    test = importlib.import_module(f"rlkit.embedded.{taught}").problems(held_out=True)[:512]
    prompts = tokenizer([p.prompt for p in test], padding=True, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**prompts, max_new_tokens=48, do_sample=True, top_k=0)
    texts = tokenizer.batch_decode(out[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    samples = [
        Sample(
            key=SampleKey("", 0, 0, 0), prompt=p.prompt, response=text, tokens=[], answer=p.answer, truncated=False,
            columns=p.columns,
        )
        for text, p in zip(texts, test, strict=True)
    ]  # fmt: skip
    results = registry.build("rewards", REWARDS[taught], {})(samples)
    # Two samples of 512: four standard errors of their difference.
    assert abs(sum(r.value for r in results) / len(test) - recorded) < 0.12


@pytest.mark.parametrize("name", embedded.PLAYED)
def test_the_model_that_plays_starts_where_its_readme_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))
    made = importlib.import_module("make_embedded_models")
    rows = (HOME / "README.md").read_text().splitlines()
    recorded = float(next(row for row in rows if row.startswith(f"| xs-turns | {name} |")).split("|")[8])
    assert 0.15 < recorded < 0.55
    game = made.TASKS["turns"].lessons[name]
    preset = configs.load(f"embedded_{name}")
    assert preset.environment is not None
    assert (game.environment, game.options) == (preset.environment.kind, preset.environment.options)
    monkeypatch.setattr(made, "SEED", 3)
    sampled, _ = made.measure_play(HOME / "xs-turns", game, temperature=1.0)
    # Two samples of at most 512.
    assert abs(sampled - recorded) < 0.12
