"""What is tried: each variant changes one thing."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Variant:
    """How a network is adapted.

    Attributes:
        labels: how target images are labelled, see ``make_labels``; "teacher" labels each batch anew.
        portion: of each class that gets labels in the first round.
        growth: of the portion from round to round.
        rounds: how often target images are labelled anew; 0 trains nothing.
        steps: of each round.
        lr: times ``--lr``.
        schedule: "poly" falls to 0 within the round, "constant" stays.
        normalize: what the target's loss is divided by: "labelled" pixels or "all".
        batch: source and target images of a step.
        source_weight, target_weight: of the two losses.
        batchnorm: "frozen", or "batch": statistics of the batch in training, of the target images in use.
        alpha: share of the target's statistics that the network starts with.
        momentum: of the average of weights, which is measured too, and teaches where ``labels`` is "teacher".
        confidence: the share of pixels that the teacher is surer of weighs the loss (DACS).
        taught: what the teacher's labels are: "all" pixels' most probable classes, those of "sure" pixels only, or the
            "probabilities" of all pixels, or those of pixels that are hardly of a class that is small in the source
            ("large").
        paste: classes of "source" or "target" images onto target images (ClassMix), or None.
        strong: whether target images are recoloured strongly.
        masked: share of patches of target images that are hidden (MIC).
        grey: whether hidden patches are grey; else they have the mean colour of the batch.
        mirrored: whether the teacher's labels are those of the image and its mirror image together.
        restyled: how source images get the colours of target images, see ``restyle``; "" for not.
        source_strong: whether source images are recoloured strongly.
        source_masked: share of patches of source images that are hidden.
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
    taught: str = "all"
    paste: str | None = None
    strong: bool = False
    masked: float = 0.0
    grey: bool = True
    mirrored: bool = False
    restyled: str = ""
    source_strong: bool = False
    source_masked: float = 0.0


def _in_rounds(word: str, rounds: int, variants: dict[str, Variant]) -> dict[str, Variant]:
    """The same variants in several rounds of small batches."""
    return {
        f"{word} rounds, {name}": replace(variant, rounds=rounds, batch=(2, 2)) for name, variant in variants.items()
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
        "masked, probabilities, lr / 5": replace(MASKED, taught="probabilities", lr=0.2),
        "masked, sure pixels, lr / 5": replace(MASKED, taught="sure", lr=0.2),
        "masked, probabilities": replace(MASKED, taught="probabilities"),
        "strong, mixed styles, lr / 5": replace(TEACHER, paste=None, mirrored=True, restyled="mixed", lr=0.2),
        "ClassMix, mixed styles, lr / 5": replace(TEACHER, mirrored=True, restyled="mixed", lr=0.2),
        "mixed styles, lr / 5": replace(CONTROL, restyled="mixed", lr=0.2),
        "control, lr / 5": replace(CONTROL, lr=0.2),
        "strong, mixed styles": replace(MASKED, masked=0.0),
        "strong, mixed styles, large classes": replace(MASKED, masked=0.0, taught="large"),
        "strong, mixed styles, sure pixels": replace(MASKED, masked=0.0, taught="sure"),
        "both masked, mixed styles": replace(MASKED, source_masked=0.3, grey=False),
        "teacher, masked, mixed styles": MASKED,
    },
)
