"""A run that is stopped, saved and resumed gives what the uninterrupted one gives, to the bit."""

import io

import pytest
import torch
from torch.nn import functional as F

from selftrain_seg.teachers import DualTeacher, DynamicTeacher, MeanTeacher
from tests.teachers.nets import CLASSES, Net, assert_same, images, snapshot

STEPS, SWITCH = 24, 5
TEACHERS = {
    "mean": lambda student: MeanTeacher(student, momentum=0.95),
    "mean, averaged buffers, train mode": lambda student: MeanTeacher(
        student, momentum=0.95, buffers="average", train_mode=True, dropout=True
    ),
    "mean, half": lambda student: MeanTeacher(student, momentum=0.95, buffers="average").bfloat16(),
    "dual": DualTeacher,
    "dynamic": lambda student: DynamicTeacher(student, first=3, every=2, most=6),
    "dynamic, entropy": lambda student: DynamicTeacher(student, score="entropy", first=3, every=1, most=6),
}


class Run:
    """A training loop with its state: student, teacher, optimizer and random numbers."""

    def __init__(self, kind, seed):
        self.student = Net(seed).train()
        self.teacher = TEACHERS[kind](self.student)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.2, momentum=0.9)

    def train(self, start, stop):
        decisions = []
        for step in range(start, stop):
            if isinstance(self.teacher, DualTeacher) and step and step % SWITCH == 0:
                self.teacher.switch()
            batch = images(step)
            labels = self.teacher(batch.to(next(self.teacher.parameters()).dtype)).argmax(1)
            truth = (batch.sum(1) * 1.5).long().clamp(max=CLASSES - 1)
            logits = self.student(batch)
            loss = F.cross_entropy(logits, truth) + 0.1 * F.cross_entropy(logits, labels)
            if isinstance(self.teacher, DynamicTeacher):
                self.teacher.observe(batch, self.student)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            decisions.append(self.teacher.update(self.student))
        return decisions

    def save(self):
        file = io.BytesIO()
        state = {name: getattr(self, name).state_dict() for name in ("student", "teacher", "optimizer")}
        torch.save({**state, "random": torch.get_rng_state()}, file)
        file.seek(0)
        return file

    def load(self, file):
        state = torch.load(file, weights_only=True)
        for name in ("student", "teacher", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["random"])


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("middle", [1, 7, 13])
def test_resumed_is_uninterrupted(kind, middle):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        whole = Run(kind, 0)
        decisions = whole.train(0, STEPS)

        torch.manual_seed(5)
        first = Run(kind, 0)
        before = first.train(0, middle)
        file = first.save()
        torch.manual_seed(99)
        second = Run(kind, 1)  # another process: other weights, to be replaced
        second.load(file)
        after = second.train(middle, STEPS)
    assert before + after == decisions
    assert_same(snapshot(second.student), snapshot(whole.student))
    assert_same(snapshot(second.teacher), snapshot(whole.teacher))
    assert torch.equal(
        second.teacher.eval()(images().to(next(second.teacher.parameters()).dtype)).isnan().any(), torch.tensor(False)
    )
    if kind.startswith("dynamic"):
        assert repr(second.teacher.history) == repr(whole.teacher.history)  # NaN prints alike but differs from itself
        assert any(decisions)
        assert not all(decisions)
        queries = zip(second.teacher._queries, whole.teacher._queries, strict=True)
        for one, two in queries:
            assert all(torch.equal(*parts) for parts in zip(one.images, two.images, strict=True))
            assert torch.equal(one.score, two.score)
            assert one.seed == two.seed
        assert second.teacher.stored == whole.teacher.stored
    if kind == "dual":
        assert (second.teacher.active, second.teacher.turn.item()) == (0, 4)
    if kind.startswith("mean"):
        assert second.teacher.next_momentum == whole.teacher.next_momentum == 0.95


def test_a_saved_state_does_not_change_afterwards():
    """The lists in the extra state are the checkpoint's own."""
    run = Run("dynamic", 0)
    run.train(0, 2)
    state = run.teacher.state_dict()["_extra_state"]
    run.train(2, 4)
    assert len(state["images"]) == 2
    assert state["history"] == []


def test_kept_batches_return_to_where_they_are_kept():
    run = Run("dynamic", 0)
    run.train(0, 2)
    teacher = DynamicTeacher(Net(1), first=3, every=2, most=6, store_on=None)
    teacher.load_state_dict(run.teacher.state_dict())
    assert teacher.stored == 2
    for one in (teacher, run.teacher):
        one.observe(images(2), run.student)
        one.update(run.student)
    assert teacher.history == run.teacher.history != []
