"""Conditions, such as class labels. Each kind is one class here and one encoder module of the network.

None is only for a model that takes no condition; unconditional samples of other models use `dropped`.
"""

from undiffuse.conditions.augmented import Augmented, augmented, separated
from undiffuse.conditions.composition import Composition, Request, parts_of
from undiffuse.conditions.condition import Condition, Encoders, check_given
from undiffuse.conditions.jump import Jump, jumping, without_jump
from undiffuse.conditions.known import (
    Known,
    knowing,
    known_of_each,
    known_pixels,
    nothing_known,
    planes_of,
    without_known,
)
from undiffuse.conditions.labels import LabelEncoder, Labels, label_encoder
from undiffuse.conditions.sentences import Captions, Sentences, drawn
from undiffuse.conditions.several import Several, part_for
from undiffuse.conditions.spectra import Spectra

__all__ = [
    "Augmented",
    "Captions",
    "Composition",
    "Condition",
    "Encoders",
    "Jump",
    "Known",
    "LabelEncoder",
    "Labels",
    "Request",
    "Sentences",
    "Several",
    "Spectra",
    "augmented",
    "check_given",
    "drawn",
    "jumping",
    "knowing",
    "known_of_each",
    "known_pixels",
    "label_encoder",
    "nothing_known",
    "part_for",
    "parts_of",
    "planes_of",
    "separated",
    "without_jump",
    "without_known",
]
