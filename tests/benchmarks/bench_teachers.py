"""The moving average of DeepLabv3-ResNet101 (61 million parameters), and the score of logits of 19 classes.

Moving average: "as published" assigns parameter by parameter; "AveragedModel" is torch's own with its multi-tensor
average; "floor" reads both flat and writes one, in one call. Neither of the first two makes sure of names and shapes,
and the first leaves the buffers out; ours does all of that.

Score: "as published" takes the softmax of all pixels and then 100 of its pixels; "floor" reads 100 pixels.
"""

from __future__ import annotations

import copy

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models.segmentation import deeplabv3_resnet101

from selftrain_seg.teachers import MeanTeacher, entropy_score, parameter_distance, soft_neighbourhood_density
from tests.benchmarks import plain
from tests.benchmarks._harness import Report

MOMENTUM = 0.999


def average_by_loop(teacher, student, a=MOMENTUM):
    for p_t, p_s in zip(teacher.parameters(), student.parameters(), strict=True):
        p_t.data[:] = a * p_t.data[:] + (1 - a) * p_s.data[:]


def run(report: Report, *, rounds: int) -> None:
    averages(report, rounds)
    scores(report, rounds)


def averages(report: Report, rounds: int) -> None:
    student = deeplabv3_resnet101(weights=None, weights_backbone=None, aux_loss=True)
    looped = copy.deepcopy(student).requires_grad_(False)
    torchs = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(MOMENTUM), use_buffers=True)
    torchs.update_parameters(student)  # the first one copies
    ours = MeanTeacher(student, momentum=MOMENTUM, warmup=False)
    half_student = copy.deepcopy(student).bfloat16()
    half = MeanTeacher(half_student, momentum=MOMENTUM, warmup=False)
    total = sum(parameter.numel() for parameter in student.parameters())
    flat, other = torch.rand(total), torch.rand(total)
    measured = report.compare(
        f"average, {total / 1e6:.1f} M weights",
        {
            "as published": lambda: average_by_loop(looped, student),
            "AveragedModel": lambda: torchs.update_parameters(student),
            "MeanTeacher": lambda: ours.update(student),
            "MeanTeacher, bf16 with shadow": lambda: half.update(half_student),
            "parameter_distance": lambda: parameter_distance(ours.model, student),
            "floor": lambda: torch.add(flat, other, out=flat),
        },
        rounds=rounds,
    )
    time = {name: entry.median_ms for name, entry in measured.items()}
    report.target("EMA update", measured, "MeanTeacher", "as published", faster=2, floor="floor")
    report.promise("MeanTeacher: time / floor", time["MeanTeacher"] / time["floor"], 1.5)


def scores(report: Report, rounds: int) -> None:
    for shape in ((1, 19, 512, 1024), (2, 19, 1024, 2048)):
        batch, _, height, width = shape
        logits, pixels = 3 * torch.randn(shape), torch.randint(height * width, (100,))
        size = f"{batch} x {height} x {width}"
        measured = report.compare(
            f"neighbourhood density, {size}",
            {
                "as published": lambda logits=logits: plain.density(logits),
                "ours": lambda logits=logits: soft_neighbourhood_density(logits),
                "entropy_score": lambda logits=logits: entropy_score(logits),
                "floor": lambda logits=logits, pixels=pixels: logits.flatten(2)[..., pixels],
            },
            rounds=rounds,
        )
        report.target(
            f"soft neighbourhood density, {size}", measured, "ours", "as published", faster=100, floor="floor"
        )
