"""Teachers that label images for a student, two students that label for each other, and statistics to monitor them.

Every teacher is a Module: ``teacher(images)`` returns logits without gradient.
"""

from selftrain_seg.teachers.block_drop import drop_blocks
from selftrain_seg.teachers.dual import DualTeacher
from selftrain_seg.teachers.dynamic import DynamicTeacher, TeacherDecision
from selftrain_seg.teachers.flip import flip_agreement
from selftrain_seg.teachers.mean import MeanTeacher
from selftrain_seg.teachers.mutual import MutualLabels, mutual_labels
from selftrain_seg.teachers.parts import predict_in_parts
from selftrain_seg.teachers.perturb import perturb_features
from selftrain_seg.teachers.scores import entropy_score, soft_neighbourhood_density
from selftrain_seg.teachers.watch import Agreement, AgreementStatistics, parameter_distance

__all__ = [
    "Agreement",
    "AgreementStatistics",
    "DualTeacher",
    "DynamicTeacher",
    "MeanTeacher",
    "MutualLabels",
    "TeacherDecision",
    "drop_blocks",
    "entropy_score",
    "flip_agreement",
    "mutual_labels",
    "parameter_distance",
    "perturb_features",
    "predict_in_parts",
    "soft_neighbourhood_density",
]
