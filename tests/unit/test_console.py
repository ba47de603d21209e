"""What a person sees of a run while it goes."""

from __future__ import annotations

import io
import itertools
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from made_run import HOSTILE
from rich.console import Console as Terminal

import rlkit
from rlkit import config as configs
from rlkit.cli import main
from rlkit.report import Warning
from rlkit.tracking import RunInfo
from rlkit.tracking.console import Console, worth_showing
from rlkit.tracking.terminal import usual

METRICS = {
    "reward/mean": 0.6123,
    "reward/pass_rate": 0.6,
    "policy/kl": 0.01234,
    "response/length": 17.31,
    "sampler/gap_max": 2.1e-6,
    "throughput/tokens_per_s": 1149.0,
    "time/step_s": 0.512,
}
LINE = "reward 0.612 pass 0.60 kl 0.0123 len 17.3 gap 2e-06 1.1k tok/s 0.51 s"
SAMPLE: dict[str, Any] = {
    "prompt": "<|user|>47+85=<|end|>",
    "question": "47+85=",
    "response": "7+5=12\n#### 132",
    "answer": "132",
    "reward": 1.0,
    "clean_reward": 1.0,
    "status": "ok",
    "found": "132",
    "length": 12,
    "truncated": False,
}
SMALL = ["batch.prompts_per_step=4", "batch.samples_per_prompt=2", "eval.problems=8"]


def nothing_wrong() -> Sequence[Warning]:
    return []


def made(shows: Any = "lines", faults: Any = nothing_wrong, **terminal: Any) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    run = RunInfo(name="a run", folder=Path("run"), config={}, steps=80)
    return Console(run, shows, faults, Terminal(file=out, highlight=False, soft_wrap=True, **terminal)), out


def test_one_line_a_step_where_there_is_no_terminal() -> None:
    console, out = made()
    console.begin(0)
    console.phase("sampling", 3, 256)
    console.log(0, {"eval/heldout/mean@1": 0.291, "eval/heldout/problems": 512.0, "time/eval_s": 3.0})
    console.log(12, METRICS)
    console.log(13, {"reward/mean": 0.7, "samples/no_value": 3.0, "eval/heldout/mean@1": 0.75})
    console.close()
    assert out.getvalue().splitlines() == [
        "step 0/80 evaluation, heldout: mean@1 0.291 problems 512",
        f"step 12/80 {LINE}",
        "step 13/80 reward 0.700 3 without reward",
        "step 13/80 evaluation, heldout: mean@1 0.75",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_bar_with_the_phase_stands_below_the_lines_of_a_terminal(width: int) -> None:
    console, out = made("bar", force_terminal=True, width=width, color_system=None)
    console.begin(11)
    console.log(12, METRICS)
    console.phase("sampling", 3, 256)
    console.close()
    console.phase("saving")
    said = out.getvalue()
    assert "0.51 s" in said[: said.index("sampling")]
    last = re.sub(r"\x1b\[[^m]*?[A-Za-z]", "", said).strip().splitlines()[-1]
    assert last.startswith("step 12/80")
    assert "sampling 3 of 256" in last
    assert len(last) <= width
    if width >= 80:
        assert "━" in last
        assert re.search(r"\d s elapsed, \d+ s left$", last.rstrip())


def test_responses_are_shown_below_the_lines_of_steps_that_grow_apart() -> None:
    assert [step for step in range(1, 2001) if worth_showing(step)] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]
    console, out = made()
    for step in range(1, 8):
        console.log_samples(step, [SAMPLE | {"response": f"of {step}"}] * 8)
        console.log(step, METRICS)
    lines = out.getvalue().splitlines()
    for step in range(1, 8):
        at = lines.index(f"step {step}/80 {LINE}")
        assert lines.count(f"      | of {step}") == (3 if step in (1, 2, 5) else 0)
        if step in (1, 2, 5):
            assert lines[at + 2 : at + 5] == ["    47+85=", f"      | of {step}", "      " + JUDGED]


JUDGED = "reward 1, 12 tokens, found 132, gold 132"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, JUDGED),
        ({"reward": 0.0}, "reward 0 (clean 1), 12 tokens, found 132, gold 132"),
        ({"reward": None}, "reward 1, left out of the loss, 12 tokens, found 132, gold 132"),
        (
            {"reward": None, "clean_reward": None, "status": "timeout", "found": None},
            "no reward (timeout), 12 tokens, gold 132",
        ),
        (
            {"reward": 0.0, "clean_reward": 0.0, "status": "no_answer", "found": None, "truncated": True},
            "reward 0, 12 tokens, truncated, no answer found, gold 132",
        ),
        ({"found": None, "answer": "", "length": 1}, "reward 1, 1 token"),
    ],
)
def test_what_became_of_a_response(row: dict[str, Any], said: str) -> None:
    console, out = made()
    console.log_samples(1, [SAMPLE | row])
    console.log(1, METRICS)
    assert out.getvalue().splitlines()[-1] == f"      {said}"


@pytest.mark.parametrize("width", [None, 60])
def test_what_a_model_wrote_is_text_and_not_too_much_of_it(width: int | None) -> None:
    console, out = made(**({"force_terminal": True, "width": width, "color_system": None} if width else {}))
    markup = "[bold]:apple: [/] [link=x]"
    rows = [SAMPLE | {"response": text, "question": text, "answer": text, "found": text} for text in HOSTILE]
    rows[0]["response"] = "\n".join([markup, "\ud800", *map(str, range(100))])
    rows[1]["response"] = "x" * 1_000_000 + "the-end"
    console.log_samples(1, rows)
    console.log(1, METRICS)
    said = out.getvalue()
    assert not set(said) & {"\x1b", "\x07", "\x00", "\u202e", "\x9b", "\ud800"}
    assert markup in said
    assert "| 99\n" in said
    assert "[... 94 lines ...]" in " ".join(said.split())
    assert said.count("x" * 20) < 50
    assert "xxxthe-end" in "".join(said.split())
    assert len(said.splitlines()) < 70
    if width:
        assert max(map(len, said.splitlines())) <= width


@pytest.mark.parametrize(
    ("phase", "said"), [("evaluating math500", "evaluating math500, 40 of 500"), ("sampling", "sampling 40 of 500")]
)
def test_the_bar_says_how_far_a_phase_is(phase: str, said: str) -> None:
    console, out = made("bar", force_terminal=True, width=120, color_system=None)
    console.begin(0)
    console.phase(phase, 40, 500)
    console.close()
    assert f" {said} " in out.getvalue()


def test_a_plain_terminal_has_no_bar() -> None:
    console, out = made("lines", force_terminal=True, width=80, color_system=None)
    console.begin(0)
    console.phase("sampling", 3, 256)
    console.log(1, METRICS)
    console.close()
    assert out.getvalue() == f"step 1/80 {LINE}\n"


@pytest.mark.parametrize(
    ("there", "term", "shows"), [(True, "xterm", "bar"), (True, "dumb", "lines"), (False, "xterm", "lines")]
)
def test_a_bar_takes_a_terminal_that_can_draw_it(
    there: bool, term: str, shows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: there)
    assert usual() == shows


def test_a_notebook_gets_lines_of_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    console = Console(RunInfo(name="a run", folder=Path("run"), config={}, steps=80), usual(), nothing_wrong)
    console.begin(0)
    console.log(1, METRICS)
    console.close()
    assert capsys.readouterr().out == f"step 1/80 {LINE}\n"


def test_a_terminal_that_lacks_a_character_does_not_end_the_run() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    run = RunInfo(name="a run", folder=Path("run"), config={}, steps=80)
    console = Console(run, "lines", nothing_wrong, Terminal(file=file, soft_wrap=True))
    console.log_samples(1, [SAMPLE | {"response": "é 漢"}])
    console.log(1, METRICS)
    assert b"| \\xe9 \\u6f22\n" in file.buffer.getvalue()


def test_a_chat_s_question_is_its_last_message() -> None:
    console, out = made()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How\nmany?"}]
    console.log_samples(1, [SAMPLE | {"question": messages}, SAMPLE | {"question": {"odd": 1}}])
    console.log(1, METRICS)
    assert [line for line in out.getvalue().splitlines() if re.match(r" {4}\S", line)] == [
        "    How\\nmany?",
        "    <|user|>47+85=<|end|>",
    ]


def fault(name: str) -> Warning:
    return Warning(name=name, seen=f"{name} was seen.", means="It means this.", tries=["this", "`that`"])


@pytest.mark.parametrize("shows", ["lines", "warnings"])
def test_a_fault_is_said_once_as_soon_as_it_is_there(shows: str) -> None:
    found: list[Warning] = []
    console, out = made(shows, lambda: found)
    for step in range(1, 6):
        if step == 2:
            found = [fault("First")]
        if step == 4:
            found = [fault("Second"), fault("First")]
        console.log_samples(step, [SAMPLE])
        console.log(step, METRICS | {"eval/heldout/mean@1": 0.5})
    lines = out.getvalue().splitlines()
    warned = [line for line in lines if line.startswith("warning")]
    assert warned == [f"warning: {name}: {name} was seen. Try: this; `that`." for name in ("First", "Second")]
    assert (lines == warned) == (shows == "warnings")
    if shows == "lines":
        assert lines.index(f"step 2/80 {LINE}") < lines.index(warned[0]) < lines.index(f"step 3/80 {LINE}")


def test_a_long_run_is_not_read_after_every_step() -> None:
    looks: list[int] = []
    step = 0

    def look() -> Sequence[Warning]:
        looks.append(step)
        return []

    console, _ = made(faults=look)
    for step in range(1, 5001):
        console.log(step, METRICS)
    assert looks[:19] == list(range(2, 21))
    assert len(looks) < 150
    assert all(b - a <= 1 + a // 20 for a, b in itertools.pairwise(looks))


def run_of(out: Path, *more: str) -> configs.RunConfig:
    return configs.load("embedded_xs", [*SMALL, "steps=2", f"out={out}", "name=r", *more])


def test_a_run_shows_its_phases_and_what_its_samples_earned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    phases: list[tuple[str, int, int]] = []
    monkeypatch.setattr(Console, "phase", lambda self, name, done=0, total=0: phases.append((name, done, total)))
    rlkit.train(run_of(tmp_path, "noise=[{kind: flip, prob: 0.5}]", "batch.minibatches=2", "eval.every=1"))
    assert [("sampling", done, 8) for done in range(9)] * 2 == [each for each in phases if each[0] == "sampling"]
    assert [("evaluating heldout", done, 8) for done in range(9)] * 3 == [p for p in phases if "evaluating" in p[0]]
    names = [name for at, (name, *_) in enumerate(phases) if at == 0 or phases[at - 1][0] != name]
    checked, evaluated = "checking the sampler", ["evaluating heldout", "scoring"]
    step = ["sampling", "scoring", "measuring", "updating"]
    after_one = ["syncing weights", checked, *evaluated]
    assert names == [checked, *evaluated, *step, *after_one, *step, "saving", "syncing weights", *evaluated, "closing"]
    assert {each for each in phases if each[0] == "updating"} == {("updating", 0, 2), ("updating", 1, 2)}

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "r: loading PyTorch, transformers and DeepSpeed"
    for step_number in (1, 2):
        rows = pq.read_table(tmp_path / "r" / "rollouts" / f"step-{step_number:06d}.parquet").to_pylist()
        at = next(at for at, line in enumerate(lines) if line.startswith(f"step {step_number}/2 reward"))
        block = "\n".join(lines[at : at + 11])
        for row in rows[:6:2]:
            clean = "" if row["reward"] == row["clean_reward"] else f" (clean {row['clean_reward']:.0f})"
            assert f"{row['prompt']}\n      | {row['response']}\n      reward {row['reward']:.0f}{clean}, " in block
            assert f"{len(row['tokens'])} token" in block


def test_quiet_leaves_warnings_and_the_summary(tmp_path: Path) -> None:
    arguments = ["run", "embedded_xs", *SMALL, "steps=2", "sampling.max_tokens=2", "--out", str(tmp_path), "--quiet"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    first, *_ = done.stdout.splitlines()
    assert first.startswith("warning: Truncation: ")
    live, _, end = done.stdout.partition("\ntrain reward")
    assert "They are cut off" not in live
    assert end.count("\nwarning: Truncation: ") == 1
    assert "They are cut off" in end
    assert not re.search(r"step \d+/2|loading|algorithm", done.stdout)


def test_quiet_and_plain_exclude_each_other() -> None:
    done = CliRunner().invoke(main, ["run", "--quiet", "--plain"])
    assert done.exit_code == 2
    assert "give one of them" in done.output


def on_a_terminal(*arguments: str) -> str:
    """What a run writes to a terminal of 80 columns."""
    here, there = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80", "LINES": "50"}
    said: list[bytes] = []

    def read() -> None:
        while True:
            try:
                said.append(os.read(here, 65536))
            except OSError:  # the last writer has gone
                return

    process = subprocess.Popen(
        [sys.executable, "-m", "rlkit", "run", "embedded_xs", *SMALL, *arguments],
        stdout=there,
        stderr=there,
        env=environment,
    )
    os.close(there)
    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait() == 0, b"".join(said).decode()
    reader.join()
    os.close(here)
    return b"".join(said).decode()


@pytest.mark.slow
def test_a_terminal_has_a_bar_and_one_rank_of_two_speaks(tmp_path: Path) -> None:
    said = on_a_terminal("steps=3", "--out", str(tmp_path), "--nproc", "2")
    assert len(re.findall(r"step \d/3 .*elapsed", said)) > 3
    assert said.count("\x1b[?25h") == 1, "the cursor is left hidden"
    for text in ("loading PyTorch", "its gold", "responses of step 2", "step 3/3 evaluation", "picture "):
        assert said.count(text) == 1
    assert len(re.findall(r"step \d/3 reward", said)) == 3
