"""Keys and passwords stand in no file of a run, on no page, in no message: settings that hold one are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from local_server import Server
from synthetic_runs import write_run

from rlkit import secrets
from rlkit.cli import main
from rlkit.errors import SettingsError
from rlkit.http import Endpoint, Failure

VARIABLES = {
    "OPENAI_API_KEY": "sk-proj-0123456789abcdefghij",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz",
    "JUDGE_KEY": "a plain word with spaces",
}
NOISY = """
import os
import rlkit

@rlkit.reward("telltale")
def telltale(samples):
    print("environment:", dict(os.environ))
    if samples[0].key.index == 0:
        raise ValueError(f"refused: {os.environ['JUDGE_KEY']}")
    return [1.0] * len(samples)
"""


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def holders(folder: Path, secret: str) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    found = [str(file) for file in files if secret.encode() in file.read_bytes()]
    tables = [file for file in files if file.suffix == ".parquet"]  # they are compressed
    return found + [str(file) for file in tables if secret in str(pq.read_table(file).to_pylist())]


def test_a_run_whose_reward_prints_its_environment_leaves_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    url = "https://someone:hunter2hunter2@example.org/x"
    monkeypatch.setattr(sys, "argv", ["rlkit", "run", "--note", url, f"--key={VARIABLES['JUDGE_KEY']}"])
    result = invoke(
        *("run", "embedded_xs", "--plugin", str(tmp_path / "noisy.py"), "--reward", "telltale", "--name", "r"),
        *("--out", str(tmp_path / "runs"), "--steps", "1", "--batch", "2", "-s", "batch.samples_per_prompt=2"),
        *("-s", "eval.problems=2", "-s", "scoring.max_no_value=1", "-s", "scoring.workers=1"),
    )
    assert result.exit_code == 1, "there is nothing to learn from"
    run = tmp_path / "runs" / "r"
    printed = (run / "rewards.log").read_text()
    assert "environment:" in printed
    assert "'HF_TOKEN': '***'" in printed
    command = json.loads((run / "provenance.json").read_text())["command"]
    assert command == ["rlkit", "run", "--note", "https://***@example.org/x", "--key=***"]
    assert "ValueError: refused: ***" in str(pq.read_table(run / "rollouts", columns=["info"]).to_pylist())
    assert invoke("report", str(run)).exit_code == 0
    for secret in (*VARIABLES.values(), "hunter2hunter2"):
        assert holders(tmp_path / "runs", secret) == []
        assert secret not in result.output


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("reward={kind: function, path: f.py, name: f, kwargs: {api_key: abcdefgh}}", "reward.0.kwargs.api_key"),
        ("reward={kind: reward_model, url: 'http://me:abcdefgh@gpu7:9000/score'}", "reward.0.url"),
        ("reward={kind: reward_model, url: 'http://gpu7:9000/score?token=abcdefgh'}", "reward.0.url"),
        (
            "reward={kind: judge, base_url: http://j/v1, model: j, request: {headers: {Authorization: abcdefgh}}}",
            "reward.0.request.headers.Authorization",
        ),
        ("trackers=[{kind: wandb, tags: [hf_abcdefghijklmnopqrst]}]", "trackers.0.tags.0"),
        ("sampler={kind: vllm_server, urls: ['http://me:abcdefgh@gpu7:8000']}", "sampler.urls.0"),
        ("data.path=https://me:abcdefgh@example.org/data.jsonl", "data.path"),
    ],
)
def test_settings_that_hold_one_are_refused_before_anything_is_written(setting: str, key: str, tmp_path: Path) -> None:
    result = invoke("run", "embedded_xs", "--out", str(tmp_path / "runs"), "-s", setting)
    assert result.exit_code == 2
    assert f"'{key}' holds a key or a password" in result.output
    assert "put it into an environment variable" in result.output
    assert "abcdefgh" not in result.output
    assert not (tmp_path / "runs").exists()


def test_an_evaluation_and_a_sweep_refuse_them_too(tmp_path: Path) -> None:
    url = "http://me:abcdefgh@gpu7:8000"
    out = str(tmp_path / "out")
    evaluated = invoke("eval", "--model", "embedded:xs", "--suite", "math500", "--urls", url, "--out", out)
    swept = invoke("sweep", "--base", "embedded_xs", "--algos", "grpo", "--data", url, "--name", out)
    for result in (evaluated, swept):
        assert (result.exit_code, "abcdefgh" in result.output) == (2, False), result.output
    assert "'sampler.urls.0' holds a key or a password" in evaluated.output
    assert "'data.path' holds a key or a password" in swept.output
    assert not Path(out).exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key_env": "JUDGE_KEY", "max_tokens": 512, "tokens_per_microbatch": 16384, "stop_token": "<|end|>"},
        {"url": "http://gpu7:8000/score?model=x", "answer": "secret", "mail": "me@example.org", "api_key": ""},
        {"template": "Q: {prompt}\nThe password: is what follows", "path": "/data/hf_data/token.jsonl"},
    ],
)
def test_names_of_variables_and_plain_words_are_none(settings: dict[str, object]) -> None:
    secrets.check({"reward": [settings]})


def test_every_one_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as raised:
        secrets.check({"a": {"password": "x"}, "b": [{"c": "https://u:p@h/"}]})
    assert [path for path, _ in raised.value.mistakes] == [("a", "password"), ("b", "0", "c")]


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("got {'api_key': 'abcdef'}", "got {'api_key': '***'}"),
        ("Authorization: Bearer abcdef, next", "Authorization: ***, next"),
        ("GET https://u:p@h/x?a=1&token=abcdef&b=2", "GET https://***@h/x?a=1&token=***&b=2"),
        (f"key {VARIABLES['WANDB_API_KEY']}!", "key ***!"),
        ("api_key_env: JUDGE_KEY, and max_tokens: 5000", "api_key_env: JUDGE_KEY, and max_tokens: 5000"),
    ],
)
def test_what_is_said_hides_them(text: str, hidden: str) -> None:
    assert secrets.hide(text) == hidden


def test_a_server_that_repeats_the_key_it_was_given_does_not_spread_it() -> None:
    key = VARIABLES["JUDGE_KEY"]
    server = Server(lambda number, body: (401, {}, {"error": f"incorrect key: {key}"}))
    endpoint = Endpoint(url=server.url, concurrency=1, timeout_s=10, retries=0, backoff_s=0)
    (failure,) = endpoint.post_all([{}], lambda reply: reply)
    server.close()
    assert isinstance(failure, Failure)
    assert "incorrect key: ***" in failure.reason


def test_what_an_older_run_has_written_is_not_put_on_its_pages(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "r",
        settings={
            "model": {"path": "embedded:xs"},
            "reward": [{"kind": "judge", "api_key": "abcdefgh", "base_url": "https://u:hunter2@h/v1", "weight": 1.0}],
        },
        provenance={"command": ["rlkit", "run", "-s", "reward.api_key=abcdefgh"], "time": "2026", "data": {}},
    )
    assert invoke("report", str(run)).exit_code == 0
    page = (run / "report.html").read_text()
    assert "api_key" in page
    assert "abcdefgh" not in page
    assert "hunter2" not in page
