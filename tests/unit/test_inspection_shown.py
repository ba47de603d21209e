"""A step on the terminal and as a page, and the command that shows it."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, Browser, luminance
from click.testing import CliRunner, Result
from inspected import Sampled, config, conversation, loaded, two_plus, write, wrong
from rich.console import Console

from rlkit.cli import main
from rlkit.inspection import inspect
from rlkit.inspection.words import alike, decimals, signed
from rlkit.interfaces.rewards import RewardResult
from rlkit.records.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", config())


def shown(runs: Sequence[RunFolder], width: int = 100, colour: bool = False, **options: Any) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="truecolor" if colour else None,
        highlight=False, no_color=not colour,
    )  # fmt: skip
    inspect(console, [run.path for run in runs], **options)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(said, str)
    return said


def test_without_colour_numbers_stand_under_the_tokens(folder: RunFolder) -> None:
    write(folder, 1, [[two_plus(credit=[0.05, -0.01, 0, 0, 0.001], value=[0.5, 0.55, 0.54, 0.54, 0.54])]])
    said = shown([folder])
    lines = [line.split() for line in said.splitlines()]
    assert ["6", "+", "####", "4", "<eos>"] in lines
    assert ["credit", "+0.050", "-0.010", "0", "0", "+0.001"] in lines
    assert ["V", "0.500", "0.550", "0.540", "0.540", "0.540"] in lines
    ends = [len(line.rstrip()) for line in said.splitlines() if line.endswith(("<eos>", "+0.001", "0.540"))]
    assert len(ends) == 3
    assert len(set(ends)) == 1
    assert "reward 1 · correct · 5 tokens · V 0.5 to 0.541" in said
    assert "\x1b" not in said


def test_a_conversation_is_shown_turn_by_turn(folder: RunFolder) -> None:
    write(folder, 1, [[conversation(credit=[0.25, 0.0, -0.5, 0.125])]])
    lines = [" ".join(line.split()) for line in shown([folder]).splitlines()]
    at = lines.index("turn 1 · reward 0.5 · credit 0.25")
    assert lines[at + 1] == "6"
    assert lines[at + 3 : at + 6] == ["the environment", "│ +", "turn 2 · credit -0.375"]
    assert lines[at + 6] == "4 <eos>"
    assert lines[at + 8 : at + 10] == ["the environment, at the end", "│ well done"]
    coloured = shown([folder], colour=True)
    assert "turn 2 · credit -0.375" in coloured
    assert re.search(r"\x1b\[[0-9;]*48;2;[0-9;]*m\+", coloured) is None  # it was not the model's
    (step,) = data_of(folder.inspection / "steps.html")["steps"]
    (response,) = step["prompts"][0]["groups"][0]["responses"]
    assert response["stretches"] == [
        [0, True, "turn 1 · reward 0.5 · credit 0.25"],
        [1, False, "the environment"],
        [2, True, "turn 2 · credit -0.375"],
    ]
    assert response["last"] == "well done"
    assert response["info"] == "environment ended done · counts calls 1.0"


def test_in_colour_the_background_says_the_credit(folder: RunFolder) -> None:
    write(folder, 1, [[two_plus(credit=[0.05, -0.05, 0, 0, 0.0001], value=[0.5, 0.55, 0.5, 0.5, 0.5])]])
    said = shown([folder], colour=True)
    assert re.search(r"\x1b\[[0-9;]*48;2;31;111;180m6\x1b", said)
    assert re.search(r"\x1b\[[0-9;]*48;2;185;82;10m\+\x1b", said)
    assert re.search(r"(?m)^     .*#### 4", re.sub(r"\x1b\[[0-9;]*m", "", said))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    assert "colour  -0.050" in plain
    assert "+0.050  credit, what it adds to V" in plain
    assert "line    0.5 ▁ to █ 0.55  implied value V(s_t)" in plain
    assert "     ▁█▁▁▁▁▁▁▁▁▁▁" in plain


def test_the_scale_is_one_for_a_group_and_symmetric(folder: RunFolder) -> None:
    write(folder, 1, [[two_plus(credit=[0.02, 0, 0, 0, 0]), two_plus(credit=[0, -0.08, 0, 0, 0])]])
    said = shown([folder], colour=True)
    assert "-0.080" in said
    assert "+0.080" in said
    assert "48;2;214;230;245m6" in said  # the first of five blues: a quarter of the scale


def test_one_number_for_all_tokens_is_said_once(folder: RunFolder) -> None:
    write(folder, 1, [[two_plus(advantages=[0.725] * 5)]])
    said = shown([folder])
    assert "advantage 0.725" in said
    assert "     6+#### 4<eos>" in said.splitlines()


def test_responses_that_nobody_could_tell_apart_are_shown_once(folder: RunFolder) -> None:
    credit = [0.5, 0, 0, 0, 0]
    write(folder, 1, [[
        two_plus(credit=credit), two_plus(credit=[0.5001, 0, 0, 0, 0]), two_plus(credit=credit, noisy=0.0),
        two_plus(credit=[0.4, 0, 0, 0, 0]), two_plus(credit=credit),
    ]])  # fmt: skip
    groups = alike(loaded(folder).responses, 0.5)
    assert [[r.index for r in same] for same in groups] == [[0, 1, 4], [2], [3]]
    assert "1, 2, 5  reward 1 · correct" in shown([folder])


def test_facts_of_a_response(folder: RunFolder) -> None:
    lost = RewardResult(value=None, status="timeout")
    write(folder, 1, [[two_plus(noisy=0.0, truncated=True), two_plus(result=lost), two_plus(valid=False)]])
    said = shown([folder])
    assert "reward 0, 1 before noise · correct · truncated · 5 tokens" in said
    assert "no value · timeout · left out of the loss · 5 tokens" in said
    assert "reward 1 · correct · left out of the loss · 5 tokens" in said


def test_what_is_left_out_is_said(folder: RunFolder) -> None:
    write(folder, 1, [[two_plus()] for _ in range(5)])
    said = shown([folder])
    assert said.count("prompt 000") == 3
    assert "2 prompts more in this step; see another with --prompt ID (such as 0003ab, 0004ab)" in said
    assert "page: " in said
    alone = shown([folder], prompt="0003")
    assert "prompt 0003ab" in alone
    assert "prompts more" not in alone
    assert alone.splitlines()[-1].endswith("inspection/steps-0003.html")


def test_only_surprises(folder: RunFolder) -> None:
    write(folder, 1, [[two_plus(), two_plus(noisy=0.0)], [two_plus()]])
    said = shown([folder], surprise="noise")
    assert said.count("before noise") == 1
    assert "prompt 0001ab" not in said
    assert "step 1 has no response of the kind no-value" in shown([folder], surprise="no-value")


def test_wide_characters_and_long_tokens_fit_the_terminal(folder: RunFolder, tmp_path: Path) -> None:
    from rlkit.inspection import terminal

    scale = terminal.Scale(1.0, 0.0, 1.0)
    cells = [terminal.Cell(text, 0.5, 0.5) for text in ("日本語" * 9, "x" * 200, "a\u200db", "é", "ab⏎", "c")]
    for width in (20, 31):
        lines = list(terminal._coloured(cells, scale, width, True))
        assert all(line.cell_len <= width + 5 for line in lines)
        assert all(a.cell_len == b.cell_len for a, b in zip(lines[::2], lines[1::2], strict=True))
        assert "".join(line.plain[5:] for line in lines[::2]) == "".join(cell.text for cell in cells)
        assert lines[-2].plain == "     c"
        assert all(line.cell_len <= width + 5 for line in terminal._numbered(cells, "credit", scale, width))


HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[2J\x1b]0;owned\x07\u202eevil{{7*7}}"


def test_html_and_control_codes_are_shown_as_text(folder: RunFolder) -> None:
    write(folder, 1, [[Sampled([2, 1], HOSTILE, result=RewardResult(value=1.0, info={"answer": HOSTILE}))]], [HOSTILE])
    with pytest.warns(UserWarning, match="does not give the responses"):
        said = shown([folder], colour=True)
    assert "\x1b[2J" not in said
    assert "\x1b]" not in said
    assert "\u202e" not in said
    assert "␛[2J" in said
    page = (folder.path / "inspection" / "steps.html").read_text()
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script")
    assert not set("\x1b\x07\u202e") & set(page)
    assert "{{7*7}}" in page


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="inspection">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_page_holds_what_is_known(folder: RunFolder) -> None:
    credit = [0.05, -0.0123456, float("nan"), 0.0, 0.0]
    write(folder, 1, [[two_plus(credit=credit, value=[0.5] * 5, noisy=0.0), two_plus(credit=credit, value=[0.5] * 5)]])
    shown([folder])
    data = data_of(folder.path / "inspection" / "steps.html")
    assert [step["number"] for step in data["steps"]] == [1]
    (data,) = data["steps"]
    assert data["runs"][0]["colours"] == ["credit", "value"]
    assert data["runs"][0]["labels"]["value"] == "implied value V(s_t)"
    first = data["prompts"][0]["groups"][0]["responses"][0]
    assert first["series"]["credit"] == [0.05, -0.01235, None, 0, 0]
    assert (first["texts"], first["named"]) == (["6", "+", "#### ", "4", "<eos>"], [4])
    assert (first["reward"], first["clean"], first["surprises"]) == (0, 1, ["noise"])


def test_a_page_stays_small_and_says_what_it_holds(folder: RunFolder) -> None:
    long = Sampled([9, *[13] * 900], "6" + "+" * 900, credit=[0.123] * 901, value=[0.456] * 901)
    write(folder, 1, [[long] for _ in range(40)])
    said = shown([folder])
    page = folder.path / "inspection" / "steps.html"
    (step,) = data_of(page)["steps"]
    held = len(step["prompts"])
    assert page.stat().st_size < 300_000
    assert 1 < held < 40
    assert f"page (the first {held} of 40 prompts)" in said
    assert step["count"] == 40


def test_a_page_holds_steps_of_the_whole_run_and_begins_with_the_one_asked_for(folder: RunFolder) -> None:
    for step in range(1, 31):
        write(folder, step, [[two_plus(credit=[step / 100, 0, 0, 0, 0])]])
    folder.rollout_file(30).write_bytes(b"damaged")
    shown([folder], step=8)
    data = data_of(folder.path / "inspection" / "steps.html")
    numbers = [step["number"] for step in data["steps"]]
    assert numbers == sorted({*(1 + at * 29 // 19 for at in range(19)), 8})
    assert numbers[data["begin"]] == 8
    for step in data["steps"]:
        credit = step["prompts"][0]["groups"][0]["responses"][0]["series"]["credit"]
        assert credit[0] == pytest.approx(step["number"] / 100)


def test_other_steps_have_their_share_of_the_page(folder: RunFolder) -> None:
    long = Sampled([9, *[13] * 900], "6" + "+" * 900, credit=[0.123] * 901, value=[0.456] * 901)
    for step in range(1, 21):
        write(folder, step, [[long] for _ in range(10)])
    shown([folder])
    page = folder.path / "inspection" / "steps.html"
    steps = data_of(page)["steps"]
    assert len(steps) == 20
    assert all(0 < len(step["prompts"]) < 10 for step in steps[:-1])
    assert len(steps[-1]["prompts"]) > len(steps[0]["prompts"])
    assert page.stat().st_size < 1_900_000


def test_a_gold_is_shown_as_its_answer(folder: RunFolder) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(folder, 1, [[two_plus()]])
    file = folder.rollout_file(1)
    rows = pq.read_table(file).drop_columns(["answer"])
    pq.write_table(rows.append_column("answer", pa.array(["2 and 2 make 4.\n#### 4"])), file)
    assert "gold 4\n" in shown([folder])
    (step,) = data_of(folder.path / "inspection" / "steps.html")["steps"]
    assert step["prompts"][0]["gold"] == "4"


def test_the_slider_goes_to_another_step(folder: RunFolder, browser: Browser) -> None:
    write(folder, 1, [[two_plus(credit=[0.5, 0, 0, 0, 0])], [two_plus()]], ["a=", "b="])
    write(folder, 2, [[two_plus(credit=[0.25, 0, 0, 0, 0])], [two_plus(noisy=0.0)]], ["a=", "b="])
    shown([folder])
    with browser.open(folder.path / "inspection" / "steps.html", PHONE) as at:
        heading = "document.getElementById('step').textContent"
        assert at.evaluate(heading) == "Step 2"
        at.evaluate("(s => { s.value = '1'; s.dispatchEvent(new Event('change')) })(document.querySelector('select'))")
        assert "changed by noise (1)" in at.evaluate("document.getElementById('controls').textContent")
        at.evaluate(
            "(s => { s.value = 0; s.dispatchEvent(new Event('input')) })(document.querySelector('#steps input'))"
        )
        assert at.evaluate(heading) == "Step 1"
        assert at.evaluate("document.querySelector('#prompt .text').textContent") == "b="
        assert "changed by noise (" not in at.evaluate("document.getElementById('controls').textContent")
        assert at.evaluate("document.documentElement.scrollWidth") <= PHONE
        assert at.complaints == []


@pytest.fixture
def pair(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    """VIMPO and PPO on the same three prompts, VIMPO having one more."""
    vimpo, ppo = RunFolder.create(tmp_path / "vimpo", config()), RunFolder.create(tmp_path / "ppo", config("ppo"))
    value = [0.5, 0.55, 0.54, 0.54, 0.54]
    write(vimpo, 1, [[two_plus(credit=[0.05, -0.01, 0, 0, 0], value=value), two_plus(noisy=0.0)] for _ in range(4)])
    critic = two_plus(advantages=[1, 0.9, 0.8, -0.7, 0.6], value=value)
    write(
        ppo, 1, [[critic, two_plus(result=wrong(), advantages=[-1.0] * 5, value=value)] for _ in range(3)], values=True
    )
    return vimpo, ppo


@pytest.mark.parametrize("width", [140, 80])
def test_two_runs_side_by_side(pair: tuple[RunFolder, RunFolder], width: int) -> None:
    said = shown(pair, width=width, colour=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    lines = plain.splitlines()
    assert max(map(len, lines[:-1])) <= width
    beside = [line for line in lines if "vimpo (vimpo)" in line]
    assert len(beside) == 3
    assert all(("ppo (ppo)" in line) == (width == 140) for line in beside)
    assert "implied value V(s_t)" in plain
    assert "critic's value V(s_t)" in plain
    assert plain.rstrip().endswith("steps-with-ppo.html")
    assert len(data_of(pair[0].path / "inspection" / "steps-with-ppo.html")["steps"][0]["prompts"]) == 3


def test_the_page_in_a_browser(pair: tuple[RunFolder, RunFolder], browser: Browser) -> None:
    write(pair[0], 1, [[
        two_plus(credit=[0.05, -0.01, 0, 0, 0], value=[0.5, 0.55, 0.54, 0.54, 0.54]),
        Sampled([2, 1], HOSTILE, noisy=0.0),
    ], [two_plus(credit=[0.05, -0.01, 0, 0, 0])]], [HOSTILE, "1+2="])  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown(pair)
    page = pair[0].path / "inspection" / "steps-with-ppo.html"
    for width in (PHONE, DESKTOP):
        for dark in (False, True):
            with browser.open(page, width, dark) as at:
                assert at.complaints == []
                assert at.evaluate("document.documentElement.scrollWidth") <= width
                assert (luminance(at, "background-color") < 0.05) == dark

    def count(selector: str) -> str:
        return f"document.querySelectorAll({json.dumps(selector)}).length"

    def click(label: str) -> str:
        return (
            f"[...document.querySelectorAll('button')].find(b => b.textContent.startsWith({json.dumps(label)})).click()"
        )

    with browser.open(page, PHONE) as at:
        assert at.evaluate(count("section")) == 2
        assert at.evaluate(count("article")) == 4
        assert (
            at.evaluate("getComputedStyle(document.querySelector('.tokens span')).backgroundColor")
            != "rgba(0, 0, 0, 0)"
        )
        assert "</script><img" in at.evaluate("document.getElementById('prompt').textContent")
        at.evaluate("document.querySelector('.tokens span:nth-child(2)').click()")
        said = at.evaluate("document.querySelector('.details').textContent")
        assert "token 2 of 5" in said
        assert "credit \u22120.01 · value 0.55" in said
        at.evaluate("document.querySelector('.tokens').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'}))")
        assert "token 1 of 5" in at.evaluate("document.querySelector('.details').textContent")
        before = at.evaluate("document.querySelector('.tokens span:nth-child(2)').style.background")
        at.evaluate(click("value"))
        assert at.evaluate("document.querySelector('.tokens span:nth-child(2)').style.background") != before
        assert at.evaluate(count(".curve-box path")) == 4
        at.evaluate(click("changed by noise"))
        assert at.evaluate(count("article")) == 1
        assert at.evaluate(count("option")) == 1
        at.evaluate(click("changed by noise"))
        at.evaluate("const s = document.querySelector('select'); s.value = '1'; s.dispatchEvent(new Event('change'))")
        assert at.evaluate("document.querySelector('#prompt .text').textContent") == "1+2="
        assert at.complaints == []


def test_numbers_for_a_line_below_the_tokens() -> None:
    assert [decimals(scale) for scale in (0, 0.0059, 0.05, 1.4, 12, 300)] == [0, 4, 3, 1, 0, 0]
    assert [signed(x, 3) for x in (0.0501, -0.0001, 0.0, -0.25, None)] == ["+0.050", "0", "0", "-0.250", "\u2013"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def test_the_command(folder: RunFolder) -> None:
    write(folder, 1, [[two_plus(credit=[0.05, -0.01, 0, 0, 0])]])
    done = run(folder.path)
    assert done.exit_code == 0, done.output
    assert "+0.050" in done.output
    assert (folder.path / "inspection" / "steps.html").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--step", 4], "has no samples of step 4; it has those of 1"),
        (["--prompt", "zz"], "no prompt of this step begins with 'zz'; among those it has are 0000ab ('0+2=')"),
        (["--prompt", ""], "no prompt of this step begins with ''"),
        (["--surprise", "noises"], "--surprise: unknown kind 'noises'; did you mean 'noise'?"),
        (["--surprise", "?"], "reward-without-answer, credit-at-end, credit-on-space, longest, no-value"),
    ],
)
def test_mistakes_are_named(folder: RunFolder, options: list[object], said: str) -> None:
    write(folder, 1, [[two_plus()]])
    done = run(folder.path, *options)
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_folders_that_cannot_be_inspected(folder: RunFolder, tmp_path: Path) -> None:
    done = run(folder.path)
    assert done.exit_code == 2
    assert "holds no samples yet: it has made no step" in done.output
    (tmp_path / "empty").mkdir()
    done = run(tmp_path / "empty")
    assert done.exit_code == 2
    assert "is not a run's folder" in done.output
    done = run(folder.path, tmp_path / "run" / ".." / "run")
    assert done.exit_code == 2
    assert "beside itself shows nothing" in done.output


def test_a_run_that_is_at_its_first_step(folder: RunFolder) -> None:
    write(folder, 1, [[two_plus()]], credit=False)
    done = run(folder.path)
    assert done.exit_code == 0
    assert "no record of what the algorithm credited: the run is at it" in " ".join(done.output.split())
    assert "nothing is kept of what these tokens were credited" in done.output


def test_runs_that_have_no_step_in_common(pair: tuple[RunFolder, RunFolder]) -> None:
    pair[1].rollout_file(1).rename(pair[1].rollout_file(9))
    done = run(pair[0].path, pair[1].path)
    assert done.exit_code == 2
    assert re.search(r"the runs have no step in common: .*vimpo: 1; .*ppo: 9", done.output)


def test_rollouts_of_an_older_rlkit_are_said_to_be(folder: RunFolder) -> None:
    import pyarrow.parquet as pq

    write(folder, 1, [[two_plus(credit=[0.05, -0.01, 0, 0, 0.001], value=[0.5, 0.55, 0.54, 0.54, 0.54])]])
    file = folder.rollout_file(1)
    pq.write_table(pq.read_table(file).drop_columns(["prompt"]), file)
    done = CliRunner().invoke(main, ["inspect", str(folder.path)])
    assert done.exit_code == 1
    assert "it was made by an older rlkit. Make the run once more" in done.output
