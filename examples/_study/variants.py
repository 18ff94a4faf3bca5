"""The variants of the study; each changes one thing."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Variant:
    """Settings of adaptation.

    Attributes:
        labels: method of labelling target images, see ``make_labels``; with "teacher" the teacher labels each batch.
        portion: portion of each class that is labelled in the first round.
        growth: increase of the portion from round to round.
        rounds: rounds of labelling and training; 0 trains nothing.
        steps: steps of each round.
        lr: factor of ``--lr``.
        schedule: learning rate schedule of a round: "poly", which ends at 0, or "constant".
        normalize: pixels that the target loss is divided by: "labelled" or "all".
        batch: numbers of source and target images of a step.
        source_weight, target_weight: weights of the two losses.
        batchnorm: "frozen", or "batch": training uses the statistics of the batch, evaluation those of target images.
        alpha: share of target statistics that training starts from.
        momentum: momentum of the averaged weights. They are evaluated, too, and are the teacher if there is one.
        confidence: confidence of a sure pixel; the share of sure pixels is the weight of the target loss (DACS).
        teach: labels of the teacher: the most probable class of "all" pixels, of "sure" pixels, or of pixels that
            hardly belong to a small class of the source ("large"); or the "probabilities" of all pixels.
        paste: images whose classes are pasted onto target images (ClassMix): "source", "target" or None.
        strong: whether target images are strongly recoloured.
        masked: share of the patches of target images that are hidden (MIC).
        grey: whether hidden patches are grey, or have the mean colour of the batch.
        mirrored: whether the teacher averages its probabilities over the image and its mirror image.
        restyled: method of giving source images the colours of target images, see ``restyle``; "" for none.
        source_strong: whether source images are strongly recoloured.
        source_masked: share of the patches of source images that are hidden.
    """

    labels: str = "re-weighted"
    portion: float = 0.3
    growth: float = 0.1
    rounds: int = 1
    steps: int = 60
    lr: float = 1.0
    schedule: str = "poly"
    normalize: str = "labelled"
    batch: tuple[int, int] = (4, 4)
    source_weight: float = 1.0
    target_weight: float = 1.0
    batchnorm: str = ""
    alpha: float = -1.0
    momentum: float = 0.99
    confidence: float = 0.9
    teach: str = "all"
    paste: str | None = None
    strong: bool = False
    masked: float = 0.0
    grey: bool = True
    mirrored: bool = False
    restyled: str = ""
    source_strong: bool = False
    source_masked: float = 0.0


def _in_rounds(prefix: str, rounds: int, variants: dict[str, Variant]) -> dict[str, Variant]:
    """Return the variants with several rounds and small batches."""
    return {
        f"{prefix} rounds, {name}": replace(variant, rounds=rounds, batch=(2, 2)) for name, variant in variants.items()
    }


CBST = Variant()
CONTROL = replace(CBST, labels="none")
TEACHER = Variant(labels="teacher", normalize="all", paste="source", strong=True)
MASKED = replace(TEACHER, paste=None, masked=0.5, mirrored=True, restyled="mixed")
VARIANTS = {
    "BatchNorm re-estimated": replace(CONTROL, rounds=0, alpha=1.0),
    "BatchNorm mixed, 0.15, not trained": replace(CONTROL, rounds=0, alpha=0.15),
    "control: source only": CONTROL,
    "CBST, one round": CBST,
    # Which pixels, of which classes.
    "all pixels": replace(CBST, labels="all"),
    "portions by trust": replace(CBST, labels="as trusted"),
    # How much they count.
    "learning rate / 10": replace(CBST, lr=0.1),
    # Other labels.
    "mean teacher, ClassMix": TEACHER,
    "one global threshold": replace(CBST, labels="global"),
    "oracle: truth at its pixels": replace(CBST, labels="truth where re-weighted"),
    "oracle: only its right labels": replace(CBST, labels="right ones of re-weighted"),
    "divided by all pixels": replace(CBST, normalize="all"),
    "without classes that cannot be trusted": replace(CBST, labels="re-weighted, trusted classes"),
    "hard in place of re-weighted": replace(CBST, labels="hard"),
    "probabilities as labels": replace(CBST, labels="probabilities"),
    "mean teacher, ClassMix, learning rate / 10": replace(TEACHER, lr=0.1),
    "all pixels but borders": replace(CBST, labels="all interiors"),
    "BatchNorm mixed, 0.15": replace(CBST, alpha=0.15),
    "target's loss / 4": replace(CBST, target_weight=0.25),
    "LRENT soft labels": replace(CBST, labels="soft"),
    "BatchNorm of the batch": replace(CBST, batchnorm="batch"),
    "oracle: truth at all pixels": replace(CBST, labels="truth"),
    "borders only": replace(CBST, labels="all borders"),
    "portions by trust, three steps": replace(CBST, labels="trusted"),
    "constant learning rate": replace(CBST, schedule="constant"),
    "twice as many source images": replace(CBST, batch=(8, 4)),
}
VARIANTS |= _in_rounds(
    "three",
    3,
    {
        "control: source only": CONTROL,
        "CBST": CBST,
        "floor of 0.9": replace(CBST, labels="floor"),
        "floor of 0.9, strong views, ClassMix": replace(CBST, labels="floor", strong=True, paste="source"),
        "CBST on strong views": replace(CBST, strong=True),
        "CBST on strong views, ClassMix": replace(CBST, strong=True, paste="source"),
        "mean teacher, ClassMix": TEACHER,
        "soft labels on strong views": replace(CBST, labels="soft", strong=True),
        "portions by trust": replace(CBST, labels="as trusted"),
        "bound: truth": replace(CBST, labels="truth"),
        "all pixels": replace(CBST, labels="all"),
        "oracle: only CBST's right labels": replace(CBST, labels="right ones of re-weighted"),
        "CBST, learning rate / 10": replace(CBST, lr=0.1),
        "one global threshold": replace(CBST, labels="global"),
        "without classes that cannot be trusted": replace(CBST, labels="re-weighted, trusted classes"),
        "hard in place of re-weighted": replace(CBST, labels="hard"),
        "divided by all pixels": replace(CBST, normalize="all"),
        "BatchNorm mixed, 0.15": replace(CBST, alpha=0.15),
        "LRENT soft labels": replace(CBST, labels="soft"),
    },
)
VARIANTS |= _in_rounds(
    "two",
    2,
    {
        "control: source only": CONTROL,
        "CBST": CBST,
        "bound: truth": replace(CBST, labels="truth"),
        "moments": replace(CONTROL, restyled="moments"),
        "Fourier": replace(CONTROL, restyled="Fourier"),
        "histograms": replace(CONTROL, restyled="histograms"),
        "mixed styles": replace(CONTROL, restyled="mixed"),
        "source on strong views": replace(CONTROL, source_strong=True),
        "teacher, strong views": replace(TEACHER, paste=None),
        "teacher, strong views, masked": replace(TEACHER, paste=None, masked=0.5),
        "teacher, ClassMix": TEACHER,
        "teacher, ClassMix, mixed styles": replace(TEACHER, restyled="mixed"),
        "masked, mixed styles, lr / 5": replace(MASKED, lr=0.2),
        "masked, probabilities, lr / 5": replace(MASKED, teach="probabilities", lr=0.2),
        "masked, sure pixels, lr / 5": replace(MASKED, teach="sure", lr=0.2),
        "masked, probabilities": replace(MASKED, teach="probabilities"),
        "strong, mixed styles, lr / 5": replace(TEACHER, paste=None, mirrored=True, restyled="mixed", lr=0.2),
        "ClassMix, mixed styles, lr / 5": replace(TEACHER, mirrored=True, restyled="mixed", lr=0.2),
        "mixed styles, lr / 5": replace(CONTROL, restyled="mixed", lr=0.2),
        "control, lr / 5": replace(CONTROL, lr=0.2),
        "strong, mixed styles": replace(MASKED, masked=0.0),
        "strong, mixed styles, large classes": replace(MASKED, masked=0.0, teach="large"),
        "strong, mixed styles, sure pixels": replace(MASKED, masked=0.0, teach="sure"),
        "both masked, mixed styles": replace(MASKED, source_masked=0.3, grey=False),
        "teacher, masked, mixed styles": MASKED,
    },
)
