"""A run's folder: its names, its writer, and the way to its readers. The source of truth of a run.

config.yaml            resolved settings
provenance.json        versions, plugins, seed, digests of data and of plugins' files, command line, git commit; one
                       entry more for each resume
metrics.jsonl          a JSON object a line, with "step"; what is not a finite number is null
rollouts/step-000012.parquet   every sample of step 12, written before anything is learnt from it
credit/step-000012.parquet     what the algorithm credited each token of the first of them, as its first epoch used it
not_finite/step-000012-update-0.parquet   the batch of an update that was left out, as the losses saw it
checkpoints/step-00000012/     what a resume needs, and the model; see checkpoints.py and rlkit/engine/checkpoint.py
learning_curve.png, report.html, inspection/, eval/   what is made of it

The other files of rlkit/records read: metrics.py, samples.py, checkpoints.py; run.py puts them together for people.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rlkit.config import RunConfig, load
from rlkit.errors import ConfigError, RlkitError, nearest
from rlkit.files import append, cannot_write, replace, write_text
from rlkit.interfaces.names import STATS
from rlkit.records import checkpoints
from rlkit.records.metrics import Row, read_lines, read_rows, step_of
from rlkit.records.provenance import provenance
from rlkit.records.samples import step_files, step_name

if TYPE_CHECKING:  # who only reads a run's folder needs no torch
    from torch import Tensor

    from rlkit.interfaces.learning import Batch, Rollout, Targets, TokenStats
    from rlkit.interfaces.rewards import RewardResult, SampleKey

# The loader in C reads a config in 3 ms, the one in Python in 25.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

DIAGNOSED = 64
"""Samples of a step whose per-token numbers are kept."""


@dataclass(frozen=True)
class RunFolder:
    """Make one with `create` or `open`."""

    path: Path

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        data: Mapping[str, str] | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """Begin a run there: write config.yaml and provenance.json. `config` is resolved; `data`: the digests of its
        problems; `origin`: the run that it comes from, and how.

        Raises ConfigError where the folder already holds a run.
        """
        cls.check_free(path)
        folder = cls(Path(path))
        try:
            for place in (folder.path, folder.rollouts, folder.checkpoints):
                place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the run's folder {folder.path}: {error}. Choose another with --out"
            ) from error
        try:
            record = provenance(config, data) | ({"from": dict(origin)} if origin else {}) | {"resumed": []}
            write_text(folder.provenance_file, _as_json(record))
            write_text(folder.metrics_file, "")
            folder._write_config(config)
        except OSError as error:
            raise RlkitError(
                f"{cannot_write(folder.path, error)}. Make room, or choose another place with --out"
            ) from error
        return folder

    @classmethod
    def check_free(cls, path: Path) -> None:
        """ConfigError where the folder already holds a run that has made a step."""
        folder = cls(Path(path))
        if step_files(folder.rollouts) or checkpoints.named(folder.checkpoints):
            raise ConfigError(
                f"{folder.path} already holds a run: choose another name with --name, continue it with --resume, or "
                "delete the folder"
            )

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run that exists, to be read or resumed. Raises ConfigError where there is none."""
        folder = cls(Path(path))
        if not folder.path.is_dir():
            beside = [each.name for each in folder.path.parent.glob("*/")]
            raise ConfigError(f"there is no folder {folder.path}{nearest(folder.path.name, beside)}")
        if not cls.is_one(folder.path):
            runs = sorted({run.parent for depth in ("*", "*/*") for run in cls.below(folder.path, depth)})
            inside = f"; there are runs in {', '.join(map(str, runs))}" if runs else ""
            raise ConfigError(f"{folder.path} is not a run's folder: there is no config.yaml in it{inside}")
        return folder

    @classmethod
    def is_one(cls, path: Path) -> bool:
        """Whether a run has begun there."""
        return cls(Path(path)).config_file.is_file()

    @classmethod
    def below(cls, path: Path, depth: str = "*") -> list[Path]:
        """The runs' folders in a folder, by name; `depth`: a pattern of folders between."""
        return sorted(each for each in path.glob(depth) if cls.is_one(each))

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance_file(self) -> Path:
        return self.path / "provenance.json"

    @property
    def rewards_log(self) -> Path:
        """What rewards print in worker processes, of all ranks."""
        return self.path / "rewards.log"

    @property
    def environments_log(self) -> Path:
        """What environments print in their processes, of all ranks."""
        return self.path / "environments.log"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def stalls(self) -> Path:
        """The stacks of all ranks, where no sign of life came; a folder for each time."""
        return self.path / "stalls"

    @property
    def profile(self) -> Path:
        """Traces of steps; only where they were asked for."""
        return self.path / "profile"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.path / checkpoints.FOLDER

    @property
    def learning_curve(self) -> Path:
        return self.path / "learning_curve.png"

    @property
    def credit(self) -> Path:
        return self.path / "credit"

    @property
    def not_finite(self) -> Path:
        """Batches of updates that were left out; only where there was one."""
        return self.path / "not_finite"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def inspection(self) -> Path:
        """Pages of `rlkit inspect`."""
        return self.path / "inspection"

    @property
    def evaluations(self) -> Path:
        """What `rlkit eval` makes of the run's models: a folder for each checkpoint."""
        return self.path / "eval"

    def rollout_file(self, step: int) -> Path:
        return self.rollouts / f"{step_name(step)}.parquet"

    def credit_file(self, step: int) -> Path:
        return self.credit / f"{step_name(step)}.parquet"

    def not_finite_file(self, step: int, update: int) -> Path:
        """`update`: its number in the step, from 0."""
        return self.not_finite / f"{step_name(step)}-update-{update}.parquet"

    def _write_config(self, config: RunConfig) -> None:
        write_text(self.config_file, yaml.safe_dump(config.dump(), sort_keys=False, allow_unicode=True))

    def read_config(self) -> RunConfig:
        """The resolved settings of the run. Raises ConfigError for what this rlkit and its plugins do not know."""
        return load(self.config_file)

    def read_settings(self) -> dict[str, Any]:
        """config.yaml as plain data, whatever plugins it names. Raises RlkitError where it is no run's."""
        try:
            settings = yaml.load(self.config_file.read_bytes(), Loader=_Loader)
        except (OSError, yaml.YAMLError) as error:
            raise RlkitError(f"{self.config_file} cannot be read: {error}") from error
        if not isinstance(settings, dict) or "kind" not in (settings.get("algo") or {}):
            raise RlkitError(f"{self.config_file} is not the config of a run: it names no algorithm (algo.kind)")
        return settings

    def read_provenance(self) -> dict[str, Any]:
        """provenance.json; empty where there is none. Raises RlkitError where it is damaged."""
        if not self.provenance_file.is_file():
            return {}
        try:
            record = json.loads(self.provenance_file.read_bytes())
        except ValueError as error:
            raise RlkitError(f"{self.provenance_file} is damaged: {error}") from error
        if not isinstance(record, dict):
            raise RlkitError(f"{self.provenance_file} is damaged: it holds no object")
        return record

    def newest_checkpoint(self) -> Path:
        """RlkitError where there is none."""
        newest = checkpoints.latest(self.checkpoints)
        if newest is None:
            raise RlkitError(
                f"{self.path} holds no checkpoint: it is no run's folder, or the run has not saved one yet"
            )
        return newest

    def newest_model(self) -> Path:
        """The Hugging Face folder of the newest checkpoint, whose bytes are read. RlkitError where there is no
        checkpoint, or it has none, or one that is damaged."""
        model = self.newest_checkpoint() / checkpoints.MODEL
        if not model.is_dir():
            raise RlkitError(
                f"{model.parent} holds no model: it could not be written when the checkpoint was, and a warning of the "
                f"run says why. When that is mended, `rlkit run --resume {self.path}` writes it"
            )
        return self._sound(model)

    def newest_adapter(self) -> Path:
        """The folder of the newest checkpoint's LoRA adapters. RlkitError as `newest_model`."""
        adapter = self.newest_checkpoint() / checkpoints.ADAPTER
        if not adapter.is_dir():
            raise RlkitError(
                f"{adapter.parent} holds no adapter alone: peft would load it on other layers, as with some mixtures "
                "of experts, or an older rlkit made the checkpoint. Give --merged for the model with adapters merged"
            )
        return self._sound(adapter)

    def _sound(self, folder: Path) -> Path:
        if said := checkpoints.damage(folder.parent, folder.name):
            raise RlkitError(f"{said}. Delete {folder}, and `rlkit run --resume {self.path}` writes it anew")
        return folder

    def read_data_digests(self) -> dict[str, str]:
        """Of the data that the run's newest start had, by what they are for; empty where none are on record."""
        return self._of_newest_start("data")

    def read_plugin_digests(self) -> dict[str, str]:
        """Of the files that the plugins of the run's newest start were written in; empty where none are on record."""
        return self._of_newest_start("plugin_files")

    def read_version(self) -> str:
        """Of the rlkit that made the run's newest start; "" where none is on record."""
        return self._of_newest_start("versions").get("rlkit", "")

    def read_model_digests(self, whose: str) -> dict[str, str]:
        """Of the files of the "model" or the "critic" at the run's newest start; empty where none are on record."""
        return self._of_newest_start(f"{whose}_files")

    def _of_newest_start(self, what: str) -> dict[str, str]:
        record = self.read_provenance()
        starts = [record, *record.get("resumed", [])]
        return next((dict(start[what]) for start in reversed(starts) if start.get(what)), {})

    def cut_after(self, step: int, config: RunConfig, data: Mapping[str, str] | None = None) -> None:
        """For a run that goes on from `step`: drop what was written of later steps, write the settings it goes on
        with, and note it in provenance.json, with the digests of its data."""
        self._begin_metrics(self.metrics_file, step)
        for place in (self.rollouts, self.credit):
            for of, file in step_files(place).items():
                if of > step:
                    file.unlink()
        checkpoints.set_aside(self.checkpoints, step)
        for file in self.not_finite.glob("step-*-update-*.parquet"):
            if int(file.name.split("-")[1]) > step:
                file.unlink()
        record = self.read_provenance()
        again = {"after_step": step, **provenance(config, data)}
        if "stopped" in record:
            again["stopped"] = record.pop("stopped")
        record["resumed"] = [*record.get("resumed", []), again]
        write_text(self.provenance_file, _as_json(record))
        self._write_config(config)

    def take_metrics(self, other: RunFolder, step: int) -> None:
        """For a run that begins where another was: what that one's metrics were up to `step`."""
        self._begin_metrics(other.metrics_file, step)

    def _begin_metrics(self, file: Path, step: int) -> None:
        kept = [line for line in read_lines(file)[0] if step_of(line) <= step]
        write_text(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))

    def note_stop(self, step: int, check: str, said: str) -> None:
        """That a health check has ended the run after `step`, in provenance.json; a resume makes it part of its own
        entry."""
        record = self.read_provenance()
        record["stopped"] = {"after_step": step, "check": check, "said": said}
        write_text(self.provenance_file, _as_json(record))

    def read_stop(self) -> str | None:
        """What a health check said that has ended the run; None: none has, or it has gone on since."""
        stopped = self.read_provenance().get("stopped")
        return None if stopped is None else str(stopped["said"])

    def resumed_after_stop(self) -> int:
        """The last step that a health check had ended the run after before it went on; 0: none has."""
        resumed = self.read_provenance().get("resumed", [])
        return max((int(each["after_step"]) for each in resumed if "stopped" in each), default=0)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl. A step may have several: training, then evaluation."""
        numbers = {name: float(value) for name, value in metrics.items()}
        row = {"step": step, **{name: v if math.isfinite(v) else None for name, v in numbers.items()}}
        append(self.metrics_file, json.dumps(row, allow_nan=False).encode() + b"\n")

    def read_metrics(self) -> list[Row]:
        """One dict a step, in the order of steps; lines of one step are merged, null is NaN.

        Raises RlkitError for a line that is damaged, unless it is the last and half written.
        """
        return read_rows(self.metrics_file)

    def log_rollout(
        self,
        step: int,
        rollout: Rollout,
        *,
        prompts: Sequence[str],
        answers: Sequence[str],
        texts: Sequence[str],
        results: Sequence[RewardResult],
        rewards: Sequence[float | None] | None = None,
        replaced: Sequence[bool] | None = None,
        stats: TokenStats | None = None,
    ) -> None:
        """Write every sample of the step: the B prompts, gold answers, responses, and what they earned.

        `rewards`: the values after noise, before they are rounded for the loss; None: the clean ones. `replaced`:
        samples of groups that dynamic sampling has drawn anew; None: none. Of `stats` the first DIAGNOSED samples keep
        what was computed, token by token; the others have null. What a replay reads of it is in samples.LEARNT_FROM.
        """
        count = len(rollout.keys)
        if not len(texts) == len(results) == count:
            raise ValueError(f"{count} samples, but {len(texts)} texts and {len(results)} results")
        clean = [result.value for result in results]
        columns = {
            "prompt_id": pa.array([key.prompt_id for key in rollout.keys], pa.string()),
            "rollout_step": pa.array([key.rollout_step for key in rollout.keys], pa.int32()),
            "occurrence": pa.array([key.occurrence for key in rollout.keys], pa.int32()),
            "index": pa.array([key.index for key in rollout.keys], pa.int32()),
            "group": pa.array(rollout.group.numpy(), pa.int32()),
            "prompt_tokens": pa.array([tokens.numpy() for tokens in rollout.prompt_tokens], pa.list_(pa.int32())),
            "tokens": _ragged(rollout.tokens, rollout.length, pa.int32()),
            "mask": _ragged(rollout.mask, rollout.length, pa.bool_()),
            "sampler_logprobs": _ragged(rollout.sampler_logprobs, rollout.length, pa.float32()),
            "prompt": pa.array(prompts, pa.string()),
            "answer": pa.array(answers, pa.string()),
            "response": pa.array(texts, pa.string()),
            "reward": pa.array(clean if rewards is None else rewards, pa.float64()),
            "clean_reward": pa.array(clean, pa.float64()),
            "status": pa.array([result.status for result in results], pa.string()),
            "correct": pa.array([result.correct for result in results], pa.bool_()),
            "parts": pa.array([list(r.parts.items()) for r in results], pa.map_(pa.string(), pa.float64())),
            "info": pa.array([json.dumps(result.info, default=str) for result in results], pa.string()),
            "valid": pa.array(rollout.valid.numpy(), pa.bool_()),
            "replaced": pa.array(replaced or [False] * count, pa.bool_()),
            "truncated": pa.array(rollout.truncated.numpy(), pa.bool_()),
            "version": pa.array(rollout.version.numpy(), pa.int32()),
            "last_version": pa.array(_or(rollout.last_version, rollout.version).numpy(), pa.int32()),
            "turns": pa.array(_turns(rollout), pa.list_(pa.list_(pa.int32()))),
        }
        for name, values in _computed(stats).items():
            first = values[:DIAGNOSED]
            ragged = _ragged(first, rollout.length[:DIAGNOSED], pa.float32())
            columns[name] = pa.array([*ragged.to_pylist(), *[None] * (count - len(first))], pa.list_(pa.float32()))
        if rollout.token_reward is not None:
            columns["token_reward"] = _ragged(rollout.token_reward, rollout.length, pa.float32())
            shares = [None if r.token_values is None else np.asarray(r.token_values, np.float32) for r in results]
            columns["token_values"] = pa.array(shares, pa.list_(pa.float32()))
        replace(self.rollout_file(step), lambda file: pq.write_table(pa.table(columns), file, compression="zstd"))

    def log_credit(self, step: int, rollout: Rollout, parts: Sequence[tuple[Sequence[int], Targets]]) -> None:
        """Write the advantages and the credit of the step's first DIAGNOSED samples, as the losses got them.

        `parts`: row numbers in the rollout, and the targets [b, T] of these rows; of a row that is in no part, nothing
        is written. Columns: `row`, its number in the rollout's file, `advantages` where there are any, and each name
        in `Targets.credit`. Raises RlkitError for a credit that is not [b, T], or takes the name of another column.
        """
        rows = [row for numbers, _ in parts for row in numbers]
        order = sorted((row, at) for at, row in enumerate(rows) if row < DIAGNOSED)
        first, places = [row for row, _ in order], [at for _, at in order]
        columns: dict[str, Any] = {"row": pa.array(first, pa.int32())}
        tensors = [_credited(targets, (len(numbers), rollout.mask.shape[1])) for numbers, targets in parts]
        for name in tensors[0] if tensors else ():
            whole = np.concatenate([part[name].detach().float().numpy() for part in tensors])
            columns[name] = _ragged(whole[places], rollout.length[first], pa.float32())
        self.credit.mkdir(exist_ok=True)
        replace(self.credit_file(step), lambda file: pq.write_table(pa.table(columns), file, compression="zstd"))

    def log_not_finite(
        self, file: Path, rows: Sequence[int], batch: Batch, targets: Targets, blamed: Sequence[SampleKey]
    ) -> None:
        """Write the batch of an update that was not finite, so that it can be looked at and made again.

        Columns: `row`, its number in the step's rollout; `blamed`, whether its own numbers are not finite; what names
        the sample; tokens, the mask of the losses, `sampler_logprobs`; `old.NAME` and `now.NAME` of the models'
        statistics before the step and before the update; and all that the advantage gave.
        """
        rollout, length = batch.rollout, batch.rollout.length
        tensors: dict[str, Tensor | None] = {
            "mask": batch.mask,
            "sampler_logprobs": rollout.sampler_logprobs,
            **{
                f"{when}.{name}": value
                for when in ("old", "now")
                for name, value in _computed(getattr(batch, when)).items()
            },
            **{name: getattr(targets, name) for name in ("advantages", "returns", "importance")},
            **targets.credit,
        }
        columns: dict[str, Any] = {
            "row": pa.array(rows, pa.int32()),
            "blamed": pa.array([key in blamed for key in rollout.keys], pa.bool_()),
            "prompt_id": pa.array([key.prompt_id for key in rollout.keys], pa.string()),
            "index": pa.array([key.index for key in rollout.keys], pa.int32()),
            "reward": pa.array(rollout.reward.numpy(), pa.float32()),
            "prompt_tokens": pa.array([tokens.numpy() for tokens in rollout.prompt_tokens], pa.list_(pa.int32())),
            "tokens": _ragged(rollout.tokens, length, pa.int32()),
        }
        if targets.scores is not None:
            columns["scores"] = pa.array(targets.scores.detach().float().numpy(), pa.float32())
        for name, value in tensors.items():
            if value is not None:
                whole = value.detach().expand(batch.mask.shape).float().numpy()
                columns[name] = _ragged(whole, length, pa.float32())
        self.not_finite.mkdir(exist_ok=True)
        replace(file, lambda beside: pq.write_table(pa.table(columns), beside, compression="zstd"))


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    return other if tensor is None else tensor


def _turns(rollout: Rollout) -> list[list[list[int]]]:
    """Of each sample the columns [start, end) of the policy's turns."""
    if rollout.turns is None:
        return [[[0, length]] for length in rollout.length.tolist()]
    return [[[start, end] for start, end in turns] for turns in rollout.turns]


def _credited(targets: Targets, shape: tuple[int, int]) -> dict[str, Tensor]:
    for name, values in targets.credit.items():
        if name in ("row", "advantages"):
            raise RlkitError(f"the advantage's credit has the name {name!r}, which is taken: choose another")
        if tuple(values.shape) != shape:
            raise RlkitError(f"the advantage's credit {name!r} is {list(values.shape)}; expected [b, T], {list(shape)}")
    advantages = {} if targets.advantages is None else {"advantages": targets.advantages.expand(shape)}
    return advantages | targets.credit


def _computed(stats: TokenStats | None) -> dict[str, Tensor]:
    return {name: getattr(stats, name) for name in STATS if getattr(stats, name, None) is not None}


def _ragged(rows: Tensor | np.ndarray, length: Tensor, kind: pa.DataType) -> pa.ListArray:
    """[B, T] cut to `length` [B], as a list column."""
    there = np.arange(rows.shape[1]) < length.numpy()[:, None]
    offsets = np.concatenate([[0], length.numpy().cumsum()])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.asarray(rows)[there], kind))


def _as_json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"
