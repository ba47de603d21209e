"""Puts a run together from its config: the only file that names concrete parts."""

from __future__ import annotations

import gc
import os
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import config as configs
from rlkit import distribution, ranks
from rlkit.blame import place
from rlkit.closing import closing
from rlkit.config import PluginRef, RunConfig
from rlkit.errors import ConfigError, DiskError, RlkitError, UnhealthyError
from rlkit.importing import importing
from rlkit.tracking import RunInfo, Tracker, build_tracker
from rlkit.tracking.terminal import Shows, columns, usual
from rlkit.wording import folded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager, ExitStack

    from rlkit.assembly.inputs import Inputs
    from rlkit.evaluation.in_training import Benchmark
    from rlkit.evaluation.suites import OpenSuite
    from rlkit.generation.collector import Collector
    from rlkit.interfaces.learning import Algorithm
    from rlkit.loop.base import Loop
    from rlkit.records.folder import RunFolder
    from rlkit.tracking.console import Console


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
    quiet: bool = False,
    shows: Shows | None = None,
    profile: int = 0,
) -> Path:
    """Train as the config says; returns the run's folder.

    `config` is a RunConfig, plain data, a YAML file or a preset's name. With `resume`, the run in the config's
    folder goes on from its newest checkpoint; of one that has made its steps, what is missing is made: the model,
    the last evaluation, the report, the picture. `quiet` leaves the console out; else `shows` says how much is
    seen of the run while it goes, by itself lines, with a bar on a terminal. `profile`: so many steps, after the
    first, are traced by torch's profiler into the run's `profile/`. Raises ConfigError for settings that
    cannot be, before a model is loaded, and for a resume with nothing left to do; RlkitError for what goes wrong later.
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
        from rlkit.records.checkpoints import latest
        from rlkit.records.folder import RunFolder

        distributed.init(settings.engine.timeout_minutes)
    made: list[str] = []
    ends: RlkitError | None = None
    then = _going_on(settings.folder) if distributed.world_size() > 1 else ""
    with distributed.losing_ranks(then), closing() as stack:
        if (folder := one_folder(settings.folder)) != settings.folder:
            settings = settings.model_copy(update={"out": folder.parent, "name": folder.name})
        loop = build_loop(settings, algorithm, stack, resume=resume, shows=shows, profile=profile)
        if loop.finished:
            made = _complete(loop, settings)
        else:
            if resume and distributed.main_rank() and talks:
                print(f"  going on from step {loop.state.step} of {settings.steps}", flush=True)
            try:
                loop.train()
            except DiskError as error:
                newest = latest(RunFolder(settings.folder).checkpoints)
                then = (
                    f"No checkpoint is there yet: make room, delete {settings.folder}, and begin anew"
                    if newest is None
                    else f"The run is saved up to {newest.name}: when there is room, {_going_on(settings.folder)}"
                )
                raise DiskError(f"{error}. {then}") from error
            except UnhealthyError as error:
                ends = UnhealthyError(
                    f"{settings.folder} {error} All is saved; the report is {RunFolder(settings.folder).report}. Mend "
                    f"what led there, or set another limit, with -s; {_going_on(settings.folder)}"
                )
            except RlkitError:
                newest = latest(RunFolder(settings.folder).checkpoints)
                if newest is not None and distributed.main_rank() and shows is not None:
                    print(f"  saved up to {newest.name}; when it is mended, {_going_on(settings.folder)}", flush=True)
                raise
            if loop.finished and not loop.learnt:
                ends = RlkitError(
                    f"{settings.folder} has made its {settings.steps} steps, but no update: none had a sample to learn "
                    "from, or none was finite. The model is the one that it began as; its warnings say more: "
                    f"rlkit report {settings.folder}"
                )
            if talks and (said := loop.profiler.said()):
                print(f"  {said}", flush=True)
    if distributed.main_rank():
        _draw(settings.folder)
        if made and talks:
            print(f"  {settings.folder} had done its {settings.steps} steps; made what was missing: {', '.join(made)}")
    if ends is not None:
        distributed.barrier()  # a launcher ends the others with the first that fails, and the main rank has drawn now
        raise ends
    return settings.folder


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


def build_loop(
    config: RunConfig,
    algorithm: Algorithm,
    stack: ExitStack,
    *,
    resume: bool,
    shows: Shows | None = None,
    profile: int = 0,
) -> Loop:
    """Everything a run needs, loaded. `config` is resolved, `algorithm` what it describes; `stack` closes what the run
    has opened, when it is over or cannot begin. `shows`: how much is seen of it; None: nothing."""
    stack.callback(gc.unfreeze)  # with what was imported lies what this run has made
    with importing():
        from rlkit.assembly.fetching import fetch
        from rlkit.assembly.fit import check_fit
        from rlkit.assembly.inputs import check_same_data, check_same_model, read_inputs
        from rlkit.assembly.plan import make_plan
        from rlkit.engine import distributed
        from rlkit.engine.loading import load_engines
        from rlkit.engine.profiling import Profiler
        from rlkit.generation import build_sampler, make_room, resolve_sampler, starts_slowly
        from rlkit.generation.collector import Collector
        from rlkit.interfaces.progress import unseen
        from rlkit.loop.dynamic_sampling import Gatherer
        from rlkit.loop.learner import Learner
        from rlkit.loop.log import Log
        from rlkit.loop.one_ahead import OneAheadLoop
        from rlkit.loop.state import RunState
        from rlkit.loop.synchronous import SynchronousLoop
        from rlkit.records.folder import RunFolder
        from rlkit.scoring import Scorer, WeightedReward
        from rlkit.scoring.noise import build_noises, check_noise

        if resume:
            began = RunFolder.open(config.folder).read_config().algo.kind
            if began != config.algo.kind:
                raise ConfigError(f"{config.folder} is a run of {began}: it cannot be resumed with {config.algo.kind}")
        else:
            RunFolder.check_free(config.folder)
        _check_trackers(config)
        rewards = [WeightedReward(ref.kind, ref.options, ref.weight) for ref in config.reward]
        scorer = stack.enter_context(Scorer(rewards, config.plugins, config.scoring))
        noises = build_noises(config.noise)
        check_noise(noises, scorer.range, config.reward[0].kind)
        if distributed.world_size() > 1:
            fetch(config, talks=shows in ("bar", "lines"))
        inputs = read_inputs(config)
        if resume:
            check_same_model(config)
            check_same_data(config, inputs)
            if distributed.main_rank():
                _say_what_was_edited(config)
        tokenizer = inputs.tokenizer
        sampler_ref, why_sampler = resolve_sampler(config.sampler, config.model)
        config = config.model_copy(update={"sampler": sampler_ref})

        if distributed.main_rank() and shows in ("bar", "lines"):
            print(make_plan(config, algorithm, why_sampler, inputs, distributed.world_size(), columns()), flush=True)
        check_fit(config, algorithm, inputs, distributed.world_size())
        if distributed.main_rank() and shows in ("bar", "lines"):
            print(f"loading {config.model.path}, then the sampler ({config.sampler.kind})", flush=True)
    suites = [stack.enter_context(_opened(name, config, tokenizer)) for name in config.eval.suites]
    context = inputs.context(config, *(suite.problems for suite in suites))
    # What is wrong with servers is said before a model is loaded; any other sampler takes what the trainer leaves.
    elsewhere = config.sampler.kind == "vllm_server"
    sampler = build_sampler(config.sampler, config.model, context, config.seed) if elsewhere else None
    policy, reference, critic = load_engines(config, algorithm, tokenizer)
    if distributed.main_rank() and shows in ("bar", "lines") and (said := starts_slowly(config.sampler)):
        print(said, flush=True)
    sampler = sampler or build_sampler(config.sampler, config.model, context, config.seed)
    stack.callback(sampler.close)
    ahead = config.schedule == "one_ahead"
    if ahead and not getattr(sampler, "beside_training", False):
        raise configs.beside_refused(config.sampler.kind)
    make_room(sampler, until_sync=True)
    folder = None
    if distributed.main_rank():
        folder = RunFolder.open(config.folder) if resume else RunFolder.create(config.folder, config, inputs.digests)
    scorer.log_to(RunFolder(config.folder).rewards_log)
    console = _console(config, folder, shows) if folder and shows else None
    progress = console.phase if console else unseen
    collector = Collector(sampler, scorer, tokenizer, config.seed, progress)
    trackers = [*([console] if console else []), *(_trackers(config) if folder else [])]
    for tracker in trackers:
        stack.callback(tracker.close)
    refill = config.batch.refill
    learner = Learner(config, algorithm, policy, reference, critic, RunState(), progress)
    loop = (OneAheadLoop if ahead else SynchronousLoop)(
        config=config,
        learner=learner,
        gatherer=Gatherer(
            collector=collector,
            noises=noises,
            samples_per_prompt=config.batch.samples_per_prompt,
            params=inputs.sampling,
            keep=learner.calls.keep_group,
            leaves_out_truncated=algorithm.leaves_out_truncated,
            limit=refill.limit if refill is not None else 0,
        ),
        problems=inputs.problems.problems,
        benchmarks=_benchmarks(config, collector, inputs, suites),
        log=Log(config, folder, trackers, inputs.digests, partial(_unhealthy, folder, config) if folder else None),
        profiler=Profiler(profile if folder else 0, RunFolder(config.folder).profile),
        progress=progress,
    )
    if resume:
        loop.resume()
    if console:
        console.begin(loop.state.step)
    return loop


def _say_what_was_edited(config: RunConfig) -> None:
    """Of a run that goes on: plugins may be mended on purpose, so it does."""
    from rlkit.records.folder import RunFolder
    from rlkit.records.provenance import plugin_files

    before = RunFolder.open(config.folder).read_plugin_digests()
    edited = [file for file, digest in plugin_files(config).items() if before.get(file, digest) != digest]
    if edited:
        warnings.warn(
            f"{' and '.join(map(place, edited))}: edited since {config.folder} was last started. What comes follows "
            "the code as it is now, so that the run is no longer that of one piece of code",
            stacklevel=2,
        )


def _opened(name: str, config: RunConfig, tokenizer: Any) -> AbstractContextManager[OpenSuite]:
    from rlkit.evaluation.suites import opened

    return opened(
        name,
        tokenizer,
        folder=config.eval.suite_data,
        limit=config.eval.problems,
        chat=config.data.chat,
        chat_template_kwargs=config.data.chat_template_kwargs,
        scoring=config.scoring,
        plugins=config.plugins,
    )


def _benchmarks(
    config: RunConfig, collector: Collector, inputs: Inputs, suites: Sequence[OpenSuite]
) -> list[Benchmark]:
    from rlkit.evaluation.in_training import Benchmark

    held_out = inputs.held_out.problems[: config.eval.problems] if inputs.held_out is not None else []
    found = [Benchmark("heldout", collector, held_out)] if held_out else []
    return found + [Benchmark(s.name, replace(collector, scorer=s.verifier), s.problems) for s in suites]


def _info(config: RunConfig) -> RunInfo:
    return RunInfo(name=config.run_name, folder=config.folder, config=config.dump(), steps=config.steps)


def _console(config: RunConfig, folder: RunFolder, shows: Shows) -> Console:
    from rlkit import report
    from rlkit.tracking.console import Console

    return Console(_info(config), shows, lambda: report.warnings_of(folder.read_metrics(), config))


def _unhealthy(folder: RunFolder, config: RunConfig) -> tuple[str, str] | None:
    from rlkit import report

    began = folder.resumed_after_stop()
    failed = report.unhealthy([row for row in folder.read_metrics() if row["step"] > began], config)
    if failed is None:
        return None
    check, warning = failed
    return check, f"{warning.name}: {warning.seen}"


def _trackers(config: RunConfig) -> list[Tracker]:
    info = _info(config)
    return [build_tracker(t, info) for t in config.trackers]


def _check_trackers(config: RunConfig) -> None:
    """Trackers are opened last: one whose package is missing is refused before a model is loaded."""
    for tracker in config.trackers:
        if tracker.kind in ("wandb", "tensorboard"):
            distribution.check_extra(f"tracker {tracker.kind}", tracker.kind)


def plan(config: RunConfig, ranks: int = 1, gpu: int | None = None) -> str:
    """The plan of a config. Embedded and local data are read; a hub data set is left for the run. `gpu`: bytes of the
    memory of the GPU that it is for; None: it is for this machine."""
    from rlkit.assembly.inputs import read_inputs
    from rlkit.assembly.plan import make_plan
    from rlkit.generation import resolve_sampler

    if gpu is not None and config.model.dtype == "auto":
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    config, algorithm = configs.resolve_with_algorithm(config)
    _check_trackers(config)
    inputs = None
    if config.data.path.startswith("embedded:") or (Path(config.data.path).suffix and "://" not in config.data.path):
        inputs = read_inputs(config)
        inputs.context(config)
    if gpu is not None and config.sampler.kind == "auto":
        sampler, why_sampler = configs.resolve_ref("samplers", PluginRef(kind="vllm"), "sampler"), "there is a GPU"
    else:
        sampler, why_sampler = resolve_sampler(config.sampler, config.model)
    config = config.model_copy(update={"sampler": sampler})
    return make_plan(config, algorithm, why_sampler, inputs, ranks, columns(), gpu)


def summary(folder: Path) -> str:
    """What came out of a run, what is wrong with it, and where to look."""
    from rlkit import report
    from rlkit.records.folder import RunFolder
    from rlkit.records.metrics import last_step
    from rlkit.report import curve

    run = RunFolder.open(folder)
    metrics, config = run.read_metrics(), run.read_config()
    steps = config.steps
    lines = ["", curve.text(metrics), ""]
    for warning in report.warnings_of(metrics, config):
        lines += [folded(f"warning: {warning}", columns(), indent=2), ""]
    lines.append(f"  picture  {run.learning_curve}")
    if run.report.is_file():
        lines.append(f"  report   {run.report}")
    lines.append(f"  run      {folder}")
    done = last_step(metrics)
    if done < steps:
        lines.append(f"  stopped after step {done} of {steps}; {_going_on(folder)}")
    return "\n".join(lines)


def _going_on(folder: Path) -> str:
    """What to type to resume a run that was started as this one."""
    if ranks.starter() not in ("", ranks.NPROC):
        return f"to go on, start it in the same way with `--resume {folder}` in place of config and name"
    count = ranks.world_size()
    said = count > 1 or len(ranks.visible_gpus()) > 1  # without it there would be one on each
    return f"go on with: rlkit run --resume {folder}{f' --nproc {count}' if said else ''}"


def _draw(folder: Path) -> None:
    from rlkit import report
    from rlkit.records.folder import RunFolder
    from rlkit.report import curve

    run = RunFolder.open(folder)
    try:
        curve.draw(run.read_metrics(), run.learning_curve, title=folder.name)
        report.write(folder)
    except (OSError, RlkitError) as error:
        warnings.warn(
            f"the run is whole, but its picture or its report could not be written: {error}. `rlkit report {folder}` "
            "tries again",
            stacklevel=2,
        )
