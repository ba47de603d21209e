"""The pages that rlkit writes, in a real browser: they draw, they complain of nothing, and nothing in them runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, Browser, check_page
from made_run import HOSTILE, healthy, make_run

from rlkit import report
from rlkit.pages import Chart, Series, render


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The report of a run with noise, warnings, and responses that would like to be more than text."""
    rows = healthy()
    for row in rows:
        row |= {"reward/disturbed": 0.25, "reward/clean": row["reward/mean"] + 0.1, "policy/kl": 1.5}
        row |= {f"reward/part/{name}": row["reward/mean"] for name in ("format", "answer")}
    return report.write(make_run(tmp_path / "run", rows, HOSTILE, noise=["group_flip"]).path)


def test_a_run_s_report(browser: Browser, page: Path) -> None:
    check_page(browser, page)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("<script>console.error('oh')</script>", "complains: .*oh"),
        ("<script>nowhere()</script>", "complains: .*nowhere is not defined"),
        ("<script src='https://example.com/a.js'></script>", "complains: .*request: https"),
        ("<div style='width: 2000px'>wide</div>", "scrolls sideways"),
        ("<style>body { background: white !important }</style>", "ground is of the other theme"),
        ("<figure class='chart'></figure>", "not drawn"),
    ],
)
def test_a_page_with_a_fault_is_found_out(browser: Browser, page: Path, fault: str, said: str) -> None:
    """Or the test before would say nothing."""
    allowed = re.sub("<meta http-equiv.*?>", "", page.read_text())
    page.write_text(allowed.replace("</body>", f"{fault}</body>"))
    with pytest.raises(AssertionError, match=said):
        check_page(browser, page)


def test_what_a_model_wrote_does_not_run(browser: Browser, page: Path) -> None:
    with browser.open(page) as opened:
        assert opened.evaluate("document.title") == "run: report"
        assert HOSTILE[0] in opened.evaluate("document.body.innerText")
        assert opened.count("img") == 0


def test_a_script_that_got_in_would_not_run(browser: Browser, page: Path) -> None:
    page.write_text(page.read_text().replace("<main>", f"<main>{HOSTILE[0]}{HOSTILE[1]}"))
    with browser.open(page) as opened:
        assert opened.evaluate("document.title") == "run: report"
        assert any("Content Security Policy" in complaint for complaint in opened.complaints)


def test_the_mouse_reads_a_chart_out(browser: Browser, page: Path) -> None:
    with browser.open(page) as opened:
        plot = "document.querySelector('.plot')"
        opened.evaluate(f"{plot}.scrollIntoView()")
        box = opened.evaluate(f"(r => [r.x, r.y, r.width, r.height])({plot}.getBoundingClientRect())")
        opened.mouse_to(box[0] + box[2] / 2, box[1] + box[3] / 2)
        said = opened.evaluate("document.querySelector('.readout').innerText").splitlines()
        assert said[0].startswith("step ")
        assert any(line.startswith("clean reward") for line in said)
        opened.mouse_to(1, 1)
        assert opened.evaluate("document.querySelector('.readout')") is None


def test_samples_are_found_by_filters(browser: Browser, page: Path) -> None:
    def choose(label: str, value: str) -> str:
        return (
            f"(field => {{ field.value = '{value}'; "
            "for (const type of ['input', 'change']) field.dispatchEvent(new Event(type)) })"
            "([...document.querySelectorAll('#filters label')]"
            f".find(each => each.textContent.startsWith('{label}')).children[0])"
        )

    with browser.open(page) as opened:
        matches = "document.getElementById('matches').textContent"
        assert opened.evaluate(matches) == "240 of 240 samples"
        assert opened.count("#found article") == 12
        opened.evaluate("document.getElementById('more').click()")
        assert opened.count("#found article") == 24
        opened.evaluate(choose("step", "7"))
        assert opened.evaluate(matches) == "3 of 240 samples"
        assert opened.evaluate("document.getElementById('more').hidden")
        opened.evaluate(choose("truncated", "true"))
        assert opened.evaluate(matches) == "1 of 240 samples"
        opened.evaluate(choose("truncated", ""))
        opened.evaluate(choose("status", "timeout"))
        said = opened.evaluate("document.querySelector('#found article').innerText")
        assert "prompt 2 of step 7" in said
        assert "no value" in said
        opened.evaluate(choose("verdict", "true"))
        assert opened.evaluate(matches) == "0 of 240 samples"
        opened.evaluate(choose("status", "") + ";" + choose("verdict", "") + ";" + choose("text", "PROMPT 1 OF"))
        assert opened.evaluate(matches) == "1 of 240 samples"
        assert opened.complaints == []


def test_histograms_follow_the_step(browser: Browser, page: Path) -> None:
    with browser.open(page) as opened:
        said = "document.querySelector('.histogram .said').textContent"
        assert opened.evaluate("document.querySelector('#spread-step label').textContent") == "step 80"
        opened.evaluate(
            "(s => { s.value = 4; s.dispatchEvent(new Event('input')) })(document.querySelector('#spread-step input'))"
        )
        assert opened.evaluate("document.querySelector('#spread-step label').textContent") == "step 5"
        opened.evaluate("document.querySelector('.bins div').dispatchEvent(new Event('pointerover'))")
        assert opened.evaluate(said) == "0: 1 of 2 responses"


def test_keys_read_a_chart_out(browser: Browser, page: Path) -> None:
    with browser.open(page) as opened:
        opened.evaluate("document.querySelector('.plot').focus()")
        for _ in range(3):
            opened.send("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight")
        assert opened.evaluate("document.querySelector('.readout').innerText").startswith("step 3")


def test_the_legend_hides_a_curve(browser: Browser, page: Path) -> None:
    with browser.open(page) as opened:
        curves = "document.querySelector('.chart').querySelectorAll('path.curve').length"
        before = opened.evaluate(curves)
        opened.evaluate("document.querySelector('.legend button').click()")
        assert opened.evaluate(curves) == before - 1
        assert opened.evaluate("document.querySelector('.legend button').getAttribute('aria-pressed')") == "false"


def test_a_chart_is_drawn_anew_at_another_width(browser: Browser, page: Path) -> None:
    with browser.open(page, DESKTOP) as opened:
        width = "document.querySelector('.plot svg').clientWidth"
        assert opened.evaluate(width) > 900
        opened.send("Emulation.setDeviceMetricsOverride", width=500, height=900, deviceScaleFactor=1, mobile=False)
        opened.evaluate("new Promise(done => setTimeout(done, 200))")
        assert 250 < opened.evaluate(width) < 500


def test_gaps_bands_and_odd_data_are_drawn(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charts = [
        Chart("gap", [Series("a", [1, 2, 3, 4, 5], [1, 2, float("nan"), 4, 5])]),
        Chart("band", [Series("a", [1, 2, 3], [1, 2, 3], [0, 1, 2], [2, 3, 4])]),
        Chart("log", [Series("a", [1, 2, 3], [1e-6, 0, 1e2])], log=True, line=1.0),
        Chart("one point", [Series("a", [3], [1e-9])]),
        Chart("constant", [Series("a", [1, 2], [0, 0])], y_min=0),
        Chart("nothing", [Series("a", [], [])]),
    ]
    figures = "{% for each in charts %}{{ chart(each) }}{% endfor %}"
    (tmp_path / "odd.html").write_text('{% extends "base.html" %}{% block content %}' + figures + "{% endblock %}")
    for name in ("base.html", "style.css", "chart.js"):
        (tmp_path / name).write_text((Path(report.__file__).parents[1] / "pages" / name).read_text())
    monkeypatch.setattr("rlkit.pages.HERE", tmp_path)
    render("odd", tmp_path / "page.html", charts=charts)
    with browser.open(tmp_path / "page.html", PHONE) as opened:
        assert opened.complaints == []
        count = "[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll({}).length)"
        assert opened.evaluate(count.format("'path.curve'")) == [2, 1, 2, 1, 1, 0]
        assert opened.evaluate(count.format("'path.band'")) == [0, 1, 0, 0, 0, 0]
        assert opened.evaluate(count.format("'circle'")) == [0, 0, 2, 1, 0, 0]
        assert "NaN" not in opened.evaluate("document.body.innerHTML")
