"""Whatever a prompt, a response, a data file or a run's folder from elsewhere holds is text: on every page it makes no
element, and on the terminal no command prints a control code of it."""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from made_run import healthy, make_run

from rlkit.cli import main
from rlkit.wording import SHOWN_AS_THEY_ARE

HOSTILE = (
    "</script></title>\"'><img src=x onerror=alert(1)><script>alert(1)</script>`|` [link=http://evil.example]x[/link]"
    "[bold]{{ 7*7 }}{% x %}$\\frac$ \x1b]0;pwned\x07\x1b[2J\x9b2J\r\u202e\x00 =cmd|calc\nsecond line"
)
LOADS = {"img", "iframe", "object", "embed", "form", "base", "link", "audio", "video", "frame", "input", "textarea"}


class Page(HTMLParser):
    """What of a page could do something."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.active: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.active += [f"{tag} {name}" for name in given if name.startswith("on")]
        goes = [given[name] for name in ("href", "src", "action", "srcset") if name in given]
        self.active += [
            to for to in goes if not re.match(r"#[\w-]+$|inspection/steps\.html$|data:image/png;base64", to)
        ]
        if tag in LOADS and not (tag == "img" and given.get("src", "").startswith("data:image/png")):
            self.active.append(tag)
        self._in_script = tag == "script" and given.get("type") != "application/json"
        if self._in_script:
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


def check_page(file: Path, ours: int) -> None:
    """`ours`: how many scripts of rlkit's own the page has."""
    page = Page(file)
    assert page.active == []
    assert len(page.scripts) == ours
    assert not any("alert(1)" in script for script in page.scripts)
    assert "script-src 'sha256-" in file.read_text()
    assert "pwned" in file.read_text()
    check_text(file.read_text())


def check_text(text: str) -> None:
    controls = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")} - SHOWN_AS_THEY_ARE
    assert not controls, sorted(map(hex, map(ord, controls)))


def invoke(*arguments: str) -> Result:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = CliRunner().invoke(main, list(arguments))
        for each in caught:
            check_text(warnings.formatwarning(each.message, each.category, "", 0))
    check_text(result.output)
    return result


def hostile_run(path: Path, algo: str = "grpo") -> Path:
    """A run's folder in which every text that is not a name of rlkit's own is hostile."""
    rows = healthy(steps=3)
    for row in rows:
        row |= {f"reward/part/{HOSTILE}": 0.5, f"eval/{HOSTILE}/mean@1": 0.5, f"{HOSTILE}/x": 1.0, "policy/kl": 1.5}
    folder = make_run(path, rows, [HOSTILE, HOSTILE * 200, "42"], algo)
    config = yaml.safe_load(folder.config_file.read_text())
    config["data"] |= {"path": HOSTILE, "template": HOSTILE + "{prompt}", "answer": HOSTILE}
    config["reward"] = [{"kind": HOSTILE, "pattern": HOSTILE, "weight": 1.0}]
    config["noise"] = [{"kind": HOSTILE, "prob": HOSTILE}]
    config["algo"] = {"kind": algo, "option": HOSTILE}
    config["trackers"], config["plugins"] = [{"kind": HOSTILE}], [HOSTILE]
    folder.config_file.write_text(yaml.safe_dump(config))
    record = json.loads(folder.provenance_file.read_text())
    record |= {"command": [HOSTILE], "platform": HOSTILE, "versions": {HOSTILE: HOSTILE}, "plugins": {HOSTILE: HOSTILE}}
    record |= {"git": {"commit": HOSTILE, "changed": True}, "resumed": [{"after_step": 1, "time": HOSTILE}]}
    folder.provenance_file.write_text(json.dumps(record))
    for file in folder.rollouts.iterdir():
        table = pq.read_table(file)
        count = len(table)
        for name in ("prompt_id", "prompt", "answer", "status"):
            if name != "status":
                table = table.set_column(table.column_names.index(name), name, pa.array([HOSTILE] * count))
        info = pa.array([json.dumps({HOSTILE: HOSTILE, "error": HOSTILE, "answer": HOSTILE})] * count)
        parts = pa.array([[(HOSTILE, 0.5)]] * count, pa.map_(pa.string(), pa.float32()))
        table = table.set_column(table.column_names.index("info"), "info", info)
        table = table.set_column(table.column_names.index("parts"), "parts", parts)
        pq.write_table(table, file)
    return folder.path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [hostile_run(folder / f"{algo} <img src=x onerror=alert(1)>", algo) for algo in ("grpo", "vimpo")]


def test_report(runs: list[Path]) -> None:
    result = invoke("report", str(runs[0]))
    assert result.exit_code == 0, result.output
    check_page(runs[0] / "report.html", ours=2)


@pytest.mark.parametrize("beside", [False, True])
def test_inspect(runs: list[Path], beside: bool) -> None:
    result = invoke("inspect", *map(str, runs if beside else runs[:1]))
    assert result.exit_code == 0, result.output
    assert "pwned" in result.output
    pages = sorted((runs[0] / "inspection").rglob("*.html"))
    assert pages
    for page in pages:
        check_page(page, ours=2)


def test_compare(runs: list[Path], tmp_path: Path) -> None:
    result = invoke("compare", *map(str, runs), "--metric", "reward/mean", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "pwned" in result.output
    check_page(tmp_path / "out" / "comparison.html", ours=1)


# Commands that print data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose every text is hostile, but for prompts that the small model can read."""
    file = tmp_path_factory.mktemp("data") / "[bold]hostile[x].jsonl"
    rows = [
        {"prompt": f"{n}+1=", "question": HOSTILE, "answer": HOSTILE, HOSTILE: HOSTILE, "response": f"is {HOSTILE}"}
        for n in range(3)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_verify(runs: list[Path], data: Path) -> None:
    for path, options in ((runs[0], ()), (data, ("--expected", HOSTILE)), (data, ())):
        result = invoke("verify", str(path), "--reward", "exact", "--reward", "contains", *options)
        assert "pwned" in result.output


@pytest.mark.parametrize("options", [(), ("--prompt", "question", "--reward", "math"), ("--prompt", HOSTILE[::-1])])
def test_data_check(data: Path, options: tuple[str, ...]) -> None:
    assert "pwned" in invoke("data", "check", str(data), "--no-overlap", *options).output


@pytest.mark.slow
def test_run_and_eval(data: Path, tmp_path: Path) -> None:
    settings = [f"data.eval_path={json.dumps(str(data))}", "batch.samples_per_prompt=2", "eval.problems=2"]
    trained = invoke(
        *("run", "embedded_xs", "--data", str(data), "--reward", "exact", "--steps", "1", "--batch", "2"),
        *("--out", str(tmp_path), "--name", "x$\\frac$y", *(word for each in settings for word in ("-s", each))),
    )
    assert trained.exit_code == 0, trained.output
    assert "pwned" in trained.output  # the plan's gold, and what the console shows of the step's responses
    check_text((tmp_path / "x$\\frac$y" / "report.html").read_text())

    common = ("--data", str(data), "--reward", "exact", "-n", "1", "--max-tokens", "4")
    measured = invoke("eval", "--model", "embedded:xs", *common, "--out", str(tmp_path / "eval"))
    assert measured.exit_code == 0, measured.output
    assert measured.output.count("[bold]hostile[x]") >= 2  # no markup of the terminal's


def test_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkit.commands.model._at_a_terminal", lambda: False)
    monkeypatch.setattr("rlkit.assembly.sampling.Asked.answer", lambda *_: [HOSTILE])
    monkeypatch.setattr("rlkit.commands.model._shows_on_a_terminal", lambda: True)
    assert "␛]0;pwned␇" in invoke("sample", "embedded:xs", "47+85=").output
    monkeypatch.setattr("rlkit.commands.model._shows_on_a_terminal", lambda: False)
    piped = CliRunner().invoke(main, ["sample", "embedded:xs", "47+85="])
    assert "\x9b2J\r\u202e" in piped.output  # a file gets what the model wrote


@pytest.mark.parametrize(
    "content", [HOSTILE, f'{{"prompt": "{HOSTILE}', json.dumps([HOSTILE]), json.dumps({HOSTILE: 1})]
)
def test_errors_that_quote_data(content: str, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    for command in (["data", "check", str(file)], ["run", "embedded_xs", "--data", str(file), "--out", str(tmp_path)]):
        result = invoke(*command)
        assert result.exit_code in (1, 2)
        assert "data.jsonl" in result.output


def test_a_config_from_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text(yaml.safe_dump({"model": HOSTILE, HOSTILE: HOSTILE, "algo": {"kind": HOSTILE}, "data": [HOSTILE]}))
    assert "pwned" in invoke("run", str(file)).output
    assert "pwned" in invoke("config", "validate", str(file)).output
