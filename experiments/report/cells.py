"""Cells: one network trained with one recipe, with all its replicates pooled from run folders."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from experiments.report import replicates
from experiments.report.replicates import Observation, Replicate
from experiments.report.statistics import Sample, Stat
from resnet_jax import settings
from resnet_jax.allowed import check_choice
from resnet_jax.networks.architectures import SHORTCUTS
from resnet_jax.runs import reader, storage

Measure = Callable[[Replicate], float | None]


@dataclasses.dataclass(frozen=True)
class CellResult:
    """Runs that differ only in their seeds, pooled."""

    runs: tuple[reader.Run, ...]  # all, including those whose replicates are left out
    replicates: tuple[Replicate, ...]  # those that count, including diverged ones
    status: str
    notes: tuple[str, ...]  # on replicates that were left out and unfinished runs

    @property
    def config(self) -> storage.Json:
        """The first run's config; the others differ from it only in their seeds."""
        return self.runs[0].config

    @property
    def depth(self) -> int:
        """The number of weighted layers, as in the paper."""
        return self.config["model"]["depth"]

    @property
    def shortcut(self) -> str:
        """``none`` for a plain net, else the shortcut's letter.

        A net with shortcuts times 0 is plain: it computes the same, bit for bit.
        """
        model = self.config["model"]
        is_off = model.get("shortcut_scale") == 0 and model["shortcut_scale_by"] != "learned"
        return "none" if is_off else model["shortcut"]

    @property
    def plain(self) -> bool:
        """Whether the net has no shortcuts."""
        return self.shortcut == "none"

    @property
    def name(self) -> str:
        """The cell's name: ``plain-56``, ``resnet-56-A``."""
        return named(self.depth, self.shortcut)

    @property
    def healthy(self) -> tuple[Replicate, ...]:
        """The replicates that have errors and did not diverge; every mean is over these."""
        return tuple(r for r in self.replicates if r.healthy)

    @property
    def diverged(self) -> tuple[Replicate, ...]:
        """The replicates that diverged; tables leave them out of means, claims count them."""
        return tuple(r for r in self.replicates if r.diverged_at is not None)

    @property
    def step(self) -> int:
        """The last step that all its runs have reached."""
        return min(replicates.last_step(r.run) for r in self.replicates)

    @property
    def steps(self) -> int:
        """The planned number of steps of each run."""
        return replicates.total_steps(self.runs[0])

    @property
    def parameters(self) -> int | None:
        """The network's number of trainable parameters."""
        return self._network("parameters")

    @property
    def mult_adds(self) -> int | None:
        """Mult-adds per image; a multiplication and its addition count as one."""
        return self._network("mult_adds")

    @property
    def device_seconds(self) -> float:
        """The device time of all runs, over all their launches."""
        return sum(run.status.get("device_seconds") or 0.0 for run in self.runs)

    def values_of(self, keys: Iterable[str]) -> settings.Flat:
        """Returns the cell's values of some settings, by dotted key."""
        flat = settings.flatten(self.config)
        return {key: flat.get(key) for key in keys}

    def values(self, measure: Measure) -> list[float]:
        """Returns the measure of each healthy replicate that has it."""
        return [v for v in map(measure, self.healthy) if v is not None]

    def sample(self, observe: Callable[[Replicate], Observation | None]) -> Sample:
        """Returns one error per seed for a claim, including diverged seeds."""
        observed = [(r.seed, observe(r)) for r in self.replicates]
        by_seed = {seed: observation for seed, observation in observed if observation is not None}
        return Sample(
            {seed: observation.error for seed, observation in by_seed.items()},
            sum(observation.examples for observation in by_seed.values()),
            frozenset(seed for seed, observation in by_seed.items() if observation.diverged),
        )

    def stat(self, measure: Measure) -> Stat:
        """Returns a measure's mean and standard deviation over the healthy replicates."""
        return Stat.of(self.values(measure))

    def _network(self, fact: str) -> int | None:
        known = (run.environment.get("network", {}).get(fact) for run in self.runs)
        return next((value for value in known if value is not None), None)


def pool(members: Sequence[reader.Run]) -> CellResult:
    """Makes one cell of runs that differ only in their seeds.

    If a run has completed, replicates of unfinished runs are left out with a note, because their
    errors are not final. A diverged replicate is final and always counts, even if the run's other
    replicates still train. If several runs have the same seed, one of them counts: one that
    diverged, else the one with the most steps.

    Raises:
      UserError: a config lacks a setting or has an unknown shortcut.
    """
    pooled = [r for run in members for r in replicates.of_run(run)]
    for run in members:
        check_choice("model.shortcut", run.config["model"]["shortcut"], SHORTCUTS)
    statuses = {run.path: reader.shown_status(run) for run in members}
    unfinished = [run for run in members if statuses[run.path] not in reader.ENDED]
    notes = []
    if "completed" in statuses.values():
        status = "completed"
        for run in unfinished:
            diverged = any(r.run is run and r.diverged_at is not None for r in pooled)
            exception = ", except for its diverged seeds" if diverged else ""
            notes.append(f"{_describe(run)} is left out{exception}")
            pooled = [r for r in pooled if r.run is not run or r.diverged_at is not None]
    elif not unfinished:
        status = "diverged"
    else:
        status = statuses[max(unfinished, key=replicates.last_step).path]
        notes += [_describe(run) for run in unfinished if run.status.get("reason")]
    kept, repeated = _one_per_seed(pooled)
    return CellResult(tuple(members), tuple(kept), status, (*notes, *repeated))


def named(depth: int, shortcut: str) -> str:
    """Returns ``plain-56`` or ``resnet-56-A``."""
    return f"plain-{depth}" if shortcut == "none" else f"resnet-{depth}-{shortcut}"


def order(cell: CellResult) -> tuple[int, int]:
    """A sort key: plain nets first, then by shortcut, each by depth."""
    return SHORTCUTS.index(cell.shortcut), cell.depth


def _one_per_seed(pooled: Iterable[Replicate]) -> tuple[list[Replicate], list[str]]:
    """Returns one replicate per seed, and a note on each that is left out."""
    by_seed: dict[int, Replicate] = {}
    notes = []
    # Diverged replicates come first: a successful rerun of a seed does not replace its divergence.
    ranked = sorted(pooled, key=lambda r: (r.diverged_at is None, -replicates.last_step(r.run)))
    for replicate in ranked:
        kept = by_seed.setdefault(replicate.seed, replicate)
        if kept is replicate:
            continue
        left_out = f"seed {replicate.seed} of {replicate.run.name} is left out: "
        if kept.diverged_at is not None and replicate.diverged_at is None:
            notes.append(f"{left_out}the same seed diverged in {kept.run.name}, which counts")
        else:
            notes.append(f"{left_out}another run holds the same seed")
    return [by_seed[seed] for seed in sorted(by_seed)], notes


def _describe(run: reader.Run) -> str:
    reason = run.status.get("reason")
    progress = f"at step {replicates.last_step(run)} of {replicates.total_steps(run)}"
    return f"{run.name} ({reader.shown_status(run)} {progress}{f': {reason}' if reason else ''})"
