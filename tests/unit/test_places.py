"""What is wrong in a YAML file is said with its line; what the command line or Python set is not the file's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlkit import config as configs
from rlkit import registry
from rlkit.cli import main
from rlkit.errors import ConfigError
from rlkit.sweeps import spec as specs

HEAD = "algo: vimpo\nmodel: {path: embedded:xs}\ndata: {path: embedded:arithmetic}\n"
"""Three lines, of a config that lacks the reward."""
WHOLE = HEAD + "reward: final_answer\n"


def refusal(text: str, tmp_path: Path, overrides: list[str] | None = None, algo: str | None = None) -> list[str]:
    """The lines of what is said of a file, its folder left out."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        configs.resolve(configs.load(file, overrides, algo))
    return str(refused.value).replace(f"{tmp_path}/", "").splitlines()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WHOLE + "\noptimizer:\n  # a remark\n  lrr: 1\n", "mine.yaml:8: unknown key 'lrr' in 'optimizer'; did you"),
        (WHOLE + "optimizer: {\n  eps: 1,\n  lr: 0}\n", "mine.yaml:7: 'optimizer.lr': input should be greater"),
        (WHOLE + "steps: many\n", "mine.yaml:5: 'steps': input should be a valid integer"),
        (WHOLE + "optimizer:\n  betas:\n  - 0.9\n  - 2\n", "mine.yaml:8: 'optimizer.betas.1': input should be less"),
        (WHOLE + "optimizer:\n  betas:\n  - 0.9\n", "mine.yaml:6: 'optimizer.betas.1' is missing: it has no default"),
        (WHOLE + "batch:\n  prompts_per_step: 4\n  minibatches: 3\n", "mine.yaml:5: 'batch': prompts_per_step (4)"),
        (WHOLE + "reference:\n  kind: copy\n", "mine.yaml:5: 'reference.every' is missing"),
        (WHOLE + "reference: {kind: averige}\n", "mine.yaml:5: 'reference': there is no 'averige'; did you mean"),
        (HEAD, "mine.yaml: 'reward' is missing: it has no default"),
        (HEAD + "reward:\n  kind: final_answer\n  weight: x\n", "mine.yaml:6: 'reward.0.weight': input should be"),
        (HEAD + "reward:\n- kind: math\n- weight: 2\n", "mine.yaml:6: 'reward.1.kind' is missing"),
        # What only a plugin can tell.
        (HEAD + "reward: math\nloss: clp\n", "mine.yaml:5: unknown loss 'clp'; did you mean 'clip'?"),
        (HEAD + "reward:\n  kind: math\n  strickt: true\n", "mine.yaml:6: unknown key 'strickt' in 'reward'; did"),
        (HEAD + "reward:\n- math\n- kind: exact\n  ignore_case: 7\n", "mine.yaml:7: 'reward.1.ignore_case': input"),
        # What other projects call it.
        (
            WHOLE + "num_generations: 8\n",
            "mine.yaml:5: unknown key 'num_generations' at the top level; the key is batch.s",
        ),
        (
            WHOLE + "per_device_train_batch_size: 8\n",
            "mine.yaml:5: unknown key 'per_device_train_batch_size' at the top level; it may be batch.prompts_per_step "
            "or batch.tokens_per_microbatch",
        ),
        (
            WHOLE + "actor:\n  rollout: {n: 8, tensor_model_parallel_size: 2}\n",
            "mine.yaml:5: unknown key 'actor' at the top level; here actor.rollout.n is batch.samples_per_prompt, "
            "actor.rollout.tensor_model_parallel_size is sampler.tensor_parallel",
        ),
        (WHOLE + "lr: 1.0e-4\n", "mine.yaml:5: unknown key 'lr' at the top level; the key is optimizer.lr"),
        (
            WHOLE.replace("vimpo", "{kind: grpo, beta: 0.04}"),
            "mine.yaml:1: unknown key 'beta' in 'algo'; the key is algo.kl_coef",
        ),
        (HEAD + "reward: [math, exat]\n", "mine.yaml:4: unknown reward 'exat'; did you mean 'exact'?"),
        (WHOLE + "noise:\n- {kind: flip}\n", "mine.yaml:5: 'noise.prob' is missing"),
        (WHOLE.replace("vimpo", "&a {kind: vimpo, beta: 0}"), "mine.yaml:1: 'algo.beta': input should be greater"),
        # What is no config at all.
        (WHOLE + "seed: 1\nseed: 2\n", "mine.yaml:6: 'seed' stands on line 5 already: leave one of them out"),
        (
            WHOLE + "sampling:\n\tstop: []\n",
            "mine.yaml:6: not YAML: found character '\\t' that cannot start any token.",
        ),
        (WHOLE + "sampling: {stop: [a}\n", "mine.yaml:5: not YAML: expected ',' or ']', but got '}'"),
        (WHOLE + "name: a: b\n", "mine.yaml:5: not YAML: mapping values are not allowed here"),
    ],
)
def test_a_mistake_is_said_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    assert refusal(text, tmp_path)[0].startswith(said)


def test_several_mistakes_come_in_the_file_s_order(tmp_path: Path) -> None:
    said = refusal("modle: {}\n" + WHOLE + "optimizer: {lr: 0}\nsteps: 0\n", tmp_path)
    assert [line.partition(" ")[0] for line in said] == ["mine.yaml:1:", "mine.yaml:6:", "mine.yaml:7:"]


def test_what_is_missing_comes_last(tmp_path: Path) -> None:
    said = refusal("base: embedded_xs\n" + HEAD, tmp_path)
    assert said[0].startswith("mine.yaml:1: unknown key 'base'")
    assert said[1:] == ["mine.yaml: 'reward' is missing: it has no default"]


@pytest.mark.parametrize(
    ("overrides", "algo", "said"),
    [
        (["steps=x"], None, "'steps': input should be"),
        (["optimizer.lrr=1"], None, "unknown key 'lrr' in 'optimizer'"),
        (["optimizer={lrr: 1}"], None, "unknown key 'lrr' in 'optimizer'"),
        (["num_generations=8"], None, "unknown key 'num_generations' at the top level; the key is batch.samples_per_"),
        (["rollout.n=8"], None, "unknown key 'rollout' at the top level; here rollout.n is batch.samples_per_prompt"),
        (["algo.kind=ppo", "algo.cliprange=1"], None, "unknown key 'cliprange' in 'algo'; it may be algo.clip_low or"),
        (["optimizer.learning_rate=1"], None, "unknown key 'learning_rate' in 'optimizer'; the key is optimizer.lr"),
        (["lr=-1"], None, "'optimizer.lr': input should be"),
        (["algo.kind=grpo", "algo.betta=1"], None, "unknown key 'betta' in 'algo'"),
        ([], "gpro", "unknown algorithm 'gpro'"),
        (["reward=[final_answer, exat]"], None, "unknown reward 'exat'"),
        (["noise=[{kind: flip}]"], None, "'noise.prob' is missing"),
    ],
)
def test_the_command_line_s_mistakes_are_not_the_file_s(
    overrides: list[str], algo: str | None, said: str, tmp_path: Path
) -> None:
    text = WHOLE + "steps: 5\noptimizer: {lr: 1.0e-4}\n"
    assert refusal(text, tmp_path, overrides, algo)[0].startswith(said)


def test_what_stands_beside_an_override_keeps_its_line(tmp_path: Path) -> None:
    said = refusal(WHOLE + "steps: 0\nseed: -1\n", tmp_path, ["steps=5"])
    assert said == ["mine.yaml:6: 'seed': input should be greater than or equal to 0 (got -1)"]


def test_what_python_assigned_is_not_the_file_s(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(WHOLE + "steps: 5\n")
    settings = configs.load(file)
    assert settings == configs.load(configs.parse_yaml(file.read_text(), "x"))
    settings.steps = -5
    with pytest.raises(ConfigError, match=r"^'steps': input should be greater"):
        configs.resolve(settings)
    settings = configs.load(file)
    settings.reward = [*settings.reward, configs.RewardRef(kind="exat")]
    with pytest.raises(ConfigError, match=r"^unknown reward 'exat'"):
        configs.resolve(settings)


def test_keys_that_an_anchor_brings_point_to_where_they_are_written(tmp_path: Path) -> None:
    text = HEAD + "reward:\n- &one\n  kind: math\n  strickt: true\n- <<: *one\n  kind: math\n"
    assert refusal(text, tmp_path)[0].startswith("mine.yaml:7: unknown key 'strickt' in 'reward.0'")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sedes: 1\n", "mine.yaml:3: unknown key 'sedes' at the top level; did you mean 'seeds'?"),
        ("seeds: 4-1\n", "mine.yaml:3: 'seeds': '4-1': expected numbers and ranges"),
        ("set:\n  steps: 5\n  stepz: 3\n", "mine.yaml:5: unknown key 'stepz' at the top level; did you mean 'steps'?"),
        ("set:\n  batch:\n    epoks: 3\n", "mine.yaml:5: unknown key 'epoks' in 'batch'; did you mean 'epochs'?"),
        ("grid: {optimizer.lr: [-1, 2]}\n", "mine.yaml:3: 'optimizer.lr': input should be greater than 0"),
        ("grid:\n  lr: [-1, 2]\n", "mine.yaml:4: 'optimizer.lr': input should be greater than 0"),
        ("list:\n- {steps: 2}\n- {steps: 0}\n", "mine.yaml:5: 'steps': input should be greater than or equal to 1"),
        ("set: {algo.clip_lo: 1}\n", "mine.yaml:3: unknown key 'clip_lo' in 'algo'; did you mean 'clip_low'"),
        ("seeds: 1\nseeds: 2\n", "mine.yaml:4: 'seeds' stands on line 3 already"),
    ],
)
def test_a_sweep_s_mistakes_have_their_lines(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("algos: {grpo: {}}\nbase: embedded_xs\n" + text)
    result = CliRunner().invoke(main, ["sweep", "mine.yaml", "--dry-run"])
    assert result.exit_code == 2
    assert said in result.output


def test_an_algorithm_s_own_setting_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: embedded_xs\nalgos:\n  grpo:\n  vimpo:\n    algo.betta: 1\n")
    spec = specs.load(str(file), {})
    grpo, vimpo = specs.arms(spec)
    grpo.config(spec, 0, tmp_path, "x", {})
    with pytest.raises(ConfigError, match=re.escape(f"{file}:5: unknown key 'betta' in 'algo'")):
        vimpo.config(spec, 0, tmp_path, "x", {})


def test_the_command_line_of_a_sweep_has_no_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: embedded_xs\nalgos: grpo\nset: {steps: 4}\nseeds: 0-3\n")
    with pytest.raises(ConfigError, match=r"^'seeds': '4-1': expected"):
        specs.load(str(file), {"seeds": "4-1"})
    spec = specs.load(str(file), specs.given_settings(["steps=0"], [], []))
    with pytest.raises(ConfigError, match=r"condition 'none': 'steps': input should be"):
        specs.arms(spec)[0].config(spec, 0, tmp_path, "x", {})


def test_options_alone_have_no_line() -> None:
    with pytest.raises(ConfigError, match=r"^unknown key 'strickt' in 'reward'"):
        registry.validate_options(registry.find("rewards", "math"), {"strickt": True}, "reward")
