"""Self-contained HTML pages: one file, no network, light and dark, charts that answer to mouse, touch and keys.

A page is a template in this folder that extends base.html, rendered by `render`. Templates have the globals
`chart(Chart)`, `axis(clocks)`, `data(id, JSON)` and `palette`, and the filters `number`, `percent`, `duration`,
`gold_answer` and `code`; of any text that they show control characters are made visible. A script beside a template
under its name (inspection.js) goes into its pages; no other script runs in them, wherever it comes from: a page's
Content-Security-Policy names the scripts by their hashes, and forbids the network.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.files import write_text
from rlkit.wording import duration, gold_answer, number, percent, visible

if TYPE_CHECKING:
    from markupsafe import Markup

HERE = Path(__file__).parent

PALETTE = (
    ("#1f6fb4", "#6cb2f0"),  # blue
    ("#b9520a", "#f29b57"),  # orange
    ("#0b7a5b", "#4fc8a0"),  # green
    ("#7b4bb0", "#bd9cee"),  # purple
    ("#b02e62", "#f286b0"),  # pink
    ("#746400", "#d6c24a"),  # olive
    ("#0a7886", "#56c7d6"),  # cyan
    ("#5f6670", "#a9b1bb"),  # grey
)
"""Colours by index, (on light, on dark): each has a contrast of 4.5 or more there, and neighbours differ to
colour-blind eyes in lightness or in the blue-yellow direction."""

POINTS = 200
"""A longer curve is drawn through the means of so many stretches, in a band from their lowest to their highest."""

Numbers = Sequence[float] | Sequence[float | None]


@dataclass(frozen=True)
class Series:
    """A curve. `x` ascends; what is None or not finite in `y`, `low` or `high` is a gap."""

    name: str
    x: Sequence[float]
    y: Numbers
    low: Numbers | None = None
    """Lower end of a band around the curve, as long as `y`; together with `high`."""
    high: Numbers | None = None
    color: int = 0
    """Index into PALETTE, taken modulo its length."""
    dashed: bool = False
    marks: bool = False
    """A dot at each point: for what is measured now and then."""
    clock: str = ""
    """Which of the page's clocks says what its steps took."""


@dataclass(frozen=True)
class Chart:
    """Curves over one pair of axes."""

    title: str
    series: Sequence[Series]
    x_label: str = "step"
    y_label: str = ""
    y_min: float | None = None
    """None: as the data lie."""
    y_max: float | None = None
    log: bool = False
    """A logarithmic y axis; what is not positive is a gap."""
    line: float | None = None
    """A horizontal line, such as a threshold."""


@dataclass(frozen=True)
class Clock:
    """What the steps of a run took, summed up to and with each of `steps`, which ascend; between them it is linear."""

    steps: Sequence[float]
    tokens: Sequence[float]
    """Of responses. Empty: not recorded."""
    seconds: Sequence[float]
    """Of training, evaluation left out. Empty: not recorded."""


def render(template: str, file: Path, **context: Any) -> None:
    """Fill the template TEMPLATE.html of this folder and put the page in the file's place, whole or not at all.

    OSError where the file cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {f.__name__: f for f in (number, percent, duration, gold_answer, code)}
    environment.globals |= {"chart": chart, "axis": axis, "data": data, "palette": PALETTE}
    scripts = [HERE / "chart.js", HERE / f"{template}.js"]
    sources = [_markup("\n" + script.read_text()) for script in scripts if script.is_file()]
    page = environment.get_template(f"{template}.html").render(
        **context,
        style=_markup((HERE / "style.css").read_text()),
        scripts=sources,
        hashes=[_hash(source) for source in sources],
    )
    write_text(file, page)


def chart(chart: Chart) -> Markup:
    """The figure's HTML: the data as JSON for chart.js, and what they say as a sentence for who sees no picture."""
    from markupsafe import escape

    texts = {name: visible(getattr(chart, name)) for name in ("title", "x_label", "y_label")}
    shown = as_json(asdict(chart) | texts | {"series": [_plain(series) for series in chart.series]})
    title, said = escape(visible(chart.title)), escape(describe(chart))
    return _markup(
        f'<figure class="chart"><figcaption>{title}</figcaption>'
        f'<div class="plot" role="img" tabindex="0" aria-label="{said}"></div>'
        f'<script type="application/json">{shown}</script><noscript><p>{said}</p></noscript></figure>'
    )


def axis(clocks: Mapping[str, Clock]) -> Markup:
    """Buttons for the x axis of all charts that are over steps: what steps took is known where there is a clock."""
    known = [unit for unit in ("tokens", "seconds") if clocks and all(getattr(each, unit) for each in clocks.values())]
    if not known:
        return _markup("")
    shown = {name: {key: _thin(getattr(each, key)) for key in ("steps", *known)} for name, each in clocks.items()}
    return _markup('<div class="controls" id="axis"></div>') + data("clocks", as_json(shown))


def _thin(values: Sequence[float]) -> list[float | int | None]:
    """At most POINTS of them, the last among them."""
    count = min(POINTS, len(values))
    return [_short(values[len(values) * (at + 1) // count - 1], 9) for at in range(count)]


def data(id: str, json: str) -> Markup:
    """`json`, made by `as_json`, as an element of the page."""
    return _markup(f'<script type="application/json" id="{id}">{json}</script>')


def as_json(value: Any) -> str:
    """Such that no text in it can end the element that it stands in, or turn round what stands beside it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    if not text.isprintable():
        text = "".join(
            each if each.isprintable() else json.dumps(visible(each), ensure_ascii=False)[1:-1] for each in text
        )
    return text.replace("<", "\\u003c")


def describe(chart: Chart) -> str:
    """A chart in words: where each curve begins and ends, and between which values it lies."""
    said = []
    for series in chart.series:
        points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if y is not None and math.isfinite(y)]
        if points:
            (first, begins), (last, ends) = points[0], points[-1]
            values = [y for _, y in points]
            said.append(
                f"{visible(series.name)}: {number(begins)} at {chart.x_label} {number(first)}, {number(ends)} at "
                f"{number(last)}, lowest {number(min(values))}, highest {number(max(values))}"
            )
    return f"{visible(chart.title)}. " + ("; ".join(said) or "No numbers") + "."


def _plain(series: Series) -> dict[str, Any]:
    """A series as JSON can hold it, thinned to POINTS."""
    x, y = list(series.x), _finite(series.y)
    low = None if series.low is None else _finite(series.low)
    high = None if series.high is None else _finite(series.high)
    if not len(x) == len(y) == len(low or y) == len(high or y):
        raise ValueError(f"series {series.name!r}: x, y, low and high differ in length")
    if len(x) > POINTS:
        cuts = [len(x) * part // POINTS for part in range(POINTS + 1)]
        parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
        low = [_of(min, y[p]) for p in parts] if low is None else [_of(_mean, low[p]) for p in parts]
        high = [_of(max, y[p]) for p in parts] if high is None else [_of(_mean, high[p]) for p in parts]
        x, y = [_mean(x[p]) for p in parts], [_of(_mean, y[p]) for p in parts]
    return {
        "name": visible(series.name),
        "x": [_short(value, 6) for value in x],
        "y": [_short(value) for value in y],
        "low": None if low is None else [_short(value) for value in low],
        "high": None if high is None else [_short(value) for value in high],
        "color": series.color % len(PALETTE),
        "dashed": series.dashed,
        "marks": series.marks,
        "clock": series.clock,
    }


def _finite(values: Numbers) -> list[float | None]:
    return [None if value is None or not math.isfinite(value) else float(value) for value in values]


def _of(f: Any, values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return f(there) if there else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _short(value: float | None, digits: int = 4) -> float | int | None:
    """Rounded to significant digits: a picture shows no more, and the page stays small."""
    if value is None:
        return None
    rounded = float(f"{value:.{digits}g}")
    if math.isinf(rounded):  # by rounding the largest floats up
        return None
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def code(text: str) -> Markup:
    """The text, escaped, with what stands between backticks as code."""
    from markupsafe import escape

    texts = enumerate(visible(text).split("`"))
    parts = [f"<code>{escape(part)}</code>" if at % 2 else str(escape(part)) for at, part in texts]
    return _markup("".join(parts))


def _shown(value: Any) -> Any:
    """What a template shows; markup, which is made here, as it is."""
    return visible(value) if type(value) is str else value


def _markup(text: str) -> Markup:
    from markupsafe import Markup

    return Markup(text)


def _hash(script: str) -> str:
    """As a Content-Security-Policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
