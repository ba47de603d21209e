"""Updates that are not finite end a run after three in a row; what it had learnt is on disk, and goes on from there."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlkit import config as configs
from rlkit.assembly import run as runs
from rlkit.errors import NotFiniteError
from rlkit.records.folder import RunFolder

BREAKS = """
from rlkit import loss
from rlkit.ops.masked import masked_sum


@loss("breaks")
def breaks(*, after: int):
    \"\"\"A policy gradient that is not a number from update `after` on.\"\"\"

    def compute(new, batch, targets):
        broken = float("nan") if batch.update >= after else 1.0
        per_token = -targets.get("advantages") * new.get("logprobs") * broken
        return masked_sum(per_token, batch.mask) / max(batch.n_tokens, 1), {}

    return compute
"""


def test_three_in_a_row_end_the_run_with_all_saved(tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text(BREAKS)
    small = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=4", "steps=8"]
    own = [f"out={tmp_path}", "name=r", f"plugins=[{tmp_path / 'breaks.py'}]", "loss.kind=breaks", "loss.after=2"]
    with (
        pytest.warns(UserWarning, match="the loss is not finite; no step was made"),
        pytest.raises(
            NotFiniteError, match=r"step 5: .*(?s:.*)3 updates in a row were not finite, so the run ends"
        ) as raised,
    ):
        runs.train(configs.load("embedded_xs", [*small, *own], "grpo"), quiet=True)
    run = RunFolder.open(tmp_path / "r")
    assert [row["updates/not_finite"] for row in run.read_metrics()[1:]] == [0, 0, 1, 1]
    assert [row["updates/made"] for row in run.read_metrics()[1:]] == [1, 2, 2, 2]
    assert [place.name for place in run.checkpoints.iterdir()] == ["step-00000004"]

    files = [run.not_finite_file(step, 0) for step in (3, 4, 5)]
    assert sorted(run.not_finite.iterdir()) == files
    assert f"The batch is kept in {files[-1]}" in str(raised.value)
    batch = pq.read_table(files[0]).to_pydict()
    rollout = pq.read_table(run.rollout_file(3)).to_pydict()
    assert [rollout["tokens"][row] for row in batch["row"]] == batch["tokens"]
    assert [len(advantages) for advantages in batch["advantages"]] == list(map(len, batch["tokens"]))
    assert all(math.isfinite(number) for row in batch["sampler_logprobs"] for number in row)
    assert all(batch["blamed"]), "no statistic was at fault, so that all of the batch is to be looked at"

    mended = configs.load(str(run.config_file), ["loss.after=100"])
    runs.train(mended, resume=True, quiet=True)
    assert [row["step"] for row in run.read_metrics()] == list(range(9))
    assert run.read_metrics()[-1]["updates/made"] == 6
    assert sorted(run.not_finite.iterdir()) == files[:2], "step 5 has been made anew"
