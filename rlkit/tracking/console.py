"""What a person sees of a run while it goes: a line a step, some responses, what is wrong; on a terminal a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console as Terminal
from rich.text import Text

from rlkit.records.metrics import evaluation_of
from rlkit.tracking import RunInfo
from rlkit.tracking.bar import Bar
from rlkit.tracking.terminal import Shows
from rlkit.wording import counted, excerpt, folded, number, one_line, thousands, visible

if TYPE_CHECKING:
    from rlkit.report import Warning

RESPONSES = 3
"""Of a step whose responses are shown."""
LINES, CHARACTERS = 8, 800
"""Of a response."""
FIRST_LOOK = 2
"""The first step after which faults are looked for: what one step shows may be chance."""


class Console:
    """The tracker that people watch; and a Progress, as `phase`."""

    def __init__(
        self, run: RunInfo, shows: Shows, faults: Callable[[], Sequence[Warning]], terminal: Terminal | None = None
    ) -> None:
        """`faults`: what is wrong with the run by now. `terminal` None: standard output."""
        self.steps = run.steps
        self.lines = shows != "warnings"
        self.faults = faults
        # In a notebook rich would make a picture of every line.
        self.terminal = terminal or Terminal(highlight=False, soft_wrap=True, force_jupyter=False)
        self._has_bar = shows == "bar"
        self._bar: Bar | None = None
        self._samples: Sequence[Mapping[str, Any]] = ()
        self._said: set[str] = set()
        self._next_look = FIRST_LOOK

    def begin(self, done: int) -> None:
        """All is loaded; `done` steps were made before."""
        if self._has_bar:
            self._bar = Bar(self.terminal, self.steps, done)

    def phase(self, phase: str, done: int = 0, total: int = 0) -> None:
        if self._bar is not None:
            comma = "," if " " in phase else ""
            self._bar.phase = f"{phase}{comma} {done} of {total}" if total > 1 else phase

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        training = {name: value for name, value in metrics.items() if not name.startswith("eval/")}
        made_step = bool(set(training) - {"time/eval_s"})
        if made_step and self._bar is not None:
            self._bar.step(step, training.get("time/step_s", 0.0))
        if self.lines:
            if made_step:
                self._print(f"step {step}/{self.steps} {step_line(training)}")
                if worth_showing(step):
                    self._show_responses(step)
            for suite, said in _evaluations(metrics).items():
                self._print(f"step {step}/{self.steps} evaluation, {suite}: {said}")
        if made_step and step >= self._next_look:
            self._look(step)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Kept until the step is made: they are shown below its line."""
        self._samples = rows[:RESPONSES]

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _look(self, step: int) -> None:
        """Say what has come to be wrong, each fault once. Of a long run not after every step: a look reads all that it
        has logged."""
        self._next_look = step + 1 + step // 20
        for fault in self.faults():
            if fault.name not in self._said:
                self._said.add(fault.name)
                self._print(f"warning: {fault.brief()}", style="yellow")

    def _show_responses(self, step: int) -> None:
        if not self._samples:
            return
        self._print(f"  responses of step {step}, to its first prompts:", style="dim")
        for row in self._samples:
            self._print(f"    {one_line(_asked(row), most=160)}", style="dim")
            for line in excerpt(row["response"], LINES, CHARACTERS):
                self._print(f"      | {line}", indent=8)
            self._print(f"      {', '.join(_judged(row))}", style="dim", indent=6)

    def _print(self, line: str, style: str = "", indent: int = 2) -> None:
        """`indent`: of what is folded on a terminal."""
        line = folded(visible(line), self.terminal.width if self.terminal.is_terminal else None, indent)
        # What a model wrote may hold what the terminal's encoding lacks, and must not end the run.
        encoding = self.terminal.encoding
        self.terminal.print(Text(line.encode(encoding, "backslashreplace").decode(encoding), style))


def worth_showing(step: int) -> bool:
    """1, 2, 5, 10, 20, 50, 100, ...: most of what goes wrong shows early."""
    return str(step).rstrip("0") in ("1", "2", "5")


def step_line(metrics: Mapping[str, float]) -> str:
    """`reward 0.612 pass 0.60 kl 0.0123 len 17.3 gap 2e-06 1.1k tok/s 0.51 s`, as far as there are numbers; where there
    is an environment, the turns of a trajectory too."""
    shown = {
        "reward/mean": "reward {:.3f}",
        "reward/pass_rate": "pass {:.2f}",
        "policy/kl": "kl {:.4f}",
        "response/length": "len {:.1f}",
        "environment/turns": "turns {:.1f}",
        "sampler/gap_max": "gap {:.0e}",
    }
    parts = [form.format(metrics[name]) for name, form in shown.items() if name in metrics]
    if metrics.get("samples/no_value"):
        parts.append(f"{metrics['samples/no_value']:.0f} without reward")
    if metrics.get("groups/equal_rewards") == 1 and not metrics.get("refill/groups"):
        parts.append("no signal")
    if missing := metrics.get("refill/groups_missing"):
        groups = metrics["refill/groups"]
        parts.append(f"{groups:.0f} of {groups + missing:.0f} groups")
    if "throughput/tokens_per_s" in metrics:
        parts.append(f"{thousands(metrics['throughput/tokens_per_s'])} tok/s")
    if "time/step_s" in metrics:
        parts.append(f"{metrics['time/step_s']:.2f} s")
    return " ".join(parts)


def _asked(row: Mapping[str, Any]) -> str:
    """The question without what a template puts around it, where the data have it as text."""
    question = row["question"]
    if isinstance(question, list) and question and isinstance(question[-1], Mapping):
        question = question[-1].get("content")
    return question if isinstance(question, str) and question else str(row["prompt"])


def _judged(row: Mapping[str, Any]) -> Iterator[str]:
    """What became of a response, in few words."""
    reward, clean = row["reward"], row["clean_reward"]
    if clean is None:
        yield f"no reward ({row['status']})"
    elif reward is None:
        yield f"reward {number(clean)}, left out of the loss"
    else:
        yield f"reward {number(reward)}" + ("" if reward == clean else f" (clean {number(clean)})")
    yield counted(row["length"], "token") + (", truncated" if row["truncated"] else "")
    if row["found"] is not None:
        yield f"found {one_line(row['found'], most=60)}"
    elif row["status"] == "no_answer":
        yield "no answer found"
    if row["answer"]:
        yield f"gold {one_line(row['answer'], most=60)}"


def _evaluations(metrics: Mapping[str, float]) -> dict[str, str]:
    """Suite -> its results: eval/SUITE/mean@1 and the like."""
    suites: dict[str, list[str]] = {}
    for name, value in metrics.items():
        if (evaluated := evaluation_of(name)) is not None:
            suite, what = evaluated
            suites.setdefault(suite, []).append(f"{what} {value:.4g}")
    return {suite: " ".join(results) for suite, results in suites.items()}
