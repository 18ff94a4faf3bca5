import io
import math

import pytest
import torch
from torch import nn

from selftrain_seg.teachers import DynamicTeacher, entropy_score, soft_neighbourhood_density
from selftrain_seg.teachers._kept import unpack
from tests.oracles import teachers as oracle
from tests.teachers.nets import Net, assert_same, images, shake, snapshot


class Scripted(nn.Module):
    """Logits ``a x_0 + b x_1`` against 0: the score of a batch grows with the size of a, or of b, alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, images):
        logits = torch.einsum("c,bchw->bhw", self.weight, images[:, :2])
        return torch.stack([logits, torch.zeros_like(logits)], dim=1)


def batch_of(kind):
    out = torch.zeros(1, 3, 2, 2)
    out[:, kind] = 1
    return out


def script(calls, seed):
    """The two weights before each step and after the last, on a coarse grid for ties, and the kinds of batch."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(-1, 3, (calls + 1, 2), generator=generator)
    weights = 0.5 + 0.05 * steps.cumsum(0).remainder(40)
    return weights.tolist(), torch.randint(0, 2, (calls,), generator=generator).tolist()


def play(teacher, weights, kinds):
    """Whether each step updated the teacher, and the teacher's weights after it."""
    student, updated, states = Scripted(), [], []
    student.weight.data.copy_(torch.tensor(weights[0]))
    for values, kind in zip(weights[1:], kinds, strict=True):
        teacher.observe(batch_of(kind), student)
        student.weight.data.copy_(torch.tensor(values))  # the optimizer's step
        updated.append(teacher.update(student))
        states.append(teacher.teacher.model.weight.tolist())
    return updated, states


def watch(teacher, batch, student):
    """A step in which the student learns nothing."""
    teacher.observe(batch, student)
    return teacher.update(student)


def score_by_hand(weights, kinds):
    def score(call, batch, rank):
        return oracle.entropy_by_loops([(weights[call][kinds[batch]], 0.0)])

    return score


@pytest.mark.parametrize(("first", "every", "most"), [(9, 3, 30), (2, 1, 4), (4, 5, 11), (1, 2, 3), (3, 2, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_decisions_by_loops(first, every, most, seed):
    weights, kinds = script(140, seed)
    teacher = DynamicTeacher(Scripted(), momentum=0.9, score="entropy", first=first, every=every, most=most)
    updated, states = play(teacher, weights, kinds)
    expected = oracle.decisions_by_loops(140, score_by_hand(weights, kinds), first=first, every=every, most=most)
    assert [tuple(decision) for decision in teacher.history] == [
        (call, stored, pytest.approx(share, nan_ok=True), update) for call, stored, share, update in expected
    ]
    when = [call - 1 for call, _, _, update in expected if update]
    assert [call for call, happened in enumerate(updated) if happened] == when
    value, follows = [0.0, 0.0], iter(when)
    due = next(follows, None)
    for call, state in enumerate(states):
        if call == due:
            value = oracle.averages_by_loops(value, [weights[call + 1]], [0.9])
            due = next(follows, None)
        assert state == pytest.approx(value, rel=1e-5)
    assert when
    assert teacher.observed.item() == 140
    assert max(stored for _, stored, _, _ in expected) <= max(first, most + every)


def test_both_ways_to_an_update_occur():
    """So that the test above tests something: improvement, a full buffer, and refusals."""
    improved = full = refused = 0
    for seed in range(3):
        weights, kinds = script(140, seed)
        for _, _, share, update in oracle.decisions_by_loops(
            140, score_by_hand(weights, kinds), first=2, every=1, most=4
        ):
            improved += update and share > 0.5
            full += math.isnan(share)
            refused += not update
    assert improved > 5
    assert full > 5
    assert refused > 5


def test_exactly_half_is_not_enough():
    # In the fourth step the first weight rises: better on the first two batches, the same on the other kind.
    teacher = DynamicTeacher(Scripted(), score="entropy", first=2, every=2, most=50)
    weights = [(1.0, 1.0)] * 4 + [(2.0, 1.0)]
    assert play(teacher, weights, [0, 0, 1, 1])[0] == [False] * 4
    assert [decision.improved for decision in teacher.history] == [0.0, 0.5]
    # One batch more of the first kind: 3 of 5.
    teacher = DynamicTeacher(Scripted(), score="entropy", first=5, every=1, most=50)
    weights = [(1.0, 1.0)] * 5 + [(2.0, 1.0)]
    assert play(teacher, weights, [0, 0, 0, 1, 1])[0] == [False] * 4 + [True]
    assert teacher.history == [(5, 5, pytest.approx(0.6), True)]
    assert teacher.stored == 0


def test_the_newest_batch_is_compared_with_the_student_that_has_learnt_from_it():
    # One step, one batch: it was scored before the step, so it has improved by it.
    teacher = DynamicTeacher(Scripted(), score="entropy", first=1, every=1, most=50)
    assert play(teacher, [(1.0, 1.0), (2.0, 1.0)], [0])[0] == [True]
    assert teacher.history == [(1, 1, 1.0, True)]


def test_several_batches_a_step():
    """With accumulated gradients: decisions come after the step in which enough batches have come."""
    student = Scripted()
    teacher = DynamicTeacher(student, first=3, every=3, most=8)
    decided = []
    for _ in range(8):
        for _ in range(2):
            teacher.observe(batch_of(0), student)
        decided.append(len(teacher.history))
        updated = teacher.update(student)
        assert teacher.update(student) is False  # nothing new: no decision
        decided[-1] = (len(teacher.history) - decided[-1], updated)
    # 4 are kept, then 8 at the second decision, and 12 > 8 at the third.
    assert [decision.stored for decision in teacher.history] == [4, 8, 12, 4]
    assert decided == [(0, False), (1, False), (0, False), (1, False), (0, False), (1, True), (0, False), (1, False)]


def test_without_update_it_is_said_before_memory_is_full():
    student = Scripted()
    teacher = DynamicTeacher(student, first=2, every=1, most=4)
    for _ in range(5):
        teacher.observe(batch_of(0), student)
    with pytest.raises(RuntimeError, match=r"`observe`: 5 batches are stored .* call `update\(student\)` after each"):
        teacher.observe(batch_of(0), student)
    assert teacher.stored == 5
    assert teacher.update(student)
    teacher.observe(batch_of(0), student)


def test_defaults_are_those_of_the_paper():
    teacher = DynamicTeacher(Scripted())
    assert (teacher.score, teacher.first, teacher.every, teacher.most) == ("snd", 9, 3, 30)
    assert (teacher.teacher.momentum, teacher.teacher.warmup) == (0.99, False)
    assert teacher.store_on == torch.device("cpu")
    assert "score='snd', first=9, every=3, most=30" in repr(teacher)
    student = Scripted()
    updated = [watch(teacher, batch_of(0), student) for _ in range(70)]  # never better: only when 33 > 30 are kept
    assert [call + 1 for call, happened in enumerate(updated) if happened] == [33, 66]
    assert [decision.step for decision in teacher.history[:4]] == [9, 12, 15, 18]
    assert teacher.stored == 4


@pytest.mark.parametrize("score", ["snd", "entropy"])
def test_scores_are_the_public_functions_in_evaluation_mode(score):
    student = Net().train()
    teacher = DynamicTeacher(student, score=score, first=100, most=100)
    for step in range(3):
        student(images(step))
        batch = images(step, batch=2, size=(9, 16))  # 288 pixels: SND draws 100 of them
        teacher.observe(batch, student)
        with torch.no_grad():
            logits = student.eval()(unpack(teacher._queries[step].images))
        student.train()
        if score == "snd":
            generator = torch.Generator().manual_seed(step)
            expected = soft_neighbourhood_density(logits, generator=generator)
        else:
            expected = entropy_score(logits)
        assert torch.equal(teacher._queries[step].score, expected)


def test_the_same_student_never_improves_though_pixels_are_random():
    student = Net().train()  # with dropout, were it not put into evaluation mode
    teacher = DynamicTeacher(student, first=1, every=1, most=12)
    for step in range(12):
        watch(teacher, images(step, size=(16, 16)), student)
    assert [decision.improved for decision in teacher.history] == [0.0] * 12


def test_other_batches_have_other_pixels():
    """One batch twice, the same student: with the same pixels the two scores would be equal."""
    student = Net()
    teacher = DynamicTeacher(student, first=100, most=100)
    for _ in range(2):
        teacher.observe(images(size=(40, 40)), student)
    assert teacher._queries[0].score != teacher._queries[1].score


def test_student_is_not_changed():
    student = Net().train()
    student.norm.eval()
    modes = [module.training for module in student.modules()]
    teacher = DynamicTeacher(student, first=1, every=1, most=2)
    before, state = snapshot(student), torch.get_rng_state()
    for step in range(4):
        watch(teacher, images(step), student)
    teacher(images())
    assert_same(snapshot(student), before)
    assert [module.training for module in student.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("as_bytes", [True, False])
def test_kept_batches_are_copies(as_bytes):
    student, batch = Net(), images().requires_grad_()
    before = batch.detach().clone()
    for store_on in ("cpu", None, torch.device("cpu")):
        teacher = DynamicTeacher(student, first=3, store_on=store_on, as_bytes=as_bytes)
        teacher.observe(batch, student)
        kept = teacher._queries[0].images
        assert kept.values.data_ptr() != batch.data_ptr()
        assert not kept.values.requires_grad
        assert kept.values.dtype == (torch.uint8 if as_bytes else torch.float32)
        assert as_bytes or torch.equal(kept.values, batch)
        assert teacher.stored == 1
        assert torch.equal(batch, before)


def size_of(teacher):
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    return file.tell()


def test_a_checkpoint_holds_a_byte_a_value():
    student, batch = Net(), images(batch=4, size=(64, 96))
    sizes = {}
    for as_bytes in (True, False):
        teacher = DynamicTeacher(student, as_bytes=as_bytes)
        empty = size_of(teacher)
        for _ in range(5):
            teacher.observe(batch, student)
        sizes[as_bytes] = (size_of(teacher) - empty) / 5
    assert batch.numel() <= sizes[True] < 1.1 * batch.numel()  # at 4 × 3 × 512 × 1024, 33 times: 208 MB, not 830
    assert sizes[False] >= 4 * batch.numel()


def test_buffers_follow_their_rule_and_the_teacher_answers():
    for buffers in ("copy", "keep"):
        student = Net()
        teacher = DynamicTeacher(student, first=1, every=1, most=1, buffers=buffers)
        before = teacher.teacher.model.norm.running_mean.clone()
        shake(student, 1)
        assert [watch(teacher, images(), student) for _ in range(2)] == [False, True]
        copied = torch.equal(teacher.teacher.model.norm.running_mean, student.norm.running_mean)
        assert copied == (buffers == "copy")
        assert torch.equal(teacher.teacher.model.norm.running_mean, before) == (buffers == "keep")
        assert torch.equal(teacher(images()), teacher.teacher(images()))
        assert not teacher(images()).requires_grad


def test_train_mode():
    student = Net()
    assert not DynamicTeacher(student).teacher.model.training
    teacher = DynamicTeacher(student, train_mode=True).eval()
    student.train().dropout.eval()
    assert torch.equal(teacher(images()), student(images()))


def test_a_student_that_fails_leaves_nothing_behind():
    class Failing(Net):
        fail = False

        def forward(self, images):
            if self.fail:
                raise RuntimeError("no memory")
            return super().forward(images)

    student = Failing().train()
    teacher = DynamicTeacher(student, first=1)
    student.fail = True
    with pytest.raises(RuntimeError, match="no memory"):
        teacher.observe(images(), student)
    assert (teacher.stored, teacher.observed.item(), teacher.history) == (0, 0, [])
    assert all(module.training for module in student.modules())


def test_another_student_is_refused_before_the_decision_counts():
    teacher = DynamicTeacher(Net(), first=1, every=1, most=1)
    other = nn.Conv2d(3, 3, 1)
    assert not watch(teacher, images(), other)
    teacher.observe(images(), other)
    for _ in range(2):
        with pytest.raises(ValueError, match="`student`: expected the parameters that the teacher was made from"):
            teacher.update(other)
        assert len(teacher.history) == 1
        assert teacher.stored == 2


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"student": None}, TypeError, "`student`: expected a torch.nn.Module, got NoneType"),
        ({"student": nn.LazyConv2d(1, 1)}, ValueError, "`student`: expected initialised parameters"),
        ({"momentum": "1"}, TypeError, "`momentum`: expected a number"),
        ({"momentum": -1}, ValueError, "`momentum`: expected a value in"),
        ({"score": "density"}, ValueError, "`score`: expected one of 'snd', 'entropy', got 'density'"),
        ({"first": 0}, ValueError, "`first`: expected at least 1, got 0"),
        ({"first": 1.0}, TypeError, "`first`: expected an int, got float"),
        ({"every": 0}, ValueError, "`every`: expected at least 1, got 0"),
        ({"every": True}, TypeError, "`every`: expected an int, got bool"),
        ({"most": 0}, ValueError, "`most`: expected at least 1, got 0"),
        ({"most": "30"}, TypeError, "`most`: expected an int, got str"),
        ({"buffers": None}, ValueError, "`buffers`: expected one of"),
    ],
)
def test_raises(keywords, error, message):
    with pytest.raises(error, match=message):
        DynamicTeacher(**{"student": Net(), **keywords})


def test_observe_raises():
    teacher = DynamicTeacher(Net())
    with pytest.raises(TypeError, match=r"`images`: expected a torch.Tensor, got list"):
        teacher.observe([images()], Net())
    with pytest.raises(TypeError, match=r"`student`: expected a torch.nn.Module, got dict"):
        teacher.observe(images(), {})
    with pytest.raises(TypeError, match=r"`student`: expected a torch.nn.Module, got dict"):
        teacher.update({})


def test_a_checkpoint_of_the_old_form_is_refused():
    teacher = DynamicTeacher(Net())
    state = teacher.state_dict()
    del state["_extra_state"]["new"]
    with pytest.raises(
        ValueError, match=r"`state_dict`: expected the state of a DynamicTeacher with `update`, got one saved by"
    ):
        teacher.load_state_dict(state)


@pytest.mark.gpu
def test_on_the_gpu():
    student = Net().cuda()
    for store_on in ("cpu", None):
        teacher = DynamicTeacher(student, first=2, every=1, most=4, store_on=store_on)
        happened = [watch(teacher, images(step).cuda(), student) for step in range(6)]
        assert happened == [False, False, False, False, True, False]
        assert teacher._queries[0].images.values.device.type == ("cpu" if store_on else "cuda")
        fresh = DynamicTeacher(student, first=2, every=1, most=4, store_on=store_on)
        fresh.load_state_dict(teacher.state_dict())
        assert watch(fresh, images().cuda(), student) == watch(teacher, images().cuda(), student)
