"""Statistics of predictions, for data without validation masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from _common.files import save_atomically
from _common.loading import in_blocks
from torch import Tensor

from _reporting import draw_predictions
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.teachers import soft_neighbourhood_density
from selftrain_seg.visualize import record_step

if TYPE_CHECKING:
    from _common.run import Run
    from _data.opening import Data

_SAMPLE = 50  # target images to predict


@torch.no_grad()
def measure_without_masks(
    predict: Callable[[Tensor], Tensor], data: Data, run: Run, number: int, group: str, name: str
) -> dict[str, float]:
    """Return entropy, soft neighbourhood density and the share of unchanged labels, on up to 50 target images."""
    places = range(0, len(data.target), -(-len(data.target) // _SAMPLE))
    folder, ending = run.out / "seen", f"{group}-rank{run.rank}of{run.world}.pt"
    before = [folder / f"{earlier}{ending}" for earlier in range(-1, number)]
    earlier = next((torch.load(path, weights_only=True) for path in reversed(before) if path.exists()), None)
    sums, labels = torch.zeros(5, dtype=torch.float64), []  # images, entropy, density, pixels compared, equal ones
    for images, _ in in_blocks(torch.utils.data.Subset(data.target, places), run):
        for logits in predict(images).float().split(1):
            log_probs = logits.log_softmax(dim=1)
            entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean() / torch.tensor(logits.shape[1]).log()
            generator = torch.Generator(logits.device).manual_seed(run.settings.seed)
            density = soft_neighbourhood_density(logits, generator=generator)
            labels.append(logits.argmax(dim=1)[0].byte().cpu())
            sums[:3] += torch.stack([torch.ones(()), entropy.cpu(), density.cpu()]).double()
            if earlier is not None:
                sums[3:] += torch.tensor([labels[-1].numel(), int((labels[-1] == earlier[len(labels) - 1]).sum())])
        if len(labels) == len(images) and run.main:
            draw_predictions(images, predict(images), None, data, run, name)
    save_atomically(labels, folder / f"{number}{ending}")
    images, entropy, density, compared, equal = all_reduce_sum(sums).tolist()
    seen = {"entropy": entropy / images, "SND": density / images}
    seen |= {"labels as before, %": 100 * equal / compared} if compared else {}
    if run.main:
        prefix = f"{group} " if group else ""
        record_step(run.out, max(0, number), {f"{prefix}{what} by round": value for what, value in seen.items()})
    return seen
