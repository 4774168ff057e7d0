"""A run that starts from trained weights: their place, frozen parts, rates per part, refusals."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import resnet_jax
from configs import finetune, transfer_digits
from experiments.study import grid
from resnet_jax import optim, pretrained, train, trained
from resnet_jax.analysis import predictions
from resnet_jax.errors import UserError
from resnet_jax.interop.export import to_torchvision
from resnet_jax.networks import layout
from resnet_jax.networks.features import features
from resnet_jax.programs import initializer
from resnet_jax.resolve import resolve
from resnet_jax.runs import reader, storage
from tests import tiny
from tests.interop import foreign
from tests.parallel.test_mesh import SEEDS as SEEDS_OF_A_STEP
from tests.test_programs import made, text

SEEDS = {"replicates": 2, "seed": 3}
PARTS = ("stem", "stage1", "stage2", "stage3", "logits")


@pytest.fixture(scope="module")
def programs():
    """Runs that start from other weights share a program."""
    with tiny.compiled_once("init.from", "init.head", "seed", "steps"):
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory, programs):
    folder = tmp_path_factory.mktemp("source") / "run"
    assert train.train(tiny.config(**SEEDS), str(folder)) == "completed"
    return folder


def finetuned(folder, source, **overrides):
    """Trains from `source` and returns the folder."""
    overrides = {**SEEDS, "init__from": str(source), "steps": 3, **overrides}
    assert train.train(tiny.config(**overrides), str(folder)) == "completed"
    return folder


def of_part(variables, part):
    """Returns the arrays of a part of a network, by collection and module."""
    return {
        (collection, name): node
        for collection, modules in variables.items()
        for name, node in modules.items()
        if layout.part_of(name, 3) == part
    }


def same_parts(one, other):
    """Returns the parts whose every array is equal, bit for bit."""

    def is_same(part):
        leaves = [jax.tree.leaves(of_part(variables, part)) for variables in (one, other)]
        return len(leaves[0]) == len(leaves[1]) and all(
            np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*leaves, strict=True)
        )

    return [part for part in PARTS if is_same(part)]


def checked(**overrides):
    """Checks the first weights of a run, as train() does before it touches a device."""
    config = resolve(tiny.config(**overrides))
    pretrained.require(config, storage.locate("no such run"))
    return config


# ------------------------------------------------------------------------------- the weights


def test_a_run_starts_from_the_tested_weights_of_each_seed_with_a_new_classifier(source, tmp_path):
    given = pretrained.read(checked(**SEEDS, init__from=str(source)), tmp_path)
    drawn = trained.newest(storage.locate(source)).variables
    for collection, modules in given.variables.items():
        expected = {name: node for name, node in drawn[collection].items() if name != "logits"}
        tiny.assert_bit_equal(modules, expected)
    one_of_two = pretrained.read(checked(init__from=str(source), replicates=1), tmp_path)
    tiny.assert_bit_equal(one_of_two.variables, jax.tree.map(lambda a: a[:1], given.variables))


@pytest.mark.parametrize("head", ["new", "kept"])
def test_the_classifier_is_drawn_or_kept(head, source, tmp_path, programs):
    # Frozen, so that it is still there at the end.
    rates = (1.0, 1.0, 1.0, 1.0, 0.0)
    overrides = {"optimizer__rate_factors": rates, "init__head": head}
    folder = finetuned(tmp_path / "run", source, **overrides)
    for seed in (3, 4):
        before, after = trained.load(source, seed), trained.load(folder, seed)
        assert same_parts(before.variables, after.variables) == (
            ["logits"] if head == "kept" else []
        )
        state = initializer(resolve(tiny.config(**SEEDS)))(np.array([seed], np.int32))
        drawn = layout.by_block(jax.tree.map(lambda a: a[0], state.params))
        is_drawn = same_parts({"params": drawn}, {"params": after.variables["params"]})
        assert is_drawn == (["logits"] if head == "new" else [])


def test_a_file_of_weights_starts_every_seed(source, tmp_path):
    own = trained.load(source, 4)
    save_file(to_torchvision(own.model, own.variables), tmp_path / "net.safetensors")
    config = checked(**SEEDS, init__from=str(tmp_path / "net.safetensors"), init__head="kept")
    given = pretrained.read(config, tmp_path)
    for replicate in (0, 1):
        variables = jax.tree.map(lambda a, r=replicate: a[r], given.variables)
        variables = layout.convert(variables, layout.by_block)
        assert same_parts(variables, own.variables) == list(PARTS)


def test_a_converted_network_starts_every_seed(tmp_path):
    foreign.write_run(tmp_path / "converted")
    given = pretrained.read(checked(**SEEDS, init__from=str(tmp_path / "converted")), tmp_path)
    assert (given.facts["step"], given.facts["is_tested"]) == (0, True)
    own = trained.load(tmp_path / "converted").variables
    for replicate in (0, 1):
        variables = jax.tree.map(lambda a, r=replicate: a[r], given.variables)
        variables = layout.convert(variables, layout.by_block)
        assert same_parts(variables, own) == ["stem", "stage1", "stage2", "stage3"]


def test_the_origin_of_the_weights_is_recorded(source, tmp_path, programs):
    rates = (1.0, 1.0, 1.0, 1.0, 0.0)
    folder = finetuned(tmp_path / "run", source, optimizer__rate_factors=rates)
    facts = reader.read(folder).environment["init"]
    assert (facts["from"], facts["step"], facts["is_tested"]) == (str(source), 12, True)
    assert len(facts["content"]) == 16


# ------------------------------------------------------------------ frozen parts and their rates


FROZEN = {
    "optimizer__rate_factors": (0.0, 0.0, 1.0, 1.0, 1.0),
    # Everything that could move a frozen number by rounding.
    "batch_size": 24, "accumulate": 3, "model__bn_group": 4, "ema_decay": 0.9,
    "optimizer__weight_decay": 0.1,
}  # fmt: skip


def test_frozen_parts_keep_weights_and_statistics_bit_for_bit(source, tmp_path, programs):
    folder = finetuned(tmp_path / "run", source, **FROZEN)
    for seed in (3, 4):
        before, after = trained.load(source, seed), trained.load(folder, seed)
        assert after.is_tested
        assert same_parts(before.variables, after.variables) == ["stem", "stage1"]
    state = tiny.final_state(folder)
    at_first = trained.newest(storage.locate(source)).variables
    for variables in ({"params": state.params, "batch_stats": state.batch_stats}, state.ema):
        assert same_parts(at_first, variables) == ["stem", "stage1"]


@pytest.mark.parametrize("activation", ["post", "pre"])
def test_frozen_parts_compute_in_training_as_in_evaluation(activation):
    make = {"width": 0.25, "preactivation": activation == "pre"}
    frozen = ("stem", "stage1", "stage2", "stage3")
    model = resnet_jax.resnet("cifar", 8, **make)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = model.init(jax.random.key(1), images, train=True)
    statistics = jax.tree.map(lambda a: a + 0.5, variables["batch_stats"])
    variables = {"params": variables["params"], "batch_stats": statistics}
    usual = features(model, variables, images)

    def in_training(*frozen):
        made = resnet_jax.resnet("cifar", 8, **make, frozen=frozen)
        logits, updated = made.apply(
            variables, images, train=True, mutable=["features", "batch_stats"]
        )
        found = {name: value[0] for name, value in updated["features"].items()}
        return found | {"logits": logits}, updated["batch_stats"]

    found, moved = in_training(*frozen)
    tiny.assert_bit_equal(found, usual)
    tiny.assert_bit_equal(moved, statistics)
    found, moved = in_training("stem", "stage1")
    same = [name for name in usual if np.array_equal(found[name], usual[name])]
    assert same == ["stem", "stage1"]
    both = ({"params": {}, "batch_stats": each} for each in (moved, statistics))
    assert same_parts(*both)[:2] == ["stem", "stage1"]
    assert not {"stage2", "stage3"} & set(same_parts({"b": moved}, {"b": statistics}))


def test_the_rate_of_each_part_is_multiplied():
    params = {
        name: {"kernel": jnp.ones(2)}
        for name in ("stem_conv", "stage1_block1", "stage1_rest", "stage3_block1", "head_norm")
    } | {"logits": {"kernel": jnp.ones(2)}}
    gradients = jax.tree.map(lambda a: 2 * a, params)

    def change(rates, name):
        config = resolve(tiny.config(optimizer__rate_factors=rates, optimizer__name=name))
        optimizer = optim.make_optimizer(config)
        state = optimizer.init(params)
        moved = params
        for _ in range(2):  # the second step has a velocity
            moved, state = optim.descend(optimizer, jnp.float32(0.01), gradients, state, moved)
        return {name: float(node["kernel"][0] - 1) for name, node in moved.items()}

    for name in ("sgd", "adamw"):
        usual = change((), name)
        # The decay of the second step sees other weights, by less than this.
        changes = change((0.5, 0.25, 1.0, 2.0, 0.0), name)
        factors = {"stem_conv": 0.5, "stage1_block1": 0.25, "stage1_rest": 0.25}
        factors |= {"stage3_block1": 2.0, "head_norm": 2.0, "logits": 0.0}
        expected = {module: usual[module] * factor for module, factor in factors.items()}
        assert changes == pytest.approx(expected, rel=1e-3)
        assert changes["logits"] == 0


def test_frozen_weights_of_either_zero_keep_their_bits():
    setup = made(optimizer__rate_factors=(0.0, 0.0, 1.0, 1.0, 1.0))
    state = setup.programs.start(SEEDS_OF_A_STEP)
    zeros = jax.tree.map(lambda a: 0.0 * a, state.params["stem_conv"])  # with the sign of each
    before = jax.device_get(zeros)
    state = state.replace(params=state.params | {"stem_conv": zeros})
    state, _ = setup.programs.train_steps(state, *setup.arguments(0))
    tiny.assert_bit_equal(jax.device_get(state.params["stem_conv"]), before)


def test_a_frozen_beginning_has_no_backward_pass():
    def convolutions(rates):
        return text(made(optimizer__rate_factors=rates)).count("stablehlo.convolution")

    # Eight layers have 7 convolutions, and gradients of 7 kernels and of the inputs of 6. Without
    # those of stem and stage 1 these are 4 and, but for the first of stage 2, 3.
    forward, everything = 7, 7 + 7 + 6
    assert convolutions((1.0,) * 5) % everything == 0
    seeds = convolutions((1.0,) * 5) // everything
    assert convolutions((0.0, 0.0, 1.0, 1.0, 1.0)) == seeds * (forward + 4 + 3)
    assert convolutions((0.0, 0.0, 0.0, 0.0, 1.0)) == seeds * forward


# ------------------------------------------------------------------------------ killed, resumed


def test_a_resumed_run_does_not_need_its_source(source, tmp_path, programs, monkeypatch):
    copy = shutil.copytree(source, tmp_path / "source")
    rates = {"optimizer__rate_factors": (1.0, 1.0, 1.0, 1.0, 0.0)}
    whole = finetuned(tmp_path / "whole", copy, **rates)
    with monkeypatch.context() as patch:
        tiny.stop_when_asked(patch, 2)
        config = tiny.config(**SEEDS, init__from=str(copy), steps=3, **rates)
        assert train.train(config, str(tmp_path / "resumed")) == "preempted"
    shutil.rmtree(copy)
    assert train.train(config, str(tmp_path / "resumed")) == "completed"
    tiny.assert_bit_equal(tiny.final_state(tmp_path / "resumed"), tiny.final_state(whole))
    assert tiny.lines(tmp_path / "resumed") == tiny.lines(whole)


def test_a_run_without_a_checkpoint_refuses_other_weights(source, tmp_path):
    (tmp_path / "environment.json").write_text(json.dumps({"init": {"content": "of others"}}))
    config = checked(**SEEDS, init__from=str(source))
    with pytest.raises(UserError, match=r"was started from other weights than init\.from="):
        pretrained.read(config, tmp_path)


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"model__depth": 14}, r"differs in model\.depth \(8 there, 14 here\); allowed are equal"),
        ({"model__shortcut": "none", "model__width": 0.5},
         r"model\.shortcut \('A' there, 'none' here\) and model\.width \(0\.25 there, 0\.5 here\)"),
        ({"model__bn_epsilon": 1e-3}, r"model\.bn_epsilon \(1e-05 there, 0\.001 here\)"),
        ({"model__norm": "none"}, r"model\.norm \('batch' there, 'none' here\)"),
        ({"model__same_padding": ("blocks",)}, r"model\.same_padding \(\[\] there, \('blocks',\)"),
        ({"replicates": 3}, r"has 2 seeds, but replicates=3; allowed are 1 to 2, or weights of"),
        ({"init__head": "kept", "model__num_classes": 11}, r"model\.num_classes \(10 there, 11"),
    ],
)  # fmt: skip
def test_another_network_is_refused(overrides, sentence, source):
    with pytest.raises(UserError, match=sentence):
        checked(init__from=str(source), **overrides)


def test_settings_of_training_may_differ(source):
    checked(
        init__from=str(source), model__num_classes=11, model__norm="frozen", model__init="dirac",
        model__dropout=0.1, model__bn_momentum=0.5, model__dtype="bfloat16", model__scan="off",
        model__norm_groups=3, model__gate_bias=1.0,
    )  # fmt: skip


def test_a_classifier_is_not_kept_for_other_classes(source, tmp_path, programs):
    two = {"data__classes": (3, 5), "init__head": "new"}
    of_two = finetuned(tmp_path / "two", source, **two)
    kept = {"init__from": str(of_two), "init__head": "kept"}
    checked(**kept, data__classes=(3, 5))
    with pytest.raises(UserError, match=r"for other classes \('3' there, '7' here\); allowed is"):
        checked(**kept, data__classes=(7, 5))


def test_weights_that_are_not_finite_are_refused(source, tmp_path):
    own = trained.load(source)
    tensors = to_torchvision(own.model, own.variables)
    tensors["conv1.weight"][0] = np.nan
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=r"'conv1\.weight' has numbers that are not finite"):
        pretrained.read(checked(init__from=str(tmp_path / "net.safetensors")), tmp_path)
    saved = trained.newest(source)._replace(
        variables=jax.tree.map(lambda a: np.full_like(a, np.inf), trained.newest(source).variables)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "newest", lambda _: saved)
        with pytest.raises(UserError, match="has weights that are not finite: it has diverged"):
            pretrained.read(checked(init__from=str(source)), tmp_path)
        for program in (predictions.predict, lambda run: run.check_finite()):
            with pytest.raises(UserError, match=r"^seed 3 has diverged: its weights are not fin"):
                program(trained.load(source))


def test_images_of_other_channels_are_refused(source, tmp_path):
    content = json.loads((source / "config.json").read_text())
    content["data"]["name"] = "cifar10"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"images of 3 channels, but data.name='digits' has 1"):
        checked(init__from=str(tmp_path))


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("nothing", "does not exist; allowed are a run folder and a file with weights"),
        ("empty", "empty is not a run folder: it has no config.json"),
        ("text.pth", "text.pth"),
    ],
)
def test_a_source_without_weights_is_refused(place, sentence, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("nothing")
    with pytest.raises(UserError, match=sentence):
        checked(init__from=str(tmp_path / place))


def test_the_normalization_is_measured_or_kept(source, tmp_path, programs):
    data = {"data__classes": (3, 5), "init__head": "new"}
    folders = {"new": {}, "kept": {"init__normalization": "kept"}}
    found = {
        name: resnet_jax.load(finetuned(tmp_path / name, source, **data, **more)).normalization
        for name, more in folders.items()
    }
    of_source = resnet_jax.load(source).normalization
    tiny.assert_bit_equal((found["kept"].mean, found["kept"].std), (of_source.mean, of_source.std))
    assert np.abs(found["new"].mean - of_source.mean).max() > 1


def test_a_kept_normalization_computes_the_source_s_features(source, tmp_path, programs):
    run = finetuned(
        tmp_path / "run", source, init__normalization="kept", init__head="kept",
        optimizer__rate_factors=(0.0,) * 4 + (1.0,), schedule__rate=1e-20,
    )  # fmt: skip
    theirs, ours = (predictions.predict(resnet_jax.load(each)) for each in (source, run))
    np.testing.assert_allclose(ours.logs, theirs.logs, atol=1e-5)


def test_a_resumed_run_has_its_own_normalization(source, tmp_path, programs):
    run = finetuned(tmp_path / "run", source, init__normalization="kept", checkpoint__every=3)
    kept = (run / "normalization.json").read_text()
    changed = json.loads(kept) | {"std": [[[[5.0]]]]}
    (run / "normalization.json").write_text(json.dumps(changed))
    finetuned(run, source, init__normalization="kept", steps=6, checkpoint__every=3)
    assert resnet_jax.load(run).normalization.std.tolist() == [[[[5.0]]]]


def test_a_normalization_that_cannot_be_kept_is_refused(source, tmp_path):
    own = trained.load(source)
    save_file(to_torchvision(own.model, own.variables), tmp_path / "net.safetensors")
    for place, sentence in (
        (
            tmp_path / "net.safetensors",
            "needs a run in init.from, but .* is a file with weig",
        ),
        (of_larger_images(source, tmp_path / "larger"), r"are of \(28, 28, 1\), but those of data"),
    ):
        with pytest.raises(UserError, match=sentence):
            checked(init__from=str(place), init__normalization="kept")


def of_larger_images(source, folder):
    """Returns a copy of a run that says it was trained on MNIST."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "config.json").read_text())
    content["data"] |= {"name": "mnist", "image_size": 28}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_the_config_for_fine_tuning_has_the_network_and_the_views_of_a_run(tmp_path, source):
    content = json.loads((source / "config.json").read_text())
    content["data"] |= {"mean": "channel", "channel_mean": [9.0], "channel_std": [4.0], "pad": 1}
    content["eval"]["short_side"], content["model"]["bn_group"] = 40, 6
    content["model"]["bn_epsilon"] = 1e-3
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = finetune.get_config(str(tmp_path))
    config.data.classes = (7, 8, 9)
    config.epochs, config.steps = None, 5
    config = resolve(config)
    pretrained.require(config, storage.locate("no such run"))
    data, model = config.data, config.model
    assert (model.bn_epsilon, model.width, model.num_classes) == (1e-3, 0.25, 3)
    assert (data.channel_mean, data.pad, config.eval.short_side) == ((), 1, 40)
    assert (config.init.normalization, model.bn_group) == ("kept", 0)
    assert (config.schedule.name, config.init.head, config.replicates) == ("cosine", "new", 1)
    with pytest.raises(UserError, match=r"Which run\? Name its folder"):
        finetune.get_config()
    with pytest.raises(UserError, match=r"is not a run folder; experiments\.convert makes"):
        finetune.get_config(str(tmp_path / "config.json"))


def test_each_cell_of_the_transfer_study_starts_from_its_own_network():
    sources = {cell.name for cell in grid.cells(transfer_digits.get_config())}
    cells = {cell.name: cell.config for cell in grid.cells(transfer_digits.get_config("runs/old"))}
    assert len(cells) == 12
    for name, config in cells.items():
        network, _, variant = name.partition("-variant=")
        expected = "" if variant == "scratch" else f"runs/old/{network}"
        assert network in sources
        assert config.init["from"] == expected
        assert config.init.normalization == ("kept" if expected else "new")
        frozen = optim.frozen_parts(config)
        assert frozen == (PARTS[:-1] if variant == "frozen" else ())
        assert config.data.classes == (5, 6, 7, 8, 9)


@pytest.mark.parametrize("rates", [(1.0,), (0.0,) * 5, (1.0,) * 6])
def test_rate_factors_need_one_number_per_part(rates):
    with pytest.raises(
        UserError, match=r"allowed are \(\) and 5 numbers for stem, stage1, stage2, "
    ):
        resolve(tiny.config(optimizer__rate_factors=rates))


def test_an_unknown_part_is_refused():
    with pytest.raises(UserError, match="frozen"):
        resnet_jax.resnet("cifar", 8, frozen=("stage4",))
