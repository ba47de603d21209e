"""Numbers, sizes, durations and texts as people read them. Needs no torch."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence


def number(value: float | None, digits: int = 3) -> str:
    """0.853, 1,234, 4.5e-6; a dash for None and what is not finite."""
    if value is None or not math.isfinite(value):
        return "-"
    size = abs(value)
    if value == int(value) and size < 1e7:
        return f"{int(value):,}"
    if 10**digits <= size < 1e7:
        return f"{value:,.0f}"
    mantissa, e, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def decimals(largest: float, digits: int) -> int:
    """Places that give a number as large as `largest` so many digits, for all that stand beside it."""
    return max(0, digits - 1 - math.floor(math.log10(largest))) if largest > 0 else 0


def percent(value: float | None) -> str:
    """A share: 0.253 is 25 %, 0.0042 is 0.42 %; a dash for None and what is not finite."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{100 * value:.0f} %" if abs(value) >= 0.1 or value == 0 else f"{100 * value:.2g} %"


def duration(seconds: float | None) -> str:
    """38 ms, 4.5 s, 45 s, 3 min 20 s, 2 h 05 min; a dash for None and what is not finite."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 0.9995:
        return f"{number(1000 * seconds, 3)} ms"
    if seconds < 59.5:
        return f"{number(seconds, 2)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes: 410 KiB, 210 MiB, 1.3 GiB."""
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def gold_answer(gold: str) -> str:
    """The answer of a gold that is a worked solution: what follows its last ####, or stands in its last \\boxed{};
    any other gold as it is. For people to read: what verifiers take for the answer is their own matter."""
    _, marked, rest = gold.rpartition("####")
    if marked and rest.strip():
        return rest.strip()
    _, boxed, rest = gold.rpartition("\\boxed{")
    depth = 1
    for at, character in enumerate(rest if boxed else ""):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[:at].strip() or gold
    return gold


def thousands(value: float) -> str:
    """How many, roughly: 512, 1.1k, 48k, 1.2M, 4B; a dash for what is not finite."""
    if not math.isfinite(value):
        return "-"
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{number(value / unit, 2 if value < 10 * unit else 3)}{letter}"
    return number(value)


def counted(count: int, noun: str, ending: str = "s") -> str:
    """1 minibatch, 2 minibatches."""
    return f"{count} {noun}{'' if count == 1 else ending}"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in few words: 1, 2, 5 to 8."""
    runs: list[list[int]] = []
    for each in numbers:
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def some(items: Sequence[object], most: int) -> str:
    """The first `most` of them: 1, 5, ..."""
    return ", ".join([*map(str, items[:most]), *(["..."] if len(items) > most else [])])


SHOWN_AS_THEY_ARE = frozenset("\n\t\u200c\u200d")
"""Line feed and tab are layout; the joiners belong to the spelling of several scripts."""


def visible(text: str) -> str:
    """The text with its control characters shown: ESC as ␛, a right-to-left override as \\u202e.

    What a model wrote can then neither move a terminal's cursor nor reorder a page; line feeds and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def one_line(text: str, most: int = 200) -> str:
    """`visible` text in one line, its line feeds as \\n; what is over `most` characters is cut in the middle."""
    shown = visible(text).replace("\n", "\\n").replace("\t", "\\t")
    if len(shown) <= most:
        return shown
    end = most // 2
    return f"{shown[: most - end]} ... {shown[-end:]}"


def excerpt(text: str, lines: int, characters: int) -> list[str]:
    """The lines of a `visible` text; of a longer one its beginning and its end, where the answer is, and between them
    how much was left out."""
    left_out = len(text) - characters
    if left_out > 0:
        end = characters // 3
        text = f"{text[: characters - end]} [... {left_out:,} characters ...] {text[-end:]}"
    found = visible(text).split("\n")
    left_out = len(found) - lines
    if left_out > 0:
        end = lines // 3
        found = [*found[: lines - end], f"[... {counted(left_out, 'line')} ...]", *found[len(found) - end :]]
    return found


def folded(line: str, columns: int | None, indent: int = 0) -> str:
    """A line for a terminal of so many columns: folded at words, what follows the first part indented. None: no
    terminal, which takes a line of any length."""
    if columns is None or len(line) < columns // 2:
        return line
    from rich.console import Console
    from rich.text import Text

    # rich knows which characters take two columns.
    console, line = Console(width=columns), line.expandtabs()
    first, *rest = (part.plain for part in Text(line).wrap(console, columns))
    if not rest:
        return line
    left = line[len(first) :].lstrip(" ")
    more = [" " * indent + part.plain for part in Text(left).wrap(console, max(20, columns - indent))]
    return "\n".join(part.rstrip(" ") for part in [first, *more])


def quoted(texts: Sequence[str]) -> str:
    """Texts in one line: "\\n", "</answer>"."""
    return ", ".join(f'"{one_line(text)}"' for text in texts)


def _shown(character: str) -> str:
    if character in SHOWN_AS_THEY_ARE or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
