"""Guided models: from a model, a condition and the settings of guidance to the denoiser that sampling follows."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import cast

from undiffuse.classifier import CARD, Classifier, load_classifier
from undiffuse.conditions import Composition, Condition, Known, Request, parts_of, without_known
from undiffuse.errors import UsageError
from undiffuse.guidance import (
    Guidance,
    class_log_prob,
    classifier_guidance,
    composed,
    guided,
    of_two,
    with_and_without,
    within,
)
from undiffuse.model import Model, load, pictures_only
from undiffuse.process import Denoise
from undiffuse.targets import SCORE_OF_STATE


def with_guide(model: Model, guide: Model | Classifier | str | os.PathLike[str]) -> Model:
    """`model` with a guide: a folder of either kind, or the thing itself.

    A weaker model is one to move away from (autoguidance, Karras et al. 2024a), such as an earlier checkpoint of the
    run; it is evaluated on the model's process. A classifier is one whose class to move towards (ADM-G). Raises
    UsageError for a guide of another kind of data or of other classes.
    """
    if not isinstance(guide, Model | Classifier):
        has_card = os.path.isfile(os.path.join(guide, CARD))
        guide = load_classifier(guide, model.device) if has_card else load(guide, model.device)
    pictures_only(model, "guidance")
    if isinstance(guide, Classifier):
        guide.check(model.data, model.name)
        return dataclasses.replace(model, guide=guide)
    pictures_only(guide, "guidance")
    if (guide.data.domain, guide.data.shape) != (model.data.domain, model.data.shape):
        raise UsageError(
            f"--guide {guide.name} makes {guide.domain.noun} of {guide.data.shape}, and {model.name} "
            f"{model.domain.noun} of {model.data.shape}"
        )
    theirs, ours = ((one.data.classes, one.data.condition) for one in (guide, model))
    if guide.data.takes != model.data.takes and theirs != ours:
        raise UsageError(f"--guide {guide.name} was trained on other classes or captions than {model.name}")
    if guide.denoiser.target == SCORE_OF_STATE and guide.config.process != model.config.process:
        raise UsageError(
            f"--guide {guide.name} works only on the process it was trained on, which {model.name} is not on"
        )
    return dataclasses.replace(model, guide=guide)


def guided_denoiser(model: Model, condition: Request | None, guidance: Guidance) -> Denoise:
    """The denoiser of `model` for `condition` with `guidance`; plain, and one evaluation, where the scale is 1.

    Raises UsageError for guidance that the model cannot have.
    """
    process, parts = model.denoiser.process, parts_of(condition)
    _check_effect(model, condition, guidance)
    by_class = isinstance(model.guide, Classifier) and model.data.takes is None
    if guidance.scale == 1 and len(parts) == 1 and not by_class:
        return model.denoiser.bind(parts[0])
    if model.guide is None:
        inside, plain = _free(model, condition, guidance)
    elif len(parts) > 1:
        raise UsageError("a --guide guides by one class at a time: name one, or leave --guide out")
    elif isinstance(model.guide, Classifier):
        inside, plain = _by_classifier(model, model.guide, parts[0], guidance.scale)
    else:
        shown = model.guide.config.network.inpaint
        theirs = parts[0] if shown else without_known(parts[0])[0]
        weaker = dataclasses.replace(model.guide.denoiser, process=process).bind(theirs)
        plain = model.denoiser.bind(parts[0])
        inside = guided(of_two(plain, weaker), process, guidance.rule)
    return inside if guidance.interval is None else within(inside, plain, process, guidance.interval)


def _check_effect(model: Model, condition: Request | None, guidance: Guidance) -> None:
    """Raises UsageError for what would have no effect: a condition to avoid, and rules of differences, without any."""
    several = len(parts_of(condition)) > 1
    if isinstance(condition, Composition) and condition.negative is not None:
        if model.guide is not None:
            raise UsageError("--not has no effect with a --guide: leave one out")
        if guidance.scale == 1 and not several:
            raise UsageError("--not needs a --guidance other than 1, such as 2")
    if not guidance.is_linear and (several or isinstance(model.guide, Classifier)):
        raise UsageError("--guidance-rescale and --apg are for one class, without a classifier: leave them out")


def _by_classifier(
    model: Model, classifier: Classifier, condition: Condition | None, scale: float
) -> tuple[Denoise, Denoise]:
    """Classifier guidance, and the denoiser without it.

    Scale 1 is the plain conditional law: of a model that knows the class its own, of another one the classifier's.
    """
    labels, _ = without_known(condition)
    if labels is None:
        raise UsageError(f"the classifier {classifier.name} guides by a class: name one with --class")
    knows = model.data.takes is not None
    ours: Condition | None = condition if knows else None
    if isinstance(condition, Known) and not knows:
        ours = cast(Condition, Known(None, condition.planes))
    plain, process = model.denoiser.bind(ours), model.denoiser.process
    log_prob = class_log_prob(classifier, process, labels)
    return classifier_guidance(plain, process, log_prob, scale - 1 if knows else scale), plain


def _free(model: Model, condition: Request | None, guidance: Guidance) -> tuple[Denoise, Denoise]:
    """Classifier-free guidance, and the denoiser that it becomes at scale 1."""
    if condition is None or model.data.takes is None:
        raise UsageError(
            f"the model {model.name} takes no condition, so there is nothing to guide by: name a --guide, or leave "
            "--guidance out"
        )
    if "imported" in model.training or not model.config.training.label_dropout:
        raise UsageError(
            f"{model.name} never learnt without its condition (training.label_dropout = 0), which guidance needs: "
            "name a --guide, or leave --guidance out"
        )
    denoiser, process = model.denoiser, model.denoiser.process
    asked = condition if isinstance(condition, Composition) else Composition((condition,))
    parts, away = asked.parts, asked.away
    if len(parts) == 1:
        if guidance.scale == 0:
            return denoiser.bind(away), denoiser.bind(parts[0])
        pair = with_and_without(denoiser, parts[0], away)
        return guided(pair, process, guidance.rule), denoiser.bind(parts[0])
    scaled, plain = (composed(denoiser, process, parts, away, asked.scales(w)) for w in (guidance.scale, 1.0))
    return scaled, plain


def request(
    model: Model,
    count: int,
    default: Condition | None,
    classes: Sequence[str | int] = (),
    negative: str | int | None = None,
    prompts: Sequence[str] = (),
) -> Request | None:
    """What `count` samples are asked to be: of all of `classes`, or as all of `prompts` say (where there are neither,
    `default`), unlike `negative`, a class or a prompt.

    A prompt may end in its weight among several, as in "red hair:1.5". One class goes with all prompts. Raises
    UsageError for a class that the model lacks, and for prompts as `Model.of_prompt`.
    """
    away = None if negative is None else _to_avoid(model, negative, count)
    parts: list[Condition | None]
    weights: list[float] = []
    if prompts:
        if len(classes) > 1:
            raise UsageError("prompts go with one --class: leave the others out, or write them in the prompts")
        asked = [weighted(prompt) for prompt in prompts]
        weights = [weight for _, weight in asked]
        if len(prompts) == 1 and weights != [1.0]:
            raise UsageError("the weight of a prompt is relative to others: for one prompt use --guidance")
        parts = [model.of_prompt(sentence, count, *classes) for sentence, _ in asked]
    else:
        namer = model.guide if isinstance(model.guide, Classifier) and not model.data.classes else model
        parts = [namer.of_class(name, count) for name in classes]
    parts = parts or [default]
    if len(parts) == 1 and away is None:
        return parts[0]
    return Composition(tuple(part for part in parts if part is not None), away, tuple(weights))


def weighted(prompt: str) -> tuple[str, float]:
    """ "red hair:1.5" -> ("red hair", 1.5); without a number at its end, weight 1."""
    sentence, colon, number = prompt.rpartition(":")
    try:
        weight = float(number)
    except ValueError:
        return prompt, 1.0
    if not colon or not math.isfinite(weight):
        return prompt, 1.0
    return sentence, weight


def _to_avoid(model: Model, negative: str | int, count: int) -> Condition:
    if not model.data.classes:
        return model.of_prompt(str(negative), count)
    try:
        return model.of_class(negative, count)
    except UsageError:
        if model.data.condition is None:
            raise
        return model.of_prompt(str(negative), count)
