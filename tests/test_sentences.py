"""Sentences as a condition: words, rows, captions drawn in batches, and what the network makes of them."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomised
from torch import Tensor, nn

from undiffuse.conditions import Captions, Condition, Labels, Sentences, Several
from undiffuse.config import Config, make_config
from undiffuse.data import ImageSet
from undiffuse.networks import UNet
from undiffuse.networks.embedding import Context
from undiffuse.networks.sentence import Layer, SentenceEncoder
from undiffuse.networks.unet import CrossAttention, attending_weights
from undiffuse.text.words import LEAST_USES, MOST_WORDS, Words, words_of
from undiffuse.training.batches import make_batch

CAPTIONS = (("red cat", "a cat that is red"), (), ("blue dog",), ("a red dog", "dog, red", "red dog"), ("blue cat",))
TEXT = Words(6, ("red", "dog", "cat", "blue", "a"))


# Words.


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("A Red, red-haired CAT!", ["a", "red", "red", "haired", "cat"]),
        ("the cat's d’Artagnan 'quoted'", ["the", "cat's", "d’artagnan", "quoted"]),
        ("snake_case 3.5 v2", ["snake", "case", "3", "5", "v2"]),
        ("Stra\N{LATIN SMALL LETTER SHARP S}E", ["strasse"]),
        ("cafe\N{COMBINING ACUTE ACCENT} CAF\N{LATIN CAPITAL LETTER E WITH ACUTE}", ["café", "café"]),
        ("J\N{COMBINING CARON}a \N{LATIN SMALL LETTER J WITH CARON}a", ["ǰa", "ǰa"]),
        ("红色 猫", ["红色", "猫"]),
        (" ... \n—!\t", []),
        ("", []),
    ],
)
def test_words_are_without_case_and_punctuation(sentence: str, words: list[str]) -> None:
    assert words_of(sentence) == words


def test_words_are_learnt_by_how_often_they_are_used() -> None:
    """The most used first, then by the alphabet; not those used once; no more than fit."""
    assert LEAST_USES == 2
    learnt = Words.learnt(["b a c", "C c, b", "A once"], 3)
    assert learnt == Words(3, ("c", "a", "b"))
    many = [f"w{number:05}" for number in range(MOST_WORDS + 5)]
    assert Words.learnt([" ".join(many)] * 2, 3).vocabulary == tuple(many[:MOST_WORDS])
    assert learnt.unknown("once A Twice twice") == ["once", "twice", "twice"]
    assert learnt.size("once A, twice!") == 3
    assert Words.from_facts(learnt.facts) == learnt


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"length": 4},
        {"vocabulary": []},
        {"length": 0, "vocabulary": []},
        {"length": 1025, "vocabulary": []},
        {"length": True, "vocabulary": []},
        {"length": 4.0, "vocabulary": []},
        {"length": 4, "vocabulary": "ab"},
        {"length": 4, "vocabulary": ["a", 1]},
        {"length": 4, "vocabulary": ["a", "a"]},
        {"length": 4, "vocabulary": [str(number) for number in range(MOST_WORDS + 1)]},
    ],
)
def test_broken_facts_are_no_words(facts: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Words.from_facts(facts)


def test_sentences_are_numbered_word_by_word() -> None:
    """Against a loop: 0 for nothing, 1 for an unknown word, 2 + its place for a known one; too long ones are cut."""
    words = ("cat", "red", "a", "unheard", "dog", "x")
    sentences = [
        " ".join(some) for count in range(9) for some in itertools.islice(itertools.product(words, repeat=count), 40)
    ]
    numbers, present = TEXT.encode(sentences)
    assert numbers.dtype == torch.int64 and present.dtype == torch.bool
    for sentence, row, there in zip(sentences, numbers.tolist(), present.tolist(), strict=True):
        expected = []
        for word in sentence.split()[:6]:
            expected.append(TEXT.vocabulary.index(word) + 2 if word in TEXT.vocabulary else 1)
        assert row == expected + [0] * (6 - len(expected))
        assert there == [place < len(expected) for place in range(6)]
    assert [len(part) for part in TEXT.encode([])] == [0, 0]


# Rows.


def of(*sentences: str) -> Sentences:
    return Sentences.of(sentences, TEXT)


def rows(condition: Any) -> list[Any]:
    """What each row says, as Python: the words that are present, and the class."""
    if isinstance(condition, Several):
        return list(zip(*(rows(part) for part in condition.parts.values()), strict=True))
    if isinstance(condition, Labels):
        return condition.index.tolist()
    pairs = zip(condition.tokens.tolist(), condition.present.tolist(), strict=True)
    return [[number for number, there in zip(*pair, strict=True) if there] for pair in pairs]


FIVE = of("red dog", "cat", "", "a blue cat", "unheard")
EACH: dict[str, Any] = {
    "sentences": FIVE,
    "several": Several({"label": Labels(torch.tensor([2, 0, 3, 1, 1]), 3), "sentence": FIVE}),
}
NOTHING: dict[str, Any] = {"sentences": [], "several": (3, [])}


@pytest.mark.parametrize("kind", EACH)
def test_sentences_are_rows(kind: str) -> None:
    """Indexing, joining, dropping and moving go row by row, and change nothing that was there."""
    condition, nothing = EACH[kind], NOTHING[kind]
    said = rows(condition)
    assert [row if kind == "sentences" else row[1] for row in said] == [[2, 3], [4], [], [6, 5, 4], [1]]
    where, order = torch.tensor([True, False, False, True, False]), [4, 0, 0, 2]
    assert len(condition) == 5 and rows(condition[1:3]) == said[1:3]
    for index in (torch.tensor(order), np.array(order)):
        assert rows(condition[index]) == [said[place] for place in order] and len(condition[index]) == 4
    assert rows(condition[where]) == rows(condition[where.numpy()]) == [said[0], said[3]]
    assert rows(condition.joined(condition[:2], condition[4:])) == said + said[:2] + said[4:]
    assert rows(condition.joined()) == said
    dropped = [nothing if gone else row for row, gone in zip(said, where.tolist(), strict=True)]
    assert rows(condition.dropped(where)) == dropped
    assert rows(condition.dropped()) == [nothing] * 5 == rows(condition.dropped(where).dropped(~where))
    assert rows(condition.to(torch.device("cpu"))) == said == rows(condition)


def test_one_part_of_several_is_dropped_alone() -> None:
    several, where = EACH["several"], torch.tensor([True, True, False, False, False])
    assert rows(several.without("label")) == [(3, row) for row in rows(FIVE)]
    assert rows(several.without("sentence", where))[:3] == [(2, []), (0, []), (3, [])]
    assert rows(several.without("sentence", where))[3:] == rows(several)[3:]


def test_a_caption_is_drawn_evenly_and_only_where_there_is_one() -> None:
    captions = Captions.of(CAPTIONS, TEXT)
    assert len(captions) == 5
    assert rows(captions[np.array([3, 1, 0, 2, 4])]) == rows(of("a red dog", "", "red cat", "blue dog", "blue cat"))
    assert rows(captions[1:3]) == [[], rows(of("blue dog"))[0]]
    u = (np.arange(600) + 0.5) / 600
    for picture, own in enumerate(CAPTIONS):
        found = rows(captions.drawn(np.full(600, picture), u))
        expected = [row for row in rows(of(*own)) for _ in range(600 // len(own))] if own else [[]] * 600
        assert found == expected
    last = np.nextafter(1, 0)
    assert rows(captions.drawn(np.arange(5), np.full(5, last))) == rows(captions.drawn(np.arange(5), np.full(5, 0.999)))
    assert captions.facts()["examples"] == [one for own in CAPTIONS for one in own]
    assert len(Captions.of([["red"]] * 1000, TEXT).facts()["examples"]) == 250  # every 4th: at most 256


# Batches.


def data_of(labelled: bool) -> ImageSet:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    labels, classes = (np.arange(5) % 3, ("x", "y", "z")) if labelled else (None, ())
    return ImageSet("made", "train", images, labels, classes, (), "", "", captions=CAPTIONS)


def config_of(**settings: Any) -> Config:
    values = {"training.batch_size": 64, "training.label_dropout": 0.25, "network.tokens": 6}
    return make_config(values | {key.replace("__", "."): value for key, value in settings.items()})


@pytest.mark.parametrize("labelled", [False, True])
def test_every_caption_of_every_picture_occurs(labelled: bool) -> None:
    """Each as often as the others of its picture; pictures without any have none; classes stay with their pictures."""
    config, data = config_of(training__label_dropout=0.0), data_of(labelled)
    described = data.described("words", 6)
    assert described is not None
    where = {data.images[number].tobytes(): number for number in range(5)}
    counts: dict[tuple[int, tuple[int, ...]], int] = {}
    for step in range(30):
        batch = make_batch(config, data, step, slice(None))
        pixels = ((batch.x0[:, 0].double() + 1) * 127.5).round().numpy().astype(np.uint8)
        pictures = [where[row.tobytes()] for row in pixels]
        for picture, row in zip(pictures, rows(batch.condition), strict=True):
            if labelled:
                assert row[0] == picture % 3
                row = row[1]
            counts[picture, tuple(row)] = counts.get((picture, tuple(row)), 0) + 1
    text = described.sentences.text
    expected = {
        (picture, tuple(row)): 1 / len(own or [""])
        for picture, own in enumerate(CAPTIONS)
        for row in rows(Sentences.of(own or [""], text))
    }
    assert set(counts) == set(expected) and len(expected) == 8
    for key, share in expected.items():
        assert counts[key] == pytest.approx(384 * share, abs=5 * math.sqrt(384 * share * (1 - share)) + 1)


@pytest.mark.parametrize(("condition", "kind"), [("all", Several), ("labels", Labels), ("sentences", Sentences)])
def test_a_run_conditions_on_what_it_says(condition: str, kind: type) -> None:
    config = config_of(training__condition=condition)
    assert isinstance(make_batch(config, data_of(True), 0, slice(None)).condition, kind)
    off = config_of(training__condition=condition, training__conditional=False)
    assert make_batch(off, data_of(True), 0, slice(None)).condition is None


def test_all_and_each_part_alone_are_dropped_as_configured() -> None:
    """Both with p + (1 - p) p^2, one alone with (1 - p)^2 p: all at once, or each by itself, independently."""
    p, seen, data = 0.25, [], data_of(True)
    only = ImageSet("", "train", data.images, data.labels, data.classes, (), "", "", captions=(("red",),) * 5)
    for step in range(50):
        found = make_batch(config_of(), only, step, slice(None)).condition
        seen += [(label == 3, not sentence) for label, sentence in rows(found)]
    share = {(True, True): p + (1 - p) * p * p, (True, False): (1 - p) ** 2 * p, (False, True): (1 - p) ** 2 * p}
    share[False, False] = (1 - p) ** 3
    for key, expected in share.items():
        assert seen.count(key) / 3200 == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / 3200))
    alone = config_of(training__condition="sentences")
    single = [row for step in range(50) for row in rows(make_batch(alone, only, step, slice(None)).condition)]
    assert single.count([]) / 3200 == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 3200))


@pytest.mark.parametrize("labelled", [False, True])
def test_captions_are_decided_by_seed_step_and_position(labelled: bool) -> None:
    config = config_of()
    whole = rows(make_batch(config, data_of(labelled), 7, slice(None)).condition)
    pieces = [rows(make_batch(config, data_of(labelled), 7, slice(at, at + 16)).condition) for at in range(0, 64, 16)]
    assert list(itertools.chain(*pieces)) == whole
    assert rows(make_batch(config, data_of(labelled), 8, slice(None)).condition) != whole
    assert rows(make_batch(config_of(training__seed=5), data_of(labelled), 7, slice(None)).condition) != whole


# The network.


def scaled(module: Any) -> Any:
    return randomised(module, 0.3).double()


@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_cross_attention_is_a_sum_over_heads_and_tokens(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = scaled(CrossAttention(32, 10, head_width=16, dims=len(shape)))
    x, tokens = torch.randn(3, 32, *shape).double(), torch.randn(3, 4, 10).double()
    present = torch.tensor([[True] * 4, [True, False, True, False], [True, False, False, False]])
    found = layer(x, Context(tokens, present))
    h = nn.functional.group_norm(x, 2, layer.norm.weight, layer.norm.bias, 1e-5).flatten(2)
    weight = {name: getattr(layer, name).weight.flatten(1) for name in ("q", "kv", "out")}
    bias = {name: getattr(layer, name).bias for name in ("q", "kv", "out")}
    expected = x.flatten(2).clone()
    for sample, place in itertools.product(range(3), range(math.prod(shape))):
        query = weight["q"] @ h[sample, :, place] + bias["q"]
        there = [weight["kv"] @ tokens[sample, t] + bias["kv"] for t in range(4) if present[sample, t]]
        mixed = []
        for head in range(2):
            here = slice(16 * head, 16 * head + 16)
            scores = [math.exp((query[here] @ both[:32][here]).item() / 4) for both in there]
            mixed.append(sum(s * both[32:][here] for s, both in zip(scores, there, strict=True)) / sum(scores))
        expected[sample, :, place] += weight["out"] @ torch.cat(mixed) + bias["out"]
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-10, atol=1e-10)


def network_of(*, several: bool = False, seed: int = 0) -> UNet:
    facts: dict[str, Any] = {"text": "words", "settings": TEXT.facts, "examples": ["red"]}
    encoders = Sentences.encoders(facts)
    if several:
        labels = {"kind": "labels", "facts": {"share": [0.5, 0.25, 0.25]}}
        encoders = Several.encoders({"label": labels, "sentence": {"kind": "sentences", "facts": facts}})
    torch.manual_seed(seed)
    return UNet(1, 1, channels=(16, 32), blocks=1, attention=(1,), encoders=encoders).eval()


def run(network: UNet, condition: Condition) -> Tensor:
    with torch.no_grad():
        x = torch.linspace(-1, 1, 64 * len(condition)).sin().reshape(len(condition), 1, 8, 8)
        return network(x, torch.linspace(-2, 2, len(condition)), condition)


@pytest.mark.parametrize("several", [False, True])
def test_absent_tokens_have_no_influence(several: bool) -> None:
    """To the bit: behind the end of a sentence, and all of them where it is dropped."""
    network = randomised(network_of(several=several))
    condition: Any = EACH["several" if several else "sentences"]
    sentences = condition.parts["sentence"] if several else condition

    def with_sentences(changed: Sentences) -> Any:
        return Several({**condition.parts, "sentence": changed}) if several else changed

    others = torch.where(sentences.present, sentences.tokens, 4)
    changed = Sentences(others, sentences.present, TEXT)
    assert not torch.equal(others, sentences.tokens)
    assert torch.equal(run(network, with_sentences(changed)), run(network, condition))
    dropped = Sentences(torch.full_like(others, 6), sentences.present, TEXT).dropped()
    assert torch.equal(run(network, with_sentences(dropped)), run(network, with_sentences(sentences.dropped())))
    assert not torch.allclose(run(network, with_sentences(dropped)), run(network, condition))


def test_an_unconditional_sample_attends_to_nothing_alone() -> None:
    """The vector is that of the null token, and so are the tokens that are present."""
    encoder = randomised(SentenceEncoder(TEXT, 12))
    vector, context = encoder(FIVE.dropped())
    assert context.present.tolist() == [[True] + [False] * 6] * 5
    assert torch.equal(context.tokens[:, 0], encoder.nothing.expand(5, -1))
    torch.testing.assert_close(vector, encoder.out(encoder.nothing).expand(5, -1))
    _, context = encoder(FIVE)
    assert torch.equal(context.present[:, 1:], FIVE.present) and context.present[:, 0].all()


def test_sentences_matter_only_after_learning_and_so_does_their_order() -> None:
    network, condition = network_of(), of("red dog", "red dog", "red dog")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "conv2" in name or name.startswith("out."):  # all that is 0 at the start, but for the sentences' own
                parameter.normal_(std=0.1)
    assert run(network, condition).abs().max() > 0.01
    assert torch.equal(run(network, condition), run(network, condition.dropped()))
    randomised(network)
    outputs = [run(network, of(*[said] * 3)) for said in ("red dog", "dog red", "red cat", "red", "")]
    for one, other in itertools.combinations(outputs, 2):
        assert (one - other).abs().flatten(1).amax(1).min() > 1e-4
    attending = attending_weights(network)
    linear = [w for name, w in network.named_parameters() if "sentence.layers" in name or ".kv." in name]
    assert {id(one) for one in attending} == {id(one) for one in linear if one.ndim == 2}
    assert len(attending) == 2 * 4 + 3


def test_a_batch_of_sentences_is_each_alone() -> None:
    network = randomised(network_of())
    encoder = network.conditioning.get_submodule("sentence")
    with torch.no_grad():
        vector, context = encoder(FIVE)
        for row in range(5):
            alone, tokens = encoder(FIVE[row : row + 1])
            torch.testing.assert_close(alone[0], vector[row], rtol=1e-6, atol=1e-6)
            there = context.present[row]
            torch.testing.assert_close(tokens.tokens[0, there], context.tokens[row, there], rtol=1e-5, atol=5e-6)


def test_the_encoders_layer_is_a_transformers() -> None:
    """torch's own, with the same weights, tokens masked."""
    torch.manual_seed(0)
    layer, theirs = (
        scaled(Layer(16, 4)),
        nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", norm_first=True, batch_first=True),
    )
    names = {"self_attn.in_proj_": "qkv.", "self_attn.out_proj.": "out.", "linear1.": "up.", "linear2.": "down."}
    names |= {"norm1.": "norm1.", "norm2.": "norm2."}
    ours = layer.state_dict()
    theirs.double().load_state_dict({a + end: ours[b + end] for a, b in names.items() for end in ("weight", "bias")})
    x, present = torch.randn(2, 5, 16).double(), torch.tensor([[True] * 5, [True, True, False, False, False]])
    found, expected = layer(x, present), theirs(x, src_key_padding_mask=~present)
    torch.testing.assert_close(found[present], expected[present], rtol=1e-9, atol=1e-9)


def test_gradients_of_dropped_rows_are_finite() -> None:
    network = randomised(network_of(several=True)).double()
    condition = EACH["several"].dropped(torch.tensor([True, False, True, False, True]))
    x = torch.randn(5, 1, 8, 8).double().requires_grad_()
    network(x, torch.linspace(-2, 2, 5).double(), condition).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert x.grad is not None and x.grad.isfinite().all()


def test_a_network_refuses_other_tokens() -> None:
    network = network_of()
    for condition, message in (
        (Labels(torch.tensor([0]), 3), "sentences, not a Labels"),
        (Sentences.of(["red"], Words(7, TEXT.vocabulary)), "6 tokens of words"),
        (Sentences(torch.zeros(1, 6, 128), torch.ones(1, 6, dtype=torch.bool), TEXT), "6 tokens of words"),
    ):
        with pytest.raises(ValueError, match=message):
            run(network, condition)
