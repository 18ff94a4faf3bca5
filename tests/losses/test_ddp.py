"""Two processes, one of which has nothing to learn from in its batch, and then neither."""

import os
import time

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn

from selftrain_seg import losses
from tests.losses.cases import make_labels, make_logits
from tests.ranks import free_port, start


def loss_of(logits, labels):
    confidence = torch.full(labels.shape, 0.5)
    mutual = losses.dynamic_mutual_loss(logits, labels, confidence, gamma_agree=1.0, gamma_disagree=1.0)
    soft = torch.zeros_like(logits).masked_fill((labels != 255)[:, None], 1 / logits.shape[1])
    return (
        losses.mrkld_loss(logits, labels)
        + losses.mrent_loss(logits, labels)
        + losses.region_guided_loss(logits, labels, ignored_weight=0.0)
        + losses.dynamic_loss(logits, labels, gamma=1.0)
        + losses.cross_entropy(logits, soft)
        + losses.symmetric_loss(logits, labels)
        + mutual
    )


def batch(rank):
    return make_logits((1, 3, 4, 5), torch.float32, seed=rank), make_labels((1, 3, 4, 5), seed=rank)


def work(rank, port, results):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Conv2d(3, 3, 1))
    for step in range(2):
        images, labels = batch(rank)
        if rank == 1 or step == 1:
            labels = torch.full_like(labels, 255)
        model.zero_grad()
        loss = loss_of(model(images), labels)
        loss.backward()
        results[(rank, step)] = (loss.item(), model.module.weight.grad.flatten().tolist())
    dist.destroy_process_group()


def test_a_rank_without_labels_does_not_hang():
    with mp.get_context("forkserver").Manager() as manager:
        results = manager.dict()
        context = start(work, free_port(), results, ranks=2, join=False)
        deadline = time.monotonic() + 120
        while not context.join(timeout=1):  # raises what a process raised
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                pytest.fail("the processes wait for one another")
        results = dict(results)
    assert results[1, 0][0] == results[0, 1][0] == results[1, 1][0] == 0.0
    # Gradients are averaged over ranks: half of what the one rank with labels has, the same on both.
    torch.manual_seed(0)
    model = nn.Conv2d(3, 3, 1)
    images, labels = batch(0)
    loss_of(model(images), labels).backward()
    half = (model.weight.grad.flatten() / 2).tolist()
    for rank in range(2):
        torch.testing.assert_close(results[rank, 0][1], half, rtol=1e-4, atol=1e-7)
        assert not any(results[rank, 1][1])
