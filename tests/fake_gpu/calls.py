"""Calls of the public functions and modules, by name, with arguments of ``Inputs``."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

import selftrain_seg as lib
from selftrain_seg import (
    batchnorm,
    confidence,
    losses,
    mining,
    restyle,
    selectors,
    stopping,
    teachers,
    thresholds,
    views,
)
from tests.fake_gpu.mode import B, C, H, W
from tests.losses.cases import CASES, IDS, together

ON_HOST = "saved_by", "labels", "last_step", "snapshots"  # states that stay on the CPU


def loss(case, full, i):
    """A loss of ``tests/losses/cases.py``, with all its arguments on the device."""
    settings = together(case, (B, C, H, W)) if full else case.settings
    target, more = i.sent(case.target((B, C, H, W))), i.sent(case.more((B, C, H, W)))
    return case.function(i.logits, target, *more, **i.sent(settings))


def used(module, *calls):
    """The results of calls of a module, and its state afterwards."""
    results = [call(module) for call in calls]
    return results, [state for name, state in module.state_dict().items() if not name.endswith(ON_HOST)]


def estimator(i, kind, prior=False, **settings):
    made, other = (i.moved(kind(C, 0.3, prior=torch.rand(C, H, W) if prior else None, **settings)) for _ in range(2))
    updates = lambda m: m.update(i.logits), lambda m: m.update(i.logits, valid=i.valid)
    merges = [] if prior else [lambda m: m.merge(other)]  # compares the priors, so the host waits
    return used(made, *updates, *merges, lambda m: m.class_counts(), lambda m: m.reset())


def selected(select, home, i):
    thresholds_there = 0.5 if home == "number" else torch.rand(C, device=home)
    more = {}, {"prior": i.prior}, {"valid": i.valid}, {"prior": i.prior, "valid": i.valid}
    return [select(i.logits, thresholds_there, **each) for each in more]


def selector(i, kind, properties=(), **settings):
    module = i.moved(kind(C, **settings))
    calls = [lambda m: m(i.logits), lambda m: m(i.logits, valid=i.valid)]
    return used(module, *calls, *(lambda m, name=name: getattr(m, name) for name in properties), lambda m: m.reset())


def sketch(i):
    made, other = (i.moved(thresholds.ConfidenceSketch(C)) for _ in range(2))
    scores, classes = i.weights.flatten(), i.labels.flatten()
    reads = [lambda m: m.total(), lambda m: m.class_counts(), lambda m: m.quantile(0.5), lambda m: m.cdf(i.classes)]
    ranked = [lambda m, share=share: m.ranked(m.counts, share, "last_in") for share in (0.5, i.classes.double())]
    return used(
        made, lambda m: m.update(scores, classes), lambda m: m.merge(other), *reads, *ranked, lambda m: m.reset()
    )


def statistics(i):
    pseudo = selectors.select_hard(i.logits, 0.5)
    module = i.moved(selectors.SelectionStatistics(C))
    counts = [lambda m: m.update(pseudo), lambda m: m.update(pseudo, i.labels), lambda m: m.update(pseudo, i.few)]
    return used(module, *counts, lambda m: m.compute(), lambda m: m.reset())


def reliability(i):
    bank, rows = i.moved(mining.ReliabilityBank(6, C)), i.numbers(*range(B))
    return used(
        bank,
        lambda m: m.update(rows, i.labels, i.weights, previous=i.labels),
        lambda m: m.update(rows, i.few, previous=i.few),
        lambda m: m.due(9) and m.refresh(9),
        lambda m: m.filter(i.labels, rows),
        lambda m: m.reset(),
    )


def spatial_prior(i):
    module = i.moved(confidence.SpatialPrior(C, (6, 8), sigma_px=1.0))
    reads = [lambda m: m.compute(), lambda m: m.compute((H, W)), lambda m: m.reset()]
    return used(module, lambda m: m.update(i.labels), lambda m: m.update(i.few), *reads)


def taught(i, make, *calls):
    """A teacher of a network on the device, updated twice: the second update reuses the plan of the first."""
    student = i.net()
    teacher = make(student)
    results = [teacher(i.images), teacher.update(student), teacher.update(student)]
    return results, [call(teacher, student) for call in calls], dict(teacher.state_dict())


def dynamic(i, store_on):
    student = i.net()
    teacher = teachers.DynamicTeacher(student, score="entropy", first=3, store_on=store_on)
    teacher.observe(i.images, student)
    return teacher.update(student), teacher(i.images), teacher.state_dict()


def perturbed(i, beside):
    net, dropped = i.net(), []
    with teachers.perturb_features(net[0], net[2], beside=beside):
        dropped.append(net(i.images))
    return dropped


def viewed(i):
    """Views, all kinds of maps carried into them, and back."""
    views_of = views.WeakStrongViews((16, 20), vertical_flip_chance=0.5, quarter_turns=True)
    made = views_of(i.images)
    again, drawn = views_of(i.images, parameters=made.parameters), views_of.draw(i.images)
    there = [views.replay(each, drawn) for each in (i.labels, i.few, i.valid, i.logits)]
    back = [views.replay_inverse(each, drawn) for each in (made.weak, views.replay(i.labels, drawn))]
    average = views.average_views([made.weak, made.weak], [drawn, made.parameters])
    return made[:2], again[:2], there, back, average, views_of.strong(made.weak, drawn)


def mixed(i, mix, *more, **settings):
    """Within a batch and from another one, with and without weights, labels of 64 and of 8 bits."""
    images, labels = i.images, i.labels
    return [
        mix(images, labels, *more, **settings),
        mix(images, i.few, *more, pixel_weight=i.weights, **settings),
        mix(images, labels, *more, source=(images, labels), **settings),
        mix(images, labels, *more, pixel_weight=i.weights, source=(images, labels, i.weights), **settings),
    ]


def mined(i, **settings):
    corners = [mining.mine_crops(labels, i.numbers(1, 2), (9, 9), **settings) for labels in (i.labels, i.few)]
    return corners, [mining.crop(each, corners[0], (30, 9)) for each in (i.images, i.labels, i.few, i.valid)]


def dropped(i):
    net = nn.Sequential(i.net()[0], *(nn.ReLU() for _ in range(3)))
    with teachers.drop_blocks(net[1:]):
        return net(i.images)


def adapted(i):
    net = i.net()
    source, target = batchnorm.get_statistics(net), batchnorm.get_statistics(i.net())
    found = [batchnorm.mix_statistics(source, target, 0.3, variance=each) for each in ("interpolated", "mixture")]
    batchnorm.set_statistics(net, found[0])
    batchnorm.add_domain(net, "target")
    with batchnorm.use_domain(net, "target"):
        found.append(net(i.images))
    batchnorm.remove_domain(net, "target")
    batchnorm.freeze_batchnorm(net)
    return found, net(i.images)


EACH_SELECTOR = {
    "selectors.FlexMatchSelector: forward, reset, running_shares, thresholds": lambda i: selector(
        i, selectors.FlexMatchSelector, ["running_shares", "thresholds"]
    ),
    "selectors.FreeMatchSelector: forward, reset, global_threshold, running_histogram, running_probs, thresholds": (
        lambda i: selector(
            i, selectors.FreeMatchSelector, ["global_threshold", "running_histogram", "running_probs", "thresholds"]
        )
    ),
    "selectors.SoftMatchSelector: forward, reset, mean, variance": lambda i: selector(
        i, selectors.SoftMatchSelector, ["mean", "variance"]
    ),
    "selectors.SoftMatchSelector; aligned": lambda i: selector(i, selectors.SoftMatchSelector, align=True),
    "selectors.InstanceAdaptiveSelector: forward, reset": lambda i: selector(i, selectors.InstanceAdaptiveSelector),
    "selectors.InstanceAdaptiveSelector; batch": lambda i: selector(i, selectors.InstanceAdaptiveSelector, per="batch"),
    "selectors.RunningConfidenceSelector: forward, reset": lambda i: selector(i, selectors.RunningConfidenceSelector),
}
SELECTS = {
    f"selectors.{select.__name__}; thresholds: {home}": partial(selected, select, home)
    for select in (selectors.select_hard, selectors.select_reweighted, selectors.select_soft)
    for home in ("number", "cpu", "cuda")
}
LOSSES = {
    f"losses.{name.partition('-')[0]}; {name[-4:]}, {'all arguments' if full else 'defaults'}": partial(
        loss, case, full
    )
    for case, name in zip(CASES, IDS, strict=True)
    for full in (False, True)
}

TABLE = {
    "as_logits": lambda i: [
        lib.as_logits({"out": i.logits}, size=i.few),
        lib.as_logits([i.logits[:, :1]], size=(9, 9), binary=True),
    ],
    "pad_to_multiple": lambda i: [lib.pad_to_multiple(i.images, 13, mode=mode) for mode in ("replicate", "constant")],
    "confidence.top_confidence": lambda i: [confidence.top_confidence(i.logits, prior=p) for p in (None, i.prior)],
    "confidence.log_odds": lambda i: confidence.log_odds(confidence.top_confidence(i.logits).log_confidence),
    "confidence.add_prior": lambda i: confidence.add_prior(i.logits, i.prior),
    "confidence.fuse_views": lambda i: [
        confidence.fuse_views(i.net(), i.images),
        confidence.fuse_views(i.net(), i.images, scales=(0.5, 1.0), flip=False, align_corners=True),
    ],
    "confidence.SpatialPrior: compute, reset, update": spatial_prior,
    **{
        f"thresholds.{kind.__name__}: class_counts, merge, reset, update; {settings}": partial(
            estimator, kind=kind, **settings
        )
        for kind in (thresholds.ClassBalancedThreshold, thresholds.GlobalThreshold)
        for settings in ({}, {"pool": "all", "prior": True}, {"stride": 2, "rank": "first_out"})
    },
    "thresholds.PrecisionThreshold: merge, reset, update": lambda i: used(
        i.moved(thresholds.PrecisionThreshold(C)),
        lambda m: m.update(i.logits, i.labels),
        lambda m: m.update(i.logits, i.few),
        lambda m: m.merge(i.moved(thresholds.PrecisionThreshold(C))),
        lambda m: m.reset(),
    ),
    "thresholds.ClassAgreement: compute, merge, reset, update": lambda i: used(
        i.moved(thresholds.ClassAgreement(C)),
        lambda m: m.update(i.labels, i.few),
        lambda m: m.merge(i.moved(thresholds.ClassAgreement(C))),
        lambda m: [m.compute(measure=measure) for measure in ("precision", "iou")],
        lambda m: m.reset(),
    ),
    "thresholds.ConfidenceSketch: cdf, class_counts, merge, quantile, ranked, reset, total, update": sketch,
    "thresholds.aligned_portion": lambda i: [
        thresholds.aligned_portion(p, i.counts, i.counts) for p in (0.2, i.classes)
    ],
    "thresholds.reliable_portion": lambda i: [
        thresholds.reliable_portion(p, i.classes, low=0.2, unknown=0.5) for p in (0.2, i.classes)
    ],
    "thresholds.apply_floor": lambda i: [thresholds.apply_floor(i.classes, floor) for floor in (0.5, i.classes)],
    **SELECTS,
    "selectors.select_soft; alpha": lambda i: [
        selectors.select_soft(i.logits, 0.5, alpha=torch.rand((), device=home)) for home in ("cpu", i.device)
    ],
    "selectors.select_fixed": lambda i: [
        selectors.select_fixed(i.logits, weigh_by=by, valid=valid)
        for by in (None, "image", "batch")
        for valid in (None, i.valid)
    ],
    **EACH_SELECTOR,
    "selectors.SelectionStatistics: compute, reset, update": statistics,
    **LOSSES,
    "losses.focal_class_weight": lambda i: losses.focal_class_weight(i.classes),
    "mining.class_mix": lambda i: [mixed(i, mining.class_mix), mixed(i, mining.class_mix, classes=i.numbers(1, 2))],
    "mining.cut_mix": lambda i: [mixed(i, mining.cut_mix), mixed(i, mining.cut_mix, area=(0.1, 0.5))],
    "mining.paste_classes": lambda i: mixed(
        i, mining.paste_classes, i.classes, companions={3: [1]}, protected=(0,), most=2
    ),
    "mining.mine_crops, mining.crop": lambda i: [
        mined(i),
        mined(i, fallback=torch.tensor([3])),
        mined(i, image_counts=torch.ones(B, C, dtype=torch.int64, device=i.device)),
    ],
    "mining.ReliabilityBank: due, filter, refresh, reset, update": reliability,
    "restyle.ConfusionMatrix: compute, reset, update": lambda i: used(
        i.moved(restyle.ConfusionMatrix(C)),
        lambda m: m.update(i.logits, i.labels),
        lambda m: m.update(i.logits, i.few),
        lambda m: m.compute(),
        lambda m: m.reset(),
    ),
    "restyle.match_moments": lambda i: restyle.match_moments(i.images, i.images, clip=True),
    "restyle.swap_amplitudes": lambda i: restyle.swap_amplitudes(i.images, i.images, beta=0.1, clip=True),
    "stopping.class_drift": lambda i: stopping.class_drift(i.counts, i.counts),
    "teachers.AgreementStatistics: compute, reset, update": lambda i: used(
        i.moved(teachers.AgreementStatistics(C)),
        lambda m: m.update(i.logits, i.logits),
        lambda m: m.compute(),
        lambda m: m.reset(),
    ),
    **{
        f"teachers.MeanTeacher: forward, restart, train, update; {settings}": partial(
            lambda settings, i: taught(i, partial(teachers.MeanTeacher, **settings), lambda t, _: t.restart()), settings
        )
        for settings in ({}, {"buffers": "average", "warmup": False}, {"train_mode": True, "dropout": True})
    },
    "teachers.MeanTeacher; made on the CPU": lambda i: [
        (teacher := i.moved(teachers.MeanTeacher(nn.Conv2d(3, C, 1)))).update(i.moved(nn.Conv2d(3, C, 1))),
        teacher(i.images.float()),
    ],
    "teachers.DualTeacher: forward, switch, update": lambda i: taught(
        i, teachers.DualTeacher, lambda t, _: t.switch(), lambda t, s: t.update(s), lambda t, _: t(i.images)
    ),
    "teachers.DynamicTeacher: forward, observe, update": lambda i: dynamic(i, None),
    "teachers.parameter_distance": lambda i: teachers.parameter_distance(i.net(), i.net()),
    "teachers.entropy_score": lambda i: teachers.entropy_score(i.logits),
    "teachers.soft_neighbourhood_density": lambda i: teachers.soft_neighbourhood_density(i.logits),
    "teachers.flip_agreement": lambda i: teachers.flip_agreement(i.net(), i.images),
    "teachers.mutual_labels": lambda i: teachers.mutual_labels(i.net(), i.net(), i.images, selectors.select_fixed),
    "teachers.perturb_features": lambda i: [perturbed(i, beside) for beside in (False, True)],
    "teachers.drop_blocks": dropped,
    "teachers.predict_in_parts": lambda i: [
        teachers.predict_in_parts(i.net(), i.images, **settings)
        for settings in ({"images_at_once": 1}, {"window": (16, 16), "stride": (8, 12), "taper": True})
    ],
    "views.WeakStrongViews: draw, forward, strong, views.replay, views.replay_inverse, views.average_views": viewed,
    "views.mask_patches": lambda i: [
        views.mask_patches(i.images, 8, value=value) for value in (0.5, torch.rand(3, device=i.device).to(i.dtype))
    ],
    "batchnorm.get_statistics, batchnorm.set_statistics, batchnorm.mix_statistics, batchnorm.add_domain, "
    "batchnorm.use_domain, batchnorm.remove_domain, batchnorm.freeze_batchnorm": adapted,
}  # fmt: skip
