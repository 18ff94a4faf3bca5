"""The recommended recipe: a mean teacher labels each batch, and a check says whether adaptation helped."""

from __future__ import annotations

from functools import partial
from typing import Any

from _common.loading import as_floats
from _common.scores import SCORE, best_round
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from _quickstart.benchmark import batches
from _quickstart.training import jitter
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix
from selftrain_seg.restyle import match_moments, restyled_confusion
from selftrain_seg.selectors import select_fixed
from selftrain_seg.stopping import RoundCheck
from selftrain_seg.teachers import MeanTeacher
from selftrain_seg.views import StrongSettings, WeakStrongViews

TOLERANCE = 1.0  # points of mIoU that adaptation must gain; less is noise

_STRONG = StrongSettings(
    jitter=(0.3, 0.3, 0.3, 0.05),
    jitter_chance=1.0,
    grey_chance=0.0,
    blur_sigma_px=(0.1, 1.0),
    blur_chance=0.3,
    cut_out_chance=0.0,
)


class Recommended:
    """The teacher, and the scores of the check. Both continue from round to round; neither uses target labels.

    Args:
        net: the network before training.
        held_out: source images that the network was not trained on, with labels.
        target: target images.
    """

    def __init__(self, net: nn.Module, held_out: TensorDataset, target: TensorDataset) -> None:
        # In train mode BatchNorm uses the statistics of the batch, as in the student.
        self.teacher = MeanTeacher(net, momentum=0.99, train_mode=True)
        self.check = RoundCheck(SCORE)
        self.held_out, self.target = held_out, target
        self.measure(net)

    def loss(self, net: nn.Module, images: Tensor) -> Tensor:
        """Return the student's loss on target images (B, 3, H, W), uint8, with the teacher's labels.

        Half of the classes of each image are pasted onto another image (ClassMix). The student's view is recoloured.
        """
        self.teacher.update(net)
        images = as_floats(jitter(as_floats(images)))
        pseudo = select_fixed(self.teacher(images), threshold=0.9, weigh_by="batch")  # unsure teacher, low weight
        mixed = class_mix(images, pseudo.labels, pixel_weight=pseudo.pixel_weight)
        views = WeakStrongViews(tuple(images.shape[-2:]), strong=_STRONG)
        seen = as_floats(views.strong(mixed.images, views.draw(mixed.images)))
        return cross_entropy(net(seen), mixed.labels, pixel_weight=mixed.pixel_weight, normalize="all")

    def measure(self, net: nn.Module) -> None:
        """Record the mIoU in percent on the held-out source images in the colours of target images."""
        restyle = partial(match_moments, space="lab", clip=True)
        styles = list(batches(self.target))  # only the images are used
        classes = SyntheticStreets.num_classes
        found = restyled_confusion(net, batches(self.held_out), styles, num_classes=classes, restyle=restyle)
        self.check.record(len(self.check.scores), {SCORE: 100 * found.miou})

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the teacher and of the check."""
        return {"teacher": self.teacher.state_dict(), "check": self.check.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of the teacher and of the check."""
        self.teacher.load_state_dict(state["teacher"])
        self.check.load_state_dict(state["check"])


def verdict(check: RoundCheck) -> str:
    """Say which network to keep: the best round, or the one before training if no round gains more than noise."""
    start, *scores = check.scores
    best = best_round(start, scores, TOLERANCE)
    if best is not None:
        gain = scores[best] - start
        return f"keep round {best + 1} ({SCORE} {scores[best]:.1f}, {gain:+.1f} over the network before training)"
    return (
        f"adaptation is not helping here: keep the network before training ({SCORE} {start:.1f}, at best "
        f"{max(scores):.1f} after a round; a gain of {TOLERANCE:g} point or less is noise)"
    )
