"""A plugin that raises, or gives what it must not, ends in a sentence with its name, file and line."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from learner_help import learner_of, settings
from random_batches import fresh_case

from rlkit import config as configs
from rlkit import registry
from rlkit.cli import main
from rlkit.config import ModelConfig, PluginRef
from rlkit.errors import ConfigError, NotFiniteError, PluginError, PluginLoadError, RlkitError
from rlkit.generation import Listed, build_sampler
from rlkit.interfaces.generation import Completion, Request, SamplingParams
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.scoring.noise import apply_noise, build_noises
from rlkit.tracking import RunInfo, build_tracker

SMALL = ["-s", "batch.prompts_per_step=2", "-s", "batch.samples_per_prompt=4", "-s", "eval.problems=2", "-s", "steps=1"]

ALGORITHM = """
from rlkit import Algorithm, Targets, algorithm


@algorithm("{name}")
def mine() -> Algorithm:
    def advantage(batch, state):
        given = batch.rollout.reward[:, None] * batch.mask
        {advantage}
        return Targets(advantages=given)

    def loss(new, batch, targets):
        value = -(new.get("logprobs") * targets.get("advantages"))[batch.mask].sum() / batch.n_tokens
        {loss}
        return value, {{}}

    def value_loss(values, batch, targets):
        {value_loss}

    def after_update(metrics, state):
        {after_update}

    def keep_group(rewards):
        {keep_group}

    advantage.gives = {gives}
    advantage.after_update = after_update
    advantage.keep_group = keep_group
    return Algorithm(advantage=advantage, policy_loss=loss, value_loss={critic})
"""
PARTS = ("advantage", "loss", "value_loss", "after_update", "keep_group")


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    """Writes a plugin file, whose text may name `{name}`, loads it, and gives the name."""

    def write(text: str, **parts: str) -> str:
        name = f"mine_{random.getrandbits(48):x}"
        file = tmp_path / f"{name}.py"
        file.write_text(text.format(name=name, **parts))
        registry.load([str(file)])
        return name

    return write


def algorithm_of(written: Callable[..., str], **parts: str) -> tuple[str, int]:
    """Its name, and the line of the one part that is given."""
    defaults = dict.fromkeys(PARTS, "pass") | {"critic": "None", "gives": "{'advantages'}"}
    if "value_loss" in parts:
        defaults |= {"critic": "value_loss", "gives": "{'advantages', 'returns'}"}
        defaults["advantage"] = "return Targets(advantages=given, returns=given)"
    name = written(ALGORITHM, **(defaults | parts))
    (part,) = parts.values()
    lines = ALGORITHM.format(name=name, **(defaults | parts)).splitlines()
    return name, 1 + next(i for i, line in enumerate(lines) if line.strip() == part)


def learnt(name: str) -> None:
    case = fresh_case(outside=0.0)
    learner, _ = learner_of(case, settings(name))
    learner.learn(case.batch.rollout, case.batch.old, 1)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"advantage": "torch.zeros(3)"}, "its advantage raised NameError: name 'torch' is not defined"),
        ({"advantage": "given + given.T[:2]"}, "its advantage raised RuntimeError: The size of tensor a"),
        ({"loss": "new.get('token_kl')"}, "raised KeyError: 'token_kl' was not computed: name it in `needs`"),
        ({"loss": "raise ValueError('half written')"}, "its loss raised ValueError: half written"),
        ({"value_loss": "return values.nothing"}, "its value loss raised AttributeError: 'Tensor' object has no"),
        ({"after_update": "metrics['nowhere']"}, "its after_update raised KeyError: 'nowhere'"),
    ],
)
def test_what_an_algorithm_raises_carries_its_line(
    parts: dict[str, str], said: str, written: Callable[..., str], tmp_path: Path
) -> None:
    name, line = algorithm_of(written, **parts)
    with pytest.raises(PluginError) as raised:
        learnt(name)
    text = str(raised.value)
    assert text.startswith(f"algorithm {name!r}, {tmp_path / name}.py:{line}: ")
    assert said in text
    assert text.endswith("\n    " + next(iter(parts.values())))
    assert raised.value.__cause__ is not None


def test_memory_that_is_out_is_not_the_plugins_fault(written: Callable[..., str]) -> None:
    name, _ = algorithm_of(written, loss="new.get('logprobs').new_empty(2**50)")
    # The engine knows it by this text, and says what to try.
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        learnt(name)


def test_what_keep_group_raises_or_forgets(written: Callable[..., str]) -> None:
    for part, said in (
        ("rewards.sort_()", "its keep_group raised AttributeError"),
        ("pass", "its keep_group returned None; it must return True or False"),
    ):
        name, _ = algorithm_of(written, keep_group=part)
        learner, _ = learner_of(fresh_case(outside=0.0), settings(name))
        with pytest.raises(PluginError, match=said):
            learner.calls.keep_group([0.0, 1.0])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"advantage": "return"}, "returned None; it must return an rlkit.Targets: does it end with"),
        ({"advantage": "return given"}, "returned Tensor (tensor("),
        ({"advantage": "return Targets()"}, "gave no advantages, which it declares in `gives`"),
        (
            {"advantage": "given = batch.rollout.reward"},
            "gave advantages of shape [12]; they must be [B, T], here [12, 6]",
        ),
        ({"advantage": "given = given.tolist()"}, "gave advantages that are a list; they must be a tensor of [B, T]"),
        ({"advantage": "return Targets(advantages=given, scalars={'a': given})"}, "gave scalars['a'] that is Tensor ("),
        ({"advantage": "return Targets(advantages=given, credit={'c': given[0]})"}, "gave credit['c'] of shape [6]"),
        ({"loss": "return value"}, "must return two things, as in `return loss, {}`"),
        ({"loss": "return"}, "returned None; it must return two things"),
        ({"loss": "value = float(value)"}, "returned a loss that is float ("),
        ({"loss": "value = new.get('logprobs').sum(1)"}, "must be one number: sum it over tokens"),
        ({"loss": "value = value.detach()"}, "carries no gradient, so nothing would be learnt"),
        (
            {"loss": "return value, None"},
            "returned metrics that are None; they must be a dict of name -> (sum, weight)",
        ),
        ({"loss": "return value, {'m': value}"}, "returned the metric 'm' as Tensor"),
        ({"loss": "return value, {'m': (batch.mask, 1)}"}, "the metric 'm' with a sum that is a tensor of shape ["),
        ({"value_loss": "return values.sum()"}, "its value loss returned Tensor ("),
    ],
)
def test_what_an_algorithm_must_not_return(parts: dict[str, str], said: str, written: Callable[..., str]) -> None:
    name, _ = algorithm_of(written, **parts)
    with pytest.raises(PluginError) as raised:
        learnt(name)
    assert said in str(raised.value)
    assert re.match(rf"algorithm '{name}', .*{name}\.py:\d+: its ", str(raised.value))


def test_advantages_that_are_not_finite_leave_the_update_out_and_are_named(written: Callable[..., str]) -> None:
    """As a loss that is not finite does: a run ends after three in a row, not by one chance division by 0."""
    name, _ = algorithm_of(written, advantage="given = given / 0")
    case = fresh_case(outside=0.0)
    learner, _ = learner_of(case, settings(name))
    said = rf"algorithm '{name}', .*{name}\.py:\d+: its advantage gave advantages that are not finite for"
    for step in (1, 2):
        with pytest.warns(UserWarning, match=rf"^step {step}: {said}"):
            metrics, _ = learner.learn(case.batch.rollout, case.batch.old, step)
        assert metrics["updates/not_finite"] == 1
    with pytest.raises(NotFiniteError, match=rf"^step 3: {said}(?s:.*)3 updates in a row were not finite"):
        learner.learn(case.batch.rollout, case.batch.old, 3)


def test_models_that_are_not_finite_are_not_the_advantage_s_fault(written: Callable[..., str]) -> None:
    name, _ = algorithm_of(written, advantage="given = given * batch.old.get('logprobs').sum()")
    case = fresh_case(outside=0.0)
    learner, _ = learner_of(case, settings(name))
    old = case.batch.old
    assert old.logprobs is not None
    old.logprobs = torch.where(case.batch.mask, float("nan"), old.logprobs)
    learner.learn(case.batch.rollout, old, 1)


def test_a_part_set_by_name_carries_its_own(written: Callable[..., str], tmp_path: Path) -> None:
    name = written(
        'from rlkit import loss\n\n\n@loss("{name}")\ndef mine():\n    def compute(new, batch, targets):\n'
        "        return 1 / 0\n\n    return compute\n"
    )
    case = fresh_case(outside=0.0)
    learner, _ = learner_of(case, settings("grpo", f"loss={name}"))
    with pytest.raises(PluginError, match=rf"^loss '{name}', .*{name}\.py:7: its loss raised ZeroDivisionError"):
        learner.learn(case.batch.rollout, case.batch.old, 1)


FACTORIES = """
from rlkit import {kind}


@{kind}("{name}")
def mine({parameters}):
    {body}
"""


@pytest.mark.parametrize(
    ("kind", "kinds", "parameters", "body", "said"),
    [
        ("algorithm", "algorithms", "", "open('/nowhere')", ":7: its factory raised FileNotFoundError: [Errno 2]"),
        (
            "advantage",
            "advantages",
            "",
            "pass",
            "its factory returned None; it must return something that can be called",
        ),
        ("loss", "losses", "", "return 3", "its factory returned int (3); it must return something that can be called"),
        ("noise", "noise", "", "{}['a']", "its factory raised KeyError: 'a'"),
        ("tracker", "trackers", "info", "return print", "has a method log and has a method log_samples and"),
        ("sampler", "samplers", "model, context, seed", "pass", "has a method generate and has a method sync and"),
        ("suite", "suites", "", "raise OSError('no net')", "its factory raised OSError: no net"),
    ],
)
def test_what_a_factory_raises_or_makes(
    kind: str, kinds: registry.Kind, parameters: str, body: str, said: str, written: Callable[..., str]
) -> None:
    name = written(FACTORIES, kind=kind, parameters=parameters, body=body)
    context: list[Any] = [None] * len([p for p in parameters.split(",") if p])
    with pytest.raises(PluginLoadError) as raised:
        registry.build(kinds, name, {}, *context)
    assert isinstance(raised.value, ConfigError)
    assert str(raised.value).startswith(f"{kind} {name!r}, ")
    assert said in str(raised.value)


def test_an_algorithm_s_factory_that_makes_none(written: Callable[..., str]) -> None:
    name = written(FACTORIES, kind="algorithm", parameters="", body="pass")
    with pytest.raises(ConfigError, match=r"py:5: its factory returned None; it must return an rlkit\.Algorithm"):
        configs.resolve(settings(name))


OBJECT = """
from rlkit import {kind}
from rlkit.interfaces.generation import Completion


@{kind}("{name}")
class Mine:
    needs_range = False

    def __init__(self, {parameters}):
        pass

    def generate(self, requests):
        {generate}

    def sync(self, weights, version):
        {sync}

    def log(self, step, metrics):
        {log}

    def log_samples(self, step, rows):
        {log}

    def close(self):
        {log}

    def __call__(self, value, key, coin, range):
        {call}

    def stream(self, requests):
        while (new := requests.take(wait=True)) is not None:
            yield from self.generate(new)
"""


def made(written: Callable[..., str], kind: str, parameters: str, **parts: str) -> str:
    bodies = dict.fromkeys(("generate", "sync", "log", "call"), "pass") | parts
    return written(OBJECT, kind=kind, parameters=parameters, **bodies)


GOOD = Completion(tokens=[1], logprobs=[-0.1], truncated=False, version=0)


@pytest.mark.parametrize(
    ("generate", "said"),
    [
        ("yield 1 / 0", "its generate raised ZeroDivisionError: division by zero\n    yield 1 / 0"),
        ("yield 0", "its generate yielded int (0); it must yield pairs"),
        (
            "yield from [(0, {good}), (0, {good})]",
            "yielded a completion of request 0, which there is not, or which was",
        ),
        ("yield 0, {good}", "gave no completion for 1 of 2 requests, the first of them request 1"),
        ("yield 0, Completion(tokens=[1, 2], logprobs=[-0.1], truncated=True, version=0)", "1 logprobs for 2 tokens"),
    ],
)
def test_a_sampler_s_faults(generate: str, said: str, written: Callable[..., str]) -> None:
    body = generate.replace("{good}", "Completion(tokens=[1], logprobs=[-0.1], truncated=False, version=0)")
    name = made(written, "sampler", "model, context, seed", generate=body, sync="raise OSError('gone')")
    mine = build_sampler(PluginRef(kind=name), ModelConfig(path="embedded:xs"), 32, 0)
    requests = [Request(prompt_tokens=[1], seed=i, params=SamplingParams(max_tokens=2)) for i in range(2)]
    for way, given, lines in (("generate", requests, "1[34]"), ("stream", Listed(requests), "(14|31)")):
        with pytest.raises(PluginError, match=f"^sampler '{name}', .*py:{lines}: ") as raised:
            list(getattr(mine, way)(given))
        assert said.replace("its generate", f"its {way}") in str(raised.value)
    with pytest.raises(PluginError, match=r"py:17: its sync raised OSError: gone"):
        mine.sync([], 1)


def test_a_tracker_s_faults(written: Callable[..., str], tmp_path: Path) -> None:
    name = made(written, "tracker", "info", log="raise OSError('disk full')")
    mine = build_tracker(PluginRef(kind=name), RunInfo(name="r", folder=tmp_path, config={}, steps=1))
    mine.log(1, {})
    mine.log_samples(1, [])
    with pytest.warns(UserWarning, match=rf"^tracker '{name}', .*: its log raised OSError: disk full"):
        mine.close()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("return value + key", r"py:29: it raised TypeError: unsupported operand"),
        ("return float('nan')", r"it made float \(nan\) of the reward 1; it must give a finite number, or None"),
        ("return 'high'", r"it made str \(high\) of the reward 1"),
    ],
)
def test_a_noise_s_faults(call: str, said: str, written: Callable[..., str]) -> None:
    name = made(written, "noise", "", call=call)
    with pytest.raises(PluginError, match=rf"^noise '{name}', .*{said}"):
        apply_noise(build_noises([PluginRef(kind=name)]), 0, [SampleKey("p", 1, 0, 0)], [RewardResult(value=1.0)], None)


def rlkit(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


BROKEN = (
    ALGORITHM.format(
        name="{name}",
        critic="None",
        gives="None",
        loss="value = value.mean(5)",
        **dict.fromkeys(("advantage", *PARTS[2:]), "pass"),
    )
    .replace("{}", "{{}}")
    .replace("    advantage.gives = None\n", "")
)


def test_the_command_line_says_it_and_debug_shows_all(written: Callable[..., str], tmp_path: Path) -> None:
    name = written(BROKEN)
    run = ["run", "embedded_xs", *SMALL, "--plugin", str(tmp_path / f"{name}.py"), "--algo", name]
    result = rlkit(*run, "--out", str(tmp_path / "a"))
    assert result.exit_code == 1
    last = result.output.splitlines()[-3:]
    assert last[0].startswith(f"rlkit: algorithm {name!r}, ")
    assert "its loss raised IndexError: Dimension out of range" in last[0]
    assert last[1:] == [
        "    value = value.mean(5)",
        "rlkit: the same command with --debug shows the whole traceback",
    ]
    assert "Traceback" not in result.output

    result = rlkit(*run, "--out", str(tmp_path / "b"), "--debug")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.output
    assert "in _accumulate" in result.output
    assert result.output.splitlines()[-2].startswith(f"rlkit: algorithm {name!r}, ")
    assert "RLKIT_DEBUG" not in os.environ


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import json\nraise RuntimeError('half written')\n", "bad.py:2: RuntimeError: half written\n    raise Runt"),
        ("def f(:\n", "bad.py:1: SyntaxError: invalid syntax\n    def f(:"),
        ("import nowhere_at_all\n", "bad.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("import json\njson.loads('{')\n", "bad.py:2: JSONDecodeError: Expecting property name"),
    ],
)
def test_a_file_that_fails_to_import_carries_its_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text(text)
    for command in (["list"], ["run", "--dry-run"]):
        result = rlkit(*command, "--plugin", "bad.py")
        assert result.exit_code == 2
        assert result.output.startswith(f"rlkit: plugin 'bad.py' failed to import: {said}")
        assert "Traceback" not in result.output
    result = rlkit("--debug", "list", "--plugin", "bad.py")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.output


def test_a_setting_that_cannot_be_says_nothing_of_debug() -> None:
    result = rlkit("run", "--dry-run", "-s", "stepz=1")
    assert result.exit_code == 2
    assert "--debug" not in result.output


@pytest.mark.slow
def test_two_ranks_say_it_once(written: Callable[..., str], tmp_path: Path) -> None:
    name = written(BROKEN)
    command = [sys.executable, "-m", "rlkit", "run", "embedded_xs", *SMALL, "--nproc", "2", "--out", str(tmp_path)]
    plugin = ["--plugin", str(tmp_path / f"{name}.py"), "--algo", name]
    done = subprocess.run([*command, *plugin], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("its loss raised IndexError") == 1
    assert "Traceback" not in done.stderr


def test_errors_of_one_s_own_pass_as_they_are(written: Callable[..., str]) -> None:
    name, _ = algorithm_of(
        written, advantage="from rlkit.errors import RlkitError; raise RlkitError('buy more memory')"
    )
    with pytest.raises(RlkitError, match=r"^buy more memory$"):
        learnt(name)
