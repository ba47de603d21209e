"""Puts a run together from its config: the only file that names concrete parts."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import config as configs
from rlkit import distribution, ranks
from rlkit.blame import place
from rlkit.closing import closing
from rlkit.config import PluginRef, RunConfig
from rlkit.errors import ConfigError, DiskError, RlkitError, StoppedError, UnhealthyError
from rlkit.importing import importing
from rlkit.tracking import RunInfo, Tracker, build_tracker
from rlkit.tracking.terminal import Shows, columns, usual
from rlkit.wording import folded, visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager, ExitStack

    from rlkit.assembly.fork import Origin
    from rlkit.assembly.inputs import Inputs
    from rlkit.evaluation.in_training import Benchmark
    from rlkit.evaluation.suites import OpenSuite
    from rlkit.generation.collector import Collector
    from rlkit.interfaces.generation import Sampler
    from rlkit.interfaces.learning import Algorithm
    from rlkit.interfaces.rewards import RewardResult, SampleKey
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
        from rlkit.records.checkpoints import latest
        from rlkit.records.folder import RunFolder

        distributed.init(settings.engine.timeout_minutes)
    made: list[str] = []
    ended_by = 0
    ends: RlkitError | None = None
    then = _going_on(settings.folder) if distributed.world_size() > 1 else ""
    with distributed.losing_ranks(then), closing() as stack:
        if (folder := one_folder(settings.folder)) != settings.folder:
            settings = settings.model_copy(update={"out": folder.parent, "name": folder.name})
        _hold(settings.folder, stack)
        loop = build_loop(settings, algorithm, stack, resume=resume, fork=fork, shows=shows, profile=profile)
        if loop.finished:
            made = _complete(loop, settings)
        else:
            if resume and distributed.main_rank() and talks:
                print(f"  going on from step {loop.state.step} of {settings.steps}", flush=True)
            try:
                ended_by = loop.train()
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
    if ended_by:
        # None may be gone before the main rank has drawn: launchers end the others then.
        distributed.barrier()
        name = signal.Signals(ended_by).name
        raise StoppedError(f"{settings.folder} was ended by {name}, and all of it is saved", settings.folder, ended_by)
    if ends is not None:
        distributed.barrier()  # a launcher ends the others with the first that fails, and the main rank has drawn now
        raise ends
    return settings.folder


def _hold(folder: Path, stack: ExitStack) -> None:
    """Have the folder for this run alone, until the stack is closed. Collective. ConfigError where another has it."""
    from rlkit.engine import distributed
    from rlkit.records.lock import alone, remove_unused

    refused = None
    if distributed.main_rank():
        otherwise = "Wait for it to end, or end that process; a run beside it needs another --name"
        made = not folder.exists()
        try:
            stack.enter_context(alone(folder, "run", otherwise))
            if made:
                stack.callback(remove_unused, folder)
        except ConfigError as error:
            refused = str(error)
    if said := distributed.gather_objects(refused)[0]:
        raise ConfigError(said)


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
    fork: Path | None = None,
    shows: Shows | None = None,
    profile: int = 0,
) -> Loop:
    """Everything a run needs, loaded. `config` is resolved, `algorithm` what it describes; `stack` closes what the run
    has opened, when it is over or cannot begin. `resume`, `fork`: as in `train`. `shows`: how much is seen of it; None:
    nothing."""
    stack.callback(gc.unfreeze)  # with what was imported lies what this run has made
    with importing():
        from rlkit.assembly.fetching import fetch
        from rlkit.assembly.fit import check_disk, check_fit
        from rlkit.assembly.fork import SAMPLES
        from rlkit.assembly.inputs import check_same_data, check_same_model, read_inputs
        from rlkit.assembly.plan import make_plan
        from rlkit.assembly.replaying import check_prompts, source_of
        from rlkit.engine import distributed
        from rlkit.engine.loading import load_engines
        from rlkit.engine.models import model_shape
        from rlkit.engine.profiling import Profiler
        from rlkit.generation import build_sampler, make_room, resolve_sampler, starts_slowly
        from rlkit.generation.collector import Collector
        from rlkit.loop.dynamic_sampling import Gatherer
        from rlkit.loop.interrupts import Interrupt
        from rlkit.loop.learner import Learner
        from rlkit.loop.log import Log
        from rlkit.loop.one_ahead import OneAheadLoop
        from rlkit.loop.replayed import ReplayedLoop
        from rlkit.loop.stalls import Watch
        from rlkit.loop.state import RunState
        from rlkit.loop.sync import Sync
        from rlkit.loop.synchronous import SynchronousLoop
        from rlkit.records.folder import RunFolder
        from rlkit.scoring import Scorer, WeightedReward
        from rlkit.scoring.noise import apply_noise, build_noises, check_noise

        source = source_of(config)
        if resume:
            began = RunFolder.open(config.folder).read_config().algo.kind
            if began != config.algo.kind:
                raise ConfigError(f"{config.folder} is a run of {began}: it cannot be resumed with {config.algo.kind}")
        else:
            RunFolder.check_free(config.folder)
        origin = None if fork is None else _origin(fork, config)
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
        samples, why_sampler = True, None
        if source is not None:
            check_prompts(source, config, inputs.problems.problems)
            samples = inputs.held_out is not None or bool(config.eval.suites)
        if samples:
            sampler_ref, why_sampler = resolve_sampler(config.sampler, config.model)
            config = config.model_copy(update={"sampler": sampler_ref})
            if sampler_ref.kind == "vllm":
                from rlkit.generation.vllm import check_groups

                check_groups(sampler_ref.options["tensor_parallel"], distributed.world_size(), distributed.hosts())

        if distributed.main_rank() and shows in ("bar", "lines"):
            print(make_plan(config, algorithm, why_sampler, inputs, distributed.world_size(), columns()), flush=True)
        check_fit(config, algorithm, inputs, distributed.world_size())
        check_disk(config, algorithm)
        if distributed.main_rank() and shows in ("bar", "lines"):
            if origin is not None:
                print(origin.said(config, has_critic=algorithm.value_loss is not None), flush=True)
            then = f", then the sampler ({config.sampler.kind})" if samples else ""
            print(f"loading {config.model.path}{then}", flush=True)
    talks = distributed.main_rank() and shows in ("bar", "lines")
    watch = Watch(RunFolder(config.folder), _going_on(config.folder), _say if talks else None)
    stack.callback(watch.close)
    watch("loading the model")
    suites = [stack.enter_context(_opened(name, config, tokenizer)) for name in config.eval.suites]
    context = inputs.context(config, *(suite.problems for suite in suites))

    def sampler_of() -> Sampler:
        made = build_sampler(config.sampler, config.model, context, config.seed)
        stack.callback(made.close)
        return made

    # What is wrong with servers is said before a model is loaded; any other sampler takes what the trainer leaves.
    elsewhere = samples and config.sampler.kind == "vllm_server"
    sampler = sampler_of() if elsewhere else None
    # Schedules end where those of a replayed run would have ended.
    planned = config if source is None else config.model_copy(update={"steps": source.config.steps})
    policy, reference, critic = load_engines(planned, algorithm, tokenizer)
    watch.limit_minutes = config.engine.timeout_minutes  # not before: a download may take hours, and gives no sign
    if samples and sampler is None:
        if talks and (said := starts_slowly(config.sampler)):
            print(said, flush=True)
        watch(f"starting the sampler ({config.sampler.kind})")
        sampler = sampler_of()
    ahead = config.schedule == "one_ahead" and source is None
    if ahead and not getattr(sampler, "beside_training", False):
        raise configs.beside_refused(config.sampler.kind)
    if sampler is not None:
        make_room(sampler, until_sync=True)
    folder = None
    if distributed.main_rank():
        if resume:
            folder = RunFolder.open(config.folder)
        else:
            record = origin.record(config) if origin else None
            folder = RunFolder.create(config.folder, config, inputs.digests, record)
    scorer.log_to(RunFolder(config.folder).rewards_log)
    console = _console(config, folder, shows) if folder and shows else None
    if console:
        watch.shown, watch.before_end = console.phase, console.close
    interrupt = Interrupt(config.checkpoint.grace_s)
    # Ranks that share a model sample step by step together: none of them may leave alone.
    alone = elsewhere or config.sampler.options.get("tensor_parallel", 1) == 1
    droppable = interrupt.droppable if alone else nullcontext
    collector = Collector(sampler, scorer, tokenizer, config.seed, watch, droppable) if sampler is not None else None
    trackers = [*([console] if console else []), *(_trackers(config) if folder else [])]
    for tracker in trackers:
        stack.callback(tracker.close)
    learner = Learner(config, algorithm, policy, reference, critic, RunState(), watch)
    problems = inputs.problems.problems
    parts: dict[str, Any] = {
        "config": config,
        "learner": learner,
        "sync": Sync(config, learner, collector, inputs.sampling, problems, watch) if collector else None,
        "benchmarks": _benchmarks(config, collector, inputs, suites) if collector else [],
        "log": Log(config, folder, trackers, inputs.digests, partial(_unhealthy, folder, config) if folder else None),
        "profiler": Profiler(profile if folder else 0, RunFolder(config.folder).profile),
        "interrupt": interrupt,
        "progress": watch,
        "problems": problems,
    }
    loop: Loop
    if source is not None:

        def disturb(keys: Sequence[SampleKey], results: Sequence[RewardResult]) -> list[float | None]:
            return apply_noise(noises, config.seed, keys, results, scorer.range)

        shape = model_shape(config.model)
        loop = ReplayedLoop(
            **parts,
            source=source.folder,
            disturb=disturb if config.noise != source.config.noise else None,
            vocabulary=shape.vocabulary if shape else None,
        )
        if source.checkpoint is not None and not resume:
            loop.begin(source.checkpoint)
    else:
        assert collector is not None
        refill = config.batch.refill
        gatherer = Gatherer(
            collector=collector,
            noises=noises,
            samples_per_prompt=config.batch.samples_per_prompt,
            params=inputs.sampling,
            keep=learner.calls.keep_group,
            leaves_out_truncated=algorithm.leaves_out_truncated,
            limit=refill.limit if refill is not None else 0,
        )
        loop = (OneAheadLoop if ahead else SynchronousLoop)(**parts, gatherer=gatherer)
    if resume:
        loop.resume()
    elif origin is not None:
        loop.begin_from(
            origin.checkpoint,
            same_algorithm=origin.same(config, "algo"),
            same_samples=origin.same(config, *SAMPLES),
        )
        if folder:
            folder.take_metrics(origin.run, origin.step)
    if console:
        console.begin(loop.state.step)
    stack.callback(watch, "closing")
    return loop


def _say(line: str) -> None:
    print(f"  {line}", flush=True)


def _origin(fork: Path, config: RunConfig) -> Origin:
    """ConfigError or RlkitError where there is no checkpoint, or none that is whole."""
    from rlkit.assembly.fork import Origin
    from rlkit.engine import checkpoint
    from rlkit.records import checkpoints
    from rlkit.records.folder import RunFolder

    place, path = checkpoints.parted(fork)
    run = RunFolder.open(place)
    if path is None:
        path = checkpoint.newest_sound(run.checkpoints)
        if path is None:
            raise RlkitError(f"{run.path} holds no checkpoint that a run could begin from")
    else:
        checkpoint.check(path)
    origin = Origin(run, path)
    origin.check(config)
    return origin


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
    from rlkit.assembly.replaying import source_of
    from rlkit.generation import resolve_sampler

    if gpu is not None and config.model.dtype == "auto":
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    config, algorithm = configs.resolve_with_algorithm(config)
    source_of(config)
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
    from rlkit.records import checkpoints
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
    if (by := config.checkpoint.best) and (best := checkpoints.best(run.checkpoints, metrics, by)):
        lines.append(f"  best     {best} ({by})")
    lines.append(f"  run      {folder}")
    done = last_step(metrics)
    if done < steps:
        lines.append(f"  stopped after step {done} of {steps}; {_going_on(folder)}")
    return visible("\n".join(lines))


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
