import pytest
import torch

from selftrain_seg.selectors import SelectionStatistics, select_hard
from selftrain_seg.types import PseudoLabels
from tests.helpers import random_logits

KC = torch.tensor([0.5, 0.7, 0.9])


def test_by_loops():
    statistics = SelectionStatistics(3)
    predicted, labelled, known, right, confidence = (torch.zeros(3) for _ in range(5))
    for seed in range(3):
        logits = random_logits(2, 3, 6, 5, seed=seed)
        logits[0, 0, 0, 0] = float("nan")
        target = torch.randint(0, 3, (2, 6, 5), generator=torch.Generator().manual_seed(seed))
        target[:, 2] = 255
        pseudo = select_hard(logits, KC)
        statistics.update(pseudo, target)
        for b in range(2):
            for i in range(6):
                for j in range(5):
                    if (b, i, j) == (0, 0, 0):
                        continue  # NaN: neither predicted nor selected
                    predicted[logits[b, :, i, j].argmax()] += 1
                    y, t = pseudo.labels[b, i, j], target[b, i, j]
                    if y != 255:
                        labelled[y] += 1
                        confidence[y] += pseudo.confidence[b, i, j]
                        if t != 255:
                            known[y] += 1
                            right[y] += y == t
    summary = statistics.compute()
    torch.testing.assert_close(summary.share, (labelled / predicted).double())
    torch.testing.assert_close(summary.precision, (right / known).double())
    torch.testing.assert_close(summary.confidence.float(), confidence / labelled)


def test_without_target_absent_classes_and_reset():
    statistics = SelectionStatistics(3)
    statistics.update(select_hard(torch.tensor([5.0, 0.0, 0.0]).reshape(1, 3, 1, 1), KC))
    summary = statistics.compute()
    assert summary.share.tolist()[0] == 1.0
    assert summary.share[1:].isnan().all()
    assert summary.precision.isnan().all()
    statistics.update(select_hard(torch.zeros(0, 3, 4, 4), KC))
    statistics.reset()
    assert statistics.counts.sum() == 0
    assert statistics.confidence_sums.sum() == 0


def test_labels_of_another_ignore_index_are_not_counted():
    statistics = SelectionStatistics(3)
    pseudo = select_hard(random_logits(1, 3, 8, 8), KC, ignore_index=-1)
    statistics.update(pseudo, torch.full((1, 8, 8), -1))
    assert statistics.counts[1].sum() == (pseudo.labels >= 0).sum()
    assert statistics.counts[2:].sum() == 0


def test_predictions_outside_the_classes_are_not_counted():
    statistics = SelectionStatistics(2)
    predicted = torch.tensor([[[-1, -100, 255, 1]]])
    statistics.update(PseudoLabels(torch.tensor([[[0, 255, 255, 1]]]), torch.ones(1, 1, 4), predicted=predicted))
    assert statistics.counts[:2].tolist() == [[0, 1], [1, 1]]


def test_state_dict_mid_stream():
    first, straight, resumed = (SelectionStatistics(3) for _ in range(3))
    batches = [select_hard(random_logits(1, 3, 8, 8, seed=s), KC) for s in range(2)]
    for batch in batches:
        straight.update(batch)
    first.update(batches[0])
    resumed.load_state_dict(first.state_dict())
    resumed.update(batches[1])
    for a, b in zip(resumed.compute(), straight.compute(), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=0, atol=0)


def test_errors():
    statistics = SelectionStatistics(3)
    pseudo = select_hard(random_logits(1, 3, 4, 4), KC)
    with pytest.raises(ValueError, match="`pseudo`: expected PseudoLabels with `predicted`"):
        statistics.update(PseudoLabels(pseudo.labels, pseudo.confidence))
    with pytest.raises(ValueError, match=r"`target`: expected \(1, 4, 4\), got \(1, 4, 5\)"):
        statistics.update(pseudo, torch.zeros(1, 4, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match="`target`: expected an integer dtype"):
        statistics.update(pseudo, torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="`target`: expected device"):
        statistics.update(pseudo, torch.zeros(1, 4, 4, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="`num_classes`"):
        SelectionStatistics(0)
    with pytest.raises(TypeError, match="`num_classes`"):
        SelectionStatistics("3")
