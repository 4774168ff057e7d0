"""The candidates of a tuned study: the same values for every cell, and further ones for some.

If a cell's best value is the lowest or highest candidate of a setting, Tuning.further gives the
next value beyond. Such values belong to one cell. They are recorded beside the pilots, so that
every later command and the report know them.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from resnet_jax import settings
from resnet_jax.allowed import Range
from resnet_jax.errors import UserError
from resnet_jax.runs import reader, records, storage

FURTHER = 4  # the most values beyond each end of a setting's candidates


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A study's part `tune`.

    Attributes:
      over: candidate values by dotted key.
      by: one of report/tuned.MEASURES.
      seeds: seeds per candidate.
      first_seed: the first of them.
      extended: by a cell's name, its candidate values in addition to those in `over`.
    """

    over: settings.Flat
    by: str
    seeds: int
    first_seed: int
    extended: Mapping[str, settings.Flat] = dataclasses.field(default_factory=dict)

    def values(self, cell: str, key: str) -> list[object]:
        """Returns the candidate values of one setting for a cell."""
        own = self.extended.get(cell, {}).get(key, [])
        return [*self.over[key], *(value for value in own if value not in self.over[key])]

    def candidates(self, cell: str) -> list[settings.Flat]:
        """Returns every combination of a cell's values."""
        values = [self.values(cell, key) for key in self.over]
        return [dict(zip(self.over, each, strict=True)) for each in itertools.product(*values)]

    def is_at_the_edge(self, cell: str, key: str, value: object) -> bool:
        """Whether a value is the lowest or highest candidate, and more may lie beyond."""
        numbers = _numbers(self.values(cell, key))
        allowed = settings.SETTINGS[key].allowed
        is_limit = isinstance(allowed, Range) and value in (allowed.low, allowed.highest)
        return len(numbers) > 1 and value in (numbers[0], numbers[-1]) and not is_limit

    def further(self, cell: str, key: str, value: object) -> float | None:
        """Returns the next candidate beyond a value at the edge, in the candidates' spacing.

        It is as many times the value as the value is its neighbour: 0.005 and 0.01 are followed by
        0.0025 at the lower end. It has three digits, or is whole if the setting's values are.

        Returns:
          The candidate; or None if FURTHER were added there, the setting does not allow it, or
          a ratio of the two values makes no sense because one is 0 or below.
        """
        numbers, given = _numbers(self.values(cell, key)), _numbers(self.over[key])
        is_highest = value == numbers[-1]
        if is_highest:
            last, neighbour = numbers[-1], numbers[-2]
            added = sum(number > given[-1] for number in numbers)
        else:
            last, neighbour = numbers[0], numbers[1]
            added = sum(number < given[0] for number in numbers)
        allowed = settings.SETTINGS[key].allowed
        if added >= FURTHER or min(last, neighbour) <= 0 or not isinstance(allowed, Range):
            return None
        number = last * last / neighbour
        number = round(number) if allowed.whole else float(f"{number:.3g}")
        is_beyond = number > last if is_highest else number < last
        return number if is_beyond and number in allowed else None

    def with_values(self, cell: str, values: settings.Flat) -> "Tuning":
        """Returns the tuning with one more candidate value of some settings for a cell."""
        own = dict(self.extended.get(cell, {}))
        for key, value in values.items():
            own[key] = [*own.get(key, []), value]
        return dataclasses.replace(self, extended={**self.extended, cell: own})

    def recorded(self, workdir: storage.Path) -> "Tuning":
        """Returns the tuning with the values that are recorded in a study's folder.

        Raises:
          UserError: the record cannot be read.
        """
        record = records.read(workdir / reader.PILOTS / reader.TUNING, records.Tuning)
        tuning = self
        for cell, axes in record.get("extended", {}).items():
            for key in axes.keys() & self.over.keys():
                for value in axes[key]:
                    if value not in tuning.values(cell, key):
                        tuning = tuning.with_values(cell, {key: value})
        return tuning

    def write(self, workdir: storage.Path) -> None:
        """Records the tuning beside the pilots and keeps the values that are recorded there.

        Raises:
          UserError: the record cannot be read or written.
        """
        folder = workdir / reader.PILOTS
        # Another sweep may have extended other cells.
        record = dataclasses.asdict(self.recorded(workdir))
        try:
            if not storage.is_bucket(folder):
                folder.mkdir(parents=True, exist_ok=True)
            storage.write_json(folder / reader.TUNING, record)
        except OSError as e:
            raise UserError(f"{folder} cannot be written: {storage.reason(e)}.") from e


def _numbers(values: Sequence[object]) -> list[float]:
    """Returns the numbers among `values`, sorted."""
    numbers = {v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return sorted(numbers)
