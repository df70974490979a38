"""The weights of a base in a new network: all of them land, or are accounted for.

Where the condition is another one than the base's, the new network starts as the base's unconditional answer.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.adapters import base_fingerprint
from undiffuse.card import DataFacts
from undiffuse.conditions import Labels, part_for
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.model import Model
from undiffuse.names import cut, format_shape, listed
from undiffuse.networks import InpaintingUNet, UNet, UNet2D
from undiffuse.networks.embedding import Conditioning, zero_
from undiffuse.networks.inputs import add_inputs, forget_known
from undiffuse.networks.sentence import SentenceEncoder
from undiffuse.networks.unet import CrossAttention
from undiffuse.text.words import FIRST, Words


@dataclass(frozen=True)
class Origin:
    """Where the weights of a run come from, as run.json and model.json have it.

    Attributes:
        name: of the base, as it was given.
        fingerprint: of the base (`undiffuse.adapters.base_fingerprint`).
        new: names of the parameters that are not the base's.
        left: names of the base's weights that have no place.
    """

    name: str
    fingerprint: str
    new: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        new = f"; new: {listed(self.new)}" if self.new else ""
        left = f"; left out: {listed(self.left)}" if self.left else ""
        return f"starts from {self.name} ({self.fingerprint[:12]}){new}{left}"


@torch.no_grad()
def transfer(network: nn.Module, base: Model, data: DataFacts) -> Origin:
    """Loads the weights of `base` into `network`, which is for `data`, in place.

    With the same condition, both compute the same bits; with another one, `network` computes what the base does for
    unconditional samples. Augmentation labels and jumps that the base does not have start without an effect. A network
    that is shown known pixels starts as one that is not; one that is no longer shown any, as its base without them, but
    for the border. Raises UsageError for weights of other names or shapes.
    """
    if base.data.tokens != data.tokens:
        raise UsageError(
            f"{base.name} was trained on other tokens than {data.name} has: its weights mean nothing for these. Models "
            "with data.tokens=bytes read any text"
        )
    source, added = base.network, isinstance(network, InpaintingUNet) and not isinstance(base.network, InpaintingUNet)
    if added:
        source = copy.deepcopy(source)
        assert isinstance(source, UNet)
        add_inputs(source, data.shape[2] + 1)
    if forgets := isinstance(base.network, InpaintingUNet) and not isinstance(network, InpaintingUNet):
        source = copy.deepcopy(source)
        assert isinstance(source, UNet)
        forget_known(source, data.shape[2])
    known = dict(source.state_dict())
    ours, theirs = _encoders(network), _encoders(base.network)
    state = network.state_dict()
    left: list[str] = []
    changed_stem = ["stem.weight"] * (added or forgets) + ["stem.bias"] * forgets
    new: dict[str, Tensor] = {name: known[name] for name in changed_stem}
    if _has_sentences(ours) or _has_sentences(theirs):
        changed, gone = _parts(network, base, data, ours, theirs)
        left += gone
        new |= changed
    elif not _same_condition(base.data, data, state, known, [*ours, *theirs]):
        left += [name for name in known if _within(name, theirs)]
        vector = _unconditional(base, theirs)
        for encoder in ours.values():
            _start(encoder, vector)
        new |= {name: tensor for name, tensor in network.state_dict().items() if _within(name, ours)}
        if not ours and vector is not None:
            path, conditioning = _conditioning(base.network) or ("", None)
            assert conditioning is not None
            bias = f"{path}.layers.{len(conditioning.layers) - 1}.bias"
            new[bias] = known[bias] + vector
    augmentation = {name for name in state.keys() ^ known.keys() if name.endswith("conditioning.augmentation.weight")}
    left += sorted(augmentation & known.keys())
    new |= {name: torch.zeros_like(state[name]) for name in sorted(augmentation & state.keys())}
    new |= {name: state[name] for name in state.keys() - known.keys() if ".jumps." in name}
    left += sorted(name for name in known.keys() - state.keys() if ".jumps." in name)
    loaded = {name: tensor for name, tensor in known.items() if name not in left} | new
    for what, names in (("has no", state.keys() - loaded.keys()), ("has besides", loaded.keys() - state.keys())):
        if names:
            raise UsageError(f"{base.name} is of another network than this run: it {what} {listed(sorted(names)[:3])}")
    for name, tensor in loaded.items():
        if tensor.shape != state[name].shape:
            raise UsageError(
                f"{base.name} is of another network than this run: {name} is {format_shape(tensor.shape)} there and "
                f"{format_shape(state[name].shape)} here"
            )
    network.load_state_dict(loaded)
    return Origin(base.name, base_fingerprint(base), tuple(new), tuple(left))


def _has_sentences(encoders: dict[str, nn.Module]) -> bool:
    return any(isinstance(encoder, SentenceEncoder) for encoder in encoders.values())


def _parts(
    network: nn.Module, base: Model, data: DataFacts, ours: dict[str, nn.Module], theirs: dict[str, nn.Module]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that differ where a network reads sentences, and those of the base that have no place.

    Encoders of the same name are kept, words that both vocabularies have keep their vectors, and what the base's other
    encoders and its attention to no sentence add to its unconditional samples goes into biases.
    """
    known, left = dict(base.network.state_dict()), []
    path, conditioning = _conditioning(base.network) or ("", None)
    assert conditioning is not None
    bias = f"{path}.layers.{len(conditioning.layers) - 1}.bias"
    new: dict[str, Tensor] = {}
    unconditional = base.unconditional(1)
    for name, encoder in theirs.items():
        encoded = encoder(part_for(unconditional, name.rpartition(".")[2]))
        vector, *context = encoded if isinstance(encoded, tuple) else (encoded,)
        mine = ours.get(name)
        if mine is None:
            left += [key for key in known if key.startswith(f"{name}.")]
            new[bias] = new.get(bias, known[bias]) + vector[0]
            for stage, module in base.network.named_modules():
                if context and isinstance(module, CrossAttention):
                    left += [key for key in known if key.startswith(f"{stage}.")]
                    out = f"{stage.rpartition('.')[0]}.attention.out.bias"
                    new[out] = (
                        known[out] + module(torch.zeros(1, len(known[out]), 1, 1).to(vector), context[0]).flatten()
                    )
        elif isinstance(mine, SentenceEncoder) and isinstance(encoder, SentenceEncoder):
            new |= {f"{name}.{key}": value for key, value in _same_words(mine, encoder).items()}
        elif base.data.classes != data.classes:
            _start(mine, vector[0])
            new |= {f"{name}.{key}": value for key, value in mine.state_dict().items()}
    for name, encoder in ours.items():
        if name not in theirs:
            _start(encoder, None)
            attending = [stage for stage, module in network.named_modules() if isinstance(module, CrossAttention)]
            within = [name, *(attending if isinstance(encoder, SentenceEncoder) else [])]
            new |= {key: value for key, value in network.state_dict().items() if _within(key, within)}
    return new, left


def _same_words(ours: SentenceEncoder, theirs: SentenceEncoder) -> dict[str, Tensor]:
    """The embedding of our words: theirs where they have the word, random elsewhere.

    Raises UsageError if one of them reads words and the other does not.
    """
    if ours.text == theirs.text:
        return {}
    if not isinstance(ours.text, Words) or not isinstance(theirs.text, Words):
        raise UsageError(f"network.text={ours.text.name}: the base reads captions by {theirs.text.name}: leave it out")
    known = dict(zip(theirs.text.vocabulary, theirs.embedding.state_dict()["weight"][FIRST:], strict=True))
    rows = ours.embedding.state_dict()["weight"].clone()
    rows[:FIRST] = theirs.embedding.state_dict()["weight"][:FIRST]
    for row, word in zip(rows[FIRST:], ours.text.vocabulary, strict=True):
        if word in known:
            row.copy_(known[word])
    return {"embedding.weight": rows}


def as_origin(saved: Any) -> Origin | None:
    """`Origin` as JSON has it, None for none. Raises UndiffuseError for anything else."""
    if saved is None:
        return None
    try:
        return Origin(**{**saved, "new": tuple(saved["new"]), "left": tuple(saved["left"])})
    except (TypeError, KeyError) as error:
        raise UndiffuseError(f"the record of the base is damaged: {cut(str(error))}") from None


def _conditioning(network: nn.Module) -> tuple[str, Conditioning] | None:
    return next(((name, part) for name, part in network.named_modules() if isinstance(part, Conditioning)), None)


def _encoders(network: nn.Module) -> dict[str, nn.Module]:
    """The modules that encode the condition, by name."""
    if isinstance(network, UNet2D):
        return {} if network.class_embedding is None else {"class_embedding": network.class_embedding}
    path, conditioning = _conditioning(network) or ("", None)
    names = () if conditioning is None else conditioning.encoders
    return {f"{path}.{name}": network.get_submodule(f"{path}.{name}") for name in names}


def _same_condition(
    base: DataFacts, data: DataFacts, state: dict[str, Tensor], known: dict[str, Tensor], encoders: list[str]
) -> bool:
    """Whether the base's encoders mean here what they meant there."""
    kinds = [None if facts.takes is None else facts.takes.kind for facts in (base, data)]
    if kinds[0] != kinds[1]:
        return False
    if kinds[0] == Labels.kind:
        return base.classes == data.classes
    mine, its = ({name: one[name].shape for name in one if _within(name, encoders)} for one in (state, known))
    return mine == its


def _within(name: str, modules: Any) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _unconditional(base: Model, encoders: dict[str, nn.Module]) -> Tensor | None:
    """What the base's encoders add to its conditioning for an unconditional sample, (width,); None: nothing."""
    condition = base.unconditional(1)
    if condition is None or isinstance(base.network, UNet2D):
        return None
    return torch.stack([encoder(condition)[0] for encoder in encoders.values()]).sum(0)


def _start(encoder: nn.Module, vector: Tensor | None) -> None:
    """Makes an encoder answer every condition with `vector`, or with 0."""
    start_at: Callable[[Tensor], None] | None = getattr(encoder, "start_at", None)
    if vector is not None and start_at is not None:
        start_at(vector)
    elif vector is None:
        zero_([part for part in encoder.modules() if list(part.parameters(recurse=False))][-1])
    else:
        raise UsageError(f"a {type(encoder).__name__} cannot start from another condition: give it a method start_at")
