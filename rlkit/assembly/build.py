"""Builds the loop of a run, with everything that it needs: the only file that names concrete parts."""

from __future__ import annotations

import gc
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import config as configs
from rlkit import distribution
from rlkit.assembly.ending import going_on
from rlkit.blame import place
from rlkit.config import RunConfig
from rlkit.errors import ConfigError
from rlkit.importing import importing
from rlkit.tracking import RunInfo, Tracker, build_tracker
from rlkit.tracking.terminal import Shows, columns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager, ExitStack

    from rlkit.assembly.inputs import Inputs
    from rlkit.evaluation.in_training import Benchmark
    from rlkit.evaluation.suites import OpenSuite
    from rlkit.generation.collector import Collector
    from rlkit.interfaces.generation import Sampler
    from rlkit.interfaces.learning import Algorithm
    from rlkit.loop.base import Loop
    from rlkit.records.folder import RunFolder
    from rlkit.tracking.console import Console


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
        from rlkit.assembly.fork import SAMPLES, origin_of
        from rlkit.assembly.inputs import check_same_data, check_same_model, read_inputs
        from rlkit.assembly.plan import make_plan
        from rlkit.assembly.replaying import check_prompts, source_of
        from rlkit.engine import distributed
        from rlkit.engine.loading import load_engines
        from rlkit.engine.models import model_shape
        from rlkit.engine.profiling import Profiler
        from rlkit.generation import build_sampler, make_room, resolve_sampler, starts_slowly
        from rlkit.generation.acting import declared, setting_of
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
        origin = None if fork is None else origin_of(fork, config)
        check_trackers(config)
        rewards = [WeightedReward(ref.kind, ref.options, ref.weight) for ref in config.reward]
        environment = declared(config.environment)
        scorer = stack.enter_context(Scorer(rewards, config.plugins, config.scoring, environment))
        noises = build_noises(config.noise)
        gives = config.reward[0] if config.reward else config.environment
        assert gives is not None
        check_noise(noises, scorer.range, gives.kind)
        if distributed.world_size() > 1:
            fetch(config, talks=shows in ("bar", "lines"))
        inputs = read_inputs(config, environment)
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
    watch = Watch(RunFolder(config.folder), going_on(config.folder), _say if talks else None)
    stack.callback(watch.close)
    watch("loading the model")
    suites = [stack.enter_context(_opened(name, config, inputs)) for name in config.eval.suites]
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
    setting = None
    if sampler is not None and config.environment is not None:
        assert environment is not None
        assert inputs.glue is not None
        acting = config.environment, environment, config.conversation, inputs.glue
        setting = setting_of(*acting, context, config.plugins, stack, RunFolder(config.folder).environments_log)
    collector = None
    if sampler is not None:
        collector = Collector(sampler, scorer, tokenizer, config.seed, watch, droppable, setting)
    trackers = [*([console] if console else []), *(_trackers(config) if folder else [])]
    for tracker in trackers:
        stack.callback(tracker.close)
    learner = Learner(config, algorithm, policy, reference, critic, RunState(), watch)
    problems = inputs.problems.problems
    parts: dict[str, Any] = {
        "config": config,
        "learner": learner,
        "sync": Sync(config, learner, collector, inputs.sampling, problems, watch) if collector else None,
        "benchmarks": _benchmarks(config, collector, inputs, suites, context, stack) if collector else [],
        "log": Log(config, folder, trackers, inputs.digests, partial(_unhealthy, folder, config) if folder else None),
        "profiler": Profiler(profile if folder else 0, RunFolder(config.folder).profile),
        "interrupt": interrupt,
        "progress": watch,
        "problems": problems,
    }
    loop: Loop
    if source is not None:
        shape = model_shape(config.model)
        disturb = partial(apply_noise, noises, config.seed, range=scorer.range)
        loop = ReplayedLoop(
            **parts,
            source=source.folder,
            disturb=disturb if config.noise != source.config.noise else None,
            vocabulary=shape.vocabulary if shape else None,
        )
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
    elif source is not None and source.checkpoint is not None:
        # The rollout in flight is among the stored ones.
        same = source.config.algo.kind == config.algo.kind
        loop.begin_from(source.checkpoint, same_algorithm=same, same_samples=False)
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


def _opened(name: str, config: RunConfig, inputs: Inputs) -> AbstractContextManager[OpenSuite]:
    from rlkit.evaluation.suites import find, opened

    wanted = find(name)
    return opened(
        name,
        inputs.tokenizer,
        wanted=wanted,
        folder=config.eval.suite_data,
        limit=config.eval.problems,
        chat=config.data.chat,
        chat_template_kwargs=config.data.chat_template_kwargs,
        scoring=config.scoring,
        plugins=config.plugins,
        environment=config.environment,
        conversation=config.conversation.model_copy(update=wanted.acted.conversation.model_dump(exclude_unset=True)),
        ends=inputs.end_tokens,
    )


def _benchmarks(
    config: RunConfig,
    collector: Collector,
    inputs: Inputs,
    suites: Sequence[OpenSuite],
    context: int,
    stack: ExitStack,
) -> list[Benchmark]:
    from rlkit.evaluation.in_training import Benchmark
    from rlkit.records.folder import RunFolder

    held_out = inputs.held_out.problems[: config.eval.problems] if inputs.held_out is not None else []
    found = [Benchmark("heldout", collector, held_out)] if held_out else []
    log = RunFolder(config.folder).environments_log
    for suite in suites:
        setting = None
        if suite.acting is not None and suite.suite.environment is not None:
            setting = suite.acting.setting(context, config.plugins, stack, log)
        elif suite.acting is not None and collector.setting is not None:
            setting = replace(collector.setting, glue=suite.acting.glue)
        found.append(Benchmark(suite.name, replace(collector, scorer=suite.verifier, setting=setting), suite.problems))
    return found


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


def check_trackers(config: RunConfig) -> None:
    """Trackers are opened last: one whose package is missing is refused before a model is loaded."""
    for tracker in config.trackers:
        if tracker.kind in ("wandb", "tensorboard"):
            distribution.check_extra(f"tracker {tracker.kind}", tracker.kind)
