"""Whether the runs of a study fit on a target, and the least that they take there."""

import dataclasses
from collections.abc import Iterable

from ml_collections import ConfigDict

from experiments.pods import bound, program
from experiments.pods.bound import Bound
from experiments.pods.program import Needs
from experiments.pods.target import Target
from resnet_jax.errors import UserError
from resnet_jax.networks.architectures import architecture
from resnet_jax.resolve import resolve

_MOST_PARTS = 64  # the largest `accumulate` that is tried


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a run takes on a target.

    Attributes:
      target: the chips.
      steps: of the run.
      memory: bytes that a training step takes on a device; 0 if the compiler does not tell.
      needs: of a training step; None if it does not fit.
      step: the bounds of a training step; None if it does not fit.
      remedies: if it does not fit, settings with which it does, for example "accumulate=2".
    """

    target: Target
    steps: int
    memory: int
    needs: Needs | None
    step: Bound | None
    remedies: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The least time of all training steps; 0 if they do not fit."""
        return self.steps * self.step.step if self.step else 0.0

    @property
    def chip_hours(self) -> float:
        """The least time of all chips."""
        return self.seconds * self.target.chips / 3600


class Forecaster:
    """Compiles the steps of runs for a target and forecasts from the programs."""

    def __init__(self, target: Target):
        """Forecasts for all chips of `target` together; raises UserError as Target.devices()."""
        self._target = target
        self._compiler = program.Compiler(target.devices())

    def of_run(self, config: ConfigDict) -> Forecast:
        """Returns the forecast of a resolved config, with remedies if it does not fit.

        Raises:
          UserError: the chips cannot share the run.
        """
        found = self.of_step(config)
        if found.step:
            return found
        return dataclasses.replace(found, remedies=tuple(self._remedies(config)))

    def of_step(self, config: ConfigDict) -> Forecast:
        """Returns the forecast of a resolved config without remedies; raises as of_run()."""
        try:
            needs = self._compiler.needs(config)
        except program.TooLargeError as e:
            return Forecast(self._target, config.steps, e.memory, None, None)
        if needs.memory > self._target.chip.per_device().memory:
            return Forecast(self._target, config.steps, needs.memory, None, None)
        least = bound.of_step(needs, self._target, config.model.dtype)
        return Forecast(self._target, config.steps, needs.memory, needs, least)

    def _remedies(self, config: ConfigDict) -> Iterable[str]:
        """Yields the smallest change of each kind with which a run fits."""
        stages = range(
            1, 1 + len(architecture(config.model.family, config.model.depth).stage_sizes)
        )
        powers = [2**i for i in range(1, _MOST_PARTS.bit_length())]
        kinds = [
            [{"accumulate": config.accumulate * n} for n in powers],
            [{"model.remat": tuple(stages[:n])} for n in range(1, len(stages) + 1)],
            [{"batch_size": config.batch_size // n} for n in powers],
        ]
        for changes in kinds:
            for change in changes:
                if self._fits(config, change):
                    ((key, value),) = change.items()
                    yield f"{key}={value}"
                    break

    def _fits(self, config: ConfigDict, change: dict[str, object]) -> bool:
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.update_from_flattened_dict(change)
        try:
            return self.of_step(resolve(changed)).step is not None
        except UserError:  # the batch does not divide into as many parts
            return False
