"""Instance-adaptive self-training (IAST) with Hugging Face Accelerate; a mean teacher labels each batch.

``python examples/integrations/accelerate_loop.py``, or on two GPUs
``accelerate launch --multi_gpu --num_processes 2 examples/integrations/accelerate_loop.py --mixed-precision bf16``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _benchmark import CLASSES, load, score, source_network
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from selftrain_seg.losses import region_guided_loss
from selftrain_seg.selectors import InstanceAdaptiveSelector
from selftrain_seg.teachers import MeanTeacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--accumulate", type=int, default=1, help="backward passes in a step")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--compile", help="compile the network with this backend of torch.compile, such as inductor")
    parser.add_argument("--device", default="auto", help="auto or cpu; auto leaves the choice to Accelerate")
    parser.add_argument("--resume", action="store_true", help="continue from the saved state, for --epochs more epochs")
    parser.add_argument("--out", type=Path, default=Path("runs/integrations"))
    parser.add_argument("--smoke", action="store_true", help="train a few steps only, as a test")
    args = parser.parse_args()
    epochs = args.epochs or (2 if args.smoke else 3)

    accelerator = Accelerator(
        cpu=args.device == "cpu",
        gradient_accumulation_steps=args.accumulate,
        mixed_precision=args.mixed_precision,
        dynamo_backend=args.compile,
    )
    set_seed(0)
    with accelerator.main_process_first():
        source, target, val = load(args.smoke, args.out)
        network = source_network(source, args.smoke, args.out)
    before = score(network, val)
    update_bn(DataLoader(target, batch_size=50), network)
    accelerator.print(f"source only: mIoU {before:.1f}; BatchNorm re-estimated: mIoU {score(network, val):.1f}")

    teacher = MeanTeacher(network, momentum=0.99, train_mode=True, buffers="keep").to(accelerator.device)
    selector = InstanceAdaptiveSelector(CLASSES, portion=0.3).to(accelerator.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    loaders = [DataLoader(dataset, batch_size=4, shuffle=True, drop_last=True) for dataset in (source, target)]
    student, optimizer, *loaders = accelerator.prepare(network, optimizer, *loaders)
    accelerator.register_for_checkpointing(teacher, selector)
    if args.resume:
        accelerator.load_state(str(args.out / "accelerate"))

    for epoch in range(epochs):
        student.train()
        for (source_images, source_labels), (target_images, _) in zip(*loaders, strict=False):
            with accelerator.accumulate(student):
                pseudo = selector(teacher(target_images))
                loss = F.cross_entropy(student(source_images), source_labels, ignore_index=255)
                # IAST has 3.0, for labels that stay fixed for a round. These labels change with the teacher.
                loss = loss + region_guided_loss(student(target_images), pseudo.labels, ignored_weight=1.0)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                teacher.update(student)  # the student may be wrapped and compiled
        theta = selector.thresholds
        accelerator.print(f"epoch {epoch + 1}: θ {theta.min():.3f} to {theta.max():.3f}")

    accelerator.save_state(str(args.out / "accelerate"))
    accelerator.wait_for_everyone()
    network = accelerator.unwrap_model(student, keep_torch_compile=False)
    accelerator.save(network.state_dict(), args.out / "accelerate.pt")
    accelerator.print(f"adapted: mIoU {score(teacher.model, val):.1f}, {int(teacher.step)} updates of the teacher")


if __name__ == "__main__":
    main()
