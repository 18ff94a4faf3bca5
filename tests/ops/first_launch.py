"""Compiles every kernel as its first launch would: with the arguments, alignments and constants of a real call.

Run by ``test_first_launch.py`` in a process of its own, since it puts a stand-in for the GPU's driver in place.
"""

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from selftrain_seg.ops.triton import launch, launch_loss, launch_maps, launch_state


class Driver:
    """Says that there is a GPU, and runs nothing."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def is_active(self):
        return True


driver.set_active(Driver())
run, made = JITFunction.run, {}


def compile_only(self, *args, grid, warmup=False, **options):
    made[self.fn.__name__] = run(self, *args, grid=grid, warmup=True, **options)


JITFunction.run = compile_only

ONE, FLAG, DOUBLE = torch.ones(1, 1, 1), torch.ones(1, dtype=torch.bool), torch.float64
FACTORS = torch.tensor([1.0, 0.5, 0.5], dtype=DOUBLE)
LABELS = torch.zeros(1, 1, 1, dtype=torch.uint8)
LONG = LABELS.long()


def loss(z, y, *weights, normalize="labelled", regulariser="", divisor=None, ignore_index=255):
    weights, which = [*weights, *[None] * (4 - len(weights))], [True, bool(regulariser), regulariser == "square"]
    made = launch_loss.weighted_loss(
        None, z, y, *weights, divisor, FACTORS, regulariser, which, normalize, ignore_index
    )
    launch_loss.weighted_loss_backward(None, made[0], z, y, *weights, *made[1:], regulariser, which, ignore_index)


def losses(z, y):
    shape = y.shape
    image, pixel, classes = torch.ones(shape[0], dtype=torch.bool), torch.ones(shape), torch.ones(z.shape[1])
    loss(z, y)
    loss(z, y, pixel, image, classes, pixel, normalize="all", regulariser="kld")
    loss(z, y, None, image, classes, normalize="weights", regulariser="square", ignore_index=2**40)
    loss(z, y, None, None, None, image.float(), normalize="sum", regulariser="reverse")
    loss(z, y, divisor=torch.tensor(3), regulariser="entropy")
    loss(z, y, normalize="none")
    loss(z, z.float(), pixel)
    found = launch_loss.mutual_loss(None, z, y, pixel, image, torch.tensor([1.0, 2.0]), True, "labelled", 2**40)
    launch_loss.mutual_loss(None, z, y, pixel, None, torch.tensor([0.0, 1.0]), False, "none", 255)
    for reduction in ("mean", "none"):
        found = launch_loss.negative_loss(None, z, z.half(), pixel, torch.tensor([0.5]), reduction)
        launch_loss.negative_loss_backward(None, found[0], z, z.half(), pixel, found[1])
    counts = torch.ones(z.shape[1], dtype=torch.int64)
    _, slope, norm = launch_loss.fairness_loss(None, z, classes.half(), counts, pixel > 0, torch.tensor([1.0]))
    launch_loss.fairness_loss_backward(None, torch.ones(()), z, None, slope, norm)


def selectors(z, valid):
    classes = z.shape[1]
    by_class = torch.ones(classes, dtype=DOUBLE)
    launch.read(None, z, valid, None)
    launch.read(None, z, None, None, True)
    launch.observe(None, z, valid, by_class, [True, True, True, True], 0.5)
    launch.observe(None, z, None, None, [False, False, False, False], 0.0)
    launch.count(None, z, torch.zeros(classes, 100, dtype=torch.int64), valid, None, None, False, -8.0, 0.25)
    for thresholds in (by_class, torch.tensor(0.9, dtype=DOUBLE)):
        for reweighted in (False, True):
            launch.select(None, z, thresholds, reweighted, valid, None, 2**40)
        launch.soften(None, z, thresholds, torch.tensor([0.2]), None, None, 255)
        launch.soften(None, z, thresholds, torch.tensor(0.2), valid, None, 255)


def states():
    number, three = torch.ones((), dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)
    launch_state.decide(None, LONG, ONE, three, True, 255)
    launch_state.decide(None, LONG.expand(2, 1, 1), ONE.expand(2, 1, 1), torch.ones(2, 3), False, 255)
    launch_state.weigh(None, LONG, ONE, ONE, torch.ones(2, dtype=DOUBLE), 2.0, 255)
    for momentum in (0.0, 1.0, 0.999):
        launch_state.follow(None, three[:1], three[:1], number, momentum, False)
    launch_state.follow(None, three[:2], three[:2], number, 0.9, True)
    for sums in (None, torch.ones(4, dtype=DOUBLE)):
        launch_state.discount(None, torch.ones(1, 3), three, three > 0, sums, 0.8, 0.2, 1e-3, 0.9)
    launch_state.adapt(None, LONG, ONE, three, 0.2, 0.9, 8.0, True)
    launch_state.adapt(None, LONG, ONE, three, 0.2, 0.0, 0.0, False)
    for target in (None, LABELS):
        launch_state.tabulate(None, LONG, LONG, ONE, target, 3, 255)
    counts = torch.ones(3, 100, dtype=torch.int64)
    for rule in ("last_in", "first_out", "from_below"):
        launch_state.ranked(None, counts[:1], number, rule, -8.0, 0.25)
        launch_state.ranked(None, counts, three, rule, 0.0, 1.0)


def maps():
    for region in (torch.ones(1, 1, 1, dtype=torch.bool), torch.ones(1, 5, 7, dtype=torch.bool)):
        launch_maps.connected_components(None, region)
    numbers = torch.zeros(1, 4, dtype=torch.int64)
    launch_maps.mine(None, LABELS, numbers[:, :1], numbers, None, 1, 1, 2**61)
    launch_maps.draw_classes(None, LABELS, torch.zeros(1, 256, dtype=torch.int64), 255, True)
    launch_maps.distinct(None, numbers[0, :2], 1, 1)
    launch_maps.directions(None, torch.zeros(1, 3, 1, 1, dtype=DOUBLE), numbers[0, :1])
    number = torch.ones(1, dtype=DOUBLE)
    launch_maps.fit(None, FLAG[None], FLAG[None], number, torch.ones(1, 2, dtype=DOUBLE))
    for regions in (1, 3):
        where, inside = torch.zeros(1, regions, 3, 2, dtype=torch.int64), torch.ones(1, regions, 2, dtype=torch.bool)
        launch_maps.topmost(None, torch.ones(1, 1, 1, dtype=torch.uint8), where, inside)


for classes, size, dtype, memory_format in (
    (3, (1, 1, 1), torch.float32, torch.contiguous_format),
    (5, (2, 4, 8), torch.bfloat16, torch.channels_last),
    (19, (2, 16, 32), torch.float16, torch.contiguous_format),
):
    z = torch.zeros(size[0], classes, *size[1:], dtype=dtype).contiguous(memory_format=memory_format)
    losses(z, torch.zeros(size, dtype=torch.uint8))
    selectors(z, torch.ones(size, dtype=torch.bool))
states()
maps()
assert "fma.rn.f64" not in made["fit_kernel"].asm["ptx"]  # a product is rounded before it is compared, as on a CPU
print(*sorted(made))  # noqa: T201, which test_first_launch.py reads
