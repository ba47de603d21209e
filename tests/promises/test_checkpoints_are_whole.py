"""What a disk loses of a checkpoint is noticed, what it has no room for costs nothing, and no file runs code."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_worker import TwoRanks, engine_of, random_batch, settings, value_loss

from rlkit.config import CopyReference
from rlkit.engine import checkpoint
from rlkit.engine.reference import MovingModel
from rlkit.errors import ConfigError, RlkitError
from rlkit.records import checkpoints

SEED = 7


def saved(folder: Path, model: Path, stage: int = 1, steps: tuple[int, ...] = (1, 2), keep: int = 2) -> dict[str, Any]:
    """Checkpoints of a policy, a critic and a moving reference; and the three."""
    config = settings(model, engine={"zero_stage": stage})
    policy, critic = engine_of(config), engine_of(config, critic=True)
    reference = MovingModel(engine_of(config, frozen=True), policy, CopyReference(every=1))
    critic.update(*random_batch(SEED), value_loss, frozenset({"values"}))
    engines = {"policy": policy, "critic": critic}
    for step in steps:
        checkpoint.save(folder, step, engines, {"step": step}, keep=keep, reference=reference, config="abc")
    return {"engines": engines, "reference": reference}


@pytest.fixture(scope="module")
def two(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    saved(folder, models["tied"])
    return folder


def files_of(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def test_the_manifest_names_every_file_and_what_it_is_of(two: Path) -> None:
    path = two / "step-00000002"
    manifest = checkpoints.read_manifest(path)
    assert sorted([*manifest.files, "manifest.json"]) == files_of(path)
    assert {"state.pt", "reference/rank-0.pt", "hf/model.safetensors"} < manifest.files.keys()
    assert (manifest.step, manifest.config, manifest.reference) == (2, "abc", "copy")
    assert torch.__version__.startswith(manifest.versions["torch"].partition("+")[0])
    assert {"rlkit", "torch", "deepspeed"} == manifest.versions.keys()
    for name, (size, found) in manifest.files.items():
        assert size == (path / name).stat().st_size
        with (path / name).open("rb") as file:
            assert checkpoints.checksum(file) == found, name


def test_of_every_file_that_a_resume_reads_each_loss_is_noticed(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    newest = folder / "step-00000002"
    names = [name for name in files_of(newest) if not name.startswith("hf/")]
    assert len(names) == 7  # the manifest among them
    for name in names:
        file = newest / name
        whole = file.read_bytes()
        half = len(whole) // 2
        for spoiled in (whole[:half], whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :], None):
            file.unlink() if spoiled is None else file.write_bytes(spoiled)
            said = (
                rf"step-00000002 is damaged: .*{file.name}.* passed over.* from step-00000001.* damaged-step-00000002"
            )
            with pytest.warns(UserWarning, match=said):
                assert checkpoint.newest_sound(folder) == folder / "step-00000001"
        file.write_bytes(whole)
    assert checkpoint.newest_sound(folder) == newest


def test_where_none_is_whole_each_is_named(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    for path, name in (("step-00000001", "state.pt"), ("step-00000002", "manifest.json")):
        (folder / path / name).unlink()
    with pytest.raises(RlkitError, match=rf"no checkpoint of {tmp_path} can be resumed from") as error:
        checkpoint.newest_sound(folder)
    assert "step-00000001 is damaged: state.pt is missing" in str(error.value)
    assert "step-00000002 is damaged: manifest.json is missing" in str(error.value)
    assert checkpoint.newest_sound(tmp_path / "none") is None


def test_a_model_that_is_not_there_is_written_again_and_a_rotten_state_stays_rotten(
    two: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoints" / "step-00000002"
    shutil.copytree(two / "step-00000002", path)
    before = checkpoints.read_manifest(path).files
    policy = engine_of(settings(models["tied"], engine={"zero_stage": 1}))
    assert not checkpoint.add_model(path, policy)
    shutil.rmtree(path / "hf")
    state = (path / "state.pt").read_bytes()
    (path / "state.pt").write_bytes(state[:-1] + b"!")
    assert checkpoint.add_model(path, policy)
    assert checkpoints.read_manifest(path).files == before
    with pytest.raises(RlkitError, match=r"state\.pt is not what was written"):
        checkpoint.newest_sound(path.parent)
    (path / "state.pt").write_bytes(state)
    weights = path / "hf" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "model.safetensors is not what was written" in checkpoints.damage(path, "hf"), "it would be measured"
    weights.write_bytes(b"")
    assert checkpoint.newest_sound(path.parent) == path
    assert "model.safetensors has 0 bytes of" in checkpoints.damage(path, "hf")


def test_what_was_passed_over_does_not_push_out_what_is_whole(
    two: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    (folder / "step-00000002" / "manifest.json").unlink()
    policy = engine_of(settings(models["tied"]))
    checkpoint.save(folder, 4, {"policy": policy}, {}, keep=2)
    assert [path.name for path in checkpoints.named(folder)] == ["step-00000001", "step-00000004"]
    checkpoint.save(folder, 5, {"policy": policy}, {}, keep=1, best=1)
    checkpoint.save(folder, 6, {"policy": policy}, {}, keep=1, best=1)
    assert [path.name for path in checkpoints.named(folder)] == ["step-00000001", "step-00000006"]


# A full disk


def test_a_write_that_fails_anywhere_leaves_what_was_there(
    two: Path, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    whole = files_of(folder)
    made = saved(tmp_path / "other", models["tied"], steps=())
    write, writes, last = torch.save, 0, 0

    def full(*args: Any, **kwargs: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    for number in range(1, 7):
        writes, last = 0, number
        with pytest.raises(RlkitError, match="No space left on device") as error:
            checkpoint.save(folder, 3, made["engines"], {}, keep=1, reference=made["reference"])
        assert f"step-00000003 could not be written to {folder} (" in str(error.value)
        assert f"are free there): OSError: [Errno {errno.ENOSPC}]" in str(error.value)
        assert f"What was there is as it was: `rlkit run --resume {tmp_path}` goes on from step-" in str(error.value)
        assert files_of(folder) == whole
        assert not list(folder.glob(".*"))
    writes, last = 0, 0
    checkpoint.save(folder, 3, made["engines"], {}, keep=1, reference=made["reference"])
    assert writes == 6
    assert [path.name for path in checkpoints.named(folder)] == ["step-00000003"]


@pytest.mark.parametrize("broken", ["os.fsync", "rlkit.engine.checkpoint.write_text"])
def test_a_disk_that_fails_late_leaves_what_was_there(
    broken: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    policy = engine_of(settings(models["tied"]))
    monkeypatch.setattr(broken, fails)
    with pytest.raises(RlkitError, match=r"step-00000001 could not be written.*Input/output error.*none was there"):
        checkpoint.save(tmp_path, 1, {"policy": policy}, {}, keep=1)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_of_one_rank_is_known_to_both(models: dict[str, Path], two_ranks: TwoRanks, tmp_path: Path) -> None:
    config = settings(models["tied"], engine={"zero_stage": 1})
    for found in two_ranks.run("full_disk_and_rot", config, tmp_path):
        assert "No space left on device" in found["failed"]
        assert "(rank 1, on " in found["failed"]
        assert found["left"] == ["step-00000001"]
        assert [name for name in found["files"] if "rank_1" in name] == [
            "policy/state/zero_pp_rank_1_mp_rank_00_optim_states.pt"
        ]
        assert found["sound"] == "step-00000001"


# No pickle from strangers


class Hostile:
    """Where it is unpickled, it makes a folder."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_hostile_checkpoint_runs_nothing(stage: int, two: Path, models: dict[str, Path], tmp_path: Path) -> None:
    """At the layout it was saved with, where DeepSpeed reads it, and at another."""
    path = tmp_path / "checkpoints" / "step-00000002"
    shutil.copytree(two / "step-00000002", path)
    run_of = saved(tmp_path / "other", models["tied"], stage, steps=())
    names = [name for name in files_of(path) if name.endswith(".pt")]
    assert len(names) == 6
    ran = tmp_path / "it ran"
    torch.save(Hostile(ran), tmp_path / "hostile.pt")
    for name in names:
        whole = (path / name).read_bytes()
        for old in (False, True):
            torch.save({"module": Hostile(ran)}, path / name, _use_new_zipfile_serialization=not old)
            reseal(path)
            assert checkpoint.newest_sound(path.parent) == path
            with pytest.raises(RlkitError, match=r"cannot be read|asks for") as error:
                checkpoint.load(path, run_of["engines"], run_of["reference"])
            assert name in str(error.value)
            assert not ran.exists()
            if not old:
                assert f"asks for {os.mkdir.__module__}.mkdir, which no checkpoint of rlkit's does" in str(error.value)
        (path / name).write_bytes(whole)
    torch.load(tmp_path / "hostile.pt", weights_only=False)
    assert ran.is_dir()


def test_a_hostile_model_runs_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(models["tied"], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"weight": Hostile(tmp_path / "it ran")}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="has its weights in a pickle that asks for more than tensors"):
        engine_of(settings(tmp_path / "model"))
    assert not (tmp_path / "it ran").exists()


def reseal(path: Path) -> None:
    """As whoever made the files would."""
    manifest = checkpoints.read_manifest(path)
    (path / "manifest.json").unlink()
    manifest.files = {}
    checkpoint._seal(path, manifest)


# Other versions


def test_a_checkpoint_from_before_there_were_manifests_is_gone_on_from(
    two: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoints" / "step-00000002"
    shutil.copytree(two / "step-00000002", path)
    manifest = checkpoints.read_manifest(path)
    (path / "manifest.json").unlink()
    (path / "model.json").write_text(json.dumps({"engines": manifest.engines, "reference": manifest.reference}))
    assert checkpoint.newest_sound(path.parent) == path
    made = saved(tmp_path / "other", models["tied"], steps=())
    assert checkpoint.load(path, made["engines"], made["reference"]) == {"step": 2}
    assert not checkpoint.add_model(path, made["engines"]["policy"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"format": 7, "versions": {"rlkit": "9.1"}, "files": None, "more": 1},
            r"step-00000002 was made by rlkit 9\.1 in format 7, and this is rlkit .*, which reads format 1: resume the "
            "run with the rlkit that made it",
        ),
        ({"format": 7, "versions": None}, "was made by an older rlkit in format 7"),
        ({"format": "1"}, "manifest.json is not what was written"),
        ({"more": 1}, "manifest.json is no manifest"),
        ({"reference": "average"}, "manifest.json is not what was written"),
    ],
)
def test_a_manifest_of_another_rlkit_is_refused_by_name_and_a_damaged_one_passed_over(
    changes: dict[str, Any], said: str, two: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoints" / "step-00000002"
    shutil.copytree(two / "step-00000002", path)
    found = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(found | changes))
    engines = {"policy": engine_of(settings(models["tied"]))}
    with pytest.raises(RlkitError, match=said):
        checkpoint.load(checkpoint.newest_sound(path.parent) or path, engines)


@pytest.mark.parametrize("said", ["{}", "[]", "", '{"model": "old"}'])
def test_a_file_of_the_first_checkpoints_that_says_too_little_is_refused(said: str, tmp_path: Path) -> None:
    path = tmp_path / "step-00000002"
    path.mkdir()
    (path / "model.json").write_text(said)
    with pytest.raises(RlkitError, match=r"was made by an older rlkit|is damaged: model\.json"):
        checkpoints.read_manifest(path)
