"""Plugins that break their contract, one by one: each is found, and the sentence says what is wrong and where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import rlkit.conformance as conformance
from rlkit import registry
from rlkit.cli import main
from rlkit.conformance import ConformanceError, samplers
from rlkit.conformance.environments import read_tasks
from rlkit.conformance.findings import Broken, Finding
from rlkit.conformance.report import line
from rlkit.errors import ConfigError
from rlkit.evaluation.suites import Suite
from rlkit.generation.transformers import TransformersConfig, _Transformers
from rlkit.interfaces.environments import Task
from rlkit.interfaces.generation import Completion

BROKEN = """
import random

import torch

from rlkit import Algorithm, Needs, Targets, advantage, algorithm, loss, noise, sampler, suite, tracker
from rlkit.evaluation.suites import Suite
from rlkit.interfaces.generation import Completion
from rlkit.ops.masked import group_mean, masked_sum


def reinforce(new, batch, targets):
    return masked_sum(-targets.get("advantages") * new.get("logprobs"), batch.mask) / max(batch.n_tokens, 1), {}


def centred(batch, state):
    r = batch.rollout
    score = r.reward - group_mean(r.reward, r.group, r.valid)
    return Targets(advantages=torch.where(batch.mask, score[:, None], 0.0))


@loss("broken_mean")
def broken_mean():
    def compute(new, batch, targets):
        return (-targets.get("advantages") * new.get("logprobs"))[batch.mask].mean(), {}

    return compute


@algorithm("broken_closure")
def broken_closure():
    seen = []

    def compute(batch, state):
        seen.append(float(batch.rollout.reward[batch.rollout.valid].mean()))
        return Targets(advantages=(batch.rollout.reward - sum(seen) / len(seen))[:, None] * batch.mask)

    return Algorithm(advantage=compute, policy_loss=reinforce)


@advantage("broken_all_rows")
def broken_all_rows():
    def compute(batch, state):
        return Targets(advantages=(batch.rollout.reward - batch.rollout.reward.mean())[:, None] * batch.mask)

    return compute


@advantage("broken_order")
def broken_order():
    def compute(batch, state):
        first = batch.rollout.reward[batch.rollout.valid][0]
        return Targets(advantages=(batch.rollout.reward - first)[:, None] * batch.mask)

    return compute


@advantage("broken_width")
def broken_width():
    def compute(batch, state):
        targets = centred(batch, state)
        targets.advantages = targets.advantages / batch.mask.shape[1]
        return targets

    return compute


@algorithm("broken_sign")
def broken_sign():
    def compute(new, batch, targets):
        value, metrics = reinforce(new, batch, targets)
        return -value, metrics

    return Algorithm(advantage=centred, policy_loss=compute)


@loss("broken_needs_more")
def broken_needs_more():
    def compute(new, batch, targets):
        value, metrics = reinforce(new, batch, targets)
        return value + masked_sum(new.get("token_kl"), batch.mask) / batch.n_tokens, metrics

    return compute


@loss("broken_needs_less")
def broken_needs_less():
    def compute(new, batch, targets):
        return reinforce(new, batch, targets)

    compute.needs = Needs(old=frozenset({"ref_logprobs"}))
    return compute


@loss("broken_gradient")
def broken_gradient():
    def compute(new, batch, targets):
        kept = torch.where(batch.mask, new.get("logprobs") - batch.old.get("logprobs"), 0.0)
        return masked_sum(-targets.get("advantages") * kept.abs().sqrt(), batch.mask) / batch.n_tokens, {}

    return compute


@loss("broken_raises")
def broken_raises():
    def compute(new, batch, targets):
        return batch.rewards.sum(), {}

    return compute


@advantage("broken_state")
def broken_state():
    def compute(batch, state):
        state["kept"] = lambda: 0
        return centred(batch, state)

    return compute


@noise("broken_dice")
class Dice:
    needs_range = False

    def __init__(self):
        self.dice = random.Random(0)

    def __call__(self, value, key, coin, range):
        return 0.0 if self.dice.random() < 0.5 else value


@noise("broken_silent")
class Silent:
    def __call__(self, value, key, coin, range):
        return value


@sampler("broken_sampler")
class Deaf:
    def __init__(self, model, context, seed):
        pass

    def generate(self, requests):
        for i, request in enumerate(requests):
            yield i, Completion(tokens=[5, 6], logprobs=[-0.5, 0.3], truncated=False, version=0)

    def sync(self, weights, version):
        pass

    def close(self):
        pass


@tracker("broken_tracker")
class Scattering:
    def __init__(self, run):
        self.run = run

    def log(self, step, metrics):
        open("mine.log", "a").write("".join(f"{name} {int(value)}" for name, value in metrics.items()))

    def log_samples(self, step, rows):
        open("mine.log", "a").write(rows[0]["response"])

    def close(self):
        pass


@suite("broken_suite")
def broken_suite():
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": "four"}]
    return Suite(load=lambda folder: rows, template=None, reward="numeric")
"""

REWARDS = """
import os

from rlkit import Observation, environment, reward


@reward("broken_curve")
def broken_curve(samples):
    longest = max(len(s.response) for s in samples)
    return [len(s.response) / max(longest, 1) for s in samples]


@reward("broken_range")
def broken_range(samples):
    return [len(s.response) / 20 for s in samples]


broken_range.range = (0.0, 1.0)


@reward("broken_columns_changed")
def broken_columns_changed(samples):
    for sample in samples:
        sample.columns["seen"] = True
    return [0.5 for _ in samples]


@reward("broken_hash")
def broken_hash(samples):
    return [hash(s.response) % 1000 / 1000 for s in samples]


@reward("broken_parse")
def broken_parse(samples):
    return [float(int(s.response.rpartition("#### ")[2] or 0) == 1) if "####" in s.response else 0.0 for s in samples]


@reward("broken_count")
def broken_count(samples):
    return [1.0 for s in samples if s.response.startswith("####")]


@reward("broken_columns")
def broken_columns(samples):
    return [float(s.columns["difficulty"]) for s in samples]


class Echo:
    def start(self, task, seed):
        return ""

    def step(self, action):
        return action


@environment("broken_row")
class Row(Echo):
    def start(self, task, seed):
        return f"level {task.columns['level']}"


@environment("broken_silence")
class Silence(Echo):
    def step(self, action):
        print(action)


@environment("broken_cost")
class Cost(Echo):
    range = (0.0, 1.0)

    def step(self, action):
        return Observation(reward=-0.125)


@environment("broken_draw")
class Draw(Echo):
    def step(self, action):
        return str(os.urandom(2)[0])


@environment("broken_cut")
class Cut(Echo):
    def step(self, action):
        self.said = action
        return ""

    def cut(self, unheard):
        return Observation(reward=float(len(self.said)))


@environment("broken_debt")
class Debt(Echo):
    range = (0.0, 1.0)

    def step(self, action):
        return Observation(reward=0.5)

    def cut(self, unheard):
        return Observation(reward=-0.25)


@environment("broken_half")
class Half(Echo):
    def cut(self, unheard):
        return Observation(reward=float(unheard) if unheard.startswith(" ") else 0.0)


@environment("broken_start")
class Start(Echo):
    def start(self, task, seed):
        return Observation(text="Go.", reward=0.0)


@environment("broken_depth")
class Depth(Echo):
    def step(self, action):
        return "deep" if len(action) < 1000 else self.step(action[1:])
"""

SENTENCES = {
    "loss": {
        "broken_mean": r"the loss of the whole batch is -?[0-9.]+, and of its parts together -?[0-9.]+: so what is "
        r"learnt would change with the memory setting\. .* Rows of the parts: 0 \| 1\.\n"
        r"row  group  reward  valid  mask\n"
        r"( +[01] .*\n){1}( +[01] .*)(\n|$)",
        "broken_needs_more": "'token_kl' was not computed: name it in `needs`",
        "broken_needs_less": r"it declares Needs\(old=\{ref_logprobs\}\) and never reads that: leave it out, it costs",
        "broken_gradient": "the gradient at logprobs is not finite",
        "broken_raises": r"it raised AttributeError: 'Batch' object has no attribute 'rewards' \(.*broken.py:\d+: "
        r"return batch\.rewards\.sum\(\), \{\}\)",
    },
    "algorithm": {
        "broken_closure": r"resumed after update 2, `advantages` is \S+, not \S+, in update 3 than without a stop: "
        r"something is remembered outside of `state`, in a closure",
        "broken_sign": r"after 60 updates on a bandit of 4 prompts the mean reward is 0\.0\d, and 0\.25 by chance: it "
        r"does not learn\. Is a sign turned round",
    },
    "advantage": {
        "broken_all_rows": r"the loss is \S+, and \S+ without padding, invalid samples and environment tokens: "
        r"something counts that is not there\. Use the functions of rlkit\.ops\.masked",
        "broken_order": "`advantages` changes with the rows in another order",
        "broken_width": "`advantages` changes with three more columns of padding",
        "broken_state": r"its state cannot be saved with a checkpoint and read again: it holds kept \(function\)",
    },
    "reward": {
        "broken_curve": r"of the response '.*' it makes 1 alone, and 0\.\d+ in a call with '.*': which samples "
        r"come in one call is chance\. Judge each sample by itself",
        "broken_range": r"got \S+, outside the range \(0\.0, 1\.0\) that the reward declares\. The response: '",
        "broken_columns_changed": r"it changes the sample that it is given, of the response '.*', which others read",
        "broken_hash": r"in one process and \S+ in another\. hash\(\) of a text differs between processes",
        "broken_parse": r"hostile responses break it: 5,000 digits after the marker: it raised ValueError: Exceeds the",
        "broken_count": r"returned \d+ results for \d+ samples: it must return one per sample",
        "broken_columns": r"it has a value for none of sums, countdown and sorting: it raised KeyError: 'difficulty' "
        r"\(rewards\.py:\d+\)\. If it is right with your data, give it samples like those: --data FILE",
    },
    "environment": {
        "broken_row": r"it can begin with none of sums, countdown, sorting and a question alone: environment "
        r"'broken_row': start raised: KeyError: 'level'\. If it is right with your data, give it some: --data FILE",
        "broken_silence": r"step returned None; it must return text or an rlkit\.Observation: does it end with `return "
        r"\.\.\.`\?\. The question: '.*', the gold: '.*', seed 0; it was told '",
        "broken_cost": r"its rewards add up to -0\.125, outside the range \(0\.0, 1\.0\) that it declares for their sum"
        r"\. A trajectory may be cut after any turn\. The question: ",
        "broken_draw": r"it answers '\d+', reward None, done False, and '\d+', reward None, done False when all is "
        r"done again: a resumed run would be another\. Draw from the `seed` of start alone",
        "broken_cut": r"environment 'broken_cut': cut raised: AttributeError: 'Cut' object has no attribute 'said'\. "
        r"The question: '.*', the gold: '.*', seed 0; it was cut in '",
        "broken_debt": r"its rewards add up to 3\.75, outside the range \(0\.0, 1\.0\) .*; it was told '.*; it was "
        "cut$",
        "broken_half": r"hostile actions break it: .*: environment 'broken_half': cut raised: ValueError: could not",
        "broken_start": r"environment 'broken_start': start says that all is rewarded before the model has acted\. If ",
        "broken_depth": r"hostile actions break it: a megabyte of one letter: environment 'broken_depth': step raised: "
        r"RecursionError: .* A model says such things: answer them",
    },
    "noise": {
        "broken_dice": r"of the reward \S+, prompt 0, step 1, index 0, it made \S+, and with the samples in reverse "
        r"order \S+: so algorithms, ranks and resumed runs would not meet the same noise",
        "broken_silent": "has no `needs_range`: say needs_range = True where",
    },
    "sampler": {"broken_sampler": r"0\.3 is no log-prob: these are finite and at most 0"},
    "tracker": {
        "broken_tracker": r"it raised ValueError: cannot convert float NaN to integer on nan under the name "
        r"'reward/mean'(.|\n)*on 0 responses, no rows(.|\n)*it wrote mine\.log in the working directory",
    },
    "suite": {"broken_suite": r"its verifier takes 1 of 2 golds for wrong.*row 2: four \(bad_gold\)"},
}
SLOW = (
    *("broken_columns_changed", "broken_hash", "broken_count", "broken_columns", "broken_sampler"),
    *(
        "broken_row",
        "broken_cost",
        "broken_cut",
        "broken_debt",
        "broken_half",
        "broken_start",
        "broken_draw",
        "broken_depth",
    ),
)
"""Each starts a worker process, or loads a model."""
KINDS = {"loss": "losses", "noise": "noise"}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("plugins") / "broken.py"
    file.write_text(BROKEN)
    file.with_name("rewards.py").write_text(REWARDS)  # apart: worker processes need no torch for it
    before = dict(registry._plugins)
    registry.load([str(file), str(file.with_name("rewards.py"))])
    yield file
    registry._plugins.clear()
    registry._plugins.update(before)


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        pytest.param(kind, name, said, id=name, marks=pytest.mark.slow if name in SLOW else ())
        for kind, some in SENTENCES.items()
        for name, said in some.items()
    ],
)
def test_what_is_broken_is_said_in_a_sentence(kind: str, name: str, sentence: str, broken: Path) -> None:
    with pytest.raises(ConformanceError) as raised:
        getattr(conformance, f"check_{kind}")(name)
    said = str(raised.value)
    assert re.search(sentence, said), said
    file, source = (broken.with_name("rewards.py"), REWARDS) if kind in ("reward", "environment") else (broken, BROKEN)
    number = next(i for i, text in enumerate(source.splitlines(), 1) if f'@{kind}("{name}")' in text)
    assert said.startswith(f"{kind} {name!r}, {file}:{number}: ")


def test_every_kind_has_a_broken_one() -> None:
    assert {KINDS.get(kind, f"{kind}s") for kind in SENTENCES} == set(registry.KINDS)


def test_a_factory_stands_for_its_name(broken: Path) -> None:
    with pytest.raises(ConformanceError, match="does not learn"):
        conformance.check_algorithm(registry.find("algorithms", "broken_sign").factory)
    with pytest.raises(ConfigError, match=r"is not registered among the algorithms: decorate it"):
        conformance.check_algorithm(test_a_factory_stands_for_its_name)


def test_one_alone_gives_the_smallest_batch(broken: Path) -> None:
    with pytest.raises(ConformanceError) as raised:
        conformance.check_loss("broken_mean")
    table = str(raised.value).partition("row  group")[2]
    assert len(table.partition("loss 'broken_mean'")[0].strip().splitlines()) == 3  # a heading, two rows of one token
    assert table.splitlines()[1].endswith("yes     1")


def test_a_sampler_with_stream_is_held_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))

    class Streaming(_Transformers):
        how = "rightly"

        def stream(self, requests: Any) -> Iterator[tuple[int, Completion]]:
            first = 0
            while (new := requests.take(wait=True)) is not None:
                if self.how == "waiting":
                    requests.take(wait=True)
                if self.how == "otherwise":
                    new = [replace(request, seed=request.seed + 1) for request in new]
                for index, completion in self.generate(new):
                    yield (index if self.how == "numbered anew" else first + index), completion
                first += len(new)
                if self.how == "once":
                    return

    @registry.sampler("streaming_check")
    def streaming(config: TransformersConfig, model: Any, context: int, seed: int) -> Streaming:
        return Streaming(config, model, context)

    plugin = registry.find("samplers", "streaming_check")
    subject: Any = samplers._Subject(plugin, {})
    subject.requests = subject.requests[:4]
    subject.streams()
    for how, said in [
        ("waiting", r"it waits for requests \(take\(wait=True\)\) while 2 are unanswered: what comes next may follow"),
        ("otherwise", r"prompt '.*', seed \d, max_tokens 24, .*: other tokens than by `generate`"),
        ("numbered anew", r"it yielded the index [01], and those of the open requests are \[2, 3\]"),
        ("once", r"it ended with 0 requests unanswered and 2 not asked for: it goes on until `take` gives None"),
    ]:
        subject.sampler.how = how
        with pytest.raises(Broken, match=said):
            subject.streams()
    assert [check.says for check in samplers.checks(plugin, {}) if "stream" in check.says]
    assert not [
        check.says for check in samplers.checks(registry.find("samplers", "transformers"), {}) if "stream" in check.says
    ]


# The command

GOOD = """
from rlkit import noise


@noise("stuck_check")
class Stuck:
    needs_range = False

    def __init__(self, *, prob: float):
        self.prob = prob

    def __call__(self, value, key, coin, range):
        return 0.0 if coin(key, shared=True) < self.prob else value


@noise("loud_check")
class Loud:
    needs_range = False

    def __call__(self, value, key, coin, range):
        return value + float("inf")
"""


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "good.py"
    file.write_text(GOOD)
    return file


def check(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["check", *arguments])


def test_the_command_says_each_check_in_a_line(good: Path) -> None:
    result = check("good.py", "-s", "stuck_check.prob=0.2")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "noise 'stuck_check', good.py:5",
        "  ok        it says whether it needs the reward's range",
        "  ok        it gives a finite number, or None",
        "  ok        the same sample meets the same noise, in any order",
        "  ok        chance comes from the coin alone",
        "noise 'loud_check', good.py:16",
        "  ok        it says whether it needs the reward's range",
        "  FAILED    it gives a finite number, or None: it made inf of the reward 0, prompt 0, step 1, index 0: it "
        "must give a finite number, or None",
        *result.stdout.splitlines()[8:10],
        "noise 'stuck_check' passes 4 checks",
        "noise 'loud_check' fails 1 of 4 checks",
    ]
    assert check("stuck_check", "-s", "prob=0.2").exit_code == 0
    Path("ends.py").write_text(
        "from rlkit import reward\n@reward('ends_check')\ndef ends(sample): return sample.response\n"
    )
    said = check("ends.py").stdout
    assert "fails 1 of 1 check; those that come after it could not be made" in said
    assert "(ends.py:3)" in said


def test_a_suite_is_held_to_its_contract_with_the_options_that_are_given(good: Path) -> None:
    @registry.suite("sized_check")
    def sized(*, gold: str = "4") -> Suite:
        return Suite(load=lambda folder: [{"prompt": "2+2=", "answer": gold}], template=None, reward="numeric")

    conformance.check_suite("sized_check")
    with pytest.raises(ConformanceError, match="its verifier takes 1 of 1 golds for wrong"):
        conformance.check_suite("sized_check", gold="four")


def test_the_page_shows_what_the_command_says(good: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "checking-a-plugin.md").read_text()
    Path("averaged.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    shown = page.partition("```console\n$ rlkit check averaged.py\n")[2].partition("```")[0]
    said = check("averaged.py").stdout
    assert len(shown.split()) > 60
    assert said.split()[: len(shown.split())] == shown.split()


def test_long_sentences_are_broken_at_the_terminal_s_width() -> None:
    finding = Finding("it holds", wrong=f"{'word ' * 30}\na table  stays")
    assert max(map(len, line(finding, 50).splitlines())) <= 50
    assert line(finding, 50).splitlines()[-1] == " " * 12 + "a table  stays"
    assert len(line(finding).splitlines()) == 2


def test_the_command_speaks_json(good: Path) -> None:
    result = check("good.py", "-s", "stuck_check.prob=0.2", "--json")
    first, second = json.loads(result.stdout)
    assert (first["kind"], first["name"], first["line"], first["passed"]) == ("noise", "stuck_check", 5, True)
    assert Path(first["file"]) == good
    assert [each["passed"] for each in second["checks"]][:2] == [True, False]
    assert "it made inf" in second["checks"][1]["said"]


def test_a_module_stands_for_all_that_it_registers_and_what_it_prints_is_no_json(good: Path) -> None:
    good.rename("module_to_check.py")
    with Path("module_to_check.py").open("a") as file:
        file.write("\n\nLoud.__call__ = lambda *_: print('a print')\n")
    result = check("module_to_check", "-s", "stuck_check.prob=0.2", "--json")
    assert [each["name"] for each in json.loads(result.stdout)] == ["stuck_check", "loud_check"]
    assert "a print" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["grpoo"], "'grpoo' is no registered plugin; did you mean 'grpo'"),
        (["nowhere.py"], "plugin file 'nowhere.py' does not exist"),
        (["folder"], "plugin 'folder' is a folder, not a Python file: give the file in it, as in folder/folder.py"),
        (["folder/"], "plugin 'folder' is a folder, not a Python file: give the file in it, as in folder/folder.py"),
        (["empty.py"], "empty.py registers no plugin: put a decorator over"),
        (["typo.py"], "NameError: name 'undefined_name' is not defined"),
        (["rewards/maths"], "unknown reward 'maths'; did you mean 'math'"),
        (
            ["good.py"],
            "noise 'stuck_check': 'prob' is missing: it has no default. Options are given with -s stuck_check.",
        ),
        (["good.py", "-s", "prob=1"], "-s prob=1: say whose option it is, as in -s stuck_check.OPTION=VALUE"),
        (["flip", "-s", "prob=1", "-s", "probb=1"], "unknown key 'probb'"),
        (
            ["flip", "-s", "prob=1", "--data", "rows.jsonl"],
            "--data rows.jsonl: a file is for environments and rewards, and there are none",
        ),
        (["exact", "--data", "rows.jsonl"], "rows.jsonl: none of the columns prompt, problem, question is there"),
        (["twice_check"], "'twice_check' is of several kinds: say rewards/twice_check or noise/twice_check"),
    ],
)
def test_what_cannot_be_loaded_ends_in_2(arguments: list[str], said: str, good: Path) -> None:
    Path("folder").mkdir()
    for name in ("a.py", "folder.py"):
        Path("folder", name).write_text("")
    Path("empty.py").write_text("x = 1\n")
    Path("typo.py").write_text("undefined_name\n")
    Path("rows.jsonl").write_text('{"text": "1+1"}\n')
    for register in (registry.reward, registry.noise):
        register("twice_check")(lambda samples: [])
    result = check(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output


def test_an_environment_is_told_of_the_rows_given(tmp_path: Path) -> None:
    file = tmp_path / "games.jsonl"
    rows = [{"question": f"Guess, {n} to 9", "answer": n, "level": {"hard": n > 1}} for n in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = read_tasks(str(file))
    assert len(tasks) == 4
    assert tasks[2] == Task(question="Guess, 2 to 9", answer="2", gold=2, columns={"level": {"hard": True}})
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no rows"):
        read_tasks(str(file))


def test_rewards_of_an_environment_that_hears_of_a_cut_add_up_where_it_has(good: Path) -> None:
    Path("settles.py").write_text(
        "from rlkit import Observation, environment\n@environment('settles_check')\nclass Settles:\n"
        "    range = (0.0, 1.0)\n"
        "    def start(self, task, seed):\n        self.turns = 0\n        return ''\n"
        "    def step(self, action):\n        self.turns += 1\n        return Observation(reward=-1.0)\n"
        "    def cut(self, unheard):\n        return Observation(reward=self.turns + bool(unheard), done=True)\n"
    )
    result = check("settles.py")
    assert result.exit_code == 0, result.output
    assert "of which it ended 0" in result.output


def test_a_reward_is_judged_by_the_data_given(good: Path) -> None:
    rows = [{"question": "1+1", "answer": "2", "difficulty": 0.25}, {"question": "2+2", "answer": "4", "difficulty": 1}]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("hard.py").write_text(
        "from rlkit import reward\n@reward('hard_check')\ndef hard(samples):\n"
        "    return [s.columns['difficulty'] * s.response.endswith(s.answer) for s in samples]\n"
    )
    result = check("hard.py", "--data", "data.jsonl")
    assert result.exit_code == 0, result.output
    assert "12 of 12 with a value" in result.output
