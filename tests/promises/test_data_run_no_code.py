"""What comes from elsewhere runs no code, and leads out of no folder: a model's folder, a run's, a chat template, a
data file. Only what is asked for by name does: a plugin, a config that is run, `trust_remote_code`."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from inspected import config as inspected_config
from inspected import two_plus, write
from made_run import healthy, make_run

from rlkit import config as configs
from rlkit import embedded
from rlkit.cli import main
from rlkit.config import ModelConfig
from rlkit.data.prompts import prompt_tokens
from rlkit.data.reading import read_rows
from rlkit.engine.models import load_policy, load_tokenizer, model_shape
from rlkit.errors import ConfigError
from rlkit.files import write_text
from rlkit.records.checkpoints import MANIFEST, Manifest
from rlkit.records.folder import RunFolder

ASKS = "model.trust_remote_code: true for a run, or give a command --trust-remote-code"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def ran(tmp_path: Path) -> Iterator[Path]:
    """The file that hostile code makes; nothing has made it when the test is over."""
    file = tmp_path / "ran"
    yield file
    assert not file.exists(), "hostile code has run"


@pytest.fixture
def model(tmp_path: Path, ran: Path) -> Path:
    """The smallest model that ships, whose folder claims to need its own code for everything."""
    folder = tmp_path / "model"
    shutil.copytree(embedded.resolve("embedded:xs"), folder)
    code = f"open({str(ran)!r}, 'w').write('x')\nimport transformers\n"
    bases = {"C": "LlamaConfig", "M": "LlamaForCausalLM", "T": "PreTrainedTokenizerFast"}
    code += "".join(f"class {name}(transformers.{base}): pass\n" for name, base in bases.items())
    (folder / "evil.py").write_text(code)
    models = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    names = {"AutoConfig": "evil.C", **dict.fromkeys(models, "evil.M")}
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "evil", "auto_map": names}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **own}))
    return folder


def test_a_models_own_code_does_not_run_unasked(
    model: Path, ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(path=str(model))
    for load in (load_policy, load_tokenizer, model_shape):
        with pytest.raises(ConfigError) as raised:
            load(config)
        assert ASKS in str(raised.value)
    for command in (
        ("run", "embedded_xs", "--model", str(model), "--out", str(tmp_path)),
        ("run", "embedded_xs", "--model", str(model), "--out", str(tmp_path), "-s", "sampler=vllm"),
        ("run", "embedded_xs", "--model", str(model), "--dry-run"),
        ("sample", str(model), "47+85="),
        ("eval", "--model", str(model), "--suite", "math500", "--out", str(tmp_path / "eval")),
        ("data", "check", "embedded:arithmetic", "--no-overlap", "--tokenizer", str(model)),
    ):
        result = invoke(*command)
        assert result.exit_code == 2, result.output
        assert ASKS in result.output
    assert not ran.exists()
    # Asked for by name it does, or all this would show nothing.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    load_tokenizer(ModelConfig(path=str(model), trust_remote_code=True))
    ran.unlink()


def test_a_reward_models_code_never_runs(model: Path, tmp_path: Path) -> None:
    from rlkit_rewards.reward_model import RewardModelConfig, reward_model

    with pytest.raises(ConfigError, match="No code of a reward model's folder is run here: serve it elsewhere"):
        reward_model(RewardModelConfig(path=str(model)))


def test_what_a_strangers_run_trusts_is_not_trusted_by_who_reads_it(model: Path, ran: Path, tmp_path: Path) -> None:
    """Its config names plugins, and says that its model's code may run."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text(f"open({str(ran)!r}, 'w')")
    runs = []
    for seed, name in enumerate(("one", "two")):
        run = RunFolder.create(tmp_path / name, inspected_config())
        write(run, 1, [[two_plus(credit=[0.05, -0.01, 0, 0, 0.001])]])
        for step, row in enumerate(healthy(steps=2), 1):
            run.log_metrics(step, row)
        settings = yaml.safe_load(run.config_file.read_text())
        settings["model"] |= {"path": str(model), "trust_remote_code": True}
        settings["seed"] = seed
        settings |= {"plugins": [str(plugin)], "reward": [{"kind": "function", "path": str(plugin), "name": "f"}]}
        run.config_file.write_text(yaml.safe_dump(settings))
        shutil.copytree(model, run.checkpoints / "step-00000001" / "hf")
        (run.checkpoints / "step-00000001" / MANIFEST).write_text(Manifest().text())
        runs.append(str(run.path))
    both = [invoke("inspect", *runs), invoke("inspect", runs[0])]
    compared = invoke("compare", *runs, "--out", str(tmp_path / "out"))
    exported = invoke("export", runs[0], str(tmp_path / "exported"))
    verified = invoke("verify", runs[0], "--reward", "exact")
    for result in (*both, compared, exported, verified, invoke("report", runs[0])):
        assert result.exit_code == 0, result.output
    assert "model:" not in verified.output
    for command in (("sample", runs[0], "1+1="), ("verify", runs[0], "--reward", "exact", "--model", runs[0])):
        result = invoke(*command)
        assert (result.exit_code, ASKS in result.output) == (2, True), result.output
    mine = invoke("verify", runs[0], "--reward", "mine")
    assert mine.exit_code == 2
    assert f"which are not imported unless you say so, as they may be somebody else's code: add --plugin {plugin}" in (
        mine.output
    )


@pytest.mark.parametrize(
    ("environment", "plugins"),
    [
        ({"kind": "keys"}, True),
        ({"kind": "class", "path": "plugin.py", "name": "Mine"}, False),
        ({"kind": "tools", "tools": ["plugin.py:mine"]}, False),
        ({"kind": "tools", "tools": ["plugin:mine"]}, False),
    ],
)
def test_an_environment_of_a_strangers_run_is_not_acted_in(
    environment: dict[str, Any], plugins: bool, ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plugin.py").write_text(f"open({str(ran)!r}, 'w')")
    run = RunFolder.create(tmp_path / "run", inspected_config())
    settings = yaml.safe_load(run.config_file.read_text())
    settings |= {"environment": environment, "plugins": ["plugin.py"] if plugins else []}
    run.config_file.write_text(yaml.safe_dump(settings))
    shutil.copytree(embedded.resolve("embedded:xs"), run.checkpoints / "step-00000001" / "hf")
    (run.checkpoints / "step-00000001" / MANIFEST).write_text(Manifest().text())
    result = invoke("sample", str(run.path), "1+1=")
    assert result.exit_code == 2, result.output
    assert "as it may be somebody else's: look at its config.yaml, and add --trust-remote-code" in result.output


def test_a_suite_s_environment_is_its_own_and_no_code_of_a_strangers_run(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = "from rlkit import environment\n@environment('theirs')\nclass Theirs: pass\n"
    Path("theirs.py").write_text(f"open({str(ran)!r}, 'w')\n{theirs}")
    Path("mine.py").write_text(
        "from rlkit import Observation, environment, suite\n"
        "from rlkit.evaluation.suites import Suite\n"
        "@environment('mine')\n"
        "class Mine:\n"
        "    def start(self, task, seed): return ''\n"
        "    def step(self, action): return Observation(reward=1.0, done=True)\n"
        "def rows(folder): return [{'prompt': '1+1='}]\n"
        "@suite('acted')\n"
        "def acted(): return Suite(load=rows, template=None, answer=None, environment='mine')\n"
        "@suite('names_theirs')\n"
        "def names_theirs(): return Suite(load=rows, template=None, answer=None, environment='theirs')\n"
    )
    run = RunFolder.create(tmp_path / "run", inspected_config())
    settings = yaml.safe_load(run.config_file.read_text())
    settings |= {"environment": {"kind": "theirs"}, "plugins": ["theirs.py"]}
    run.config_file.write_text(yaml.safe_dump(settings))
    shutil.copytree(embedded.resolve("embedded:xs"), run.checkpoints / "step-00000001" / "hf")
    (run.checkpoints / "step-00000001" / MANIFEST).write_text(Manifest().text())
    evaluate = ("eval", "--model", str(run.path), "--plugin", "mine.py", "--max-tokens", "8", "--suite")
    result = invoke(*evaluate, "acted")
    assert result.exit_code == 0, result.output
    assert "acted in mine, verifier mine" in result.output
    result = invoke(*evaluate, "names_theirs")
    assert result.exit_code == 2
    assert "suite 'names_theirs': unknown environment 'theirs'" in result.output


def test_a_served_model_runs_its_code_only_where_it_is_asked_for() -> None:
    from rlkit.serving.command import arguments

    for trusts in (False, True):
        model = ModelConfig(path="embedded:xs", trust_remote_code=trusts)
        assert ("--trust-remote-code" in arguments(model, "127.0.0.1", 1, 1, 1)) == trusts


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch RAN') }}",
        "{% set x = messages.append(1) %}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception.__globals__ }}",
    ],
)
def test_a_chat_template_is_sandboxed(template: str, ran: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path="embedded:xs"))
    tokenizer.chat_template = template.replace("RAN", str(ran))
    data = configs.DataConfig(path="", chat=True)
    with pytest.raises(ConfigError, match=r"chat template (refuses|makes nothing of) the prompt"):
        prompt_tokens("1+1=", data, tokenizer)


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet", "data.pkl", "data.pt"])
def test_a_pickle_is_no_data_whatever_it_is_called(name: str, ran: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(ran)))
    with pytest.raises(ConfigError):
        read_rows(str(tmp_path / name))


def test_weights_that_are_a_pickle_are_refused(ran: Path, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(embedded.resolve("embedded:xs"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(ran)}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="has its weights in a pickle that asks for more than tensors"):
        load_policy(ModelConfig(path=str(folder)))


def test_yaml_makes_no_objects(ran: Path, tmp_path: Path) -> None:
    evil = f"algo: !!python/object/apply:builtins.open [{ran}, w]\n"
    (tmp_path / "evil.yaml").write_text(evil)
    assert "not YAML" in invoke("run", str(tmp_path / "evil.yaml")).output
    run = make_run(tmp_path / "run", healthy(steps=1))
    run.config_file.write_text(evil)
    assert invoke("report", str(run.path)).exit_code == 2
    assert invoke("compare", str(run.path)).exit_code != 0


# Folders


def test_links_in_a_run_lead_nowhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", healthy(steps=2), ["1"])
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "key").write_text("private")
    (run.path / "report.html.part").symlink_to(mine / "key")
    assert invoke("report", str(run.path)).exit_code == 0
    assert (mine / "key").read_text() == "private"
    run.inspection.symlink_to(mine)
    said = invoke("inspect", str(run.path))
    assert said.exit_code == 1
    assert "is a link: the page is written into the run's own folder alone" in said.output
    model = run.checkpoints / "step-00000001" / "hf"
    shutil.copytree(embedded.resolve("embedded:xs"), model)
    (model.parent / MANIFEST).write_text(Manifest().text())
    (model / "extra.json").symlink_to(mine / "key")
    said = invoke("export", str(run.path), str(tmp_path / "out"))
    assert (said.exit_code, f"is a link to {mine / 'key'}, outside the run" in said.output) == (2, True), said.output
    assert sorted(each.name for each in mine.iterdir()) == ["key"]
    assert not (tmp_path / "out").exists()


def test_a_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("old")
    for name in ("page.html", "page.html.part"):
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    write_text(tmp_path / "page.html", "new")
    assert (tmp_path / "theirs").read_text() == "old"
    assert (tmp_path / "page.html").read_text() == "new"


@pytest.mark.parametrize("name", ["../up", "/abs", "..", "a/b", ""])
def test_a_runs_name_is_a_folder_of_its_own(name: str, tmp_path: Path) -> None:
    result = invoke("run", "embedded_xs", "--out", str(tmp_path / "runs"), "-s", f"name={json.dumps(name)}")
    assert result.exit_code == 2
    assert "is not the name of a folder" in result.output
