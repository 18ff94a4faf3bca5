"""How many launches each public function may need on a GPU, and that the host waits for none.

A bound may be lowered, and raised only with a reason in the changelog.
"""

from functools import partial

import kornia
import pytest
import torch
import torchvision

from selftrain_seg import confidence, losses, mining, restyle, selectors, teachers, views
from tests.launches import GPU, HostWaits, launched

B, C, H, W = 2, 19, 128, 256


def logits(height=H, width=W):
    return torch.empty(B, C, height, width, device=GPU)


def labels(dtype=torch.int64):
    return torch.empty(B, H, W, dtype=dtype, device=GPU)


def images():
    return torch.empty(B, 3, H, W, device=GPU)


def pixels():
    return torch.empty(B, H, W, device=GPU)


def numbers(*shape):
    return torch.empty(shape, dtype=torch.int64, device=GPU)


def class_weight():
    return torch.empty(C, device=GPU)


BROUGHT = {"companions": {17: [12], 18: [12], 6: [5]}, "protected": (5, 6, 7)}
COUNTED = {"fallback": numbers(3), "image_counts": numbers(B, C)}


def update(dtype=torch.float32):
    """A second update, from a student with the number and the sizes of a ResNet-101's tensors."""
    with torch.device(GPU):
        student = torchvision.models.resnet101().to(dtype)
        teacher = teachers.MeanTeacher(student)
    teacher.update(student)
    return teacher.update, student


def network(batch):
    return torch.empty(len(batch), C, *batch.shape[2:], device=GPU)


def view():
    parameters = views.WeakStrongViews((64, 64))(torch.rand(B, 3, H, W)).parameters
    return type(parameters)(*(each.to(GPU) if isinstance(each, torch.Tensor) else each for each in parameters))


def perturbed():
    module = torch.nn.Identity()

    def call(features):
        with teachers.perturb_features(module, beside=True):
            return module(features)

    return call


def bank(method):
    return getattr(mining.ReliabilityBank(10, C).to(GPU), method)


def learns(function, *target, **options):
    """A loss, forward and backward."""

    def step(z):
        return function(z.requires_grad_(), *(make() for make in target), **options)

    return step, logits()


def soft():
    return logits().softmax(1)


def class_numbers():
    return torch.empty(C, device=GPU)


GAMMAS = {"gamma_agree": 5.0, "gamma_disagree": 3.0}
# Forward and backward; one more is the gradient 1 of the loss itself, some more make the arguments.
LOSSES = {
    "cross_entropy": lambda: learns(losses.cross_entropy, labels),
    "cross_entropy, soft labels": lambda: learns(losses.cross_entropy, logits),
    "mrkld_loss": lambda: learns(losses.mrkld_loss, labels),
    "mrent_loss": lambda: learns(losses.mrent_loss, labels),
    "mrl2_loss": lambda: learns(losses.mrl2_loss, labels),
    "region_guided_loss": lambda: learns(losses.region_guided_loss, labels),
    "dynamic_loss": lambda: learns(losses.dynamic_loss, labels, gamma=9.0),
    "dynamic_mutual_loss": lambda: learns(losses.dynamic_mutual_loss, labels, pixels, **GAMMAS),
    "symmetric_loss": lambda: learns(losses.symmetric_loss, labels),
    "class_weighted_loss": lambda: learns(losses.class_weighted_loss, labels, class_numbers),
    "negative_loss": lambda: learns(losses.negative_loss, logits),
    "fairness_loss": lambda: learns(losses.fairness_loss, class_numbers, class_numbers),
}

# Older versions of kornia convert to Lab and back in more launches.
LAB = 121 if tuple(map(int, kornia.__version__.split(".")[:2])) >= (0, 9) else 164

# Name, most launches, function of nothing that gives function and arguments.
TABLE = {
    "MeanTeacher.update": (13, update),
    "MeanTeacher.update, bfloat16": (56, lambda: update(torch.bfloat16)),
    "soft_neighbourhood_density": (7, lambda: (teachers.soft_neighbourhood_density, logits())),
    "soft_neighbourhood_density, many pixels": (8, lambda: (teachers.soft_neighbourhood_density, logits(512, 1024))),
    "entropy_score": (10, lambda: (teachers.entropy_score, logits())),
    "parameter_distance": (99, lambda: (teachers.parameter_distance, *(update()[1] for _ in range(2)))),
    "crop": (9, lambda: (mining.crop, images(), numbers(B, 2), (64, 64))),
    "cut_mix": (46, lambda: (mining.cut_mix, images(), labels())),
    "class_mix": (9, lambda: (mining.class_mix, images(), labels())),
    "class_mix, classes": (16, lambda: (partial(mining.class_mix, classes=numbers(3)), images(), labels())),
    "class_mix, weights": (11, lambda: (partial(mining.class_mix, pixel_weight=pixels()), images(), labels())),
    "mine_crops": (16, lambda: (mining.mine_crops, labels(), numbers(5), (64, 64))),
    "mine_crops, counted": (17, lambda: (partial(mining.mine_crops, **COUNTED), labels(), numbers(5), (64, 64))),
    "paste_classes": (99, lambda: (mining.paste_classes, images(), labels(), class_weight())),
    "paste_classes, companions": (
        111,
        lambda: (partial(mining.paste_classes, **BROUGHT), images(), labels(), class_weight()),
    ),
    "ReliabilityBank.update": (
        53,
        lambda: (partial(bank("update"), previous=labels()), numbers(B), labels(), pixels()),
    ),
    "ReliabilityBank.refresh": (57, lambda: (bank("refresh"), 1)),
    "ReliabilityBank.filter": (16, lambda: (bank("filter"), labels(), numbers(B))),
    "log_odds": (4, lambda: (confidence.log_odds, pixels())),
    "fuse_views": (8, lambda: (partial(confidence.fuse_views, scales=(1.0,), flip=True), network, images())),
    "SpatialPrior.update": (33, lambda: (confidence.SpatialPrior(C, (64, 128), sigma_px=4.0).to(GPU).update, labels())),
    "select_fixed, weighed": (12, lambda: (partial(selectors.select_fixed, weigh_by="image"), logits())),
    "AgreementStatistics.update": (39, lambda: (teachers.AgreementStatistics(C).to(GPU).update, logits(), logits())),
    "flip_agreement": (14, lambda: (teachers.flip_agreement, network, images())),
    "ConfusionMatrix.update": (15, lambda: (restyle.ConfusionMatrix(C).to(GPU).update, logits(), labels())),
    "match_moments": (54, lambda: (restyle.match_moments, images(), images())),
    "match_moments, Lab": (LAB, lambda: (partial(restyle.match_moments, space="lab"), images(), images())),
    "swap_amplitudes": (47, lambda: (partial(restyle.swap_amplitudes, beta=0.05), images(), images())),
    "focal_class_weight": (3, lambda: (losses.focal_class_weight, class_numbers())),
    "replay": (132, lambda: (views.replay, logits(), view())),
    "replay, labels": (66, lambda: (views.replay, labels(), view())),
    "replay_inverse": (154, lambda: (views.replay_inverse, torch.empty(B, C, 64, 64, device=GPU), view())),
    "average_views": (316, lambda: (views.average_views, [torch.empty(B, C, 64, 64, device=GPU)] * 2, [view()] * 2)),
    "mask_patches": (9, lambda: (views.mask_patches, images())),
    "perturb_features": (6, lambda: (perturbed(), images())),
    "WeakStrongViews": (346, lambda: (views.WeakStrongViews((64, 64)), images())),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    pytest.importorskip("triton")
    function, *arguments = LOSSES[name]()
    names = launched(function, *arguments)
    names.remove("ones_like")  # the gradient of the loss by itself
    extra = {"fairness_loss": ["sum"], "dynamic_loss": ["new_full"]}.get(name, [])
    kernels = [each for each in names if each.endswith("_kernel")]
    assert len(kernels) == 3
    assert sorted(names) == sorted([*kernels, *extra])


@pytest.mark.parametrize("name", TABLE)
def test_launches(name):
    pytest.importorskip("triton")
    most, make = TABLE[name]
    function, *arguments = make()
    names = launched(function, *arguments)
    assert len(names) <= most, sorted(names)


def test_the_counter_counts():
    x = torch.empty(4, 5, device=GPU, requires_grad=True)
    assert launched(lambda: x.view(2, 10).T.unsqueeze(0)) == []
    assert launched(lambda: (x + 1).relu()) == ["add", "relu"]
    assert launched(lambda: torch.empty_like(x).fill_(1.0)) == ["fill_"]
    assert launched(lambda: (torch.ones(3) + 1).sum()) == []  # on the CPU
    assert launched(lambda: x.detach().add_(torch.tensor(2.0))) == ["add_"]  # its value goes along
    assert launched(lambda: x.exp().sum()) == ["exp", "sum", "ones_like", "mul"]  # and back
    many = [torch.empty(3, device=GPU) for _ in range(130)]
    assert launched(torch._foreach_zero_, many) == ["_foreach_zero_"] * 2
    assert launched(torch._foreach_add_, many, many) == ["_foreach_add_"] * 3
    large = [torch.empty(320 * 65536 + 1, device=GPU)]
    assert launched(torch._foreach_zero_, large) == ["_foreach_zero_"] * 2


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: x.long().flatten().bincount(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: torch.ones(4).to(x.device),
        lambda x: x.copy_(torch.ones(4, 4)),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.index_put_((torch.zeros(2, dtype=torch.int64, device=GPU),), torch.tensor(1.0)),
        lambda x: x.__setitem__(torch.zeros(2, dtype=torch.int64, device=GPU), 1.0),
    ],
)
def test_the_counter_refuses_waits(wait):
    with pytest.raises((HostWaits, NotImplementedError)):
        launched(wait, torch.empty(4, 4, device=GPU))
