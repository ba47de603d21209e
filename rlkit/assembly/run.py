"""A run from its config to its end."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import config as configs
from rlkit import ranks
from rlkit.assembly.build import build_loop, check_trackers
from rlkit.assembly.ending import draw, going_on
from rlkit.closing import closing
from rlkit.config import PluginRef, RunConfig
from rlkit.errors import ConfigError, DiskError, RlkitError, StoppedError, UnhealthyError
from rlkit.importing import importing
from rlkit.tracking.terminal import Shows, columns, usual

if TYPE_CHECKING:
    from contextlib import ExitStack

    from rlkit.loop.base import Loop


def prepare_environment() -> None:
    """What must be set before torch and its libraries start. What the user has set stays."""
    # Two threads on cores that others use spin and are up to 30 times slower than one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # of torch's profiler, which tells stderr when it stops
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # DeepSpeed calls what torch.distributed has renamed; nobody who runs this can mend it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")


def train(
    config: RunConfig | dict[str, Any] | str | Path,
    *,
    resume: bool = False,
    fork: Path | None = None,
    quiet: bool = False,
    shows: Shows | None = None,
    profile: int = 0,
) -> Path:
    """Train as the config says; returns the run's folder.

    `config` is a RunConfig, plain data, a YAML file or a preset's name. With `resume`, the run in the config's
    folder goes on from its newest checkpoint; of one that has made its steps, what is missing is made: the model,
    the last evaluation, the report, the picture. With `fork`, another run's folder or one of its checkpoints, a
    new run begins where that one was. `quiet` leaves the console out; else `shows` says how much is
    seen of the run while it goes, by itself lines, with a bar on a terminal. `profile`: so many steps, after the
    first, are traced by torch's profiler into the run's `profile/`. Raises ConfigError for settings that
    cannot be, before a model is loaded, and for a resume with nothing left to do; StoppedError where a signal has ended
    it before its last step, with all saved; RlkitError for what goes wrong later.
    """
    ranks.adopt()
    prepare_environment()
    given = config if isinstance(config, RunConfig) else configs.load(config)
    shows = None if quiet else shows or usual()
    talks = shows in ("bar", "lines")
    if talks and ranks.rank() == 0:
        print(f"{given.run_name}: loading PyTorch, transformers and DeepSpeed", flush=True)
    with importing():
        settings, algorithm = configs.resolve_with_algorithm(given)
        from rlkit.engine import distributed
        from rlkit.engine.one_folder import one_folder

        distributed.init(settings.engine.timeout_minutes)
    made: list[str] = []
    ends: RlkitError | None = None
    then = going_on(settings.folder) if distributed.world_size() > 1 else ""
    with distributed.losing_ranks(then), closing() as stack:
        if (folder := one_folder(settings.folder)) != settings.folder:
            settings = settings.model_copy(update={"out": folder.parent, "name": folder.name})
        _hold(settings.folder, stack)
        loop = build_loop(settings, algorithm, stack, resume=resume, fork=fork, shows=shows, profile=profile)
        if loop.finished:
            made = _complete(loop, settings)
        else:
            if resume and distributed.main_rank() and talks:
                step = loop.state.step
                how = f"going on from step {step} of {settings.steps}" if step else "nothing was saved: it begins anew"
                print(f"  {how}", flush=True)
            ends = _trained(loop, settings, shows)
            if talks and (said := loop.profiler.said()):
                print(f"  {said}", flush=True)
    if distributed.main_rank():
        draw(settings.folder)
        if made and talks:
            print(f"  {settings.folder} had done its {settings.steps} steps; made what was missing: {', '.join(made)}")
    if ends is not None:
        distributed.barrier()  # a launcher ends the others with the first that fails, and the main rank has drawn now
        raise ends
    return settings.folder


def _trained(loop: Loop, config: RunConfig, shows: Shows | None) -> RlkitError | None:
    """Make the steps that are left. Returns what is to be raised when all is drawn; what is raised at once says what is
    saved, and how to go on."""
    from rlkit.engine import distributed
    from rlkit.records.checkpoints import latest
    from rlkit.records.folder import RunFolder

    run = RunFolder(config.folder)
    try:
        ended_by = loop.train()
    except DiskError as error:
        newest = latest(run.checkpoints)
        there = f"The run is saved up to {newest.name}" if newest is not None else "Nothing of the run is saved yet"
        raise DiskError(f"{error}. {there}: when there is room, {going_on(run.path)}") from error
    except UnhealthyError as error:
        return UnhealthyError(
            f"{run.path} {error} All is saved; the report is {run.report}. Mend what led there, or set another limit, "
            f"with -s; {going_on(run.path)}"
        )
    except RlkitError:
        newest = latest(run.checkpoints)
        if newest is not None and distributed.main_rank() and shows is not None:
            print(f"  saved up to {newest.name}; when it is mended, {going_on(run.path)}", flush=True)
        raise
    if ended_by:
        name = signal.Signals(ended_by).name
        return StoppedError(f"{run.path} was ended by {name}, and all of it is saved", run.path, ended_by)
    if loop.finished and not loop.learnt:
        return RlkitError(
            f"{run.path} has made its {config.steps} steps, but no update: none had a sample to learn from, or none "
            f"was finite. The model is the one that it began as; its warnings say more: rlkit report {run.path}"
        )
    return None


def _hold(folder: Path, stack: ExitStack) -> None:
    """Have the folder for this run alone, until the stack is closed. Collective. ConfigError where another has it."""
    from rlkit.engine import distributed
    from rlkit.records.lock import alone, remove_unused

    refused: ConfigError | None = None
    if distributed.main_rank():
        otherwise = "Wait for it to end, or end that process; a run beside it needs another --name"
        made = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
        try:
            stack.enter_context(alone(folder, "run", otherwise))
            if made:
                stack.callback(remove_unused, folder, made)
        except ConfigError as error:
            refused = error
    distributed.raise_everywhere(refused)


def _complete(loop: Loop, config: RunConfig) -> list[str]:
    """Make what a run lacks that has made its steps, and was ended before all was written. Returns what it lacks,
    report and picture among it, which are drawn at the end of every run; ConfigError where it lacks nothing."""
    from rlkit.engine import distributed
    from rlkit.records.folder import RunFolder

    run = RunFolder.open(config.folder)
    lacks = [
        name for name, file in (("the report", run.report), ("the picture", run.learning_curve)) if not file.is_file()
    ]
    lacks = distributed.gather_objects(lacks)[0]
    if loop.add_model():
        lacks.insert(0, "the model")
    if loop.complete():
        lacks.insert(0, "the last evaluation")
    if not lacks:
        raise ConfigError(
            f"{config.folder} has done its {loop.state.step} steps already: nothing to resume. "
            f"To go further, add -s steps={2 * loop.state.step}"
        )
    return lacks


def plan(config: RunConfig, ranks: int = 1, gpu: int | None = None) -> str:
    """The plan of a config. Embedded and local data are read; a hub data set is left for the run. `gpu`: bytes of the
    memory of the GPU that it is for; None: it is for this machine."""
    from rlkit.assembly.inputs import read_inputs
    from rlkit.assembly.plan import make_plan
    from rlkit.assembly.replaying import source_of
    from rlkit.generation import resolve_sampler
    from rlkit.generation.acting import declared
    from rlkit.scoring import check_judged

    if gpu is not None and config.model.dtype == "auto":
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    config, algorithm = configs.resolve_with_algorithm(config)
    source_of(config)
    check_trackers(config)
    environment, inputs = declared(config.environment), None
    check_judged(config.reward, environment)
    if config.data.path.startswith("embedded:") or (Path(config.data.path).suffix and "://" not in config.data.path):
        inputs = read_inputs(config, environment)
        inputs.context(config)
    if gpu is not None and config.sampler.kind == "auto":
        sampler, why_sampler = configs.resolve_ref("samplers", PluginRef(kind="vllm"), "sampler"), "there is a GPU"
    else:
        sampler, why_sampler = resolve_sampler(config.sampler, config.model)
    config = config.model_copy(update={"sampler": sampler})
    return make_plan(config, algorithm, why_sampler, inputs, ranks, columns(), gpu)
