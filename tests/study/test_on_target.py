"""The dry run for a target: its table and notes, and with TPU's own compiler."""

import importlib.util

import pytest

from configs import degradation_digits
from experiments.cli import tables
from experiments.pods import target
from experiments.pods.bound import Bound
from experiments.pods.forecast import Forecast
from experiments.study import grid, on_target
from resnet_jax.errors import UserError
from tests.study.test_program import SMALL, STUDY, sweep

CHIPS = target.parse("v5e:2x2")


def shown(monkeypatch, forecasts, share=0.5, price=0.0):
    """Returns the dry run of a study whose forecasts, by depth, are given."""

    class Forecaster:
        def __init__(self, chips):
            assert chips == CHIPS

        def of_run(self, config):
            found = forecasts[config.model.depth]
            if isinstance(found, Exception):
                raise found
            return found

    monkeypatch.setattr(on_target, "Forecaster", Forecaster)
    cells = grid.cells(degradation_digits.get_config("one_rate"))
    plain = [cell for cell in cells if cell.name in ("plain-20", "plain-56")]
    return tables.plain(on_target.dry_run(plain, CHIPS, share, price)).splitlines()


FITS = Forecast(CHIPS, 3600, 2_500_000_000, None, Bound(0.5, 1.0, 0.0, 0.0))
TOO_LARGE = Forecast(CHIPS, 100, 20_000_000_000, None, None, ("accumulate=2", "batch_size=64"))


def test_a_cell_that_fits_has_its_time_at_the_share(monkeypatch):
    lines = shown(monkeypatch, {20: FITS, 56: FITS}, price=1.5)
    # 3,600 steps of a second at half the speed, on four chips.
    assert lines[1].split("  ")[0] == "plain-20"
    for text in ("2.50 GB", "yes", "1000.000 ms", "memory", "2:00:00", "12.00"):
        assert text in lines[1]
    assert "2 cells, one after another on 4 chips: 4:00:00, 16 chip-hours, 24.00 at 1.5" in lines[4]
    assert "--share=0.5: nothing was run" in lines[5]
    assert lines[-1] == "Nothing was started or written."


def test_without_a_price_there_are_no_costs(monkeypatch):
    lines = shown(monkeypatch, {20: FITS, 56: FITS}, share=1.0)
    assert "cost" not in lines[0]
    assert "2 cells, one after another on 4 chips: 2:00:00, 8 chip-hours." in lines[4]


def test_what_would_make_a_cell_fit_is_said(monkeypatch):
    lines = shown(monkeypatch, {20: FITS, 56: TOO_LARGE})
    assert "20.00 GB  no" in lines[2]
    assert lines[4] == (
        "plain-56 does not fit into the 17.2 GB of a chip; it fits with accumulate=2 or "
        "batch_size=64."
    )
    assert lines[5].startswith("1 cells, one after another")


def test_a_cell_that_cannot_be_shared_is_named(monkeypatch):
    with pytest.raises(UserError, match=r"^plain-56 on --target=v5e:2x2: no\.$"):
        shown(monkeypatch, {20: FITS, 56: UserError("no.")})


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_of_compiled_programs(tmp_path):
    done = sweep(tmp_path / "s", STUDY, *SMALL, "--dry_run", "--target=v5e:2x2", "--price=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" yes ") == 2
    assert "2 cells, one after another on 4 chips" in done.stdout
    assert not (tmp_path / "s").exists()
