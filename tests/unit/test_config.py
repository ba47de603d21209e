from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlkit import config as configs
from rlkit.errors import ConfigError


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    resolved = configs.resolve(configs.load("embedded", ["optimizer.lr=1e-3"]))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(resolved.dump()))
    assert configs.resolve(configs.load(file)) == resolved
    assert resolved.optimizer.lr == 1e-3


def test_resolving_fills_in_the_plugins_options() -> None:
    resolved = configs.resolve(configs.load("embedded"))
    assert resolved.algo.options["beta"] == 0.05
    assert resolved.algo.options["lam"] == 1.0


def test_naming_the_same_algorithm_keeps_its_options_and_another_drops_them() -> None:
    assert configs.load("embedded", algo="vimpo").algo.options == {"beta": 0.05}
    assert configs.load("embedded", algo="grpo").algo.options == {}


def test_an_override_reaches_into_a_plugin_given_by_name() -> None:
    assert configs.load("embedded", ["reward=math", "reward.x=1"]).reward[0].options == {"x": 1}


def test_a_plain_value_stands_for_a_sections_one_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = "algo: grpo\nmodel: embedded:xs\ndata: embedded:sorting\nreward: sorting\nbatch: 8\n"
    file.write_text(text)
    config = configs.load(file, ["model.dtype=float32", "data.split=test"])
    assert (config.model.path, config.model.dtype) == ("embedded:xs", "float32")
    assert (config.data.path, config.data.split, config.batch.prompts_per_step) == ("embedded:sorting", "test", 8)
    assert configs.load({**yaml.safe_load(text), "model": "embedded:s"}).model.path == "embedded:s"
    file.write_text(text.replace("model: embedded:xs", "model: [embedded:xs]"))
    with pytest.raises(ConfigError, match=r"mine\.yaml:2: 'model\.path': should be text \(got \['embedded:xs'\]\)"):
        configs.load(file)
    file.write_text(text + "optimizer: adam\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:6: 'optimizer': should hold keys and values of its own"):
        configs.load(file)


def test_rewards_are_a_list_with_weights_and_one_needs_no_list() -> None:
    two = configs.load("embedded", ["reward=[final_answer, {kind: exact, weight: 0.5}]"])
    assert [(ref.kind, ref.weight) for ref in configs.resolve(two).reward] == [("final_answer", 1.0), ("exact", 0.5)]
    one = configs.resolve(configs.load("embedded", ["reward.marker=A"])).dump()
    assert one["reward"] == [{"kind": "final_answer", "weight": 1.0, "marker": "A"}]
    assert configs.load(one, ["reward.marker=B"]).reward[0].options == {"marker": "B"}


def test_naming_another_kind_drops_the_options_of_the_one_before() -> None:
    assert configs.load("embedded", ["algo.lam=0.9", "algo.kind=ppo"]).algo.options == {"lam": 0.9}
    assert configs.load("embedded", ["algo.kind=vimpo"]).algo.options == {"beta": 0.05}


def test_a_loss_and_an_advantage_can_be_set_by_name() -> None:
    settings = ["advantage=group", "advantage.baseline=leave_one_out", "loss=clip", "loss.surrogate=cispo"]
    resolved = configs.resolve(configs.load("embedded", settings, algo="dapo"))
    assert resolved.advantage is not None
    assert resolved.loss is not None
    assert (resolved.advantage.kind, resolved.advantage.options["baseline"]) == ("group", "leave_one_out")
    assert (resolved.loss.kind, resolved.loss.options["surrogate"]) == ("clip", "cispo")


def test_a_loss_that_reads_what_the_advantage_does_not_give_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"reads coefs, scores, which.*does not give"):
        configs.resolve(configs.load("embedded", ["advantage=group"], algo="vimpo"))


def test_an_advantage_that_needs_a_critic_is_refused_where_none_is_trained() -> None:
    with pytest.raises(ConfigError, match="grpo trains no critic"):
        configs.resolve(configs.load("embedded", ["advantage=gae"], algo="grpo"))


def test_a_run_is_named_after_algorithm_model_and_seed() -> None:
    assert configs.load("embedded", ["seed=3"]).run_name == "vimpo-s-seed3"
    assert configs.load("embedded", ["model.path=Qwen/Qwen3-4B-Base"]).run_name == "vimpo-Qwen3-4B-Base-seed0"


def test_every_field_says_what_is_not_plain_from_its_name() -> None:
    schema = configs.RunConfig.model_json_schema()
    assert (
        "Tokens, prompts included"
        in schema["$defs"]["BatchConfig"]["properties"]["tokens_per_microbatch"]["description"]
    )


def test_not_yaml(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: [1\n")
    with pytest.raises(ConfigError, match=re.escape(f"{file}:2: not YAML: ") + r".*from line 1"):
        configs.load(file)


@pytest.mark.parametrize(
    "text",
    [
        "End with #### and the number",
        "#### and the number",
        "Use C #and nothing else",
        "First line\nsecond line\n\nthird",
        "  spaces around ",
    ],
)
def test_a_plain_text_on_the_command_line_is_taken_as_typed(text: str) -> None:
    assert configs.load("embedded", [f"data.system={text}"]).data.system == text


def test_quotes_are_read_as_yaml_has_them() -> None:
    assert configs.load("embedded", ['data.system="a # b\\n"']).data.system == "a # b\n"
    assert configs.load("embedded", ["data.system='it''s: so'"]).data.system == "it's: so"
    assert configs.load("embedded", ["data.system="]).data.system is None


@pytest.mark.parametrize(
    "setting", ["trackers=[wandb] # later", 'data.system="a" # b', "reward={kind: exact} #x", "steps=5 # five"]
)
def test_a_comment_on_the_command_line_is_not_dropped(setting: str) -> None:
    with pytest.raises(ConfigError, match="#"):
        configs.load("embedded", [setting])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.lora.targets=[]", "'model.lora.targets': names no layer"),
        ("optimizer.eps=0", "'optimizer.eps': 0 is out of range: below 1e-30 it is lost in float32"),
        ("critic.optimizer.eps=.inf", "'critic.optimizer.eps': inf is out of range"),
        ("optimizer.lr=.inf", "'optimizer.lr': input should be a finite number"),
        ("sampling.temperature=.inf", "'sampling.temperature': input should be a finite number"),
        ("steps=yes", "steps should be a number (got True)"),
        ("eval.every=true", "'eval': every should be a number (got True)"),
    ],
)
def test_values_that_would_break_training_are_refused(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        configs.load("embedded", [setting])


def test_a_number_is_the_one_that_was_typed() -> None:
    assert configs.load("embedded", ["steps=010"]).steps == 10
    assert configs.load("embedded", ["steps=1_000"]).steps == 1000
    with pytest.raises(ConfigError, match="1:30"):
        configs.load("embedded", ["steps=1:30"])


@pytest.mark.parametrize("text", ["no", "A: b", "2024-01-01", "{prompt}"])
def test_what_yaml_makes_of_a_text_is_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(ConfigError, match="put quotes around"):
        configs.load("embedded", [f"data.template={text}"])


def test_a_file_whose_text_is_cut_by_a_comment_warns_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(configs.presets()["embedded"] + "noise: []\n")
    section = "data:\n  path: embedded:arithmetic\n  system: End with #### and the number"
    text = re.sub(r"^data:.*$", section, file.read_text(), flags=re.MULTILINE)
    file.write_text(text)
    line = next(i for i, each in enumerate(text.splitlines(), 1) if "####" in each)
    with pytest.warns(UserWarning, match=rf"x.yaml:{line}: .*'End with'.*'#### and the number'.*quotes"):
        assert configs.load(file).data.system == "End with"


@pytest.mark.filterwarnings("error")
def test_ordinary_comments_warn_of_nothing() -> None:
    lines = ["steps: 5 #five", "seed: 1 ## one", "name: word #one", "a: true #### so", "b: several words # a remark"]
    lines += ["c: 'several words' ## x", "d: [1, 2] ## x", "# a: b #c", "e: | ## x\n  text ## of its own", "f: #### x"]
    parsed = configs.parse_yaml("\n".join(lines), "x")
    assert parsed["e"] == "text ## of its own\n"
    for text in configs.presets().values():
        configs.parse_yaml(text, "preset")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("sampling.top_p", 0.5, "sampling.top_p below 1"),
        ("optimizer.lr", "fast", "'optimizer.lr'.*'fast'"),
        ("steps", -5, "'steps'.*-5"),
        ("batch.minibatches", 7, "'batch'.*multiple of minibatches"),
        ("sampling.max_tokens", None, "'sampling.max_tokens'"),
        ("optimizer", 3, "'optimizer'"),
        ("algo", "grqo", "grqo"),
        ("critic.optimizer.eps", [1], "'critic.optimizer.eps'"),
    ],
)
def test_what_is_assigned_in_python_is_checked_too(path: str, value: object, said: str) -> None:
    settings = configs.load("embedded")
    *sections, key = path.split(".")
    section: Any = settings
    for name in sections:
        section = getattr(section, name)
    setattr(section, key, value)
    with pytest.raises(ConfigError, match=said):
        configs.resolve(settings)
    configs.resolve(configs.load("embedded"))  # no default has been changed


def test_what_is_assigned_in_python_is_read_as_in_a_file() -> None:
    settings = configs.load("embedded")
    settings.optimizer.lr = "1e-4"  # type: ignore[assignment]
    settings.algo = "grpo"  # type: ignore[assignment]
    resolved = configs.resolve(settings)
    assert resolved.optimizer.lr == 1e-4
    assert resolved.algo.options["clip_low"] > 0


@pytest.mark.parametrize(("gpu", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_the_dtype_that_suits_the_machine(gpu: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert configs.ModelConfig(path="here").settled().dtype == dtype
    assert configs.ModelConfig(path="here", dtype="float32").settled().dtype == "float32"
    stage = ["engine.zero_stage=1"]
    assert configs.resolve(configs.load("gsm8k_smollm2")).model.dtype == dtype
    assert configs.resolve(configs.load("embedded_xs", [*stage, "model.dtype=auto"])).model.dtype == dtype
    assert configs.resolve(configs.load("embedded_xs", [*stage, "model.dtype=bfloat16"])).model.dtype == "bfloat16"


def test_bfloat16_by_auto_is_held_against_the_zero_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"engine.zero_stage 0 with model.dtype bfloat16"):
        configs.resolve(configs.load("embedded_xs", ["model.dtype=auto"]))
