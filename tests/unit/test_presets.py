"""Every config that ships loads, validates, resolves and can be planned without a hub or a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from rlkit import config as configs

PRESETS = configs.presets()
PAPERS = ["grpo_paper", "ppo_paper", "vimpo_paper"]


def python(code: str) -> str:
    """What a fresh interpreter without a hub prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_promised_presets_ship() -> None:
    assert {"embedded", "embedded_xs", "gsm8k_qwen3", "gsm8k_smollm2", "math_qwen3", *PAPERS} <= PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_resolves_to_what_loads_again(name: str) -> None:
    resolved = configs.resolve(configs.load(name))
    assert configs.load(yaml.safe_load(yaml.safe_dump(resolved.dump()))) == resolved


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("algo", ["vimpo", "grpo", "ppo"])
def test_every_preset_takes_every_algorithm(name: str, algo: str) -> None:
    assert configs.resolve(configs.load(name, algo=algo)).algo.kind == algo


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_it_is_and_needs(name: str) -> None:
    first = PRESETS[name].splitlines()[0]
    assert first.startswith("# ")
    if "embedded" not in name:
        assert "GPU" in PRESETS[name].partition("\nalgo:")[0]


def test_the_papers_settings() -> None:
    run = configs.resolve(configs.load("vimpo_paper"))
    algo = run.algo.options
    assert run.model.path == "Qwen/Qwen3-4B-Base"
    assert (algo["beta"], algo["actor_coef"], algo["lam"]) == (5e-4, 5e-3, 1.0)
    assert (algo["clip_low"], algo["clip_high"], algo["dual_clip"]) == (0.2, 0.28, 10.0)
    assert (run.batch.prompts_per_step, run.batch.samples_per_prompt, run.updates_per_step) == (96, 8, 1)
    assert (run.optimizer.lr, run.optimizer.warmup_updates) == (1e-6, 10)
    assert (run.optimizer.weight_decay, run.optimizer.clip_norm, run.optimizer.schedule) == (0.1, 1.0, "constant")
    assert (run.data.max_prompt_tokens, run.sampling.max_tokens, run.sampling.temperature) == (2048, 4096, 1.0)
    assert (run.eval.temperature, run.eval.top_p, run.steps) == (1.0, 0.7, 200)


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_runs_differ_by_the_algorithm_alone(name: str) -> None:
    run, vimpo = configs.load(name), configs.load("vimpo_paper")
    assert run.model_copy(update={"algo": vimpo.algo, "critic": vimpo.critic}) == vimpo


def test_every_preset_can_be_planned_without_a_hub_or_a_gpu() -> None:
    said = python(
        "from rlkit import config\nfrom rlkit.assembly import run\n"
        "for name in config.presets():\n"
        "    print(f'[{name}]', run.plan(config.resolve(config.load(name))))\n"
    )
    for name, text in PRESETS.items():
        plan = said.partition(f"[{name}]")[2].partition("\n[")[0]
        assert yaml.safe_load(text)["model"]["path"] in plan


def test_reading_a_config_imports_nothing_heavy() -> None:
    heavy = python(
        "import sys; from rlkit import config\n"
        "[config.load(name) for name in config.presets()]\n"
        "print(*{'torch', 'vllm', 'deepspeed', 'transformers', 'wandb', 'datasets'} & sys.modules.keys())"
    )
    assert heavy.split() == []


def test_resolving_a_config_imports_torch_at_most() -> None:
    heavy = python(
        "import sys; from rlkit import config\n"
        "trackers = ['trackers=[wandb, tensorboard]']\n"
        "[config.resolve(config.load(name, trackers)) for name in config.presets()]\n"
        "print(*{'vllm', 'deepspeed', 'transformers', 'wandb', 'datasets'} & sys.modules.keys())"
    )
    assert heavy.split() == []
