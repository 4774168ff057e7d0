"""From run folders to cells: one network under one recipe, with all its replicates."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from experiments.report import replicates
from experiments.report.replicates import Observation, Replicate
from experiments.report.statistics import Sample, Stat
from resnet_jax.allowed import check_choice
from resnet_jax.networks.architectures import SHORTCUTS
from resnet_jax.runs import reader

Measure = Callable[[Replicate], float | None]


@dataclasses.dataclass(frozen=True)
class CellResult:
    """Runs that differ in nothing but their seeds, pooled."""

    runs: tuple[reader.Run, ...]  # every run, also those whose replicates are left out
    replicates: tuple[Replicate, ...]  # those that the numbers are about, diverged ones included
    status: str
    notes: tuple[str, ...]  # what a reader must know about the pooling

    @property
    def config(self) -> dict[str, Any]:
        """The first run's config; the others differ from it in their seeds alone."""
        return self.runs[0].config

    @property
    def depth(self) -> int:
        """Weighted layers, as the paper counts them."""
        return self.config["model"]["depth"]

    @property
    def shortcut(self) -> str:
        """``none`` for the plain net, or the shortcut's letter."""
        return self.config["model"]["shortcut"]

    @property
    def plain(self) -> bool:
        """Whether this is a net without shortcuts."""
        return self.shortcut == "none"

    @property
    def name(self) -> str:
        """What the cell is: ``plain-56``, ``resnet-56-A``."""
        return f"plain-{self.depth}" if self.plain else f"resnet-{self.depth}-{self.shortcut}"

    @property
    def healthy(self) -> tuple[Replicate, ...]:
        """The replicates that have figures and did not diverge: those in every mean."""
        return tuple(r for r in self.replicates if r.healthy)

    @property
    def diverged(self) -> tuple[Replicate, ...]:
        """The replicates that diverged: in no mean of a table, but evidence for claims."""
        return tuple(r for r in self.replicates if r.diverged_at is not None)

    @property
    def step(self) -> int:
        """The step that all its runs have reached."""
        return min(replicates.last_step(r.run) for r in self.replicates)

    @property
    def steps(self) -> int:
        """The steps that its runs are to take."""
        return replicates.total_steps(self.runs[0])

    @property
    def parameters(self) -> int | None:
        """Trained values of the network."""
        return self._network("parameters")

    @property
    def mult_adds(self) -> int | None:
        """Multiply-adds for one image; one multiply and its addition count as one."""
        return self._network("mult_adds")

    @property
    def device_seconds(self) -> float:
        """What all runs of the cell cost, over all their launches."""
        return sum(run.status.get("device_seconds") or 0.0 for run in self.runs)

    def values(self, measure: Measure) -> list[float]:
        """Returns the measure of each healthy replicate that has it."""
        return [v for v in map(measure, self.healthy) if v is not None]

    def sample(self, observe: Callable[[Replicate], Observation | None]) -> Sample:
        """Returns what a claim compares: one training error per seed, diverged seeds included."""
        seen = {r.seed: found for r in self.replicates if (found := observe(r)) is not None}
        return Sample(
            {seed: observation.error for seed, observation in seen.items()},
            sum(observation.examples for observation in seen.values()),
            frozenset(seed for seed, observation in seen.items() if observation.diverged),
        )

    def stat(self, measure: Measure) -> Stat:
        """Returns mean and spread of a measure over the healthy replicates."""
        return Stat.of(self.values(measure))

    def _network(self, fact: str) -> int | None:
        known = (run.environment.get("network", {}).get(fact) for run in self.runs)
        return next((value for value in known if value is not None), None)


def pool(members: Sequence[reader.Run]) -> CellResult:
    """Makes one cell of runs that differ in nothing but their seeds.

    Completed runs are not mixed with unfinished ones, whose errors are not final: if at least one
    run has completed, unfinished replicates are left out and a note says so. A replicate that
    diverged has ended, whatever else its run still does, and always counts. Each seed counts once,
    because its twin is no independent replicate: the run that diverged, else the one that went
    further.

    Raises:
      UserError: a config lacks a setting or holds a shortcut that is not known.
    """
    every = [r for run in members for r in replicates.of_run(run)]  # names what a config lacks
    for run in members:
        check_choice("model.shortcut", run.config["model"]["shortcut"], SHORTCUTS)
    statuses = {run.path: reader.shown_status(run) for run in members}
    unfinished = [run for run in members if statuses[run.path] not in reader.ENDED]
    notes = []
    if "completed" in statuses.values():
        status = "completed"
        for run in unfinished:
            gone = any(r.run is run and r.diverged_at is not None for r in every)
            notes.append(f"{_describe(run)} is left out{', except what diverged' if gone else ''}")
            every = [r for r in every if r.run is not run or r.diverged_at is not None]
    elif not unfinished:
        status = "diverged"
    else:
        status = statuses[max(unfinished, key=replicates.last_step).path]
        notes += [_describe(run) for run in unfinished if run.status.get("reason")]
    kept, repeated = _distinct(every)
    return CellResult(tuple(members), tuple(kept), status, (*notes, *repeated))


def order(cell: CellResult) -> tuple[int, int]:
    """Sorts plain nets first, then by shortcut, each by depth."""
    return SHORTCUTS.index(cell.shortcut), cell.depth


def _distinct(found: Iterable[Replicate]) -> tuple[list[Replicate], list[str]]:
    """Returns one replicate per seed, and a note on each that is left out."""
    by_seed: dict[int, Replicate] = {}
    notes = []
    # First those that diverged: a rerun that went better does not undo it.
    first = sorted(found, key=lambda r: (r.diverged_at is None, -replicates.last_step(r.run)))
    for replicate in first:
        kept = by_seed.setdefault(replicate.seed, replicate)
        if kept is replicate:
            continue
        words = f"seed {replicate.seed} of {replicate.run.name} is left out: "
        if kept.diverged_at is not None and replicate.diverged_at is None:
            notes.append(f"{words}the same seed diverged in {kept.run.name}, and that counts")
        else:
            notes.append(f"{words}another run holds the same seed")
    return [by_seed[seed] for seed in sorted(by_seed)], notes


def _describe(run: reader.Run) -> str:
    reason = run.status.get("reason")
    progress = f"at step {replicates.last_step(run)} of {replicates.total_steps(run)}"
    return f"{run.name} ({reader.shown_status(run)} {progress}{f': {reason}' if reason else ''})"
