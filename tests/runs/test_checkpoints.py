"""Only intact checkpoints are restored."""

import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from resnet_jax.errors import RunError
from resnet_jax.programs import initializer
from resnet_jax.resolve import resolve
from resnet_jax.runs import inventory
from resnet_jax.runs.checkpoints import Checkpoints, OtherStateError
from tests import tiny


@pytest.fixture(scope="module")
def state():
    c = resolve(tiny.config(ema_decay=0.9))
    return jax.device_put(initializer(c)(np.arange(2)))


@pytest.fixture
def folder(tmp_path, state):
    """Checkpoints of steps 1, 2 and 3, of which the newest two are kept."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, tiny.at_step(state, step))
    checkpoints.close()
    return tmp_path / "checkpoints"


def truncate(folder):
    path = tiny.largest_file(folder)
    path.write_bytes(path.read_bytes()[:100])


def hold_other_arrays(folder):
    # Orbax restores it without complaint; only the inventory reveals it.
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.parent / "2" / "state", folder / "state")


def lose_an_item(folder):
    shutil.rmtree(folder / "best")


def lose_the_inventory(folder):
    (folder / "inventory.json").unlink()


def empty_the_inventory(folder):
    (folder / "inventory.json").write_bytes(b"")


def test_the_newest_comes_back_bit_for_bit(folder, state):
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 3))
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]


def test_a_checkpoint_by_orbaxs_manager_is_restored(tmp_path, state):
    """Older runs have such checkpoints, with shardings and a folder per process."""
    items = {"state": state.replace(best=None), "best": state.best}
    arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.Composite(**arguments))
    assert (tmp_path / "3" / "state" / "_sharding").is_file()
    (tmp_path / "3" / inventory.INVENTORY_FILE).write_bytes(inventory.of_checkpoint(tmp_path / "3"))
    tiny.assert_bit_equal(tiny.restore(tmp_path, state), state)


def test_without_checkpoints_nothing_is_restored(tmp_path, state):
    assert tiny.restore(tmp_path / "new", state) is None


@pytest.mark.parametrize(
    "damage",
    [
        tiny.flip_bytes,
        hold_other_arrays,
        truncate,
        lose_an_item,
        lose_the_inventory,
        empty_the_inventory,
    ],
)
def test_a_damaged_checkpoint_is_logged_and_renamed(folder, state, damage, caplog):
    damage(folder / "3")
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 2))
    assert "CHECKPOINT 3 IS DAMAGED" in caplog.text
    assert sorted(p.name for p in folder.iterdir()) == ["2", "damaged-3"]
    again = Checkpoints(folder, keep=2)
    again.save(3, tiny.at_step(state, 3))
    again.close()
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 3))


def test_all_damaged_is_an_error_not_a_fresh_start(folder, state):
    for step in ("2", "3"):
        tiny.flip_bytes(folder / step)
    with pytest.raises(RunError, match=r"None of the checkpoints \[2, 3\]"):
        tiny.restore(folder, state)


def without_an_array(state):
    return state.replace(params={k: v for k, v in state.params.items() if k != "logits"})


def with_a_shorter_array(state):
    logits = state.params["logits"] | {"bias": state.params["logits"]["bias"][:, :-1]}
    return state.replace(params=state.params | {"logits": logits})


@pytest.mark.parametrize("other", [without_an_array, with_a_shorter_array])
def test_another_versions_checkpoint_is_refused_and_kept(folder, state, other, caplog):
    with pytest.raises(OtherStateError, match=r"Checkpoint 3 in .* state/params/logits/bias diff"):
        tiny.restore(folder, other(state))
    assert "DAMAGED" not in caplog.text
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 3))


def test_an_unfinished_save_is_removed(folder, state):
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 3))
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]


def test_saving_the_same_step_twice_writes_once(folder, state):
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(3, tiny.at_step(state, 7))  # as when a run stops right after it resumed
    checkpoints.close()
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 3))


def test_a_save_does_not_call_the_preemption_service(tmp_path, state, monkeypatch):
    asked = []  # JAX takes the last step it was asked about as the run's position
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: bool(asked.append(step))
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    for step in (1, 2):
        checkpoints.save(step, state)
    checkpoints.wait()
    assert asked == []
