"""A sampler that does not take the trainer's weights over ends the run before anything is learnt from it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from torch import Tensor

import rlkit
from rlkit import config as configs
from rlkit.assembly.run import train
from rlkit.errors import RlkitError
from rlkit.generation import transformers
from rlkit.records.folder import RunFolder


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("stale", ["lm_head", "model.norm", "model.layers.1.mlp.down_proj", ""])
def test_a_sync_that_leaves_a_weight_old(
    stale: str, stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = transformers._Transformers.sync

    def broken(self: transformers._Transformers, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        old = {name: tensor.clone() for name, tensor in self._model.state_dict().items() if name.startswith(stale)}
        sync(self, weights, version)
        self._model.load_state_dict(old, strict=False)

    settings = [f"out={tmp_path}", f"engine.zero_stage={stage}", "optimizer.lr=1e-6", "steps=1", "eval.problems=4"]
    config = configs.load("embedded_xs", [*settings, "batch.prompts_per_step=4"])
    rlkit.train(config.model_copy(update={"name": "sound"}), quiet=True)
    monkeypatch.setattr(transformers._Transformers, "sync", broken)
    with pytest.raises(RlkitError, match="does not hold the trainer's weights"):
        rlkit.train(config, quiet=True)


def test_a_sync_that_fails_later_keeps_what_was_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = transformers._Transformers.sync

    def broken(self: transformers._Transformers, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        sync(self, ((name, weight * (1.5 if version == 2 else 1)) for name, weight in weights), version)

    monkeypatch.setattr(transformers._Transformers, "sync", broken)
    settings = ["steps=4", "eval.problems=2", "batch.prompts_per_step=4", "sampling.check_every=1"]
    config = configs.load("embedded_xs", [f"out={tmp_path}", "name=r", "checkpoint.every=4", *settings])
    with pytest.raises(RlkitError, match=r"^step 2: after the sync .*Training on would be off-policy unseen") as ended:
        rlkit.train(config, quiet=True)
    assert ended.value.exit_code == 1
    run = RunFolder.open(tmp_path / "r")
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2]
    assert [each.name for each in run.checkpoints.iterdir()] == ["step-00000002"]
    monkeypatch.setattr(transformers._Transformers, "sync", sync)
    train(config, resume=True, quiet=True)
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2, 3, 4]
