"""Streamed batches hold the right pictures and pixels on any devices and after any restart."""

import collections
import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import train
from resnet_jax.data import crops, datasets, jpeg, order
from resnet_jax.data.augment import Augmentation
from resnet_jax.data.order import spans
from resnet_jax.errors import RunError, UserError
from resnet_jax.parallel import mesh as meshes
from resnet_jax.runs import reader
from tests import tiny
from tests.data import pictures
from tests.data.pictures import opened

SEEDS = np.array([3, 4], np.int32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    pictures.prepare(folder)
    return folder


def batches(data, steps, seeds=SEEDS, parts=1, purpose=order.TRAIN):
    """Returns batches of 8 on the host."""
    with contextlib.closing(data.train.batches(seeds, spans(steps), 8, parts, purpose)) as pairs:
        return [jax.device_get(batch) for _, batch in pairs]


# ------------------------------------------------------------------------- training batches


@pytest.mark.parametrize("preset", ["paper", "modern"])
def test_a_batch_is_the_order_cropped_and_resized(root, preset):
    with opened(root, preset=preset) as (config, data):
        members, held_out = datasets.split_indices(30, 4, 0)
        assert len(data.train) == 26
        assert len(data.validation) == 4
        assert len(data.test) == 11
        assert not set(members) & set(held_out)
        records, crop = pictures.records(root), crops.make_crop(config)
        for number, batch in enumerate(batches(data, range(5))):
            assert batch["images"].shape == (2, 1, 1, 8, 32, 32, 3)
            assert batch["images"].dtype == np.uint8
            for r, seed in enumerate(SEEDS):
                numbers = members[order.batch_indices(int(seed), number, 8, 26)]
                assert batch["labels"][r, 0, 0].tolist() == [pictures.label_of(n) for n in numbers]
                draws = crops.draw(int(seed), order.TRAIN, number, 8, crop.draws)
                for image, n, row in zip(batch["images"][r, 0, 0], numbers, draws, strict=True):
                    picture = jpeg.decode(records[int(n)].image)
                    box = crop.box(*picture.shape[:2], row.tolist())
                    cut = picture[box.top : box.top + box.height, box.left : box.left + box.width]
                    wanted = jpeg.resize(cut, 32, 32, config.resample)
                    np.testing.assert_array_equal(image, wanted)


def test_any_step_can_be_the_first(root):
    with opened(root) as (_, data):
        every, late = batches(data, range(6)), batches(data, range(3, 6))
    tiny.assert_bit_equal(every[3:], late)
    assert len({batch["images"].tobytes() for batch in every}) == 6


def test_a_span_holds_the_batches_of_its_steps(root):
    with opened(root, 4) as (_, data):
        expected = batches(data, range(4), parts=2)
        generator = data.train.batches(SEEDS, spans(range(4), 2), 8, 2, order.TRAIN)
        with contextlib.closing(generator) as pairs:
            grouped = [jax.device_get(batch) for _, batch in pairs]
    assert [batch["labels"].shape for batch in grouped] == [(2, 2, 2, 4)] * 2
    split = [jax.tree.map(lambda a, s=s: a[:, [s]], batch) for batch in grouped for s in (0, 1)]
    tiny.assert_bit_equal(expected, split)


def test_devices_and_parts_change_no_batch(root):
    with opened(root, 1) as (_, one):
        expected = batches(one, range(3))
        in_parts = batches(one, range(3), parts=2)
        assert in_parts[0]["images"].shape == (2, 1, 2, 4, 32, 32, 3)
        for a, b in zip(expected, in_parts, strict=True):
            assert a["images"].tobytes() == b["images"].tobytes()
            assert a["labels"].tobytes() == b["labels"].tobytes()
    for replicates in (1, 2):
        with opened(root, 8, replicates) as (_, eight):
            tiny.assert_bit_equal(expected, batches(eight, range(3)))


def test_population_statistics_draw_their_own_crops(root):
    with opened(root) as (_, data):
        train_ = batches(data, range(1))
        population = batches(data, range(1), purpose=order.STATISTICS)
    assert train_[0]["labels"].tolist() == population[0]["labels"].tolist()
    assert (train_[0]["images"] != population[0]["images"]).any()


def test_a_process_reads_only_what_its_devices_compute(root, monkeypatch):
    with opened(root) as (_, data):
        sharding = meshes.split_batches(data.train.mesh)

        class SecondProcess:
            """The sharding as the second of two processes with four devices each sees it."""

            def addressable_devices_indices_map(self, shape):
                indices = sharding.addressable_devices_indices_map(shape)
                return {d: i for d, i in indices.items() if d in jax.devices()[4:]}

        monkeypatch.setattr(meshes, "split_batches", lambda mesh: SecondProcess())
        records = data.train.records
        before = records.read
        filling = data.train._begin_span(range(1), SEEDS, 8, 1, order.TRAIN)
        for task in filling.tasks:
            task.result()
        assert records.read - before == 8  # half of two batches of eight


def test_batches_are_filled_ahead_and_dropped_on_close(root):
    with opened(root) as (_, data):
        records = data.train.records
        stream = data.train.batches(SEEDS, spans(range(100)), 8, 1, order.TRAIN)
        next(stream)
        stream.close()
        count = records.read
        # The batch taken and those filled ahead, of 16 pictures each; none of the other 96.
        assert 16 <= count <= 16 * 5
        with contextlib.closing(
            data.train.batches(SEEDS, spans(range(1)), 8, 1, order.TRAIN)
        ) as one:
            assert len(list(one)) == 1


# ------------------------------------------------------------------------------ whole runs


def run(folder, root, **overrides):
    status = train.train(pictures.config(root, **overrides), str(folder))
    return status, reader.read(folder)


ALL_VIEWS = {"eval__views": ("ten_crop", "center", "fully_convolutional")}


@pytest.mark.slow
def test_a_run_logs_every_metric(root, tmp_path):
    status, folder = run(tmp_path / "run", root, replicates=2, batch_size=8, **ALL_VIEWS)
    assert status == "completed"
    last = folder.metrics[-1]
    for name in ("error", "error_center", "error_fully_convolutional", "top5_error", "loss_center"):
        assert len(last[f"test/{name}"]) == 2
    assert len(last["validation/top5_error"]) == 2
    facts = folder.environment["data"]
    assert facts["image_shape"] == [32, 32, 3]
    assert (facts["train"], facts["test"]) == (26, 11)
    losses = [row["train/loss"][0] for row in folder.metrics if "train/loss" in row]
    assert len(set(losses)) == 5


@pytest.mark.slow
def test_a_stopped_run_resumes_with_the_same_pictures(root, tmp_path, monkeypatch):
    run(tmp_path / "whole", root)
    with monkeypatch.context() as patch:
        tiny.stop_when_asked(patch, 3)
        assert run(tmp_path / "parts", root)[0] == "preempted"
    assert reader.read(tmp_path / "parts").status["step"] == 3
    assert run(tmp_path / "parts", root)[0] == "completed"
    assert tiny.lines(tmp_path / "parts") == tiny.lines(tmp_path / "whole")
    tiny.assert_bit_equal(
        tiny.final_state(tmp_path / "parts"), tiny.final_state(tmp_path / "whole")
    )


# ------------------------------------------------------------------------- damaged pictures

BROKEN = {
    7: pictures.encode(pictures.paint(7))[:400],
    8: b"not a picture",
}


def test_damaged_pictures_are_named_once_and_replaced_by_grey(tmp_path, caplog):
    pictures.prepare(tmp_path, BROKEN | {9: pictures.encode(pictures.paint(9), "CMYK")})
    with opened(tmp_path, 1, data__validation=0) as (_, data), caplog.at_level(logging.WARNING):
        counts = collections.Counter()
        for batch in batches(data, range(8)):  # two epochs and more
            for image, label in zip(
                batch["images"].reshape(-1, 32, 32, 3), batch["labels"].ravel(), strict=True
            ):
                counts[int(label)] += 1
                is_grey = (image == 128).all()
                assert is_grey == (label in {pictures.label_of(n) for n in BROKEN})
        assert min(counts[pictures.label_of(n)] for n in (7, 8, 9)) > 1
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert sum("train_7.JPEG of train cannot be decoded" in text for text in warnings) == 1
    assert sum("train_8.JPEG of train cannot be decoded (it is not" in w for w in warnings) == 1


def test_a_damaged_picture_does_not_end_a_run(tmp_path):
    pictures.prepare(tmp_path, BROKEN)
    status, _ = run(tmp_path / "run", tmp_path, data__validation=12, **ALL_VIEWS)
    assert status == "completed"


def test_too_many_damaged_pictures_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_jax.data.records._TOLERATED", 3)
    pictures.prepare(tmp_path, dict.fromkeys(range(25), b"not a picture"))
    with pytest.raises(RunError, match=r"\d+ of the \d+ pictures of train .* cannot be decoded"):
        run(tmp_path / "run", tmp_path)
    assert reader.read(tmp_path / "run").status["status"] == "failed"


def test_a_run_does_not_resume_with_other_data(root, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        tiny.stop_when_asked(patch, 2)
        run(tmp_path / "run", root)

    def refusal(data_dir):
        with pytest.raises(UserError, match=r"on other data than those in data\.dir: ") as e:
            run(tmp_path / "run", data_dir)
        return str(e.value)

    copy = pictures.prepare(tmp_path / "small")
    (copy / "prepared.json").write_text('{"note": "smaller copies"}')
    assert "in data.dir: note ('' then, 'smaller copies' now); give" in refusal(tmp_path / "small")
    pictures.prepare(tmp_path / "more", sizes=pictures.SIZES | {"train": 45})
    assert "in data.dir: train (26 then, 41 now), content ('" in refusal(tmp_path / "more")
    pictures.prepare(tmp_path / "other", {29: pictures.encode(pictures.paint(99))})
    assert "in data.dir: content ('" in refusal(tmp_path / "other")
    (newer := tmp_path / "newer" / "imagenet2012").mkdir(parents=True)
    info = (folder := pictures.prepare(tmp_path / "renamed")) / "dataset_info.json"
    info.write_text(info.read_text().replace("5.1.0", "5.2.0"))
    folder.rename(newer / "5.2.0")
    assert "in data.dir: version ('5.1.0' then, '5.2.0' now); give" in refusal(tmp_path / "newer")
    assert reader.read(tmp_path / "run").status["step"] == 2


def test_processes_that_see_different_data_are_refused(root, tmp_path, monkeypatch):
    def of_two(text):
        return [text, text.replace('"train": 26', '"train": 25')]

    monkeypatch.setattr("resnet_jax.runs.environment.of_all", of_two)
    there = r"Processes 0 and 1 see different data: train \(26 in process 0, 25 in process 1\)"
    with pytest.raises(UserError, match=there):
        run(tmp_path / "run", root)


# ---------------------------------------------------------------------------------- colour


def test_colours_shift_along_imagenets_axes():
    std = np.array([2.0, 4.0, 8.0], np.float32).reshape(1, 1, 1, 3)
    augmentation = Augmentation(0, False, True, std)
    images = jnp.zeros((2000, 2, 2, 3))
    draws = augmentation.draw(jax.random.key(0), 2000)
    shift = np.asarray(augmentation(draws, images)) * std / 255  # in [0, 1], as published
    assert (shift == shift[:, :1, :1]).all()  # one shift per image
    axes = np.array([[-0.5675, -0.5808, -0.5836], [0.7192, -0.0045, -0.6948],
                     [0.4009, -0.8140, 0.4203]])  # fmt: skip
    along = shift[:, 0, 0] @ axes.T
    np.testing.assert_allclose(along.std(0), 0.1 * np.array([0.2175, 0.0188, 0.0045]), rtol=0.1)
    np.testing.assert_allclose(np.corrcoef(along.T), np.eye(3), atol=0.1)
    without = Augmentation(0, False, False, std)
    np.testing.assert_array_equal(without(draws, images), images)
