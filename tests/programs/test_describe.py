"""The description of a network agrees with the paper, and shows the paper's numbers."""

import json
import re
import subprocess
import sys

import pytest

from configs import cifar10, digits, imagenet
from experiments import describe
from experiments.cli import tables
from experiments.report import paper
from resnet_jax.errors import UserError
from resnet_jax.resolve import resolve
from tests import tiny


def program(*flags):
    return tiny.program("experiments.describe", *flags)


def network(module, **model):
    config = module.get_config()
    config.model.update(model)
    return describe.describe(resolve(config))


def test_json_matches_the_papers_resnet_50():
    done = program("--config=configs/imagenet.py", "--config.model.depth=50", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["depth"], found["shortcut"]) == (50, "B")
    assert found["parameters"] == 25_557_032
    assert found["mult_adds"] == pytest.approx(3.8e9, rel=0.02)
    assert found["projections"] == 4
    assert found["paper"] == {"parameters": 25_557_032, "mult_adds": 3.8e9}
    rows = found["layers"]
    assert [r["name"] for r in rows] == ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
    assert [r["blocks"] for r in rows] == [0, 3, 4, 6, 3, 0]
    assert sum(r["convolutions"] for r in rows) == 50
    assert rows[0]["output_shape"] == [56, 56, 64]
    for key in ("parameters", "mult_adds", "projections"):
        assert sum(r[key] for r in rows) == found[key]


def test_table_has_the_papers_numbers_beside_ours():
    done = program("--config=configs/imagenet.py", "--config.model.depth=50")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert lines["total"] == ["total", "16", "50", "4", "25,557,032", "3.86e9"]
    assert lines["paper"] == ["paper", "25,557,032", "3.8e9"]
    assert len({len(line) for line in done.stdout.splitlines()[3:]}) == 1  # right edges align


def test_what_differs_from_the_papers_network_is_named():
    flags = ("branch_scale_by=learned", "branch_scale=0", "norm=none")
    done = program("--config=configs/cifar10.py", *[f"--config.model.{flag}" for flag in flags])
    assert done.returncode == 0, done.stderr
    title = done.stdout.splitlines()[0]
    assert "residual, shortcut A, branch_scale=0, branch_scale_by=learned, norm=none)" in title
    assert "269,043" in done.stdout  # 679 fewer: 688 filters, 9 blocks
    assert network(cifar10)["cures"] == {}
    assert network(cifar10)["paper"]["parameters"] == 269_722
    assert network(cifar10, dropout=0.1)["paper"]["parameters"] is None


def test_variants_are_named_and_have_no_number_of_the_paper(no_data):
    changes = {"depth": 50, "groups": 32, "bottleneck_width": 2.0, "stem": "deep"}
    found = network(imagenet, **changes)
    assert found["cures"] == {"bottleneck_width": 2.0, "groups": 32}
    assert found["paper"]["parameters"] is None
    assert "shortcut B, bottleneck_width=2, groups=32)" in describe.network_text(found)[0]
    found = network(cifar10, family="cifar_bottleneck", depth=164, shortcut="B", activation="pre")
    assert (found["parameters"], found["paper"]["parameters"]) == (1_703_258, None)


def test_a_family_without_the_papers_depths_is_refused(no_data):
    config = cifar10.get_config()
    config.model.family, config.model.depth = "cifar_bottleneck", 20
    with pytest.raises(UserError, match="='cifar_bottleneck' has none; allowed are imagenet and"):
        describe.describe_family(resolve(config))


def test_family_of_imagenet():
    done = program("--config=configs/imagenet.py", "--family", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["family"] == "imagenet"
    sizes = {n["depth"]: n["parameters"] for n in found["networks"]}
    assert sizes == paper.IMAGENET_PARAMETERS
    for one in found["networks"]:
        assert one["paper"]["parameters"] == one["parameters"]
        assert one["mult_adds"] == pytest.approx(one["paper"]["mult_adds"], rel=0.02)


def test_family_of_cifar(monkeypatch, no_data):
    assert paper.STUDIED["cifar"] == (20, 32, 44, 56, 110, 1202)
    # ResNet-1202 takes seconds to trace, and is counted in networks/test_counts.py.
    monkeypatch.setitem(paper.STUDIED, "cifar", (20, 32, 44, 56))
    networks = describe.describe_family(resolve(cifar10.get_config()))
    text = tables.plain(describe.family_text(networks))
    assert text.startswith("cifar family (residual, shortcut A), 32 x 32 x 3 images, 10 classes")
    rows = {line.split()[0]: line for line in text.splitlines()[3:]}
    assert list(rows) == ["20", "32", "44", "56"]
    for depth, row in rows.items():
        assert row.count(f"{paper.CIFAR_PARAMETERS[int(depth)]:,}") == 2


@pytest.mark.parametrize(
    ("module", "model"),
    [
        (imagenet, {"depth": 50, "bottleneck_stride": "v1.5"}),
        (imagenet, {"depth": 18, "activation": "pre"}),
        (imagenet, {"depth": 18, "width": 0.5}),
        (imagenet, {"depth": 18, "stem": "cifar"}),
        (imagenet, {"depth": 18, "num_classes": 1001}),
        (imagenet, {"depth": 18, "shortcut": "C"}),
        (imagenet, {"depth": 50, "shortcut": "A"}),
        (cifar10, {"depth": 20, "shortcut": "B"}),
        (cifar10, {"depth": 26}),
        (digits, {"depth": 20}),
    ],
)
def test_other_networks_have_no_number_of_the_paper(module, model, no_data):
    description = network(module, **model)
    assert description["paper"] == {"parameters": None, "mult_adds": None}
    lines = tables.plain(describe.network_text(description)).splitlines()
    assert lines[-1].split() == ["paper", "-", "-"]


def test_plain_nets_have_the_papers_numbers(no_data):
    plain = network(cifar10, depth=20, shortcut="none")["paper"]
    assert plain == {"parameters": 269_722, "mult_adds": None}
    plain = network(imagenet, depth=18, shortcut="none")["paper"]
    assert plain == {"parameters": None, "mult_adds": 1.8e9}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (640, "640"),
        (1000, "1.00e3"),
        (40_551_808, "40.6e6"),
        (999_999, "1.00e6"),
        (125_485_000, "125e6"),
        (3_855_945_728, "3.86e9"),
        (11_563_000_000, "11.6e9"),
    ],
)
def test_mult_adds_in_three_digits(number, text):
    assert describe._mult_adds(number) == text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config=configs/imagenet.py", "--config.model.depth=19"], "(nearest: 18 and 34)"),
        ([], "--config is missing"),
        (["--json"], "--config is missing"),
        (["--config=configs/digits.py", "--famly"], "(nearest: family)"),
    ],
)
def test_mistakes_are_one_sentence(flags, words):
    done = program(*flags)
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_execution_prints_the_meaning_of_auto():
    flags = ["--config=configs/digits.py", "--config.replicates=3", "--config.model.depth=8"]
    done = program(*flags, "--execution", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["mesh"] == {"replicates": 1, "data": 1, "fsdp": 1}
    assert (facts["seeds_by"], facts["scan"], facts["steps_per_dispatch"]) == ("separate", False, 1)
    text = program(*flags, "--execution").stdout
    assert re.search(r"^seeds_by +separate$", text, flags=re.M)


def test_describing_a_network_initialises_no_device():
    code = (
        "import sys; sys.argv = ['describe', '--config=configs/digits.py', '--json']; "
        "import atexit, jax._src.xla_bridge as b; "
        "atexit.register(lambda: print(list(b._backends), file=sys.stderr)); "
        "from experiments import describe; "
        "from experiments.cli import command_line; command_line.run(describe.main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["depth"] == 20
    assert done.stderr.strip() == "[]"
