"""Conditions: what a sample is asked to be. Each kind is one class here and one encoder module of the network.

A model that takes no condition is given None, and None means nothing else: "unconditional" is said by `dropped`.
"""

from undiffuse.conditions.condition import Condition, Encoders, check_given
from undiffuse.conditions.labels import LabelEncoder, Labels, label_encoder

__all__ = ["Condition", "Encoders", "LabelEncoder", "Labels", "check_given", "label_encoder"]
