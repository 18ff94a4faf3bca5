"""Trainers on folders in the layouts of the real data sets."""

import math
import re

import pytest

from tests.datasets import trees
from tests.examples.trainers import result, run

MISSING = {"terrain", "truck", "train"}  # in SYNTHIA


def test_synthia_is_measured_on_its_own_classes(tmp_path):
    trees.synthia(tmp_path / "synthia", 4)
    for split in ("train", "val"):
        trees.cityscapes(tmp_path / "cityscapes", split)
    folders = ("--source-root", tmp_path / "synthia", "--root", tmp_path / "cityscapes", "--crop", 16, 32, "--batch", 4)
    network = ("--network", "small-unet", "--from-scratch")
    run("source_only.py", tmp_path / "run", "--data", "synthia", "--smoke", *folders, *network)
    found = result(tmp_path / "run")
    iou = found["iou"]
    assert len(iou) == 19
    assert {name for name, value in iou.items() if math.isnan(value)} == MISSING
    rest = [value for value in iou.values() if not math.isnan(value)]
    assert found["mIoU-16"] == pytest.approx(sum(rest) / 16)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    row = re.search(r"<tr[^>]*>\s*<t[hd][^>]*>mIoU</t[hd]>(.*?)</tr>", page, re.DOTALL)
    assert row, "no row of the mean"
    assert f"{found['mIoU-16']:.1f}" in re.sub("<[^>]*>", " ", row[1])
