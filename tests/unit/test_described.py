"""What a plugin's page, a key's page and the JSON schema say is what the code takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from rlkit import config as configs
from rlkit import distribution, registry
from rlkit.cli import main
from rlkit.config.keys import keys
from rlkit.config.schema import schema

MINE = '''
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from rlkit import noise, reward


@reward("mine_{n}")
def mine(samples, *, limit: Annotated[int, Field(ge=1)], marker: str = "=>", odd: bool = False):
    """1 for a short answer.

    It reads no gold.

    limit: most characters of the answer,
        white space left out.
    marker (text): what stands before it.
    """
    return [1.0 for _ in samples]


@noise("open_{n}")
def open_one(*, function: Callable[[float], float] = abs):
    """Whatever a function makes of it."""
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A plugin file, and the name of its reward."""
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setenv("COLUMNS", "100")
    n = abs(hash(tmp_path))
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(n=n))
    return str(file), f"mine_{n}"


def said(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def ships(plugin: registry.Plugin | Exception) -> bool:
    return isinstance(plugin, registry.Plugin) and plugin.distribution.startswith(f"{distribution.NAME} ")


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_option_that_ships_has_a_meaning(kind: registry.Kind) -> None:
    for name in registry.names(kind):
        plugin = registry.find(kind, name)
        if ships(plugin):
            assert [key.name for key in keys(plugin.options) if not key.meaning] == [], f"{kind} {name}"


def test_every_key_has_a_meaning() -> None:
    assert [key.name for key in keys(configs.RunConfig) if not key.meaning] == []


def test_a_plugin_s_page(mine: tuple[str, str]) -> None:
    file, name = mine
    page = said("list", "rewards", name, "--plugin", file)
    assert "1 for a short answer.\n\nIt reads no gold.\n\noptions:" in page
    assert "  limit: int; 1 or more; required\n      most characters of the answer, white space left out.\n" in page
    assert "  marker: text; default =>\n      what stands before it.\n" in page
    assert "  odd: bool; default false\n" in page
    assert page.endswith(f"written in {file}:10\n")
    block = page.partition("in YAML:\n")[2].partition("\n\n")[0]
    assert yaml.safe_load(block) == {"reward": {"kind": name, "limit": "<int>", "marker": "=>", "odd": False}}


@pytest.mark.parametrize("kind", registry.KINDS)
def test_the_yaml_of_a_page_is_taken(kind: registry.Kind) -> None:
    for name in registry.names(kind):
        block = said("list", kind, name).partition("in YAML:\n")[2].partition("\n\n")[0]
        given = yaml.safe_load(block)
        # What only its user knows: `<int>`, or one of two options.
        if "<" in block or kind == "suites" or name in ("function", "reward_model", "class"):
            continue
        settings = configs.load({**yaml.safe_load(configs.presets()["embedded"]), **given})
        ref: Any = getattr(settings, next(iter(given)))
        ref = ref[0] if isinstance(ref, list) else ref
        registry.validate_options(registry.find(kind, name), ref.options, name)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("optimizer.lr", ["Highest learning rate.", "bounds   above 0", "default  1e-06", "5e-06 in gsm8k_smollm2"]),
        ("lr", ["optimizer.lr\n", "--lr V or -s optimizer.lr=V", "optimizer:\n               lr: 1e-06"]),
        ("algo.beta", ["of       vimpo\n", "default  0.0005", "0.05 in embedded", "kind: vimpo"]),
        ("algo.clip_low", ["of       cispo\n", "of       gspo\n", "default  0.0003", "0.2 in grpo_paper, ppo_paper"]),
        ("algo.overlong_penalty.limit", ["default  none: it must be given", "overlong_penalty:\n"]),
        ("reward.strict", ["of       math\n", "an answer must be marked"]),
        ("reward.weight", ["type     float", "default  1"]),
        ("trackers.project", ["trackers:\n             - kind: wandb"]),
        ("algo.kind", ["One of: cispo,", "rlkit list algorithms NAME"]),
        ("batch", ["keys of batch:", "batch.samples_per_prompt: int; 1 or more; default 8"]),
        ("reference", ["reference.decay: float; 0 or more, below 1; default 0.8", "default  null"]),
        ("optimizer.schedule", ["type     `constant`, `linear`, `cosine`"]),
    ],
)
def test_a_key_s_page(key: str, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = said("config", "show", key)
    for part in parts:
        assert part in page


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("embeded", "no preset and no key is called 'embeded'; did you mean 'embedded'"),
        ("optimizer.lrr", "did you mean 'optimizer.lr'"),
        ("learning_rate", "the key is optimizer.lr"),
        ("algo.betta", "no key 'betta' in 'algo': no plugin has it; did you mean 'beta'?"),
        ("xyzzy", "`rlkit config ls` lists the presets"),
    ],
)
def test_what_is_no_key(key: str, expected: str) -> None:
    result = CliRunner().invoke(main, ["config", "show", key])
    assert result.exit_code == 2
    assert expected in result.output


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    whole = schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    return jsonschema.Draft202012Validator(whole)


@pytest.mark.parametrize("name", sorted(configs.presets()))
def test_the_schema_takes_the_presets_as_they_are(name: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(yaml.safe_load(configs.presets()[name]))


def test_the_schema_takes_what_a_run_writes(validator: jsonschema.Draft202012Validator) -> None:
    for algo in (name for name, plugin in registry.all_plugins("algorithms") if ships(plugin)):
        validator.validate(configs.resolve(configs.load("embedded", ["noise=[{kind: flip, prob: 0}]"], algo)).dump())


EMBEDDED = yaml.safe_load(configs.presets()["embedded"])


@pytest.mark.parametrize(
    "change",
    [
        {"algo": "dapo"},
        {"model": "embedded:xs", "data": "embedded:sorting", "batch": 8},
        {"algo": {"kind": "grpo", "overlong_penalty": {"limit": 9, "buffer": 3}}},
        {"reward": [{"kind": "math", "strict": True, "weight": 0.5}, "format"]},
        {"reward": "my.py:score"},
        {"reward": {"kind": "my.py:score", "style": "verl"}},
        {"noise": [{"kind": "group_flip", "prob": 0.25}], "trackers": ["wandb", {"kind": "wandb", "tags": ["a"]}]},
        {"sampler": {"kind": "vllm", "gpu_memory": 0.5}, "advantage": None, "loss": {"kind": "clip"}},
        {"reference": "average"},
        {"reference": {"kind": "copy", "every": 3}},
    ],
)
def test_what_the_schema_takes(change: dict[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    validator.validate({**EMBEDDED, **change})
    configs.load({**EMBEDDED, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"algo": "vinpo"},
        {"algo": {"kind": "vimpo", "betta": 1}},
        {"algo": {"kind": "grpo", "beta": 1}},
        {"algo": {"kind": "vimpo", "beta": 0}},
        {"algo": {"beta": 1}},
        {"algo": {"kind": "grpo", "overlong_penalty": {"limit": 9}}},
        {"reward": []},
        {"reward": {"kind": "math", "answer_in": "box"}},
        {"reward": [{"kind": "length", "max_tokens": 5}]},
        {"noise": {"kind": "flip", "prob": 0.1}},
        {"noise": [{"kind": "flip", "prob": 1.5}]},
        {"noise": ["flip", {"kind": "flop"}]},
        {"trackers": [{"kind": "tensorboard", "project": "x"}]},
        {"sampler": {"kind": "transformers", "gpu_memory": 0.5}},
        {"sampler": {"kind": "auto", "max_batch": 5}},
        {"reference": "averige"},
        {"reference": {"kind": "average", "every": 3}},
        {"optimizer": {"lrr": 1}},
        {"steps": 0},
        {"model": 5},
        {"batch": "8"},
        {"optimizer": "adam"},
    ],
)
def test_what_the_schema_refuses(change: dict[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    assert not validator.is_valid({**EMBEDDED, **change})


def test_the_schema_has_plugins_of_one_s_own_and_what_their_options_mean(mine: tuple[str, str]) -> None:
    file, name = mine
    whole = json.loads(said("config", "schema", "--plugin", file))
    assert whole["$defs"][f"rewards.{name}"]["properties"]["limit"] == {
        "description": "most characters of the answer, white space left out.",
        "minimum": 1,
        "title": "Limit",
        "type": "integer",
    }
    assert whole["$defs"]["algorithms.vimpo"]["properties"]["beta"]["description"].startswith("Weight of the KL")
    # An option of a type that only Python has leaves the plugin open.
    assert "additionalProperties" not in whole["$defs"][f"noise.{name.replace('mine', 'open')}"]
    validator = jsonschema.Draft202012Validator(whole)
    assert validator.is_valid({**EMBEDDED, "reward": {"kind": name, "limit": 3}})
    assert not validator.is_valid({**EMBEDDED, "reward": {"kind": name}})
