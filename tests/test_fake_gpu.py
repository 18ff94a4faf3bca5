"""Every public function on a GPU that is not there: tensors of two devices that meet, and a host that waits.

PyTorch's ``FakeTensorMode`` makes tensors of "cuda" on any machine. They have a shape, a dtype and a device, but no
values. An operation on tensors of two devices fails as on a GPU, and so does whatever reads a value on the host. For an
operator of this package the plain implementation runs too, and its results must look like those of the fake one.

Not seen here: values, Triton kernels and generators of the GPU (``tests/gpu``). The autograd engine needs a driver for
"cuda", so the backward passes run on the "meta" device of ``tests/launches.py``.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import selftrain_seg as lib
from selftrain_seg import batchnorm, confidence, datasets, losses, mining, restyle
from selftrain_seg import selectors, stopping, teachers, thresholds, views
from tests.launches import HostWaits, launched, refuse_waits, tensors_in
from tests.losses.cases import CASES, IDS, make_map, together

aten = torch.ops.aten
WAITS = (DataDependentOutputException, DynamicOutputShapeException, HostWaits)
ON_HOST = "saved_by", "labels", "last_step", "snapshots"  # states that stay on the CPU
B, C, H, W = 2, 4, 24, 32


class FakeGPU(FakeTensorMode):
    """Tensors of "cuda" without values; copies of modules made inside it stay inside it."""

    def __deepcopy__(self, _):
        return self


class Watch(TorchDispatchMode):
    """Raises HostWaits if the host waits; compares the plain implementations of our operators with the fake ones."""

    preparing = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        try:
            result = func(*args, **kwargs)
        except DataDependentOutputException:
            if func not in (aten.item.default, aten._local_scalar_dense.default) or args[0].device.type != "cpu":
                raise
            return 0.5 if args[0].is_floating_point() else 1  # the host may read what it has; any number will do
        if Watch.preparing:
            return result
        if func.namespace == "selftrain_seg":
            with self:
                plain = func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
            assert tree_map(looks, plain) == tree_map(looks, result), f"{func}: plain and fake results differ"
        elif not sent_without_waiting(func, args, kwargs):
            refuse_waits(func, args, kwargs, "cuda")
        return result


def looks(value):
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value


def sent_without_waiting(func, args, kwargs):
    """A copy from the host that returns at once."""
    if func is aten._to_copy.default:
        return args[0].device.type == "cpu" and kwargs.get("non_blocking")
    return func is aten.copy_.default and args[1].device.type == "cpu" and args[2:] == (True,)


@contextmanager
def fake_gpu():
    try:
        with FakeGPU():
            torch.ones(2).to("cuda") + 1
    except RuntimeError as error:
        pytest.skip(f"this PyTorch asks the driver for a fake tensor: {error}")
    with FakeGPU(), Watch():
        yield


@contextmanager
def preparing():
    """Within, the host may wait."""
    with mock.patch.object(Watch, "preparing", True):
        yield


class Inputs:
    """Arguments on a device that holds no values; each is made when it is read."""

    def __init__(self, device, dtype=torch.float32):
        self.device, self.dtype = device, dtype

    def sent(self, tree):
        """Tensors of the same shapes and dtypes on the device."""
        make = partial(torch.empty, device=self.device)
        return tree_map(lambda leaf: make(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf, tree)

    @preparing()
    def moved(self, module):
        """A module made on the CPU, moved; ``torch.utils.swap_tensors`` cannot swap the parameters of this mode."""
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    part._parameters[name] = nn.Parameter(weight.detach().to(self.device), weight.requires_grad)
        with mock.patch("torch.utils.swap_tensors"):
            return module.to(self.device)

    @preparing()
    def net(self):
        """A network of half resolution."""
        place = {"device": self.device, "dtype": self.dtype}
        layers = nn.Conv2d(3, 4, 1, **place), nn.BatchNorm2d(4, **place), nn.ReLU()
        return nn.Sequential(*layers, nn.Conv2d(4, C, 1, stride=2, **place))

    def maps(self, high, dtype=torch.int64):
        return torch.randint(high, (B, H, W), device=self.device).to(dtype)

    def numbers(self, *values):
        """(K,) int64."""
        return torch.zeros(len(values), dtype=torch.int64, device=self.device)

    @property
    def logits(self):
        return torch.randn(B, C, H, W, dtype=self.dtype, device=self.device, requires_grad=True)

    @property
    def soft(self):
        return self.logits.detach().softmax(1)

    @property
    def images(self):
        return torch.rand(B, 3, H, W, dtype=self.dtype, device=self.device)

    @property
    def labels(self):
        return self.maps(C)

    @property
    def few(self):
        return self.maps(C, torch.uint8)

    @property
    def valid(self):
        return self.maps(2, torch.bool)

    @property
    def weights(self):
        return torch.rand(B, H, W, device=self.device)

    @property
    def classes(self):
        return torch.rand(C, device=self.device)

    @property
    def counts(self):
        return torch.randint(100, (C,), device=self.device)

    @property
    def prior(self):
        return torch.rand(C, H, W, device=self.device)


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


def selector(i, kind, properties=(), **settings):
    module = i.moved(kind(C, **settings))
    calls = [lambda m: m(i.logits), lambda m: m(i.logits, valid=i.valid)]
    return used(module, *calls, *(lambda m, name=name: getattr(m, name) for name in properties), lambda m: m.reset())


def sketch(i):
    made, other = (i.moved(thresholds.ConfidenceSketch(C)) for _ in range(2))
    scores, classes = i.weights.flatten(), i.labels.flatten()
    reads = [lambda m: m.total(), lambda m: m.class_counts(), lambda m: m.quantile(0.5), lambda m: m.cdf(i.classes)]
    ranked = [lambda m, share=share: m.ranked(m.counts, share, "last_in") for share in (0.5, i.classes.double())]
    return used(made, lambda m: m.update(scores, classes), lambda m: m.merge(other), *reads, *ranked, lambda m: m.reset())


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


def viewed(i, mode=None, **settings):
    """Views, and what a network says of them, back on the images."""
    views_of = views.WeakStrongViews((16, 20), **settings)
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
    "selectors.InstanceAdaptiveSelector; batch": lambda i: selector(
        i, selectors.InstanceAdaptiveSelector, per="batch"
    ),
    "selectors.RunningConfidenceSelector: forward, reset": lambda i: selector(i, selectors.RunningConfidenceSelector),
}
SELECTS = {
    f"selectors.{name}; {home}": partial(
        lambda name, home, i: [
            getattr(selectors, name)(i.logits, 0.5 if home == "number" else torch.rand(C, device=home), **more)
            for more in ({}, {"prior": i.prior}, {"valid": i.valid}, {"prior": i.prior, "valid": i.valid})
        ],
        name,
        home,
    )
    for name in ("select_hard", "select_reweighted", "select_soft")
    for home in ("number", "cpu", "cuda")
}
LOSSES = {
    f"losses.{name.partition('-')[0]}; {name[-4:]}, {'all arguments' if full else 'defaults'}": partial(loss, case, full)
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
        f"teachers.MeanTeacher: forward, next_momentum, restart, train, update; {settings}": partial(
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
    "views.WeakStrongViews: draw, forward, strong; views.replay, views.replay_inverse, views.average_views": lambda i: [
        viewed(i), viewed(i, quarter_turns=True, vertical_flip_chance=0.5)
    ],
    "views.mask_patches": lambda i: [
        views.mask_patches(i.images, 8, value=value) for value in (0.5, torch.rand(3, device=i.device).to(i.dtype))
    ],
    "batchnorm.get_statistics, batchnorm.set_statistics, batchnorm.mix_statistics, batchnorm.add_domain, "
    "batchnorm.use_domain, batchnorm.remove_domain, batchnorm.freeze_batchnorm": adapted,
}  # fmt: skip



def checked_values(i):
    with lib.value_checks():
        losses.cross_entropy(i.logits, i.labels)


def counted(i, kind):
    made = i.moved(kind(C))
    made.update(i.logits, *([i.labels] if kind is thresholds.PrecisionThreshold else []))
    return made


def with_prior(i, kind):
    one, other = (i.moved(kind(C, 0.3, prior=torch.rand(C, H, W))) for _ in range(2))
    one.merge(other)


def decided(i):
    student = i.net()
    teacher = teachers.DynamicTeacher(student, score="entropy", first=1, store_on=None)
    teacher.observe(i.images, student)
    teacher.update(student)


BALANCED = partial(thresholds.ClassBalancedThreshold, portion=0.2)
DIFFERENTIABLE = ("losses.", "as_logits", "confidence.add_prior", "teachers.perturb", "teachers.drop", "views.Weak")
# What makes the host wait, and why that is meant.
WAITING = {
    "value_checks": ("looks at values, to find errors", checked_values),
    "thresholds.ClassBalancedThreshold: compute": (
        "once per round; an error if nothing was counted", lambda i: counted(i, BALANCED).compute()
    ),
    "thresholds.GlobalThreshold: compute": (
        "likewise", lambda i: counted(i, partial(thresholds.GlobalThreshold, portion=0.2)).compute()
    ),
    "thresholds.PrecisionThreshold: compute": (
        "likewise", lambda i: counted(i, thresholds.PrecisionThreshold).compute()
    ),
    "thresholds.ClassBalancedThreshold: merge": (
        "once per round, if there is a prior: compares it", lambda i: with_prior(i, thresholds.ClassBalancedThreshold)
    ),
    "mining.rare_classes": ("once per round; the size depends on counts", lambda i: mining.rare_classes(i.counts)),
    "mining.classes_below": ("likewise", lambda i: mining.classes_below(i.counts)),
    "mining.ReliabilityBank; keeps labels on the host": (
        "keeps the labels of all images, too large for a GPU",
        lambda i: i.moved(mining.ReliabilityBank(6, C, (8, 8))).update(i.numbers(1, 2), i.labels),
    ),
    "thresholds.ClassBalancedThreshold; exact": (
        "keeps the values of counted pixels, for small sets",
        lambda i: counted(i, partial(BALANCED, exact=True)),
    ),
    "batchnorm.estimate_statistics": (
        "once per round; an error if a statistic is not finite",
        lambda i: batchnorm.estimate_statistics(i.net(), [i.images]),
    ),
    "batchnorm.choose_alpha": (
        "once per round; compares scores",
        lambda i: batchnorm.choose_alpha(
            net := i.net(), *[batchnorm.get_statistics(net)] * 2, lambda net: net(i.images).mean()
        ),
    ),
    "restyle.match_moments; lab": (
        "kornia makes the matrices of colour spaces on the host",
        lambda i: restyle.match_moments(i.images, i.images, space="lab"),
    ),
    "stopping.RoundCheck: record": (
        "once per round; keeps numbers", lambda i: stopping.RoundCheck("miou").record(0, {"miou": i.weights.mean()})
    ),
    "teachers.DynamicTeacher: observe": ("stores images on the host by default", lambda i: dynamic(i, "cpu")),
    "teachers.DynamicTeacher: update": ("a decision, every few steps", decided),
    "datasets.LabelMap: __call__": ("an error if an id is unknown", lambda i: datasets.LabelMap.voc()(i.labels)),
}  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_the_host_never_waits_and_devices_agree(name, dtype):
    with fake_gpu():
        results = TABLE[name](Inputs(torch.device("cuda:0"), dtype))
        assert tensors_in(results)
        assert {tensor.device.type for tensor in tensors_in(results)} == {"cuda"}


@pytest.mark.parametrize("name", WAITING)
def test_the_host_waits_where_it_is_meant_to(name):
    with fake_gpu(), pytest.raises(WAITS):
        WAITING[name][1](Inputs(torch.device("cuda:0")))


@pytest.mark.parametrize("name", [name for name in TABLE if name.startswith(DIFFERENTIABLE) and "focal" not in name])
def test_the_host_never_waits_in_a_backward_pass(name):
    def step():
        learned = [result.float().sum() for result in tensors_in(TABLE[name](Inputs("meta"))) if result.requires_grad]
        assert learned
        return torch.stack(learned).sum()

    assert launched(step)


def test_classes_to_mine_may_be_on_the_gpu():
    """``classes_below`` and ``rare_classes`` return them on the device of the counts."""
    share = mock.patch.object(mining.SmallClassCrop, "_share")  # this mode has no shared memory
    with fake_gpu(), preparing(), share:
        i = Inputs("cuda")
        crop = mining.SmallClassCrop(i.numbers(1, 2), (8, 8), fallback=i.numbers(3))
        crop.set_classes(i.numbers(0))
        assert crop.mined.device.type == "cpu"


def test_the_watch_sees_devices_that_differ_and_waits():
    with fake_gpu():
        there, here = torch.rand(2, 3, device="cuda"), torch.rand(2, 3)
        with pytest.raises(RuntimeError, match="(two different|at least two) devices"):
            there + here
        for wait in (
            lambda: bool(there.any()), lambda: there[there > 0], lambda: there.cpu(), lambda: here.to("cuda"),
            lambda: torch.tensor([1.0, 2.0], device="cuda"), lambda: there.tolist(), lambda: here.to(there),
        ):  # fmt: skip
            with pytest.raises(WAITS):
                wait()
        assert here.to("cuda", non_blocking=True).device == there.device
