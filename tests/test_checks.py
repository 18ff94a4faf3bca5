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
