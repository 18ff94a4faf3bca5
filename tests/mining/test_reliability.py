import copy
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from selftrain_seg import value_checks
from selftrain_seg.mining import ClassBalancedSampler, ClassIndex, ReliabilityBank
from tests.helpers import never_waits
from tests.oracles import mixing as oracle
from tests.ranks import free_port, start

IMAGES, CLASSES, SIZE = 9, 4, (6, 7)


def snapshot(seed, images=IMAGES, size=SIZE):
    """Labels with some ignored and some out of range, class 3 absent from the even images; confidences with a NaN."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (images, *size), generator=generator)
    labels[::2][labels[::2] == 3] = 2
    draws = torch.rand(images, *size, generator=generator)
    labels[draws < 0.1], labels[draws > 0.97], labels[(draws > 0.5) & (draws < 0.52)] = 255, 17, -1
    confidence = torch.rand(images, *size, generator=generator)
    return labels, confidence


def feed(bank, labels, confidence, order=None, batch=4, **keywords):
    order = torch.arange(len(labels)) if order is None else order
    for part in order.split(batch):
        more = {name: value[part] for name, value in keywords.items()}
        bank.update(part, labels[part], None if confidence is None else confidence[part], **more)


def expected_iou(before, now):
    pairs = zip(before.numpy(), now.numpy(), strict=True)
    return np.array([oracle.iou_by_loops(a, b, CLASSES) for a, b in pairs])


def expected_confidence(labels, confidence):
    pairs = zip(labels.numpy(), confidence.double().numpy(), strict=True)
    return np.array([oracle.mean_confidence_by_loops(a, b, CLASSES) for a, b in pairs])


def test_by_hand():
    # Class 1 of three images: 2 of 2 pixels kept, 1 of 2, none of 2: IoU 1, 1/2, 0. Median of the positive ones
    # 3/4: only the first is a candidate.
    bank = ReliabilityBank(3, 2, (1, 2))
    before = torch.tensor([[[1, 1]], [[1, 1]], [[1, 1]]])
    now = torch.tensor([[[1, 1]], [[1, 0]], [[0, 0]]])
    feed(bank, before, torch.tensor([[[0.8, 0.6]], [[0.5, 0.5]], [[0.9, 0.9]]]))  # means 0.7, 0.5, 0.9
    bank.refresh(0)
    assert bank.candidates[:, 1].tolist() == [True, False, True]
    feed(bank, now, None)
    bank.refresh(3000)
    assert bank.iou[:, 1].tolist() == [1.0, 0.5, 0.0]
    assert bank.candidates[:, 1].tolist() == [True, False, False]
    assert not bank.candidates[:, 0].any()  # an IoU of 0 is never at or above


def test_pixels_without_a_label_before_are_left_out():
    # Class 1: of the two pixels that had a label it has kept one, and lost the other: IoU 1/2. Where there was none
    # before, the new ones do not count. Class 0 had none and got none where it counts.
    bank = ReliabilityBank(1, 2)
    before, now = torch.tensor([[[1, 1, 255, 255]]]), torch.tensor([[[1, 255, 1, 0]]])
    bank.update(torch.tensor([0]), now, previous=before)
    assert bank.iou.tolist() == [[0.0, 0.5]]


@pytest.mark.parametrize("median", ["midpoint", "rounded"])
@pytest.mark.parametrize("images", [1, 2, 3, 4, 5, 6, 7])
def test_both_medians_by_loops(median, images):
    """Of 1 to 7 images that show the class, and two that do not."""
    generator = torch.Generator().manual_seed(images)
    confidence = torch.rand(images + 2, 1, 1, generator=generator)
    labels = torch.ones(images + 2, 1, 1, dtype=torch.long)
    labels[:2] = 0
    bank = ReliabilityBank(images + 2, 3, median=median)
    feed(bank, labels, confidence)
    bank.refresh(0)
    values = expected_confidence(labels, confidence)
    expected = oracle.candidates_by_loops(values[:, :3], median)
    assert np.array_equal(bank.candidates.numpy(), expected)
    # By hand: so many of the images that show class 1 reach the median.
    reach = {"midpoint": [1, 1, 2, 2, 3, 3, 4], "rounded": [1, 1, 1, 2, 3, 3, 3]}[median]
    assert int(bank.candidates[:, 1].sum()) == reach[images - 1]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_oracle_over_three_snapshots(kept, dtype):
    bank = ReliabilityBank(IMAGES, CLASSES, SIZE if kept else None)
    shots = [snapshot(seed) for seed in range(3)]
    shots = [(labels.clamp(min=0).to(dtype), confidence) for labels, confidence in shots]
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    for number, (labels, confidence) in enumerate(shots):
        more = {} if kept or number == 0 else {"previous": shots[number - 1][0]}
        feed(bank, labels, confidence, order, **more)
        bank.refresh(3000 * number)
        means = expected_confidence(labels, confidence)
        np.testing.assert_allclose(bank.confidence.numpy(), means, rtol=1e-6)
        values = means
        if number:
            values = expected_iou(shots[number - 1][0], labels)
            np.testing.assert_allclose(bank.iou.numpy(), values, rtol=1e-6)
        assert np.array_equal(bank.candidates.numpy(), oracle.candidates_by_loops(values.astype(np.float32)))
        assert bool(bank.compared.all()) == (number > 0)
        assert int(bank.snapshots) == number + 1
        assert not bank.fresh.any()


def test_iou_of_a_prediction_with_itself_and_bf16_confidence():
    labels, confidence = snapshot(0)
    bank = ReliabilityBank(IMAGES, CLASSES, SIZE)
    feed(bank, labels, confidence.bfloat16())
    np.testing.assert_allclose(bank.confidence.numpy(), expected_confidence(labels, confidence.bfloat16()), rtol=1e-6)
    bank.refresh(0)
    feed(bank, labels, None)
    assert torch.equal(bank.iou, (bank.iou > 0).float())
    assert torch.equal(bank.iou > 0, torch.stack([(labels == c).flatten(1).any(1) for c in range(CLASSES)], 1))


def test_nan_and_missing_confidence():
    labels, confidence = snapshot(0)
    bank = ReliabilityBank(IMAGES, CLASSES)
    confidence[0, 0] = float("nan")
    feed(bank, labels, confidence)
    np.testing.assert_allclose(
        bank.confidence.numpy(), expected_confidence(labels, confidence.nan_to_num(0.0)), rtol=1e-6
    )
    without = ReliabilityBank(IMAGES, CLASSES)
    feed(without, labels, None)
    without.refresh(0)
    assert not without.candidates.any()


def test_an_image_counts_once_a_snapshot():
    """As when a DistributedSampler pads: the second labels are passed over, and so is what they would replace."""
    first, second, third = (snapshot(seed) for seed in range(3))
    bank, once = ReliabilityBank(IMAGES, CLASSES, SIZE), ReliabilityBank(IMAGES, CLASSES, SIZE)
    for target in (bank, once):
        feed(target, *first)
        target.refresh(0)
        feed(target, *second)
    feed(bank, *third)
    feed(bank, second[0], None, torch.tensor([3, 3, 1]))
    for target in (bank, once):
        target.refresh(1)
    for name, value in once.state_dict().items():
        assert torch.equal(bank.state_dict()[name], value), name


def test_images_left_out_keep_what_they_had():
    bank = ReliabilityBank(IMAGES, CLASSES, SIZE)
    shots = [snapshot(seed) for seed in range(4)]
    feed(bank, *shots[0], torch.arange(7))
    bank.refresh(0)
    assert not bank.candidates[7:].any()
    feed(bank, *shots[1], torch.arange(2, 9))  # 0 and 1 are left out, 7 and 8 are new
    bank.refresh(1)
    assert bank.compared.tolist() == [False] * 2 + [True] * 5 + [False] * 2
    means = np.concatenate([expected_confidence(*shots[0])[:2], expected_confidence(*shots[1])[2:]])
    iou = expected_iou(shots[0][0], shots[1][0])
    iou[~bank.compared.numpy()] = 0
    by_iou, by_means = (oracle.candidates_by_loops(values.astype(np.float32)) for values in (iou, means))
    expected = np.where(bank.compared.numpy()[:, None], by_iou, by_means)
    assert np.array_equal(bank.candidates.numpy(), expected)
    feed(bank, *shots[2])
    bank.refresh(2)
    before = torch.cat([shots[0][0][:2], shots[1][0][2:]])
    np.testing.assert_allclose(bank.iou.numpy(), expected_iou(before, shots[2][0]), rtol=1e-6)


@pytest.mark.parametrize("size", [(3, 7), (4, 5), (11, 2)])
def test_labels_are_kept_smaller(size):
    bank = ReliabilityBank(IMAGES, CLASSES, size)
    rows = [int((i + 0.5) * SIZE[0] / size[0]) for i in range(size[0])]
    columns = [int((j + 0.5) * SIZE[1] / size[1]) for j in range(size[1])]
    small = []
    for seed in range(2):
        labels, confidence = snapshot(seed)
        small.append((labels[:, rows][:, :, columns], confidence[:, rows][:, :, columns]))
        feed(bank, labels, confidence)
        bank.refresh(seed)
    expected = small[1][0].clone()
    expected[(expected < 0) | (expected >= CLASSES)] = 255
    assert torch.equal(bank.labels, expected.to(torch.uint8))
    np.testing.assert_allclose(bank.iou.numpy(), expected_iou(small[0][0], small[1][0]), rtol=1e-6)
    np.testing.assert_allclose(bank.confidence.numpy(), expected_confidence(*small[1]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_filter(dtype):
    bank = ReliabilityBank(IMAGES, CLASSES)
    bank.candidates.copy_(torch.rand(IMAGES, CLASSES, generator=torch.Generator().manual_seed(3)) < 0.5)
    labels = snapshot(5, 3, (4, 9))[0].clamp(min=0).to(dtype)
    indices = torch.tensor([4, 0, 4], dtype=torch.int32)
    before = labels.clone()
    out = bank.filter(labels, indices)
    assert out.dtype == dtype
    assert torch.equal(labels, before)
    for b, image in enumerate(indices.tolist()):
        for label, kept in zip(labels[b].flatten().tolist(), out[b].flatten().tolist(), strict=True):
            assert kept == (label if label < CLASSES and bank.candidates[image, label] else 255)
    other = ReliabilityBank(IMAGES, CLASSES, ignore_index=CLASSES)
    other.candidates.fill_(True)
    assert torch.equal(other.filter(labels, indices) == CLASSES, labels >= CLASSES)
    assert bank.filter(labels[:0], indices[:0]).shape == (0, 4, 9)


def test_the_first_of_an_image_counts_inside_a_batch():
    """The second one's values were taken, though the text said otherwise."""
    shots = [snapshot(seed) for seed in range(3)]
    for size in (SIZE, None):
        bank, once = ReliabilityBank(IMAGES, CLASSES, size), ReliabilityBank(IMAGES, CLASSES, size)
        for step, (labels, confidence) in enumerate(shots):
            more = {"previous": shots[step - 1][0]} if step and size is None else {}
            twice = torch.tensor([4, 2, 4, 4, 0, 2])
            rows = torch.tensor([4, 2, 7, 8, 0, 1])  # what is said of the repeated ones is another image's
            bank.update(twice, labels[rows], confidence[rows], **{name: value[rows] for name, value in more.items()})
            feed(once, labels, confidence, torch.tensor([4, 2, 0]), **more)
            for target in (bank, once):
                target.refresh(step)
        for name, value in once.state_dict().items():
            assert torch.equal(bank.state_dict()[name], value), name


def test_due():
    bank = ReliabilityBank(2, 2)
    assert bank.every_steps == 3000  # the paper's
    assert bank.due(0)
    assert bank.due(17)
    bank.refresh(100)
    assert not bank.due(100)
    assert not bank.due(3099)
    assert bank.due(3100)
    often = ReliabilityBank(2, 2, every_steps=5)
    often.refresh(0)
    assert (often.due(4), often.due(5)) == (False, True)


def test_empty_batches_and_inputs_kept():
    bank = ReliabilityBank(IMAGES, CLASSES, SIZE)
    labels, confidence = snapshot(0)
    bank.update(torch.zeros(0, dtype=torch.long), labels[:0], confidence[:0])
    assert not bank.fresh.any()
    before = labels.clone(), confidence.clone()
    feed(bank, labels, confidence)
    assert torch.equal(labels, before[0])
    assert torch.equal(confidence, before[1])
    ignored = torch.full_like(labels, 255)
    bank.refresh(0)
    feed(bank, ignored, confidence)
    bank.refresh(1)
    assert not bank.iou.any()
    assert not bank.candidates.any()


def test_state_dict_in_the_middle_of_a_snapshot(tmp_path):
    shots = [snapshot(seed) for seed in range(3)]
    straight, first, resumed = (ReliabilityBank(IMAGES, CLASSES, SIZE) for _ in range(3))
    for bank in (straight, first):
        feed(bank, *shots[0])
        bank.refresh(70)
        feed(bank, *shots[1], torch.arange(5))
    torch.save(first.state_dict(), tmp_path / "bank.pt")
    resumed.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    assert not resumed.due(3069)
    for bank in (straight, copy.deepcopy(resumed), resumed):
        feed(bank, *shots[1], torch.arange(3, 9))
        bank.refresh(3070)
        feed(bank, *shots[2])
        bank.refresh(6070)
        for name, value in straight.state_dict().items():
            assert torch.equal(bank.state_dict()[name], value), name


def test_labels_stay_on_the_cpu():
    bank = ReliabilityBank(2, 3, (2, 2)).to("meta")
    assert bank.iou.device.type == bank.candidates.device.type == "meta"
    assert bank.labels.device.type == bank.last_step.device.type == "cpu"
    assert bank.due(0)
    assert bank.labels.numel() * bank.labels.element_size() == 8


@pytest.mark.gpu
@pytest.mark.parametrize("kept", [True, False])
def test_gpu_equals_cpu(kept):
    size = SIZE if kept else None
    cpu, gpu = ReliabilityBank(IMAGES, CLASSES, size), ReliabilityBank(IMAGES, CLASSES, size).cuda()
    before = None
    for step in range(3):
        labels, confidence = snapshot(step)
        more = {} if kept or before is None else {"previous": before}
        feed(cpu, labels, confidence, **more)
        with nullcontext() if kept else never_waits():
            there = {name: value.cuda(non_blocking=True) for name, value in more.items()}
            gpu.update(
                torch.arange(IMAGES, device="cuda"),
                labels.pin_memory().cuda(non_blocking=True),
                confidence.pin_memory().cuda(non_blocking=True),
                **there,
            )
        cpu.refresh(step)
        gpu.refresh(step)
        before = labels.pin_memory()
        for name, value in cpu.state_dict().items():
            torch.testing.assert_close(gpu.state_dict()[name].cpu(), value, msg=name)


# --- ranks


def run(rank, port, folder):
    """One rank: its images of three snapshots, with one image on both ranks as when a sampler pads."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    bank = ReliabilityBank(IMAGES, CLASSES, SIZE)
    holder = torch.nn.Linear(2, 1)
    holder.bank = bank
    wrapped = torch.nn.parallel.DistributedDataParallel(holder)
    for seed in range(3):
        feed(bank, *snapshot(seed), torch.tensor([0, 2, 4, 6, 8] if rank == 0 else [1, 3, 5, 7, 0]))
        wrapped(torch.ones(1, 2))  # would overwrite buffers with those of rank 0
        bank.refresh(seed)
    index = ClassIndex(torch.ones(IMAGES, CLASSES, dtype=torch.long), torch.full((IMAGES,), CLASSES))
    order = list(ClassBalancedSampler(index, candidates=bank.candidates, num_samples=40))
    torch.save({"bank": bank.state_dict(), "order": order}, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    start(run, free_port(), str(tmp_path), ranks=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = ReliabilityBank(IMAGES, CLASSES, SIZE)
    for seed in range(3):
        feed(alone, *snapshot(seed))
        alone.refresh(seed)
    assert alone.candidates.any()
    for result in results:
        for name in ("iou", "confidence", "candidates", "compared", "snapshots", "last_step", "fresh"):
            assert torch.equal(result["bank"][name], alone.state_dict()[name]), name
    kept = results[0]["bank"]["kept"]
    assert kept.tolist() == [True, False] * 4 + [True]
    assert torch.equal(results[0]["bank"]["labels"][kept], alone.labels[kept])
    # The sampler takes its rank from the process group.
    index = ClassIndex(torch.ones(IMAGES, CLASSES, dtype=torch.long), torch.full((IMAGES,), CLASSES))
    together = [image for pair in zip(*(result["order"] for result in results), strict=True) for image in pair]
    assert together == list(ClassBalancedSampler(index, candidates=alone.candidates, num_samples=40))


# --- errors


def test_bad_arguments():
    def fails(error, message, *arguments, **keywords):
        with pytest.raises(error, match=message):
            ReliabilityBank(*arguments, **keywords)

    fails(TypeError, "`num_images`", 2.0, 2)
    fails(ValueError, "`num_images`", 0, 2)
    fails(TypeError, "`num_classes`", 2, None)
    fails(ValueError, "`num_classes`", 2, 0)
    fails(ValueError, "`num_classes`: expected at most 255 with `size`, got 256", 2, 256, (1, 1), ignore_index=-1)
    fails(ValueError, r"`size`: expected \(height, width\), got 5", 2, 2, 5)
    fails(ValueError, r"`size\[0\]`", 2, 2, (0, 1))
    fails(ValueError, "`median`: expected one of 'midpoint', 'rounded', got 'mean'", 2, 2, median="mean")
    fails(TypeError, r"`size\[1\]`", 2, 2, (1, 1.5))
    fails(TypeError, "`every_steps`", 2, 2, every_steps=0.5)
    fails(ValueError, "`every_steps`", 2, 2, every_steps=0)
    fails(TypeError, "`ignore_index`", 2, 2, ignore_index=None)
    assert ReliabilityBank(2, 256, ignore_index=-1).num_classes == 256
    assert "num_images=2, num_classes=3, size=(4, 5)" in repr(ReliabilityBank(2, 3, (4, 5)))


def test_bad_updates():
    bank = ReliabilityBank(IMAGES, CLASSES)
    labels, confidence = snapshot(0, 2)
    indices = torch.tensor([0, 1])

    def fails(error, message, *arguments, **keywords):
        with pytest.raises(error, match=message):
            bank.update(*arguments, **keywords)
        if not keywords and len(arguments) == 2:
            with pytest.raises(error, match=message):
                bank.filter(arguments[1], arguments[0])

    fails(TypeError, "`labels`: expected an integer dtype", indices, labels.float())
    fails(ValueError, r"`labels`: expected \(B, H, W\)", indices, labels[0])
    fails(ValueError, r"`labels`: expected at least one pixel", indices, labels[:, :0])
    fails(TypeError, "`indices`: expected an integer dtype", indices.float(), labels)
    fails(ValueError, r"`indices`: expected \(B,\) = \(2,\), got \(1,\)", indices[:1], labels)
    fails(TypeError, "`confidence`: expected a floating-point dtype", indices, labels, labels)
    fails(ValueError, r"`confidence`: expected \(B, H, W\) = \(2, 6, 7\)", indices, labels, confidence[:1])
    fails(TypeError, "`previous`: expected an integer dtype", indices, labels, previous=confidence)
    fails(ValueError, r"`previous`: expected \(B, H, W\)", indices, labels, previous=labels[:, 1:])
    fails(ValueError, "`confidence`: expected device cpu", indices, labels, confidence.to("meta"))
    fails(ValueError, "`previous`: expected device cpu", indices, labels, previous=labels.to("meta"))
    for wrong in (9, -1):  # -1 was the last image
        with value_checks(wrong == 9):
            fails(ValueError, rf"`indices`: expected values in \[0, 9\), got {wrong}", torch.tensor([0, wrong]), labels)
    with pytest.raises(ValueError, match="`previous`: expected None, as this bank keeps the labels"):
        ReliabilityBank(IMAGES, CLASSES, SIZE).update(indices, labels, previous=labels)
    with pytest.raises(TypeError, match="`step`"):
        bank.refresh(1.5)
    with pytest.raises(ValueError, match="`step`"):
        bank.refresh(-1)
    ahead = ReliabilityBank(IMAGES, CLASSES)
    ahead.refresh(5000)
    with pytest.raises(ValueError, match="`step`: expected at least 5000, the step of the last snapshot, got 10"):
        ahead.refresh(10)
    ahead.reset()
    ahead.refresh(10)
    assert not bank.fresh.any()
