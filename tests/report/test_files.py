"""The files that `python -m experiments.compare` writes, and its error messages."""

import csv
import html
import json
import math
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import (
    cifar10,
    degradation_cifar10,
    degradation_imagenet,
    depth_imagenet,
    imagenet,
    shortcuts_imagenet,
)
from experiments import compare
from experiments.report import curves, groups, paper, table
from experiments.study import grid
from resnet_jax.errors import UserError
from resnet_jax.resolve import resolve
from resnet_jax.runs import reader
from tests import tiny
from tests.report import fixture

NOTE = "JPEG-coded copies of the images: errors run above those on the original pixels"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The report on two studies: a complete one of digits, and a flawed one of CIFAR-10 copies."""
    folder = tmp_path_factory.mktemp("report")
    fixture.study(folder / "digits")
    papers = {"steps": 64000, "replicates": 3, "note": NOTE, **fixture.PAPER}
    fixture.study(folder / "cifar", depths=(20, 56), every=640, **papers)
    fixture.write(
        folder / "cifar" / "plain-110",
        fixture.curve(110, "none", 64000, 640, 3)[:30],
        "failed",
        model__depth=110,
        model__shortcut="none",
        **papers,
        more={"reason": "the disk <is> full"},
    )
    arguments = [str(folder / "digits"), str(folder / "cifar"), f"--out={folder / 'out'}"]
    assert tiny.compare(*arguments) == 0
    return folder / "out"


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def check_number(value, allow_none=False):
    assert (value is None and allow_none) or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    )


def test_summary_is_strict_json_of_the_agreed_shape(out):
    summary = strict(out / "summary.json")
    assert len(summary["cells"]) == 8 + 5
    for cell in summary["cells"]:
        assert isinstance(cell["name"], str)
        assert isinstance(cell["n"], int)
        assert isinstance(cell["depth"], int)
        assert cell["shortcut"] in ("none", "A", "B", "C")
        for key in ("train_error", "validation_error", "test_error"):
            check_number(cell[key]["mean"], allow_none=cell["status"] != "completed")
            check_number(cell[key]["std"], allow_none=cell["status"] != "completed")
        check_number(cell["paper_error"], allow_none=True)
        check_number(cell["parameters"])
        check_number(cell["device_seconds"])
    assert [claim["id"] for claim in summary["claims"]] == [
        "1",
        "2",
        "3",
        "3b",
        "3c",
        "3d",
        "4",
        "7a",
        "7b",
        "8",
        "8b",
    ] * 2
    tested = [claim for claim in summary["claims"] if claim["id"] in ("1", "2", "4")]
    for claim in tested:
        assert claim["verdict"] in ("confirmed", "rejected", "undecided", "saturated")
        check_number(claim["difference"])
        assert claim["ci95"][0] <= claim["difference"] <= claim["ci95"][1]
    depths = [len(claim["comparisons"]) for claim in tested]
    assert depths == [3, 3, 1, 1, 1, 1]  # each deeper net against the shallowest
    for one in (one for claim in summary["claims"] for one in claim["comparisons"]):
        check_number(one["p"])
        assert one["result"] in ("above", "below", "undecided", "saturated")
        assert one["level"] >= 0.95
        assert one["seeds"] in ([5, 5], [3, 3])


def test_summary_numbers_are_those_of_the_runs(out):
    (cell,) = [
        c
        for c in strict(out / "summary.json")["cells"]
        if (c["name"], c["group"]) == ("plain-20", "digits")
    ]
    rows = fixture.curve(20, "none", 1000, 10, 5)
    # 2000 examples in batches of 100: the last epoch is 20 steps, two rows of 10.
    train = np.mean([rows[-2]["train/error"], rows[-1]["train/error"]], axis=0)
    assert cell["train_error"]["mean"] == pytest.approx(train.mean())
    assert cell["train_error"]["std"] == pytest.approx(train.std(ddof=1))
    assert cell["validation_error"]["mean"] == pytest.approx(
        np.mean(rows[-1]["validation/error_population"])
    )
    assert cell["test_error"]["mean"] == pytest.approx(np.mean(rows[-1]["test/error"]))
    assert (cell["n"], cell["status"], cell["parameters"]) == (5, "completed", 200_000)


def test_nothing_measured_is_null(tmp_path):
    fixture.write(tmp_path / "s" / "a", [], status="queued", environment=False)
    assert tiny.compare(str(tmp_path / "s"), f"--out={tmp_path / 'out'}") == 0
    (cell,) = strict(tmp_path / "out" / "summary.json")["cells"]
    assert cell["train_error"] == {"mean": None, "std": None, "n": 0}
    assert cell["parameters"] is None
    assert all(c["ci95"] is None for c in strict(tmp_path / "out" / "summary.json")["claims"])


def test_csv_and_markdown_hold_every_cell(out):
    with open(out / "table.csv", newline="") as f:
        rows = {(row["group"], row["name"]): row for row in csv.DictReader(f)}
    for cell in strict(out / "summary.json")["cells"]:
        row = rows[cell["group"], cell["name"]]
        mean = cell["train_error"]["mean"]
        assert float(row["train_error_mean"]) == pytest.approx(mean)
        assert row["status"] == cell["status"]
        assert f"| {cell['name']} |" in (out / "table.md").read_text()
    assert rows["cifar10", "resnet-56-A"]["paper_error"] == "6.97"
    assert rows["digits", "resnet-20-A"]["paper_error"] == ""
    assert rows["cifar10", "plain-110"]["test_error_mean"] == ""
    assert "failed at step 19,200 of 64,000" in (out / "table.md").read_text()


def test_a_claim_that_is_not_tested_is_in_every_form_with_its_reason(out):
    (first, _) = [c for c in strict(out / "summary.json")["claims"] if c["id"] == "3"]
    assert (first["verdict"], first["difference"]) == ("not tested", None)
    assert first["detail"].startswith("needs the norms of every layer's gradients")
    page = html.unescape((out / "index.html").read_text())
    markdown = (out / "table.md").read_text()
    sentence = f"do not explain why deeper plain nets train worse): it {first['detail']}."
    assert sentence in page
    assert sentence in markdown
    assert 'data-claim="3"' not in page  # it is no observation


def test_every_comparison_is_in_every_form_of_the_report(out):
    page, markdown = (out / "index.html").read_text(), (out / "table.md").read_text()
    for claim in strict(out / "summary.json")["claims"]:
        for one in claim["comparisons"]:
            shown = "{:+.2f} [{:+.2f}, {:+.2f}]".format(one["difference"], *one["ci95"])
            assert f"| {one['network']} | {one['baseline']} | {shown} |" in markdown
            row = page.split(f'data-network="{one["network"]}">')
            assert any(shown in part.split("</tr>")[0] for part in row[1:])


def test_divergence_and_saturation_are_in_every_form_of_the_report(tmp_path, capsys):
    for depth in (20, 56):
        fixture.write(
            tmp_path / "s" / f"plain-{depth}",
            fixture.flat([0.0, 0.0], [1.0, 1.0], [1.0, 1.0]),
            model__depth=depth,
            model__shortcut="none",
            replicates=2,
        )
        fixture.write(
            tmp_path / "s" / f"resnet-{depth}",
            fixture.flat([5.0, 5.1] if depth == 20 else [None, None], [1.0, 1.0], [1.0, 1.0]),
            "completed" if depth == 20 else "diverged",
            model__depth=depth,
            replicates=2,
            more={"diverged": {"0": 7, "1": 8}} if depth == 56 else None,
        )
    assert tiny.compare(str(tmp_path / "s"), f"--out={tmp_path / 'out'}") == 0
    texts = [capsys.readouterr().out, (tmp_path / "out" / "table.md").read_text()]
    texts.append(html.unescape((tmp_path / "out" / "index.html").read_text()))
    for text in texts:
        assert "resnet-56-A (2 of 2 seeds)" in text
        assert "0 of 2" in text
        assert "saturated: both are at 0 %" in text
    assert "this task cannot tell them apart" in texts[2]
    assert "resnet-56-A: 2 of 2 seeds diverged" in svg_texts(tmp_path / "out" / "depth.svg")
    assert r"\u003e2 of 2 seeds diverged" in texts[2]
    assert "A cross at the top" in texts[2]
    cells = strict(tmp_path / "out" / "summary.json")["cells"]
    assert [cell["diverged"] for cell in cells] == [0, 0, 0, 2]


def cell_of(config, folder):
    """Returns the cell of a completed run of a resolved config."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    status = {"status": "completed", "step": config.steps, "steps": config.steps, "reason": ""}
    (folder / "status.json").write_text(json.dumps(status))
    ((cell,),) = [g.cells for g in groups.comparable(reader.find([folder]))]
    return cell


def test_the_papers_numbers_stand_beside_the_cells_of_our_studies_on_its_recipes(tmp_path):
    numbers = {}
    for module in (degradation_cifar10, degradation_imagenet, depth_imagenet, shortcuts_imagenet):
        for cell in grid.cells(module.get_config()):
            folder = tmp_path / module.__name__ / cell.name
            found = cell_of(cell.config, folder)
            assert paper.withheld(found.config) == ""
            if number := paper.published(found.config):
                numbers[number.source.split(",")[0], found.name] = number.error
        # Despite the warm-up of ResNet-110, a study is one group.
        assert len(groups.comparable(reader.find([tmp_path / module.__name__]))) == 1
    assert numbers == {
        ("Table 6", "resnet-20-A"): 8.75, ("Table 6", "resnet-32-A"): 7.51,
        ("Table 6", "resnet-44-A"): 7.17, ("Table 6", "resnet-56-A"): 6.97,
        ("Table 6", "resnet-110-A"): 6.43,
        ("Table 2", "plain-18"): 27.94, ("Table 2", "plain-34"): 28.54,
        ("Table 2", "resnet-18-A"): 27.88, ("Table 2", "resnet-34-A"): 25.03,
        ("Table 3", "resnet-34-B"): 24.52, ("Table 3", "resnet-34-C"): 24.19,
        ("Table 3", "resnet-50-B"): 22.85, ("Table 3", "resnet-101-B"): 21.75,
        ("Table 3", "resnet-152-B"): 21.43,
    }  # fmt: skip


def beside(module, folder, **changes):
    """Returns the paper's number for a run, and the reason if it is left out."""
    config = module.get_config()
    tiny.override(config, changes)
    cell = cell_of(resolve(config), folder)
    number = paper.published(cell.config)
    return number and number.error, paper.withheld(cell.config)


@pytest.mark.parametrize(
    ("module", "changes", "words"),
    [
        (cifar10, {"steps": 500}, "steps=500 (the paper: 64,000)"),
        (cifar10, {"model__depth": 110, "model__activation": "pre",
                   "schedule__warmup": "until_error"},
         "model.activation=pre (the paper: post)"),
        (cifar10, {"model__depth": 110}, "schedule.warmup=none (the paper: until_error)"),
        (cifar10, {"schedule__warmup": "until_error"},
         "schedule.warmup=until_error (the paper: none)"),
        (cifar10, {"model__width": 2.0}, "model.width=2.0 (the paper: 1.0)"),
        (cifar10, {"optimizer__name": "adamw"}, "optimizer.name=adamw (the paper: sgd)"),
        (cifar10, {"batch_size": 256}, "batch_size=256 (the paper: 128)"),
        (cifar10, {"data__pad": 0}, "data.pad=0 (the paper: 4)"),
        (cifar10, {"data__validation": 9000}, "data.validation=9,000 (the paper: 5,000)"),
        (cifar10, {"model__dtype": "bfloat16"}, "model.dtype=bfloat16 (the paper: float32)"),
        (imagenet, {"model__bottleneck_stride": "v1.5"},
         "model.bottleneck_stride=v1.5 (the paper: v1)"),
        (imagenet, {"data__image_size": 64}, "data.image_size=64 (the paper: 224)"),
        (imagenet, {"steps": 1000}, "steps=1,000 (the paper: 600,000)"),
        (imagenet, {"schedule__name": "step"}, "schedule.name=step (the paper: plateau)"),
        (imagenet, {"eval__every": 500}, "eval.every=500 (the paper: 5,000)"),
    ],
    ids=str,
)  # fmt: skip
def test_the_papers_number_is_left_out_beside_other_networks_and_recipes(
    tmp_path, module, changes, words
):
    assert beside(module, tmp_path / "run", **changes) == (None, words)


@pytest.mark.parametrize(
    ("module", "changes", "number"),
    [
        (cifar10, {"model__depth": 1202, "schedule__warmup": "until_error"}, 7.93),
        (cifar10, {"model__depth": 1202}, 7.93),
        (cifar10, {"data__validation": 0, "eval__every": 77, "seed": 5, "data__std": False}, 8.75),
        (cifar10, {"accumulate": 2, "model__bottleneck_stride": "v1.5"}, 8.75),
        (imagenet, {"model__depth": 34, "model__bottleneck_stride": "v1.5"}, 24.52),
        (imagenet, {"data__validation": 5000, "eval__views": ("center",)}, 22.85),
        # The paper has no number for these, so none is left out.
        (cifar10, {"data__name": "cifar100"}, None),
        (cifar10, {"model__depth": 26}, None),
        (cifar10, {"model__shortcut": "B", "steps": 500}, None),
    ],
    ids=str,
)
def test_settings_that_do_not_matter_keep_the_papers_number(tmp_path, module, changes, number):
    assert beside(module, tmp_path / "run", **changes) == (number, "")


def test_a_setting_that_a_run_did_not_record_is_a_departure(tmp_path):
    content = resolve(cifar10.get_config()).to_dict()
    del content["model"]["activation"]
    config = ConfigDict(content)
    assert paper.withheld(cell_of(config, tmp_path / "run").config) == (
        "model.activation=not recorded (the paper: post)"
    )


def test_departures_that_many_cells_share_are_one_footnote(tmp_path):
    others = fixture.PAPER | {"batch_size": 64, "data__pad": 2, "train_examples": 45000}
    fixture.study(tmp_path / "s", depths=(20, 56), **others)
    (group,) = groups.comparable(reader.find([tmp_path / "s"]))
    assert table.footnotes(group) == [
        "the paper's number is left out, because of batch_size=64 (the paper: 128), "
        "data.pad=2 (the paper: 4), steps=1,000 (the paper: 64,000): resnet-20-A, resnet-56-A"
    ]
    assert {table.COLUMNS[7].show(cell) for cell in group.cells} == {table.DASH}


def test_an_axis_of_few_iterations_has_each_number_once(tmp_path):
    rows = fixture.lines((1, 2, 3), [90.0, 80.0, 70.0])
    fixture.write(tmp_path / "study" / "plain-20", rows, steps=3, model__shortcut="none")
    compare.compare([str(tmp_path / "study")], tmp_path, window=0, margin=0.5, command="")
    texts = svg_texts(tmp_path / "curves.svg")
    assert texts.count("1") == texts.count("2") == texts.count("3") > 0


@pytest.mark.parametrize("name", ["curves", "depth"])
def test_pictures_are_not_blank(out, name):
    pixels = np.asarray(Image.open(out / f"{name}.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50
    assert (pixels.min(axis=1) < 250).mean() > 0.02


def test_curves_svg_has_its_labels(out):
    texts = svg_texts(out / "curves.svg")
    for label in (
        "Plain nets",
        "Residual nets",
        "error (%)",
        "iterations",
        "training error",
        "validation error, moving averages",
        "depth 8",
        "depth 56",
        "plain-110: failed at 19,200",
        "±1 std over replicates",
    ):
        assert label in texts
    assert NOTE in " ".join(texts)


def test_depth_svg_has_its_labels(out):
    texts = svg_texts(out / "depth.svg")
    for label in (
        "training error",
        "validation error",
        "test error",
        "final error (%)",
        "depth (layers)",
        "plain, mean ± std",
        "residual, mean ± std",
        "56",
        "paper, residual",
    ):
        assert label in texts
    assert NOTE in " ".join(texts)


@pytest.mark.parametrize("width", ["2.2", "0.9"])  # bold: validation; thin: training
def test_every_network_has_its_curves_in_its_depths_colour(out, width):
    drawn = re.findall(
        rf"fill: none; stroke: (#\w+);[^\"]* ?stroke-width: {width};",
        (out / "curves.svg").read_text(),
    )
    digits, cifar = curves.colours([8, 14, 20, 32]), curves.colours([20, 56, 110])
    want = [*digits.values()] * 2  # plain and residual
    want += [cifar[20], cifar[56], cifar[110], cifar[20], cifar[56]]  # no residual 110
    legend = ["#404040"] * 2  # one per group
    assert sorted(drawn) == sorted(want + legend)


def svg_texts(path):
    root = ElementTree.parse(path).getroot()
    return ["".join(e.itertext()).strip() for e in root.iter("{http://www.w3.org/2000/svg}text")]


def test_panels_share_a_scale_and_a_depth_has_one_colour(out):
    specs = [
        json.loads(text)
        for text in re.findall(
            r'<div class="plot" id="curves-0-\d"><script type="application/json">(.*?)</script>',
            (out / "index.html").read_text(),
            re.DOTALL,
        )
    ]
    plain, residual = specs
    assert plain["layout"]["yaxis"]["range"] == residual["layout"]["yaxis"]["range"]

    def colours(spec):
        lines = [t for t in spec["data"] if t["line"].get("color")]
        return {re.findall(r"\d+", t["meta"])[0]: t["line"]["color"] for t in lines}

    assert colours(plain) == colours(residual)
    assert len(set(colours(plain).values())) == 4


def test_the_page_loads_nothing(out):
    page = (out / "index.html").read_text()
    own = re.sub(r"<script>/\*\*\s*\* plotly\.js.*?</script>", "", page, count=1, flags=re.DOTALL)
    assert len(page) - len(own) > 1_000_000, "plotly.js was not found, so nothing was removed"
    assert not re.search(r"https?://|@import|fetch\(|XMLHttpRequest", own)
    assert re.findall(r'<(?:link|script|img|iframe)[^>]*(?:src|href)="([^"]*)"', own) == ["data:,"]
    assert "default-src 'none'" in own


def test_the_page_shows_text_from_runs_as_text(out):
    page = (out / "index.html").read_text()
    assert "the disk &lt;is&gt; full" in page
    assert "<is>" not in page


def test_the_data_note_stands_beside_every_number_of_its_group(out):
    page = html.unescape((out / "index.html").read_text())
    digits, cifar = page.split("<section>")[1:3]
    assert NOTE not in digits
    # Beside the curves, beside the final errors, and under the table.
    assert cifar.count(NOTE) == 3
    assert cifar.index("</table>") < cifar.rindex(NOTE)
    assert NOTE in (out / "table.md").read_text()
    assert NOTE in (out / "table.csv").read_text()


def test_the_page_shows_the_numbers_provenance(out):
    page = html.unescape((out / "index.html").read_text())
    for fact in (
        "python -m experiments.compare",
        "--config=configs/digits.py",
        "NVIDIA H100",
        "commit 0123456789ab",
        "jax 0.10.2, flax 0.12.8",
        "3.11.4",
        "node-1",
        "Claim 3 is not tested (Vanishing gradients do not explain",
        "0.5</b> points",
    ):
        assert fact in page


def test_window_and_margin_are_on_the_page(tmp_path):
    study = fixture.study(tmp_path / "s", depths=(8, 14), replicates=2)
    out = tmp_path / "out"
    assert tiny.compare(str(study), f"--out={out}", "--window=50", "--margin=0.25") == 0
    page = (out / "index.html").read_text()
    assert "a trailing mean over 50 steps" in page
    assert "<b>0.25</b> points" in page
    assert "training error, mean over 50 steps" in svg_texts(out / "curves.svg")


def test_program_ends_with_the_path_of_the_page(tmp_path):
    study = fixture.study(tmp_path / "s", depths=(8, 14), replicates=2)
    out = tmp_path / "a" / "report"
    done = program(study, f"--out={out}")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == str(out / "index.html")
    assert pathlib.Path(lines[-1]).is_file()
    assert any(line.split()[0] == "plain-14" for line in lines[:-1] if line)
    assert "(1) Deeper plain nets have higher training error: " in done.stdout


def test_the_report_needs_no_jax():
    code = "import sys, experiments.compare; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--out=x"], "nowhere is not a folder"),
        (["empty", "--out=x"], "empty holds no run"),
        (["run"], "--out"),
        (["--out=x"], "Give the folder of a run or of a study"),
        (["run", "--out=run/config.json"], "cannot be a folder: run/config.json is a file"),
        (["run", "--out=x", "--window=-1"], "--window=-1"),
        (["run", "--out=x", "--margin=nan"], "--margin=nan"),
        (["run", "--out=x", "--margn=1"], "--margn is not a flag of this program"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    fixture.write(tmp_path / "run", fixture.flat(1.0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        tiny.compare(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert capsys.readouterr().out == ""


def program(*arguments):
    return tiny.program("experiments.compare", *arguments)


def test_a_misspelt_flag_is_refused_with_the_nearest():
    done = program("run", "--out=x", "--margn=1")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --margn is not a flag of this program (nearest: margin); see --help.\n"
    )
