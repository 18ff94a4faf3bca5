"""Statistics that were counted apart are added as if they had been counted together, or the merge is refused."""

import pytest
import torch

from selftrain_seg.thresholds import ClassBalancedThreshold, ConfidenceSketch, GlobalThreshold
from tests.helpers import random_logits

TYPES = [ClassBalancedThreshold, GlobalThreshold]
Q = 0.5 + torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))


def fed(estimator, *seeds, **options):
    kc = estimator(3, 0.3, **options)
    for seed in seeds:
        kc.update(random_logits(2, 3, 6, 5, seed=seed))
    return kc


@pytest.mark.parametrize("into", TYPES)
@pytest.mark.parametrize("other", TYPES)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("pool", ["predicted", "all"])
def test_both_kinds_count_by_class_so_either_takes_the_other(into, other, exact, pool):
    options = {"exact": exact, "pool": pool}
    kc, its, whole = fed(into, 0, **options), fed(other, 1, 2, **options), fed(into, 0, 1, 2, **options)
    before = {name: value.clone() for name, value in its.state_dict().items()}
    kc.merge(its)
    for portion in (0.05, 0.3, 1.0):
        assert torch.equal(kc.compute(portion), whole.compute(portion))
    assert torch.equal(kc.class_counts(), whole.class_counts())
    assert kc.updates == whole.updates == 3
    assert kc.updates.shape == ()
    assert all(torch.equal(value, before[name]) for name, value in its.state_dict().items())
    kc.update(random_logits(2, 3, 6, 5, seed=5))
    assert torch.equal(its.sketch.counts, before["sketch.counts"])  # nothing is shared


def test_what_is_merged_need_not_share_portion_rank_or_small():
    kc = fed(ClassBalancedThreshold, 0)
    other = ClassBalancedThreshold(3, torch.tensor([0.1, 0.5, 0.9]), rank="first_out", small="none")
    other.update(random_logits(2, 3, 6, 5, seed=1))
    kc.merge(other)
    assert torch.equal(kc.compute(), fed(ClassBalancedThreshold, 0, 1).compute())


@pytest.mark.parametrize("estimator", TYPES)
@pytest.mark.parametrize("exact", [False, True])
def test_under_the_same_prior(estimator, exact):
    kc, other = fed(estimator, 0, prior=Q, exact=exact), fed(estimator, 1, prior=Q.clone(), exact=exact)
    kc.merge(other)
    assert torch.equal(kc.compute(), fed(estimator, 0, 1, prior=Q, exact=exact).compute())


@pytest.mark.parametrize(
    ("message", "mine", "its"),
    [
        ("expected the same prior", (ClassBalancedThreshold, {"prior": Q}), (ClassBalancedThreshold, {"prior": Q + 1})),
        ("expected the same prior", (ClassBalancedThreshold, {"prior": Q}), (ClassBalancedThreshold, {"prior": Q * 2})),
        ("expected a prior in both", (ClassBalancedThreshold, {"prior": Q}), (ClassBalancedThreshold, {})),
        ("expected a prior in both", (GlobalThreshold, {}), (GlobalThreshold, {"prior": Q})),
        ("expected a ClassBalancedThreshold", (ClassBalancedThreshold, {"prior": Q}), (GlobalThreshold, {"prior": Q})),
        ("expected a GlobalThreshold", (GlobalThreshold, {"prior": Q}), (ClassBalancedThreshold, {"prior": Q})),
        ("expected pool = 'predicted', got 'all'", (GlobalThreshold, {}), (ClassBalancedThreshold, {"pool": "all"})),
        ("expected stride = 1, got 2", (ClassBalancedThreshold, {}), (ClassBalancedThreshold, {"stride": 2})),
        ("expected exact = False, got True", (ClassBalancedThreshold, {}), (GlobalThreshold, {"exact": True})),
    ],
)
def test_refusals_leave_all_as_it_was(message, mine, its):
    kc, other = fed(mine[0], 0, **mine[1]), fed(its[0], 1, **its[1])
    before = {name: value.clone() for name, value in kc.state_dict().items()}
    with pytest.raises(ValueError, match=f"`other`: {message}"):
        kc.merge(other)
    assert all(torch.equal(value, before[name]) for name, value in kc.state_dict().items())


def test_a_prior_of_another_size_is_another_prior():
    kc = ClassBalancedThreshold(3, 0.3, prior=torch.ones(3, 4, 4))
    with pytest.raises(ValueError, match="`other`: expected the same prior"):
        kc.merge(ClassBalancedThreshold(3, 0.3, prior=torch.ones(3, 4, 1)))


class Quiet(ConfidenceSketch):
    """Prints the same whatever its settings are."""

    def extra_repr(self):
        return ""

    def _get_name(self):
        return "ConfidenceSketch"


def sketch(kind=ConfidenceSketch, **options):
    found = kind(**{"num_classes": 2, "bins": 8, "low": 0.0, "high": 4.0, **options})
    found.update(torch.tensor([0.2, 1.2, 3.7]), torch.tensor([0, 1, 1]))
    return found


@pytest.mark.parametrize("kind", [ConfidenceSketch, Quiet])
@pytest.mark.parametrize(
    ("name", "value"),
    [("num_classes", 3), ("bins", 16), ("low", -1.0), ("low", 1e-300), ("high", 5.0), ("high", 4.0 + 2.0**-50)],
)
def test_sketches_of_other_settings_are_refused(kind, name, value):
    mine, other = sketch(kind), sketch(kind, **{name: value})
    before = mine.counts.clone()
    with pytest.raises(ValueError, match=f"`other`: expected {name} = "):
        mine.merge(other)
    with pytest.raises(ValueError, match=f"`other`: expected {name} = "):
        other.merge(mine)
    assert torch.equal(mine.counts, before)


@pytest.mark.parametrize("kinds", [(ConfidenceSketch, Quiet), (Quiet, ConfidenceSketch)])
def test_a_subclass_with_the_same_settings_merges(kinds):
    mine, other = (sketch(kind) for kind in kinds)
    mine.merge(other)
    assert torch.equal(mine.counts, 2 * other.counts)
    mine.merge(mine)
    assert torch.equal(mine.counts, 4 * other.counts)


def test_numbers_of_other_types_are_the_same_settings():
    mine = sketch(low=0, high=4)
    mine.merge(sketch(low=0.0, high=4.0))
    assert mine.counts.sum() == 6
