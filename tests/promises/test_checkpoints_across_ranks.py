"""A checkpoint goes on with other ranks, another ZeRO stage or dtype: the same weights, the same moments of AdamW."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_worker import TwoRanks, engine_of, logprob_loss, random_batch, run, save_model, settings

from rlkit.config import RunConfig
from rlkit.engine import checkpoint
from rlkit.engine.resharding import span
from rlkit.errors import RlkitError
from rlkit.records.checkpoints import read_manifest
from rlkit.records.folder import RunFolder

SEED = 7
LORA = {"model": {"lora": {"rank": 4}}}
AVERAGE = {"reference": {"kind": "average", "decay": 0.9, "by": "update"}}
COPY = {"reference": {"kind": "copy", "every": 1}}


def config_of(path: Path, stage: int, **changes: Any) -> RunConfig:
    return settings(path, **changes | {"engine": {"zero_stage": stage} | changes.get("engine", {})})


def contents(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def go_on(two_ranks: TwoRanks, ranks: int, *args: Any, **kwargs: Any) -> dict[str, Any]:
    found = [run("go_on", *args, **kwargs)] if ranks == 1 else two_ranks.run("go_on", *args, **kwargs)
    one: dict[str, Any] = found[0]
    return one


def check(saved: dict[str, Any], found: dict[str, Any], updates: int = 2) -> None:
    """That what was saved was found, exactly, and that both went on alike."""
    assert found["updates"] == saved["updates"] == updates
    assert found["states"].keys() == saved["states"].keys()
    for engine, states in saved["states"].items():
        assert found["states"][engine].keys() == states.keys()
        for name, tensors in states.items():
            assert tensors.keys() == ({"weight", "exp_avg", "exp_avg_sq"} if updates else {"weight"})
            assert found["states"][engine][name].keys() == tensors.keys()
            for key, tensor in tensors.items():
                assert torch.equal(found["states"][engine][name][key], tensor), (engine, name, key)
    assert len(found["reference"]) == len(saved["reference"])
    for ours, theirs in zip(found["reference"], saved["reference"], strict=True):
        size = min(len(ours), len(theirs))  # what is more is padding
        assert torch.equal(ours[:size], theirs[:size])


def check_goes_on(saved: dict[str, Any], found: dict[str, Any]) -> None:
    for ours, theirs in zip(found["metrics"], saved["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert found["weights"].keys() == saved["weights"].keys()
    for name, weight in saved["weights"].items():
        assert torch.equal(found["weights"][name], weight), name
        assert (found["after"][name] - saved["after"][name]).norm() < 1e-5 * weight.norm(), name
    assert any(not torch.equal(saved["after"][name], weight) for name, weight in saved["weights"].items())


CASES = [
    ((1, 2), (1, 3), {}, {}),
    ((2, 1), (3, 2), AVERAGE, {"critic": True}),
    ((1, 2), (3, 1), LORA | AVERAGE, {}),
]
MORE_CASES = [
    ((2, 1), (3, 0), AVERAGE, {}),
    ((1, 1), (1, 2), {}, {}),
    ((1, 1), (0, 3), {}, {"critic": True}),
    ((1, 2), (0, 1), {}, {}),
    ((2, 1), (1, 1), AVERAGE, {}),
    ((2, 1), (2, 0), LORA, {}),
    ((1, 2), (3, 3), COPY, {}),
    ((2, 1), (3, 3), LORA | COPY, {"critic": True}),
    ((2, 2), (3, 1), {}, {"critic": True}),
    ((2, 2), (2, 3), AVERAGE, {}),
    ((1, 2), (1, 3), {"engine": {"offload_optimizer": True}}, {}),
    ((2, 1), (3, 2), {"engine": {"offload_optimizer": True}}, {}),
    ((1, 2), (2, 3), {}, {"updates": 0}),
]


@pytest.mark.parametrize(
    ("ranks", "stages", "changes", "more"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES)],
)
def test_ranks_and_stages(
    ranks: tuple[int, int],
    stages: tuple[int, int],
    changes: dict[str, Any],
    more: dict[str, Any],
    models: dict[str, Path],
    two_ranks: TwoRanks,
    tmp_path: Path,
) -> None:
    before, after = (config_of(models["tied"], stage, **changes) for stage in stages)
    saved = go_on(two_ranks, ranks[0], before, SEED, tmp_path, **more)
    files = contents(tmp_path / "step-00000002")
    found = go_on(two_ranks, ranks[1], after, SEED, tmp_path, **more, resume=True)
    check(saved, found, more.get("updates", 2))
    check_goes_on(saved, found)
    assert contents(tmp_path / "step-00000002") == files
    (warning,) = found["warned"]
    assert "checkpoint step-00000002 was saved with " in warning


@pytest.mark.parametrize(
    ("ranks", "stages", "dtypes"),
    [
        ((1, 2), (1, 3), ("bfloat16", "bfloat16")),
        pytest.param((2, 1), (3, 1), ("bfloat16", "bfloat16"), marks=pytest.mark.slow),
        pytest.param((2, 1), (1, 2), ("bfloat16", "bfloat16"), marks=pytest.mark.slow),
        pytest.param((2, 1), (2, 0), ("bfloat16", "float32"), marks=pytest.mark.slow),
        pytest.param((1, 1), (1, 1), ("float32", "bfloat16"), marks=pytest.mark.slow),
    ],
)
def test_bfloat16(
    ranks: tuple[int, int],
    stages: tuple[int, int],
    dtypes: tuple[str, str],
    models: dict[str, Path],
    two_ranks: TwoRanks,
    tmp_path: Path,
) -> None:
    """The optimizer's weights are in float32 there too. What passes see of them is rounded as it always is."""
    before, after = (
        config_of(models["untied"], stage, model={"dtype": dtype}, **AVERAGE)
        for stage, dtype in zip(stages, dtypes, strict=True)
    )
    saved = go_on(two_ranks, ranks[0], before, SEED, tmp_path)
    found = go_on(two_ranks, ranks[1], after, SEED, tmp_path, resume=True)
    check(saved, found)
    for name, weight in found["weights"].items():
        assert torch.equal(weight, saved["states"]["policy"][f"lm.{name}"]["weight"].to(weight.dtype)), name
    for ours, theirs in zip(found["metrics"], saved["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=0.05)
    assert all(dtype in found["warned"][0] for dtype in dtypes)


@pytest.mark.parametrize("stages", [(1, 3), (3, 1)])
def test_what_does_not_learn_is_what_it_was_too(stages: tuple[int, int], tmp_path: Path) -> None:
    """The adapters' model, though another stands at its place by now."""
    model = save_model(tmp_path / "model", 0, tied=True)
    before, after = (config_of(model, stage, **LORA) for stage in stages)
    saved = run("go_on", before, SEED, tmp_path)
    save_model(model, 1, tied=True)
    found = run("go_on", after, SEED, tmp_path, resume=True)
    check(saved, found)
    check_goes_on(saved, found)


@given(st.lists(st.integers(0, 4), min_size=1), st.integers(0, 20), st.integers(0, 20))
def test_a_span_is_a_part_of_what_the_pieces_are_together(sizes: list[int], start: int, size: int) -> None:
    whole = torch.arange(1.0, sum(sizes) + 1)
    expected = torch.zeros(start + size + len(whole))
    expected[: len(whole)] = whole
    assert torch.equal(span(torch.split(whole, sizes), start, size), expected[start : start + size])


@pytest.fixture
def saved(models: dict[str, Path], tmp_path: Path) -> Path:
    policy = engine_of(config_of(models["tied"], 1))
    policy.update(*random_batch(SEED), logprob_loss)
    return checkpoint.save(tmp_path, 1, {"policy": policy}, {}, keep=1)


def test_as_it_was_saved_nothing_is_said(
    saved: Path, models: dict[str, Path], recwarn: pytest.WarningsRecorder
) -> None:
    checkpoint.load(saved, {"policy": engine_of(config_of(models["tied"], 1))})
    assert not [each for each in recwarn if "was saved with" in str(each.message)]


def test_what_is_damaged_is_refused(saved: Path, models: dict[str, Path]) -> None:
    (shard,) = saved.glob("policy/state/*_optim_states.pt")
    kept, whole = shard.read_bytes(), torch.load(shard, weights_only=False)
    shard.write_bytes(kept[: len(kept) // 2])
    refused(saved, models, "cannot be read .*the checkpoint is damaged; resume from another", 1)
    shard.unlink()
    refused(saved, models, "_optim_states.pt is missing: the checkpoint is damaged; resume from another", 1)
    at = whole["optimizer_state_dict"]["param_slice_mappings"][0]["lm.model.norm.weight"]
    at.numel -= 1
    torch.save(whole, shard)
    refused(saved, models, "holds only a part of lm.model.norm.weight: the checkpoint is damaged", 1)


def test_what_another_deepspeed_wrote_otherwise_is_refused_with_what_to_type(
    saved: Path, models: dict[str, Path]
) -> None:
    (shard,) = saved.glob("policy/state/*_optim_states.pt")
    whole = torch.load(shard, weights_only=False)
    del whole["optimizer_state_dict"]["param_slice_mappings"]
    torch.save(whole, shard)
    said = r"resume with --nproc 1 -s engine\.zero_stage=1 -s model\.dtype=float32"
    refused(saved, models, said, 1)


def test_another_model_is_refused_whatever_the_ranks(saved: Path, models: dict[str, Path]) -> None:
    refused(saved, models, "is not of this run's policy", 2, model="deeper")


def refused(path: Path, models: dict[str, Path], said: str, code: int, model: str = "tied") -> None:
    with (
        pytest.warns(UserWarning, match="1 rank at ZeRO 1, float32") if code == 1 else contextlib.nullcontext(),
        pytest.raises(RlkitError, match=said) as error,
    ):
        checkpoint.load(path, {"policy": engine_of(config_of(models[model], 3))})
    assert error.value.exit_code == code


SMALL = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=4", "checkpoint.keep=9"]


def rlkit(*arguments: str, code: int = 0) -> str:
    from click.testing import CliRunner

    from rlkit.cli import main

    result = CliRunner().invoke(main, ["run", *arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks_and_back(tmp_path: Path) -> None:
    """As a user does it: the same prompts, samples and rewards as the run that never stopped."""
    common = ["embedded_xs", "algo=ppo", *SMALL, "optimizer.lr=1e-5", "engine.zero_stage=1", f"out={tmp_path}"]
    rlkit(*common, "name=straight", "steps=4")
    rlkit(*common, "name=changing", "steps=2")
    changing, straight = tmp_path / "changing", tmp_path / "straight"
    first = contents(changing / "checkpoints" / "step-00000002")
    two = ["--resume", str(changing), "-s", "steps=3", "--nproc", "2", "-s", "engine.zero_stage=3"]
    done = subprocess.run([sys.executable, "-m", "rlkit", "run", *two], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("saved with 1 rank at ZeRO 1, float32, and goes on with 2 ranks at ZeRO 3, float32") == 1
    with pytest.warns(UserWarning, match="saved with 2 ranks at ZeRO 3, float32, and goes on with 1 rank at ZeRO 2"):
        rlkit("--resume", str(changing), "-s", "steps=4", "-s", "engine.zero_stage=2")
    assert contents(changing / "checkpoints" / "step-00000002") == first
    for step in range(1, 5):
        ours, theirs = (
            pq.read_table(run / "rollouts" / f"step-{step:06d}.parquet").to_pydict() for run in (changing, straight)
        )
        for column in ("prompt_id", "tokens", "reward"):
            assert ours[column] == theirs[column], (step, column)
    assert len(RunFolder.open(changing).read_metrics()) == 5
    assert read_manifest(changing / "checkpoints" / "step-00000004").engines["critic"]["zero_stage"] == 2
    for file in (changing / "checkpoints" / "step-00000004" / "critic").rglob("*_optim_states.pt"):
        file.unlink()
    further = ["--resume", str(changing), "-s", "steps=5"]
    with (
        pytest.warns(UserWarning, match=r"_optim_states\.pt is missing\. It is passed over.* from step-00000003"),
        pytest.warns(UserWarning, match="goes on with 1 rank at ZeRO 1"),
    ):
        rlkit(*further, "-s", "engine.zero_stage=1")
    assert (changing / "checkpoints" / "damaged-step-00000004").is_dir()
    assert "is not of this run's policy" in rlkit(*further, "-s", "model.path=embedded:s", code=2)
