"""What the library is for, at one glance: a target image, the predictions after each step, the ground truth."""

from __future__ import annotations

import copy

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import nn
from tqdm import trange

from pictures.scene import Scene
from pictures.style import WIDTH, coloured, show
from pictures.training import as_floats, batches, evaluate, jitter, reestimate_batchnorm, save
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.losses import cross_entropy
from selftrain_seg.selectors import select_reweighted
from selftrain_seg.thresholds import ClassBalancedThreshold

IMAGE = 0  # of the validation images
ROUNDS, STEPS, BATCH = 1, 120, 4


def draw(scene: Scene) -> Figure:
    """Draw five panels, with the mIoU over all validation images above the predictions, and the classes' colours."""
    image, truth = (tensor[IMAGE] for tensor in scene.val.tensors)
    panels = {"camera image, no labels": image}
    steps = {"source only": scene.source_only, "BatchNorm re-estimated": scene.net, "one round of CBST": adapted(scene)}
    for name, net in steps.items():
        with torch.no_grad():
            labels = net(as_floats(image[None])).argmax(dim=1)[0]
        panels[f"{name}\nmIoU {evaluate(net, scene.val):.0f} %"] = coloured(labels.where(truth != 255, 255))
    panels["ground truth"] = coloured(truth)
    figure, axes = plt.subplots(3, 2, figsize=(WIDTH * 1.25, 7.6), layout="constrained")
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=False):
        show(axis, panel, name)
        axis.title.set_fontsize(14)
    colours = [[value / 255 for value in colour] for colour in SyntheticStreets.palette]
    patches = [Patch(facecolor=colour) for colour in (*colours, "white")]
    patches[-1].set_edgecolor("black")
    axes[2, 1].legend(patches, [*SyntheticStreets.classes, "no label"], loc="center", ncols=2, fontsize=13)
    axes[2, 1].set_axis_off()
    return figure


def adapted(scene: Scene) -> nn.Module:
    """CBST from the network with re-estimated BatchNorm: label the target images, train on both domains."""
    net = copy.deepcopy(scene.net)
    for number in range(ROUNDS):
        path = scene.cache / f"guide-hero-{STEPS}-{BATCH}-round{number + 1}.pt"
        if not path.exists():
            _round(net, scene, number)
            save(net.state_dict(), path)
        net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def _round(net: nn.Module, scene: Scene, number: int) -> None:
    torch.manual_seed(number)
    reestimate_batchnorm(net, scene.target)
    kc = ClassBalancedThreshold(SyntheticStreets.num_classes, portion=0.3 + 0.1 * number)
    with torch.no_grad():
        for images, _ in batches(scene.target):
            kc.update(net(images))
        labels = torch.cat([select_reweighted(net(images), kc.compute()).labels for images, _ in batches(scene.target)])
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, STEPS, power=0.9)
    for _ in trange(STEPS, desc=f"round {number + 1}", unit="step", disable=None):
        loss = torch.zeros(())
        for images, truth in ((scene.source.tensors), (scene.target.tensors[0], labels)):
            index = torch.randint(len(images), (BATCH,))
            loss = loss + cross_entropy(net(jitter(as_floats(images[index]))), truth[index].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    reestimate_batchnorm(net, scene.target)
