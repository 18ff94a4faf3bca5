"""The table of settings: what trainers take from it, what it must say, and the page that is made of it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TABLE = json.loads((EXAMPLES / "settings.json").read_text(encoding="utf-8"))
NETWORKS = ("efficientnet-lite0-unet",)
COLUMNS = ("streets", "folders", "gta5", "synthia", "voc", "cityscapes", *NETWORKS)


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


defaults = module(EXAMPLES / "_common" / "defaults.py").defaults


# What the table says


def test_a_cell_has_what_a_reader_needs():
    wrong = []
    for trainer, settings in TABLE.items():
        for setting, cells in settings.items():
            assert set(cells) <= set(COLUMNS), (trainer, setting)
            for column, cell in cells.items():
                assert list(cell) == ["published", "where", "ours", "why"]
                published, ours = cell["published"], cell["ours"]
                differs = published is None or ours != published or type(ours) is not type(published)
                if published is not None and not cell["where"]:
                    wrong.append((trainer, setting, column, "no place"))
                if differs and not cell["why"]:
                    wrong.append((trainer, setting, column, "differs and does not say why"))
                if ours is None and not cell["why"].startswith("not "):
                    wrong.append((trainer, setting, column, "has no value and does not say that it is not offered"))
    assert wrong == []


def test_the_synthetic_benchmark_has_no_published_values():
    streets = [cells["streets"] for settings in TABLE.values() for cells in settings.values() if "streets" in cells]
    assert {cell["published"] for cell in streets} == {None}
    assert {cell["where"] for cell in streets} == {""}
    assert all(cell["ours"] is not None for cell in streets)


def test_values_of_a_setting_are_of_one_kind():
    for trainer, settings in TABLE.items():
        for setting, cells in settings.items():
            kinds = {type(cell["ours"]) for cell in cells.values() if cell["ours"] is not None}
            sizes = {len(cell["ours"]) for cell in cells.values() if isinstance(cell["ours"], list)}
            assert len(kinds) <= 1, (trainer, setting, kinds)
            assert len(sizes) <= 1 or setting in ("scales", "lr_factors"), (trainer, setting)


# What trainers take from it


def test_each_column_is_found():
    weights = {
        data: defaults("iast", data, "deeplabv2_resnet101")["adversarial_weight"] for data in ("gta5", "synthia")
    }
    assert weights == {"gta5": 0.05, "synthia": 0.001}
    assert defaults("dst_cbc", "voc", "deeplabv2_resnet101")["gamma"] == 9
    assert defaults("dst_cbc", "cityscapes", "deeplabv2_resnet101")["gamma"] == 3
    assert defaults("dst_cbc", "streets", "small-unet")["gamma"] == 1


def test_the_small_network_has_its_settings_on_any_data():
    for trainer in TABLE:
        expected = defaults(trainer, "streets", "small-unet")
        assert expected
        for data in ("gta5", "synthia", "voc", "folders", "bdd100k"):
            assert defaults(trainer, data, "small-unet") == expected


SCALES = ("scales", "label_scales")


def test_data_without_a_column_has_those_of_gta5_but_for_sizes():
    gta5 = defaults("iast", "gta5", "Unet/resnet34")
    without_sizes = {key: gta5[key] for key in gta5 if key not in SCALES}
    for data in ("bdd100k", "streets"):
        assert defaults("iast", data, "Unet/resnet34") == without_sizes
    own = column("iast", "folders")
    assert len(own) > 5
    assert defaults("iast", "folders", "Unet/resnet34") == without_sizes | own
    assert "train_resize" in defaults("dtst", "gta5", "x")
    assert "train_resize" not in defaults("dtst", "folders", "x")
    assert defaults("cbst", "gta5", "x")["prior_sigma"] == 70
    assert "prior_sigma" not in defaults("cbst", "bdd100k", "x")  # the trainer takes a share of the height
    assert defaults("crst", "synthia", "x") == defaults("crst", "gta5", "x")  # measured on Cityscapes, too


def test_a_trainer_that_is_not_published_for_gta5_takes_vocs():
    voc = defaults("dst_cbc", "voc", "x")
    assert defaults("dst_cbc", "gta5", "x") == {key: voc[key] for key in voc if key != "scales"} | {"scales": (1.0,)}


def column(trainer: str, name: str) -> dict[str, object]:
    """Our values in a column of the table, lists as tuples; nothing in it is published."""
    cells = {setting: cells[name] for setting, cells in TABLE[trainer].items() if name in cells}
    assert {cell["published"] for cell in cells.values()} <= {None}
    return {name: tuple(one["ours"]) if isinstance(one["ours"], list) else one["ours"] for name, one in cells.items()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("trainer", TABLE)
def test_a_network_has_settings_before_those_of_the_data(trainer, network):
    for data in ("gta5", "voc", "streets"):
        assert defaults(trainer, data, network) == defaults(trainer, data, "x") | column(trainer, network)


@pytest.mark.parametrize("trainer", TABLE)
def test_images_of_your_own_have_the_same_settings_with_any_pretrained_network(trainer):
    chosen = defaults(trainer, "folders", "x")
    assert chosen | column(trainer, "folders") == chosen
    for network in NETWORKS:
        assert defaults(trainer, "folders", network) == chosen
    assert chosen["optimizer"] == "adamw"
    evaluation = {"scales": (1.0,), "flip": False}  # results of all trainers can be compared
    assert {name: chosen.get(name, value) for name, value in evaluation.items()} == evaluation
    assert chosen.get("head_factor", 10.0) == 10
    assert chosen["frozen_bn"] == defaults(trainer, "gta5", "x")["frozen_bn"]
    # Runs of minutes or hours, not the papers' days.
    total = chosen["steps"] * chosen.get("rounds", 1) + chosen.get("warmup_steps", 0)
    assert total <= (2000 if trainer == "source_only" else 1200)
    assert chosen["batch"] <= 4
    assert "resize" not in chosen


def test_masked_rows_of_cityscapes_are_not_those_of_other_images():
    assert defaults("mic", "gta5", "x")["ignored_rows"] == (15, 120)
    assert defaults("mic", "folders", "x")["ignored_rows"] == (0, 0)
    assert "ignored_rows" not in defaults("mic", "bdd100k", "x")


def test_what_is_not_offered_is_left_out():
    assert "mine_chance" in TABLE["cbst"]
    assert "mine_chance" not in defaults("cbst", "gta5", "x")
    assert None not in defaults("cbst", "gta5", "x").values()


def test_lists_are_tuples_and_nothing_is_shared():
    first = defaults("cbst", "gta5", "x")
    assert first["portion"] == (0.2, 0.05, 0.5)
    first["rounds"] = 99
    assert defaults("cbst", "gta5", "x")["rounds"] == 6
    assert defaults("my_trainer", "gta5", "x") == {}


# Trainers and table know the same settings

# They say where data lies, or concern the machine.
PLACES = {
    *(
        "data",
        "root",
        "source_root",
        "images",
        "classes",
        "mask_suffix",
        "channels",
        "white",
        "crop",
        "tile",
        "overlap",
    ),
    *(f"{part}_{what}" for part in ("source", "target", "val") for what in ("images", "masks", "names")),
    *("network", "init", "second_init", "backbone_weights", "from_scratch", "accumulate", "amp", "compile", "workers"),
    *(
        "fusion",
        "missing_classes",
        "outputs",
        "eval_every",
        "predict_batch",
        "tracker",
        "read_masks",
        "leave_out_unpaired",
        "check_meaning",
        "check",
        "check_images",
        "check_tolerance",
    ),
    *("seed", "device", "threads", "out", "checkpoint_every", "log_every", "smoke", "resize", "overlap", "labelled"),
}


# They change nothing unless a row says so; the page says it.
OFF = {"decay_over", "lr_warmup", "weight_decay", "label_scales", "label_flip"}


@functools.cache
def options(script: Path) -> frozenset[str]:
    """Settings that a script offers: of ``add_argument``, or the fields of dataclasses, its modules' included."""
    tree, found = ast.parse(script.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = [one.value for one in node.args if isinstance(one, ast.Constant)]
            found |= {name[2:].replace("-", "_") for name in names if name.startswith("--")}
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(one) for one in node.decorator_list):
            found |= {line.target.id for line in node.body if isinstance(line, ast.AnnAssign)}
        module = node.module if isinstance(node, ast.ImportFrom) else None
        if module and module.startswith("_"):
            of_package = [f"{module}.{alias.name}" for alias in node.names]
            for name in (module, *of_package):
                path = EXAMPLES / f"{name.replace('.', '/')}.py"
                if path.is_file() and path.stem in ("arguments", "settings"):
                    found |= options(path)
    return frozenset(found)


@pytest.mark.parametrize("trainer", TABLE)
def test_every_setting_of_a_trainer_is_in_the_table(trainer):
    offered = options(EXAMPLES / f"{trainer}.py")
    assert len(offered) > 40
    not_theirs = {"crst": {"alpha"}, "dtst": {"scale_range", "colour_jitter"}}  # DT-ST's views have their own
    expected = offered - PLACES - OFF - not_theirs.get(trainer, set())
    assert expected - set(TABLE[trainer]) == set()


def test_rows_are_of_trainers():
    assert [trainer for trainer in TABLE if not (EXAMPLES / f"{trainer}.py").is_file()] == []


# The page


def test_the_page_is_fresh():
    made = module(ROOT / "docs" / "make_settings.py").render()
    page = (ROOT / "docs" / "_generated" / "settings.md").read_text(encoding="utf-8")
    assert made == page, "python docs/make_settings.py"


def test_the_page_names_each_setting_value_and_reason():
    page = (ROOT / "docs" / "_generated" / "settings.md").read_text(encoding="utf-8")
    plain = re.sub(r"[`*]|<wbr>", "", page).lower()
    for trainer, settings in TABLE.items():
        section = plain.partition(f"## {trainer}.py")[2].partition("\n## ")[0]
        for setting, cells in settings.items():
            assert setting.partition("_")[0] in section, (trainer, setting)
            for cell in cells.values():
                assert cell["why"].lower() in section, (trainer, setting, cell["why"])
                assert cell["where"].lower() in section, (trainer, setting, cell["where"])
    assert plain.count("\n| ") == sum(map(len, TABLE.values())) + len(TABLE)


def test_the_script_writes_the_page(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_settings.py", tmp_path / "page.md"], text=True)
    assert done.returncode == 0
    written = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert written == (ROOT / "docs" / "_generated" / "settings.md").read_text(encoding="utf-8")
