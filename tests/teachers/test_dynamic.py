import math

import pytest
import torch
from torch import nn

from selftrain_seg.teachers import DynamicTeacher, entropy_score, soft_neighbourhood_density
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
    """At each call the two weights, on a coarse grid so that ties occur, and the kind of batch."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(-1, 3, (calls, 2), generator=generator)
    weights = 0.5 + 0.05 * steps.cumsum(0).remainder(40)
    return weights.tolist(), torch.randint(0, 2, (calls,), generator=generator).tolist()


def play(teacher, weights, kinds):
    """Whether each call updated the teacher, and the teacher's weights after it."""
    student, updated, states = Scripted(), [], []
    for values, kind in zip(weights, kinds, strict=True):
        student.weight.data.copy_(torch.tensor(values))
        updated.append(teacher.observe(batch_of(kind), student))
        states.append(teacher.teacher.model.weight.tolist())
    return updated, states


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
            value = oracle.averages_by_loops(value, [weights[call]], [0.9])
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
    # In the fourth call the first weight has risen: better on the first two batches, the same on the other kind.
    teacher = DynamicTeacher(Scripted(), score="entropy", first=2, every=2, most=50)
    assert play(teacher, [(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (2.0, 1.0)], [0, 0, 1, 1])[0] == [False] * 4
    assert [decision.improved for decision in teacher.history] == [0.0, 0.5]
    # One batch more of the first kind before the weight rises: 3 of 5.
    teacher = DynamicTeacher(Scripted(), score="entropy", first=5, every=1, most=50)
    assert play(teacher, [(1.0, 1.0)] * 4 + [(2.0, 1.0)], [0, 0, 0, 1, 1])[0] == [False] * 4 + [True]
    assert teacher.history == [(5, 5, pytest.approx(0.6), True)]
    assert teacher.stored == 0


def test_defaults_are_those_of_the_paper():
    teacher = DynamicTeacher(Scripted())
    assert (teacher.score, teacher.first, teacher.every, teacher.most) == ("snd", 9, 3, 30)
    assert (teacher.teacher.momentum, teacher.teacher.warmup) == (0.99, False)
    assert teacher.store_on == torch.device("cpu")
    assert "score='snd', first=9, every=3, most=30" in repr(teacher)
    student = Scripted()
    updated = [teacher.observe(batch_of(0), student) for _ in range(70)]  # never better: only when 33 > 30 are kept
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
            logits = student.eval()(batch)
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
        teacher.observe(images(step, size=(16, 16)), student)
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
        teacher.observe(images(step), student)
    teacher(images())
    assert_same(snapshot(student), before)
    assert [module.training for module in student.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_kept_batches_are_copies():
    student, batch = Net(), images().requires_grad_()
    for store_on in ("cpu", None, torch.device("cpu")):
        teacher = DynamicTeacher(student, first=3, store_on=store_on)
        teacher.observe(batch, student)
        kept = teacher._queries[0].images
        assert kept.data_ptr() != batch.data_ptr()
        assert not kept.requires_grad
        assert torch.equal(kept, batch)
        assert teacher.stored == 1


def test_buffers_follow_their_rule_and_the_teacher_answers():
    for buffers in ("copy", "keep"):
        student = Net()
        teacher = DynamicTeacher(student, first=1, every=1, most=1, buffers=buffers)
        before = teacher.teacher.model.norm.running_mean.clone()
        shake(student, 1)
        assert [teacher.observe(images(), student) for _ in range(2)] == [False, True]
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
    assert not teacher.observe(images(), other)
    with pytest.raises(ValueError, match="`student`: expected the parameters that the teacher was made from"):
        teacher.observe(images(), other)
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


@pytest.mark.gpu
def test_on_the_gpu():
    student = Net().cuda()
    for store_on in ("cpu", None):
        teacher = DynamicTeacher(student, first=2, every=1, most=4, store_on=store_on)
        happened = [teacher.observe(images(step).cuda(), student) for step in range(6)]
        assert happened == [False, False, False, False, True, False]
        assert teacher._queries[0].images.device.type == ("cpu" if store_on else "cuda")
        fresh = DynamicTeacher(student, first=2, every=1, most=4, store_on=store_on)
        fresh.load_state_dict(teacher.state_dict())
        assert fresh.observe(images().cuda(), student) == teacher.observe(images().cuda(), student)
