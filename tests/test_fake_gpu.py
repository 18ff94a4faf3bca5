"""Every public function on a GPU that is not there: tensors of two devices that meet, and a host that waits.

Every public function is called with arguments on the GPU of ``tests/fake_gpu``, or named below with a reason.

Not seen here: values, Triton kernels and generators of the GPU (``tests/gpu``). The autograd engine needs a driver for
"cuda", so the backward passes run on the "meta" device of ``tests/launches.py``.
"""

from __future__ import annotations

import re
from functools import partial
from unittest import mock

import pytest
import torch

import selftrain_seg as lib
from selftrain_seg import batchnorm, datasets, losses, mining, restyle, stopping, teachers, thresholds
from tests.fake_gpu.calls import TABLE, dynamic
from tests.fake_gpu.mode import WAITS, C, H, Inputs, W, fake_gpu, preparing
from tests.launches import launched, tensors_in
from tests.test_api import LIST


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
# What takes no tensors of a GPU, or what this mode cannot run.
EXCEPT = {
    "datasets": "read files, on the host",
    "store": "writes and reads files, on the host",
    "visualize": "draws on the host",
    "distributed": "returns its argument in a single process; tests/distributed runs several",
    "mining.ClassIndex": "counts of files, on the host",
    "mining.ClassBalancedSampler": "draws numbers of images, on the host",
    "mining.ImportanceSampler": "likewise",
    "mining.RareClassSampler": "likewise",
    "mining.SmallClassCrop": "in workers of a loader; its classes: test_classes_to_mine_may_be_on_the_gpu",
    "restyle.restyled_confusion": "makes a generator on the GPU, which needs a driver",
    "stopping": "judges numbers of rounds, on the host; but class_drift",
    "thresholds.PortionSchedule": "numbers",
    "thresholds.cautious_portion": "numbers",
    "thresholds.linear_portion": "numbers",
    "thresholds.source_subset": "numbers of images, on the host",
}


def names_in(key):
    """The public names of a key: "room.function", "room.Class: method, method" or several of these; then "; a note"."""
    owner = ""
    for part in key.partition(";")[0].split(", "):
        name, _, method = part.partition(": ")
        if method or "." in name or not owner:
            yield name
            owner, name = name, method
        if name and owner != name:
            yield f"{owner}.{name}"


def short(name):
    return name[:60]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TABLE, ids=short)
def test_the_host_never_waits_and_devices_agree(name, dtype):
    with fake_gpu():
        results = TABLE[name](Inputs(torch.device("cuda:0"), dtype))
        assert tensors_in(results)
        assert {tensor.device.type for tensor in tensors_in(results)} == {"cuda"}


@pytest.mark.parametrize("name", WAITING)
def test_the_host_waits_where_it_is_meant_to(name):
    with fake_gpu(), pytest.raises(WAITS):
        WAITING[name][1](Inputs(torch.device("cuda:0")))


@pytest.mark.parametrize(
    "name", [name for name in TABLE if name.startswith(DIFFERENTIABLE) and "focal" not in name], ids=short
)
def test_the_host_never_waits_in_a_backward_pass(name):
    def step():
        learned = [result.float().sum() for result in tensors_in(TABLE[name](Inputs("meta"))) if result.requires_grad]
        assert learned
        return torch.stack(learned).sum()

    assert launched(step)


def test_every_public_function_is_in_a_table():
    pattern = r"^selftrain_seg\.([\w.]+)(?:\(|: property Tensor)(?!.*\[(?:named tuple|a \w+)\]$)"
    public = set(re.findall(pattern, LIST.read_text(encoding="utf-8"), re.MULTILINE))
    called = {name for key in (*TABLE, *WAITING) for name in names_in(key)}
    excepted = {name: [known for known in public if f"{known}.".startswith(f"{name}.")] for name in EXCEPT}
    assert all(excepted.values()), "an exception that is none"
    assert called <= public
    assert public - called == {known for each in excepted.values() for known in each} - called


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
        with pytest.raises(RuntimeError, match=r"(two different|at least two) devices"):
            there + here
        for wait in (
            lambda: bool(there.any()), lambda: there[there > 0], lambda: there.cpu(), lambda: here.to("cuda"),
            lambda: torch.tensor([1.0, 2.0], device="cuda"), lambda: there.tolist(), lambda: here.to(there),
        ):  # fmt: skip
            with pytest.raises(WAITS):
                wait()
        assert here.to("cuda", non_blocking=True).device == there.device
