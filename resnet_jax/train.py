"""The loop: one resolved config in, one run folder out."""

import contextlib
import dataclasses
import errno
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from resnet_jax import effect, pretrained
from resnet_jax.data import datasets, sets, sources
from resnet_jax.data.augment import Normalization
from resnet_jax.data.order import TRAIN, spans
from resnet_jax.data.splits import Split
from resnet_jax.data.views import make_views
from resnet_jax.errors import RunError, sentence
from resnet_jax.evaluate import evaluate, observe, population_statistics
from resnet_jax.execution import Execution, decide
from resnet_jax.networks.signals import SIGNALS
from resnet_jax.networks.summary import summarize
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel.processes import fetch, from_primary, put
from resnet_jax.parallel.stopping import StopRequest
from resnet_jax.programs import Programs, build
from resnet_jax.resolve import resolve
from resnet_jax.runs import environment, flags, identity, reader, records, storage
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.runs.log import Clock, RunLog
from resnet_jax.runs.profile import Profiler
from resnet_jax.runs.writer import Onlooker, RunFolder
from resnet_jax.state import TrainState, Variables
from resnet_jax.step import Metrics


def train(config: ConfigDict, workdir: str, defaults: ConfigDict | None = None) -> str:
    """Starts or resumes the run in `workdir` and trains to its end.

    Args:
      config: not yet resolved; see configs/base.py.
      workdir: the run folder; created if needed.
      defaults: the default config; if given, every changed setting without effect is logged.

    Returns:
      The final status: "completed", "diverged" (the loss of no replicate is finite any more) or
      "preempted" (a signal arrived, and everything is saved).

    Raises:
      UserError: the config, the data or the folder rules the run out; nothing was written.
      RunError: the run cannot continue; its earlier checkpoints are intact.
    """
    config = resolve(config)
    no_effect = effect.without_effect(config, defaults or config)
    sources.require(config.data.name, config.data.dir)
    identity.refuse_other(workdir, config.to_dict())
    pretrained.require(config, storage.locate(workdir))
    flags.refuse_other_draws(workdir)
    execution = decide(config)

    folder = _open(workdir, config)
    status = from_primary(folder.status)
    if status and status["status"] in reader.ENDED:
        logging.info("%s has ended already: %s.", folder.path, reader.describe_status(status))
        folder.close()
        return status["status"]
    clock = Clock(status.get("device_seconds", 0.0), execution.mesh.size)
    try:
        with StopRequest() as stop, contextlib.ExitStack() as at_end:
            launch, state = _prepare(config, no_effect, execution, folder, clock, stop, at_end)
            state = _loop(launch, state)
            return _end(launch, state)
    except BaseException as e:
        error = _as_run_error(e, config, folder)
        _set_failed(folder, error, config.steps, clock)
        raise error from (None if error is e else e)
    finally:
        folder.close()


@dataclasses.dataclass(frozen=True)
class _Launch:
    """The objects that one launch of a run uses.

    Attributes:
      seeds: int32 (R,).
      start: steps taken by earlier launches.
      log, checkpoints: write into `folder`.
      stop: whether a signal arrived.
      at_end: closes everything that is open.
    """

    config: ConfigDict
    folder: RunFolder
    data: datasets.DataSet
    programs: Programs
    seeds: np.ndarray
    start: int
    log: RunLog
    checkpoints: Checkpoints
    stop: StopRequest
    at_end: contextlib.ExitStack

    def evaluate(self, variables: Variables, split: Split, name: str = "center") -> Metrics:
        """Returns the mean loss and errors over a split; `name` is one of eval.views."""
        views = make_views(name, self.config.data, self.config.eval)
        return evaluate(self.programs.eval_steps, variables, split, views, self.programs.execution)


###################################################################### data, programs and state


def _prepare(
    config: ConfigDict,
    no_effect: list[str],
    execution: Execution,
    folder: RunFolder,
    clock: Clock,
    stop: StopRequest,
    at_end: contextlib.ExitStack,
) -> tuple[_Launch, TrainState]:
    """Opens data, programs, checkpoints and logs; restores or initialises the state."""
    data = at_end.enter_context(contextlib.closing(datasets.open_set(config.data, execution.mesh)))
    data_facts = data.facts(config)
    environment.refuse_differing_data(data_facts)
    from_primary(lambda: folder.refuse_other_data(data_facts))

    normalization = _normalization(config, folder, data)
    programs = build(config, execution, normalization, data.train.select)
    checkpoints = at_end.enter_context(Checkpoints(folder.checkpoints, config.checkpoint.keep))
    saved = checkpoints.restore(programs.saved_state)
    seeds = np.arange(config.seed, config.seed + config.replicates, dtype=np.int32)
    facts: records.Launch = {}
    if saved is not None:
        state = programs.from_saved(saved)
    elif config.init["from"]:
        given = pretrained.read(config, folder.path)
        state = programs.start(seeds, given.variables)
        facts = {"init": given.facts}
    else:
        state = programs.start(seeds)
    start = int(fetch(state.step)[0])

    folder.rewind(start)
    flags.log_other_rounding(str(folder.path))
    network = summarize(programs.model, sets.image_shape(config.data))
    facts |= environment.launch_facts(network, execution.facts(), data_facts)
    folder.record_launch(facts | {"without_effect": no_effect, "step": start})
    for notice in no_effect:
        logging.info("%s.", notice)
    logging.info("%s: %s step %d.", folder.path, "resumes at" if start else "starts at", start)
    log = at_end.enter_context(contextlib.closing(RunLog(config, folder, clock, start)))
    return (
        _Launch(config, folder, data, programs, seeds, start, log, checkpoints, stop, at_end),
        state,
    )


def _normalization(config: ConfigDict, folder: RunFolder, data: datasets.DataSet) -> Normalization:
    """Returns the run's normalisation, and writes it into the folder of a new run."""
    path = folder.path / reader.NORMALIZATION
    if saved := from_primary(lambda: storage.read_json(path)):
        return Normalization.from_json(saved, path)
    chosen = data.normalization
    if config.init["from"] and config.init.normalization == "kept":
        chosen = pretrained.normalization(config)
    from_primary(lambda: storage.write_json(path, chosen.to_json()))
    return chosen


####################################################################################### the loop


def _loop(launch: _Launch, state: TrainState) -> TrainState:
    """Trains until the last step, until a signal arrives or until every seed has diverged."""
    config, data, programs, log = launch.config, launch.data, launch.programs, launch.log
    execution = programs.execution
    profiler = Profiler(config.profile, launch.folder.profile)
    launch.at_end.callback(profiler.close)
    steps = spans(range(launch.start, config.steps), execution.steps_per_dispatch)
    batches = data.train.batches(launch.seeds, steps, config.batch_size, config.accumulate, TRAIN)
    launch.at_end.callback(batches.close)
    seeds_R = put(launch.seeds, meshes.by_replicate(execution.mesh))
    pending: dict[str, Any] = {}  # the next row of metrics, still on the device
    for span, batch in batches:
        done = span.stop
        every = config.log.signals.every
        signals = None
        if every and span.start % every == 0:
            signals = observe(programs, state, seeds_R, span.start, data.train.arrays, batch)
        profiler.before(span, state)
        state, metrics = programs.train_steps(
            state, seeds_R, programs.numbers, data.train.arrays, batch
        )
        del batch  # frees its memory before the next one is made
        of_update = metrics.pop(SIGNALS)
        execution.settle(metrics)
        profiler.after(span, metrics)
        if signals is not None:
            head = {"step": span.start, "diverged_at": metrics["diverged_at"]}
            pending |= head | signals | of_update
        # The previous span's row is fetched only now, while the device is busy with this span.
        log.write(pending)
        pending = {}
        if log.all_diverged:
            break

        row_head = {"step": done, "diverged_at": metrics["diverged_at"]}
        is_last = done == config.steps
        if done % config.log.every == 0 or is_last:
            pending |= row_head | metrics
        if len(data.validation) and done % config.eval.every == 0:
            state, result = _validate(launch, state)
            pending |= row_head | result
        log.progress.advance(len(span))

        stopping = launch.stop.reached()
        if done % config.checkpoint.every == 0 or is_last or stopping:
            # Rows reach the disk before their checkpoint: a resumed run drops the rows after its
            # checkpoint and writes them again, but never those before it.
            log.write(pending)
            log.flush()
            pending = {}
            log.note_diverged(metrics["diverged_at"])
            if log.all_diverged:
                break
            launch.checkpoints.save(done, programs.to_saved(state))
            log.status("running", done)
        if stopping:
            break
    return state


def _validate(launch: _Launch, state: TrainState) -> tuple[TrainState, Metrics]:
    """Evaluates the validation split; returns the state updated by the result, and the metrics."""
    result = launch.evaluate(state.evaluated, launch.data.validation)
    metrics = {f"validation/{name}": value for name, value in result.items()}
    return launch.programs.after_validation(state, result["error"]), metrics


####################################################################################### the end


def _end(launch: _Launch, state: TrainState) -> str:
    """Tests a run that was trained to its last step; returns the run's final status."""
    config, folder, log, stop = launch.config, launch.folder, launch.log, launch.stop
    log.flush()
    launch.checkpoints.wait()
    steps = launch.checkpoints.steps()
    launch.checkpoints.close()
    is_tested = False
    if not log.all_diverged and steps[-1] == config.steps and not stop.received:
        # All of training is on disk, so if the test fails, only the test has to be repeated.
        logging.info("%s: trained and saved; the test follows.", folder.path)
        log.progress.close()
        tested = _test(launch, state)
        if tested is not None:
            variables, result = tested
            log.write({"step": config.steps} | result)
            log.flush()
            with Checkpoints(folder.tested, keep=1) as checkpoints:
                checkpoints.save(config.steps, launch.programs.to_saved(variables))
                checkpoints.close()
            is_tested = True

    log.close()
    if log.all_diverged:
        at = max(log.diverged.values())
        good = f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint was due"
        why = f"loss or weights were not finite at step {at}; {good}"
        log.status(status := "diverged", at, why)
    elif is_tested:
        log.status(status := "completed", config.steps)
    else:
        why = f"{stop.received} arrived; everything is saved"
        log.status(status := "preempted", steps[-1], why)
    logging.info("%s: %s.", folder.path, reader.describe_status(from_primary(folder.status)))
    return status


def _test(launch: _Launch, state: TrainState) -> tuple[Variables, Metrics] | None:
    """Evaluates the chosen weights once on the test split; returns them and the metrics.

    Returns None if a signal arrived; the next launch then repeats the test.
    """
    config, data, programs = launch.config, launch.data, launch.programs
    metrics: Metrics = {}
    if len(data.validation) and config.steps % config.eval.every:
        state, metrics = _validate(launch, state)
    metrics["diverged_at"] = state.diverged_at
    variables = state.evaluated
    if config.eval.weights == "best":
        variables = state.best.variables
        metrics["test/step"] = jax.numpy.maximum(state.best.step, 0)  # 0: the initial weights
    is_measured = config.eval.statistics == "population" and config.model.norm == "batch"
    if is_measured and programs.model.has_trained_norms:
        variables = population_statistics(
            programs.observe_step, variables, data.train, launch.seeds, config, programs.execution
        )
        if len(data.validation):
            result = launch.evaluate(variables, data.validation)
            metrics |= {f"validation/{k}_population": v for k, v in result.items()}
    for name in config.eval.views:
        if launch.stop.reached():
            return None
        result = launch.evaluate(variables, data.test, name)
        # Reports use the first view, whose metrics have no suffix.
        suffix = "" if name == config.eval.views[0] else f"_{name}"
        metrics |= {f"test/{k}{suffix}": v for k, v in result.items()}
    return variables, metrics


############################################################################ folder and errors


def _open(workdir: str, config: ConfigDict) -> RunFolder:
    """Opens the run folder in process 0, then read-only in the other processes."""
    opened: list[RunFolder] = []
    from_primary(lambda: opened.append(RunFolder(workdir, config.to_dict())))
    return opened[0] if opened else Onlooker(workdir)


def _as_run_error(error: BaseException, config: ConfigDict, folder: RunFolder) -> BaseException:
    """Turns an error of the system or the device into a RunError; returns others unchanged."""
    on_host = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    # On CPU devices the error is INTERNAL. A failed program raises only when its results are used,
    # so we cannot tell a training step from an evaluation, and name the settings of both.
    on_device = isinstance(error, jax.errors.JaxRuntimeError) and any(
        words in str(error) for words in ("RESOURCE_EXHAUSTED", "ut of memory")
    )
    if on_host or on_device:
        return RunError(
            f"The {'host' if on_host else 'device'}'s memory is too small "
            f"({str(error).strip().splitlines()[0][:200]}): for a training step, raise "
            f"accumulate={config.accumulate} or add stages to model.remat={config.model.remat}; "
            f"for an evaluation, lower eval.batch_size={config.eval.batch_size}; the same command "
            "with such a change resumes from the last checkpoint (a smaller "
            f"batch_size={config.batch_size} would be another run)."
        )
    if isinstance(error, OSError):
        return RunError(f"{folder.path} cannot be written: {storage.reason(error)}.")
    return error


def _set_failed(folder: RunFolder, error: BaseException, steps: int, clock: Clock) -> None:
    at = folder.status().get("step", 0)
    try:
        folder.set_status(
            "failed", step=at, steps=steps, device_seconds=clock.seconds(), reason=sentence(error)
        )
    except (OSError, RunError) as e:  # such as a full disk; the error is still shown on screen
        logging.error("status.json could not be written: %s", e)
