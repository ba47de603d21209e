"""TensorBoard: a mirror of metrics.jsonl, with a few responses as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from rlkit import distribution, registry
from rlkit.tracking import RunInfo
from rlkit.wording import visible

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@registry.tracker("tensorboard")
def tensorboard(run: RunInfo) -> TensorboardTracker:
    """TensorBoard event files under the run's folder: `tensorboard --logdir runs`."""
    distribution.check_extra("tracker tensorboard", "tensorboard")
    return TensorboardTracker(run)


class TensorboardTracker:
    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.writer: SummaryWriter | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        writer = self._writer(step)
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for number, row in enumerate(rows):
            code = _as_code(f"answer {row['answer']}\n\n{row['prompt']}{row['response']}")
            said = f"reward {row['reward']}\n\n{code}"
            # Half of a pair of surrogates has no UTF-8, in which TensorBoard keeps texts.
            self._writer(step).add_text(f"samples/{number}", visible(said), step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _writer(self, step: int) -> SummaryWriter:
        """Made at the first step logged, so that TensorBoard hides what an interrupted run wrote from there on."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.run.folder / "tensorboard"), purge_step=step)
            self.writer.add_text("config", _as_code(yaml.safe_dump(self.run.config, sort_keys=False)), step)
        return self.writer


def _as_code(text: str) -> str:
    """Indented, so that markdown leaves it as it is."""
    return "\n".join("    " + line for line in text.splitlines())
