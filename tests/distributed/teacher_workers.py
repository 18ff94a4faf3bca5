"""What each rank of the distributed tests of teachers runs. Its own module, so that spawned processes import it."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.teachers import (
    AgreementStatistics,
    DualTeacher,
    DynamicTeacher,
    MeanTeacher,
    parameter_distance,
)
from tests.helpers import random_logits
from tests.teachers.nets import CLASSES, Net, images

RANKS, STEPS, SWITCH = 2, 20, 6
FIRST, EVERY, MOST = 3, 2, 8
KINDS = ("mean", "average", "dual", "dynamic", "dynamic snd")


def make(kind: str, student: nn.Module) -> nn.Module:
    if kind == "mean":
        return MeanTeacher(student, momentum=0.9, sync_buffers=True)
    if kind == "average":
        return MeanTeacher(student, momentum=0.9, buffers="average", sync_buffers=True)
    if kind == "dual":
        return DualTeacher(student, momentum=0.9, sync_buffers=True)
    score = "snd" if kind == "dynamic snd" else "entropy"
    return DynamicTeacher(student, momentum=0.7, score=score, first=FIRST, every=EVERY, most=MOST)


def batch_of(step: int, ranks: list[int]) -> Tensor:
    """The ranks' images of a step: bright on the first, dark on the second, so that they would decide differently."""
    return torch.cat([images(100 * step + rank) * (1.0, 0.3)[rank] for rank in ranks])


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def train(kind: str, norm: str, ranks: list[int], *, wrap: bool) -> dict[str, Any]:
    """Twenty steps on the images of ``ranks``; what came of them."""
    network = Net(0, norm)
    student = DistributedDataParallel(network) if wrap else network
    teacher = make(kind, network)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.3)
    students, updated = [tensors(network)], []  # after 0, 1, 2, … steps
    torch.manual_seed(ranks[0])  # dropout differs between ranks, as it should
    for step in range(STEPS):
        if isinstance(teacher, DualTeacher) and step and step % SWITCH == 0:
            teacher.switch()
        batch = batch_of(step, ranks)
        labels = teacher(batch).argmax(1)
        truth = (batch.sum(1) * 1.5).long().clamp(max=CLASSES - 1)
        logits = student(batch)
        loss = F.cross_entropy(logits, truth) + 0.1 * F.cross_entropy(logits, labels)
        if isinstance(teacher, DynamicTeacher):
            teacher.observe(batch, student)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        students.append(tensors(network))
        updated.append(teacher.update(student))
    out = {"teacher": tensors(teacher), "students": students, "updated": updated}
    if isinstance(teacher, DynamicTeacher):
        out["history"] = [list(decision) for decision in teacher.history]
    return out


def logits_of(rank: int) -> tuple[Tensor, Tensor]:
    """Of uneven batches."""
    return random_logits(2 + rank, 4, 6, 5, seed=rank), random_logits(2 + rank, 4, 6, 5, seed=10 + rank)


def agreement(ranks: list[int]) -> list[Tensor]:
    statistics = AgreementStatistics(4)
    for rank in ranks:
        statistics.update(*logits_of(rank))
    return list(statistics.compute())


def sharded() -> dict[str, Any]:
    """Teachers of a student that FSDP2 has sharded, beside the same ones whole: tensors of both, and the errors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (RANKS,))

    def shard(network: nn.Module) -> nn.Module:
        fully_shard(network.first, mesh=mesh)
        return fully_shard(network, mesh=mesh)

    def whole(network: nn.Module) -> dict[str, Tensor]:
        values = network.state_dict().items()
        return {name: getattr(value, "full_tensor", value.clone)() for name, value in values}

    out: dict[str, Any] = {}
    for kind in ("mean", "dynamic"):
        student, twin = Net(0, "group"), Net(0, "group")
        teacher, reference = make(kind, student), make(kind, twin)
        inner = [getattr(one, "teacher", one).model for one in (teacher, reference)]
        shard(student)
        shard(inner[0])
        optimizer = torch.optim.SGD(student.parameters(), lr=0.3)
        same = []
        for step in range(8):
            batch = batch_of(step, [dist.get_rank()])
            answer = teacher(batch)  # leaves the root's parameters gathered, which the update must not fall for
            same.append(torch.allclose(answer, reference(batch), atol=1e-6))
            loss = F.cross_entropy(student(batch), answer.argmax(1)) + student(batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            twin.load_state_dict(whole(student))
            for one, network in ((teacher, student), (reference, twin)):
                if kind == "dynamic":
                    one.observe(batch, network)
                one.update(network)
        with torch.no_grad():  # leaves roots gathered again, for the distance this time
            teacher(batch)
            student(batch)
        distances = [parameter_distance(inner[0], student), parameter_distance(inner[1], twin)]
        out[kind] = {
            "sharded": whole(inner[0]),
            "whole": whole(inner[1]),
            "answers": same,
            "distances": distances,
            "local": sum(
                value.to_local().numel() for value in inner[0].state_dict().values() if hasattr(value, "to_local")
            ),
        }

    def error_of(call: Any) -> str:
        try:
            call()
        except ValueError as error:
            return str(error)
        return "no error"

    student = Net(0, "group")
    teacher = MeanTeacher(student)
    half_student = Net(0, "group").bfloat16()
    half = MeanTeacher(half_student)
    shard(student)
    shard(half_student)
    shard(half.model)
    out["errors"] = {
        "only the student": error_of(lambda: teacher.update(student)),
        "only the teacher": error_of(lambda: half.update(Net(0, "group").bfloat16())),
        "half precision": error_of(lambda: half.update(half_student)),
        "made too late": error_of(lambda: MeanTeacher(student)),
    }
    return out


def on_rank_0(rank: int) -> list[dict[str, Tensor]]:
    """Teachers that rank 0 alone keeps, as an average for validation is kept, of a student with BatchNorm."""
    student = Net(0, "batch").train()
    with torch.no_grad():
        student(batch_of(0, [rank]))
    if rank:
        return []
    teachers: list[Any] = [MeanTeacher(student, buffers=kind) for kind in ("copy", "average", "keep")]
    teachers.append(DualTeacher(student))
    for teacher in teachers:
        teacher.update(student)  # if it were a collective, it would take part in the other rank's sum, or wait for it
    return [tensors(teacher) for teacher in teachers]


def run(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # Ranks that fell out of step would wait for each other: then fail, and soon.
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, timeout=timedelta(minutes=2))
    assert dist.get_world_size() == RANKS
    result: dict[str, Any] = {
        f"{kind}, {norm}": train(kind, norm, [rank], wrap=True) for kind in KINDS for norm in ("group", "batch")
    }
    alone = Net(rank)
    own = MeanTeacher(alone)
    alone.train()(batch_of(0, [rank]))
    own.update(alone)
    result["not synchronised"] = tensors(own)
    result["student of it"] = tensors(alone)
    result["on rank 0"] = on_rank_0(rank)
    result["sum after it"] = all_reduce_sum(torch.tensor([rank + 1]))
    result["agreement"] = agreement([rank])
    try:
        from torch.distributed.fsdp import fully_shard  # noqa: F401
    except ImportError:
        result["sharded"] = None
    else:
        result["sharded"] = sharded()
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
