"""What cannot be learnt from ends a run after a while; what it had learnt is on disk, and goes on from there."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlkit import config as configs
from rlkit.assembly import run as runs
from rlkit.errors import NotFiniteError, PluginError
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


FAILS = """
import zlib

from rlkit import reward


@reward("fails")
def fails(samples, *, after: int, share: float):
    \"\"\"Raises on a share of the samples of the steps after one.\"\"\"
    for each in samples:
        if each.key.rollout_step > after and zlib.crc32(repr(each.key).encode()) % 1000 < 1000 * share:
            raise ValueError("a verifier's fault")
    return [float(each.key.index % 2) for each in samples]
"""


@pytest.fixture(scope="module")
def fails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugin") / "fails.py"
    file.write_text(FAILS)
    return file


@pytest.mark.parametrize(
    ("after", "share", "done", "said"),
    [
        pytest.param(0, 1.0, 0, r"32 of 32 samples have no value", marks=pytest.mark.slow),
        pytest.param(2, 1.0, 2, r"32 of 32 samples have no value", marks=pytest.mark.slow),
        (2, 0.2, 2, r"\d of 32 samples have no value"),
        (0, 0.01, 4, None),
    ],
)
def test_a_reward_that_raises_costs_its_samples_or_ends_the_run_with_all_saved(
    after: int,
    share: float,
    done: int,
    said: str | None,
    fails: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reward = [f"plugins=[{fails}]", f"reward={{kind: fails, after: {after}, share: {share}}}"]
    own = ["batch.prompts_per_step=8", "batch.samples_per_prompt=4", "eval.problems=2", "steps=4"]
    config = configs.load("embedded_xs", [*own, *reward, f"out={tmp_path}", "name=r"], "grpo")
    if said is None:
        runs.train(config, quiet=True)
    else:
        with pytest.raises(
            PluginError, match=said + r".*reward 'fails': \d+ error(?s:.*)ValueError: a verifier's fault"
        ):
            runs.train(config, shows="warnings")
        resumes = f"saved up to step-{done:08d}; when it is mended, go on with: rlkit run --resume {tmp_path / 'r'}"
        assert (resumes in capsys.readouterr().out) == bool(done)
    run = RunFolder.open(tmp_path / "r")
    assert [row["step"] for row in run.read_metrics()] == list(range(done + 1))
    assert [place.name for place in run.checkpoints.iterdir()] == [f"step-{done:08d}"] * bool(done)
