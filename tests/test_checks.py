import threading

import pytest
import torch

import selftrain_seg
from selftrain_seg.confidence import SpatialPrior
from selftrain_seg.losses import mrkld_loss

LOGITS = torch.zeros(1, 3, 2, 2)


@pytest.mark.parametrize("wrong", [3, 7, 254, -1])
def test_labels_out_of_range_are_named_inside_value_checks(wrong):
    labels = torch.tensor([[[0, 255], [2, wrong]]])
    with (
        selftrain_seg.value_checks(),
        pytest.raises(ValueError, match=rf"`labels`: expected values in \[0, 3\) or ignore_index 255, got {wrong}"),
    ):
        mrkld_loss(LOGITS, labels)


def test_good_labels_pass_and_the_ignore_label_is_whichever_was_named():
    with selftrain_seg.value_checks():
        assert mrkld_loss(LOGITS, torch.tensor([[[0, 1], [2, 255]]])).isfinite()
        assert mrkld_loss(LOGITS, torch.tensor([[[0, 1], [2, -100]]]), ignore_index=-100).isfinite()
        with pytest.raises(ValueError, match="got 255"):
            mrkld_loss(LOGITS, torch.tensor([[[0, 1], [2, 255]]]), ignore_index=-100)


def test_the_switch_is_off_by_default_nests_and_survives_errors():
    prior, wrong = SpatialPrior(2, (2, 2), sigma_px=0), torch.full((1, 2, 2), 9)
    prior.update(wrong)  # off: not looked at, so not counted either
    assert prior.frequencies.sum() == 0
    with selftrain_seg.value_checks():
        with selftrain_seg.value_checks(False), pytest.raises(ValueError, match="got 9"):  # does nothing
            prior.update(wrong)
        with pytest.raises(ValueError, match="got 9"):
            prior.update(wrong)
        with selftrain_seg.value_checks():
            pass
        with pytest.raises(ValueError, match="got 9"):
            prior.update(wrong)
    prior.update(wrong)
    with pytest.raises(RuntimeError, match="mine"), selftrain_seg.value_checks():
        raise RuntimeError("mine")
    prior.update(wrong)


def test_threads_do_not_undo_each_other():
    """One enters, the other enters, the first leaves: values are looked at until the last has left."""
    prior, wrong = SpatialPrior(2, (2, 2), sigma_px=0), torch.full((1, 2, 2), 9)
    turns, seen = [threading.Event() for _ in range(4)], []

    def looked_at():
        try:
            prior.update(wrong)
        except ValueError:
            return True
        return False

    def first():
        with selftrain_seg.value_checks():
            turns[0].set()
            assert turns[1].wait(10)
        turns[2].set()

    def second():
        assert turns[0].wait(10)
        with selftrain_seg.value_checks(), selftrain_seg.value_checks(False):
            turns[1].set()
            assert turns[2].wait(10)
            seen.append(looked_at())
            turns[3].set()
            assert done.wait(10)

    done = threading.Event()
    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    assert turns[3].wait(10)
    seen.append(looked_at())  # in this thread, which never asked for it
    done.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    seen.append(looked_at())
    assert seen == [True, True, False]


def test_many_threads_leave_the_switch_off():
    def work():
        for _ in range(2000):
            with selftrain_seg.value_checks():
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    SpatialPrior(2, (2, 2), sigma_px=0).update(torch.full((1, 2, 2), 9))
