"""A step on the terminal: backgrounds by credit and the value as a line below; without colour, numbers instead."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.rule import Rule
from rich.style import Style
from rich.table import Table
from rich.text import Text

from rlkit.inspection.steps import Group, Response, Step
from rlkit.inspection.words import DASH, alike, decimals, heading, label, largest, short, signed
from rlkit.wording import gold_answer, number, ranges, visible

PROMPTS = 3
"""Shown where none was asked for."""
PROMPT_LENGTH = 600
"""Characters of a prompt that are shown: its end."""
SIDE_BY_SIDE = 100
"""Columns a terminal needs for two runs beside each other."""

_MORE = ("#d6e6f5", "#a9cdec", "#78b0e0", "#4a8fce", "#1f6fb4")
_LESS = ("#f9e0cc", "#f3bf95", "#ec9c5e", "#d9772f", "#b9520a")
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Cell:
    """A token as it is drawn."""

    text: str
    credit: float | None
    value: float | None
    faint: bool = False
    """It stands for a token without a text of its own."""


@dataclass(frozen=True)
class Scale:
    """What the responses of a group share, so that they can be compared."""

    credit: float
    """The credit drawn strongest; the scale is symmetric around 0."""
    low: float
    high: float
    """Of the values."""

    @classmethod
    def of(cls, group: Group) -> Scale:
        credits = [n for r in group.responses if r.credited for n in r.series[r.credited]]
        values = [n for r in group.responses for n in r.series.get("value", []) if n is not None]
        return cls(largest(credits), min(values, default=0.0), max(values, default=0.0))

    def background(self, credit: float | None) -> Style:
        level = 0 if credit is None or self.credit == 0 else round(abs(credit) / self.credit * len(_MORE))
        if level == 0:
            return Style()
        colour = (_MORE if (credit or 0) > 0 else _LESS)[level - 1]
        return Style(bgcolor=colour, color="#ffffff" if level == len(_MORE) else "black")

    def bar(self, value: float | None) -> str:
        if value is None:
            return " "
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return _BARS[min(int(share * len(_BARS)), len(_BARS) - 1)]


def show(
    console: Console, steps: Sequence[Step], rows: Sequence[Sequence[Group]], only: Sequence[set[int] | None]
) -> None:
    """Print the groups of one step, or those of two runs beside each other.

    `rows` holds, for each prompt, its group in each of the steps; `only`, for each step, the rows of the responses
    to show, None for all.
    """
    coloured = console.color_system is not None and not console.no_color
    beside = len(steps) > 1 and console.width >= SIDE_BY_SIDE
    width = (console.width - 3) // 2 if beside else console.width
    for note in dict.fromkeys(note for step in steps for note in step.notes):
        console.print(Text(visible(f"{note}."), style="dim"))
    for groups in rows:
        first = groups[0]
        again = f", time {first.occurrence + 1} in this step" if first.occurrence else ""
        console.print()
        console.print(Rule(Text(visible(f"prompt {first.prompt_id}{again}"), style="bold"), align="left", style="dim"))
        console.print(Text(_ending(first.prompt)))
        console.print(Text(f"gold {visible(gold_answer(first.gold))}", style="dim"))
        views = [
            Lines(*_group(step, group, kept, width, coloured, len(steps) > 1))
            for step, group, kept in zip(steps, groups, only, strict=True)
        ]
        if beside:
            table = Table.grid(padding=(0, 1), expand=False)
            for _ in views:
                table.add_column(width=width, vertical="top")
            table.add_row(*views)
            console.print(table)
        else:
            console.print(*views, sep="\n")


def _ending(prompt: str) -> str:
    return visible(prompt if len(prompt) <= PROMPT_LENGTH else "… " + prompt[-PROMPT_LENGTH:])


def _group(
    step: Step, group: Group, only: set[int] | None, width: int, coloured: bool, named: bool
) -> Iterator[RenderableType]:
    scale = Scale.of(group)
    if named:
        yield Text(visible(f"{step.run} ({step.algorithm})"), style="bold")
    yield Text(f"baseline, the group's mean reward: {number(group.baseline)}", style="dim")
    yield from _legend(step, group, scale, coloured)
    kept = [response for response in group.responses if only is None or response.row in only]
    for responses in alike(kept, scale.credit):
        yield Text()
        yield from _facts(responses, width)
        yield from _tokens(responses[0], scale, width, coloured)


def _legend(step: Step, group: Group, scale: Scale, coloured: bool) -> Iterator[Text]:
    credited = next((r.credited for r in group.responses if r.credited), None)
    if credited is None:
        yield Text("nothing is kept of what these tokens were credited", style="dim")
        return
    if coloured and scale.credit == 0:
        yield Text(visible(f"colour  {label(step, credited)}: 0 throughout"), style="dim")
    elif coloured:
        places = decimals(scale.credit)
        text = Text("colour  ", style="dim")
        text.append(f"{signed(-scale.credit, places)} ")
        for share in range(-len(_MORE), len(_MORE) + 1):
            text.append(" ", scale.background(share / len(_MORE) * scale.credit))
        text.append(visible(f" {signed(scale.credit, places)}  {label(step, credited)}"), "dim")
        yield text
    if coloured and any("value" in r.series for r in group.responses):
        ends = f"{number(scale.low)} {_BARS[0]} to {_BARS[-1]} {number(scale.high)}"
        yield Text(f"line    {ends}  {label(step, 'value')}", style="dim")


def _facts(responses: Sequence[Response], width: int) -> Iterator[Text]:
    """Who they are, and what came of them; what does not fit in a line goes on below."""
    response = responses[0]
    reward = Text("no value" if response.reward is None else f"reward {number(response.reward)}", "bold")
    if response.reward != response.clean_reward:
        reward.append(f", {number(response.clean_reward)} before noise", "bold yellow")
    marks = [] if response.correct is None else ["correct" if response.correct else "wrong"]
    marks += [response.status] if response.status != "ok" else []
    marks += ["truncated"] if response.truncated else []
    marks += [] if response.valid else ["left out of the loss"]
    marks += [f"{len(response.tokens)} tokens"]
    if response.one_number is not None:
        marks.append(f"advantage {number(response.one_number)}")
    values = [v for v in response.series.get("value", []) if v is not None]
    if values:
        marks.append(f"V {number(values[0])} to {number(_end(response, values))}")
    line = Text().append(f"{ranges([r.index + 1 for r in responses]):>3}  ", "bold").append_text(reward)
    for mark in marks:
        if line.cell_len + cell_len(mark) + 3 > width:
            yield line
            line = Text("    ")
        line.append(f" · {visible(mark)}")
    yield line


def _end(response: Response, values: list[float]) -> float:
    """The value after the last token, where the credit says it; else before it."""
    credits = [c for c in response.series.get("credit", []) if c is not None]
    return values[-1] + (credits[-1] if credits else 0.0)


def _tokens(response: Response, scale: Scale, width: int, coloured: bool) -> Iterator[Text]:
    cells = _cells(response)
    for stretch in response.stretches:
        yield Text(visible(f"     {heading(stretch)}"), style="dim")
        part = cells[stretch.start : stretch.end]
        if stretch.turn is None:
            for line in _plain(part, width - 7):
                yield Text("     │").append_text(line[4:])
        else:
            yield from _drawn_cells(response, part, scale, width, coloured)
    if not response.turns:
        yield from _drawn_cells(response, cells, scale, width, coloured)
    elif response.last_words:
        yield Text("     the environment, at the end", style="dim")
        for line in _plain([Cell(_drawn(response.last_words), None, None)], width - 7):
            yield Text("     │").append_text(line[4:])


def _drawn_cells(response: Response, cells: Sequence[Cell], scale: Scale, width: int, coloured: bool) -> Iterator[Text]:
    if coloured:
        yield from _coloured(cells, scale, width - 5, "value" in response.series)
    elif response.credited is None or response.one_number is not None:
        yield from _plain(cells, width - 5)
    else:
        yield from _numbered(cells, short(response.credited), scale, width - 5)


def _width(cell: Cell) -> int:
    return cell_len(cell.text)


def _cells(response: Response) -> list[Cell]:
    none = [None] * len(response.tokens)
    credits = response.series.get(response.credited or "", none)
    values = response.series.get("value", none)
    return [
        Cell(_drawn(piece.shown or piece.text), credit, value, piece.shown is not None)
        for piece, credit, value in zip(response.pieces, credits, values, strict=True)
    ]


def _drawn(text: str) -> str:
    return visible(text).replace("\n", "⏎").replace("\t", "⇥")


def _wrapped(cells: Sequence[Cell], width: int, drawn: Callable[[Cell], int] = _width) -> Iterator[list[Cell]]:
    """Cells in lines; one that is wider than a line is cut up. `drawn`: the columns that a cell takes."""
    line: list[Cell] = []
    used = 0
    for cell in itertools.chain.from_iterable(_cut(cell, width) for cell in cells):
        wide = drawn(cell)
        if line and used + wide > width:
            yield line
            line, used = [], 0
        line.append(cell)
        used += wide
        if cell.text.endswith("⏎"):
            yield line
            line, used = [], 0
    if line:
        yield line


def _cut(cell: Cell, width: int) -> Iterator[Cell]:
    if cell_len(cell.text) <= width:
        yield cell
        return
    half = max(1, width // 2)  # a character is at most two columns wide
    for at in range(0, len(cell.text), half):
        yield Cell(cell.text[at : at + half], cell.credit, cell.value, cell.faint)


def _coloured(cells: Sequence[Cell], scale: Scale, width: int, valued: bool) -> Iterator[Text]:
    for line in _wrapped(cells, width):
        text, bars = Text("     "), Text("     ")
        for cell in line:
            background = scale.background(cell.credit)
            text.append(
                cell.text, background + Style(italic=True, dim=not background.bgcolor) if cell.faint else background
            )
            bars.append(scale.bar(cell.value) * cell_len(cell.text), "cyan")
        yield text
        if valued:
            yield bars


def _plain(cells: Sequence[Cell], width: int) -> Iterator[Text]:
    for line in _wrapped(cells, width):
        yield Text("     " + "".join(cell.text for cell in line))


def _numbered(cells: Sequence[Cell], name: str, scale: Scale, width: int) -> Iterator[Text]:
    places = decimals(scale.credit)
    digits = max(decimals(scale.high - scale.low), decimals(max(abs(scale.low), abs(scale.high))) + 1)
    rows: list[tuple[str, Callable[[Cell], str]]] = [
        ("", lambda cell: cell.text),
        (name, lambda cell: signed(cell.credit, places)),
    ]
    if any(cell.value is not None for cell in cells):
        rows.append(("V", lambda cell: DASH if cell.value is None else f"{cell.value:.{digits}f}"))
    size = max(len(write(cell)) for _, write in rows[1:] for cell in cells)

    def column(cell: Cell) -> int:
        return max(cell_len(cell.text), size) + 1

    for line in _wrapped(cells, width - 11, column):
        for said, write in rows:
            text = "".join(" " * (column(cell) - cell_len(write(cell))) + write(cell) for cell in line)
            yield Text(visible(f"     {said:<10}{text}"))
