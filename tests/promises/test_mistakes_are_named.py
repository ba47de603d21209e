"""Bad input: each mistake is answered by a sentence that says what to do, and by its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rlkit.cli import main

ACTING = str(Path(__file__).parents[1] / "acting.py")
XS = ["run", "embedded_xs", "-s", "batch.prompts_per_step=2", "-s", "batch.samples_per_prompt=2", "-s", "steps=1"]


def rlkit(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--algo", "vinpo"], ["unknown algorithm 'vinpo'", "did you mean 'vimpo'"]),
        (["-s", "reward=final_anser"], ["unknown reward 'final_anser'", "did you mean 'final_answer'?"]),
        (["-s", "optimizer.learning_rte=1"], ["unknown key 'learning_rte' in 'optimizer'", "known: ", "lr"]),
        (["-s", "optimizr.lr=1"], ["unknown key 'optimizr' at the top level", "did you mean 'optimizer'?"]),
        (["-s", "algo.betta=1"], ["unknown key 'betta' in 'algo'", "did you mean 'beta'?"]),
        (["-s", "steps=many"], ["'steps'", "valid integer", "many"]),
        (["-s", "steps"], ["expected key=value"]),
        (["--algo", "grpo", "-s", "batch.samples_per_prompt=1"], ["batch.samples_per_prompt is 1", "2 or more"]),
        (["-s", "algo.estimator=k1"], ["k1", "rho - kappa is 0", "exact"]),
        (["-s", "model.dtype=bfloat16"], ["zero_stage 0", "bfloat16", "engine.zero_stage: 2"]),
        (["-s", "sampling.top_p=0.9"], ["top_p below 1", "top_p: 1.0"]),
        (["-s", "engine.offload_parameters=true"], ["engine.zero_stage: 3"]),
        (["-s", "engine.overlap_comm=true"], ["engine.overlap_comm needs engine.zero_stage 2 or 3"]),
        (["-s", "engine.offload_states=true"], ["engine.offload_states needs engine.zero_stage 2 or 3"]),
        (
            ["-s", "engine.zero_stage=2", "-s", "engine.offload_states=true", "-s", "engine.offload_optimizer=true"],
            ["set one or the other"],
        ),
        (["-s", "batch.minibatches=3"], ["multiple of minibatches (3)"]),
        (["-s", "optimizer.betas=[2,3]"], ["'optimizer.betas.0'", "less than 1"]),
        (["--name", ".."], ["not the name of a folder"]),
        (["--name", "a/b"], ["not the name of a folder"]),
        (["-s", "loss=clip"], ["gives scores, which the loss does not read"]),
        (["-s", "trackers=wandb"], ["should be a list, as in -s 'trackers=[a, b]'"]),
        (["-s", "engine=deepspeed"], ["should hold keys and values"]),
        (["--lr", "1e-4", "-s", "optimizer.lr=2e-4"], ["--lr and -s optimizer.lr=... are the same key"]),
        (["--lr", "1e-4", "-s", "lr=2e-4"], ["--lr and -s lr=... are the same key"]),
        (["--lr", "0"], ["'optimizer.lr'", "greater than 0"]),
        (["--learning-rate", "1e-4"], ["no such option --learning-rate", "optimizer.lr: --lr, or -s optimizer.lr=..."]),
        (["--num-generations=4"], ["the key is batch.samples_per_prompt: -s batch.samples_per_prompt=..."]),
        (["--max_completion_length", "9"], ["the key is sampling.max_tokens: -s sampling.max_tokens=..."]),
        (["--eps-clip", "0.2"], ["it may be -s algo.clip_low=..., or -s algo.clip_high=..."]),
        (["--top-p", "0.9"], ["it may be -s eval.top_p=..., or -s sampling.top_p=..."]),
        (["--warmup-update", "3"], ["it may be -s optimizer.warmup_updates=..., or -s critic.optimizer"]),
        (["--stepps", "3"], ["did you mean --steps?"]),
        (["--model-path", "x"], ["the key is model.path: --model, or -s model.path=..."]),
        (["-s", "sampler.gpu_memory=0.5"], ["name the plugin whose options these are"]),
        (["-s", "model.path=./nowhere"], ["'./nowhere' does not exist"]),
        (["-s", "model.path=/proc"], ["no config.json"]),
        (["--plugin", "nowhere.py"], ["plugin file", "nowhere.py' does not exist"]),
        (["--plugin", "no.such.module"], ["plugin module 'no.such.module' does not exist"]),
        (["-s", "model.path=embedded:xl"], ["embedded:xl", "did you mean"]),
        (["-s", "conversation.max_turns=0"], ["'conversation.max_turns'", "greater than or equal to 1"]),
        (
            ["-s", "conversation.max_turns=3"],
            ["conversation.max_turns: there is no environment to hold a conversation"],
        ),
        (["-s", "environment=tool"], ["unknown environment 'tool'", "did you mean 'tools'?"]),
        (["-s", "reward=[]"], ["reward names none, and there is no environment that gives one"]),
        (
            ["-s", "reward=[]", "-s", "environment=tools", "-s", "environment.tools=calculator"],
            ["nothing judges", "no reward of its own (it gives 0 to every trajectory)", "`rlkit list rewards`"],
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_a_model_is_loaded(arguments: list[str], said: list[str]) -> None:
    result = rlkit("run", "--dry-run", *arguments)
    assert result.exit_code == 2, result.output
    for words in said:
        assert words in result.output


MISDECLARED = """
from rlkit import Algorithm, Needs, Targets, advantage, algorithm, loss, reward


def compute(*inputs): ...


@advantage("declared_{n}")
def of_an_advantage():
    def mine(batch, state): ...
    mine.compare_groups = True
    return mine


@loss("declared_{n}")
def of_a_loss():
    def mine(new, batch, targets): ...
    mine.needs = Needs(grad=frozenset({{"log_probs"}}))
    return mine


class Critic:
    read = frozenset({{"returns"}})

    def __call__(self, values, batch, targets): ...


@algorithm("declared_{n}")
def of_a_critic():
    return Algorithm(advantage=compute, policy_loss=compute, value_loss=Critic())


@reward("declared_{n}_function")
def of_a_function(samples):
    return [1.0 for _ in samples]


of_a_function.ranges = (0.0, 1.0)


@reward("declared_{n}_class")
class OfAClass:
    range = (1.0, 0.0)

    def __call__(self, samples):
        return [1.0 for _ in samples]


@reward("declared_{n}_weight")
def weighted(samples, *, weight: float = 2.0):
    return [weight for _ in samples]


@algorithm("declared_{n}_kind")
def sorted_by(*, kind: str = "up"):
    return Algorithm(advantage=compute, policy_loss=compute)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--algo", "grpo", "-s", "advantage=declared_{n}"],
            ["advantage 'declared_{n}'", "of_an_advantage.<locals>.mine", "mine.py:10)", "'compares_groups'?"],
        ),
        (
            ["--algo", "grpo", "-s", "loss=declared_{n}"],
            ["loss 'declared_{n}'", "mine.py:17)", "'log_probs' is no statistic (grad); did you mean 'logprobs'"],
        ),
        (
            ["--algo", "declared_{n}"],
            ["the value loss of algorithm 'declared_{n}'", ":Critic (", "'read' is nearly the declaration 'reads'"],
        ),
        (
            ["-s", "reward=declared_{n}_function"],
            ["reward 'declared_{n}_function'", "of_a_function (", "'ranges' is neither; did you mean 'range'?"],
        ),
        (
            ["-s", "reward=declared_{n}_class"],
            ["reward 'declared_{n}_class'", ":OfAClass (", "range is (1.0, 0.0) (tuple), but must be two finite"],
        ),
        (
            ["-s", "reward=declared_{n}_weight", "-s", "reward.weight=0.5"],
            ["reward 'declared_{n}_weight'", "mine.py:", "'weight' is the reward's share", "Rename the option"],
        ),
        (
            ["--algo", "declared_{n}_kind"],
            ["algorithm 'declared_{n}_kind'", "mine.py:", "'kind' names the plugin", "Rename the option"],
        ),
    ],
)
def test_what_a_plugin_cannot_declare_is_refused_before_a_model_is_loaded(
    arguments: list[str], said: list[str], tmp_path: Path
) -> None:
    plugin, n = tmp_path / "mine.py", abs(hash(tmp_path))
    plugin.write_text(MISDECLARED.format(n=n))
    result = rlkit("run", "--dry-run", "--plugin", str(plugin), *(each.format(n=n) for each in arguments))
    assert result.exit_code == 2, result.output
    for words in said:
        assert words.format(n=n) in result.output


def test_an_unknown_config_names_the_nearest_preset() -> None:
    result = rlkit("run", "embeded")
    assert result.exit_code == 2
    assert "did you mean 'embedded'" in result.output


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("algo: vimpo\nmodle: {path: x}\n")
    result = rlkit("run", str(file))
    assert result.exit_code == 2
    assert str(file) in result.output
    assert "unknown key 'modle'" in result.output
    assert "'data' is missing" in result.output


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.jsonl", None, "missing.jsonl"),
        ("empty.jsonl", "", "empty"),
        ("broken.jsonl", '{"prompt": "1+1=", "answer": "2"}\nnot json\n', "broken.jsonl"),
        ("column.jsonl", '{"question": "1+1=", "answer": "2"}\n', "prompt"),
    ],
)
def test_a_data_file_that_cannot_be_used(name: str, content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    result = rlkit(*XS, "-s", f"data.path={file}", "--out", str(tmp_path / "runs"))
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert "Traceback" not in result.output


def test_responses_longer_than_the_model_reads_are_refused(tmp_path: Path) -> None:
    result = rlkit(*XS, "-s", "sampling.max_tokens=100000", "--out", str(tmp_path / "runs"))
    assert result.exit_code == 2, result.output
    assert "lower sampling.max_tokens" in result.output
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    taken = tmp_path / "runs" / "taken"
    (taken / "checkpoints" / "step-00000001").mkdir(parents=True)
    (taken / "config.yaml").write_text("steps: 1\n")
    result = rlkit(*XS, "--out", str(tmp_path / "runs"), "--name", "taken")
    assert result.exit_code == 2
    assert "taken" in result.output
    assert "--resume" in result.output
    assert (taken / "config.yaml").read_text() == "steps: 1\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1.0]", ["1", "4"]),
        ("return [float('nan')] * len(samples)", ["nan"]),
        ("return ['yes'] * len(samples)", ["yes"]),
        ("raise ValueError('my own mistake')", ["my own mistake"]),
    ],
)
def test_a_reward_function_that_breaks_its_contract(body: str, said: list[str], tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        f"from rlkit import reward\n\n@reward('broken_{abs(hash(body))}')\ndef broken(samples):\n    {body}\n"
    )
    result = rlkit(
        *XS, "--plugin", str(plugin), "-s", f"reward=broken_{abs(hash(body))}", "-s", "eval.problems=2",
        "-s", "eval.samples=2", "--out", str(tmp_path / "runs"),
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    for words in said:
        assert words in result.output
    assert "broken" in result.output


def test_a_plugin_that_fails_to_import_shows_its_traceback_and_the_others_are_listed(tmp_path: Path) -> None:
    plugin = tmp_path / "bad.py"
    plugin.write_text("import json\nraise RuntimeError('half written')\n")
    result = rlkit("run", "--dry-run", "--plugin", str(plugin))
    assert result.exit_code == 2
    assert "half written" in result.output
    assert "bad.py" in result.output


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert rlkit(*XS, "--out", str(out), "--name", "a", "-s", "eval.problems=2").exit_code == 0
    config = out / "a" / "config.yaml"
    config.write_text(config.read_text().replace("embedded:xs", "embedded:s"))
    result = rlkit("run", "--resume", str(out / "a"), "-s", "steps=2")
    assert result.exit_code == 2, result.output
    assert "model" in result.output


def test_a_run_that_is_done_has_nothing_to_resume(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert rlkit(*XS, "--out", str(out), "--name", "a", "-s", "eval.problems=2").exit_code == 0
    before = (out / "a" / "metrics.jsonl").read_text()
    result = rlkit("run", "--resume", str(out / "a"))
    assert result.exit_code == 2
    assert "steps=2" in result.output
    assert (out / "a" / "metrics.jsonl").read_text() == before
    assert json.loads(before.splitlines()[-1])["step"] == 1


def test_a_resume_that_fails_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert rlkit(*XS, "--out", str(out), "--name", "a", "-s", "eval.problems=2").exit_code == 0
    before = {file: file.read_text() for file in (out / "a").glob("*.*") if file.suffix != ".png"}
    assert rlkit("run", "--resume", str(out / "a"), "-s", "steps=1", "-s", "optimizer.lr=1").exit_code == 2
    assert rlkit("run", "--resume", str(out / "a"), "-s", "steps=9", "-s", "reward=nowhere").exit_code == 2
    assert rlkit("run", "--resume", str(out / "a"), "-s", "steps=9", "--name", "b").exit_code == 2
    assert {file: file.read_text() for file in before} == before


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    result = rlkit("config", "cp", "embedded", str(tmp_path / "nowhere" / "x.yaml"))
    assert result.exit_code == 2
    assert "cannot write" in result.output


def acts(tmp_path: Path, odd: str, *more: str) -> Result:
    """A run of one step, in an environment that does as it is told with the first of two rows, or with both."""
    rows = [{"prompt": f"1+{number}=", "answer": "", "odd": odd if number < 2 else "fine"} for number in (1, 2)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rlkit(
        *XS, "--algo", "vimpo", "--plugin", ACTING, "-s", f"data.path={tmp_path / 'data.jsonl'}", "-s", "reward=[]",
        "-s", "environment=odd", "--out", str(tmp_path / "runs"), "--name", "r", *more,
    )  # fmt: skip


def test_an_environment_that_raises_ends_the_run_and_says_where(tmp_path: Path) -> None:
    result = acts(tmp_path, "raises")
    assert result.exit_code == 1, result.output
    for words in ("2 of 4 samples have no value", "scoring.max_no_value", "the environment: 2 error", "no such room"):
        assert words in " ".join(result.output.split())
    assert 'acting.py", line' in result.output


QUIET = """
from rlkit import Observation, environment

@environment("quiet")
class Quiet:
    range = (0.0, 0.0)

    def start(self, task, seed):
        return ""

    def step(self, action):
        return Observation(done=True)
"""


def test_an_environment_that_gives_no_reward_judges_nothing(tmp_path: Path) -> None:
    """Each trajectory would have the highest reward that it declares, and so be right."""
    rows, quiet = tmp_path / "rows.jsonl", tmp_path / "quiet.py"
    rows.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    quiet.write_text(QUIET)
    acting = "--plugin", str(quiet), "-s", "environment=quiet", "--out", str(tmp_path / "out")
    measured = rlkit("eval", "--model", "embedded:xs", "--data", str(rows), *acting)
    for result in (measured, rlkit(*XS, *acting, "-s", "reward=[]")):
        assert result.exit_code == 2, result.output
        assert "nothing judges what the model says" in result.output


def test_noise_that_mirrors_the_rewards_of_an_environment_needs_their_range(tmp_path: Path) -> None:
    result = acts(tmp_path, "fine", "--noise", "flip:0.1")
    assert result.exit_code == 2, result.output
    for words in ("flip", "'odd'", "range"):
        assert words in result.output


@pytest.mark.slow
def test_an_environment_that_hangs_costs_its_samples(tmp_path: Path) -> None:
    result = acts(tmp_path, "hangs", "-s", "conversation.timeout_s=0.5", "-s", "scoring.max_no_value=0.5")
    assert result.exit_code == 0, result.output
    (row,) = (json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()[-1:])
    assert row["samples/timeout"] == 2
    assert "2 without reward" in result.output


def test_a_conversation_without_room_says_what_to_raise(tmp_path: Path) -> None:
    opens = "environment={kind: sums, opens: 123456789}".replace("123456789", "'123456789'")
    result = acts(tmp_path, "fine", "-s", opens, "-s", "sampling.max_tokens=9")
    assert result.exit_code == 1, result.output
    said = " ".join(result.output.split())
    assert "4 of 4 samples have no value" in said
    assert "leaves no room to answer: raise sampling.max_tokens" in said
