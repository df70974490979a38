"""The vocoder: a network that takes spectrograms, its condition, and waveforms of any length."""

import dataclasses
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import Command
from torch import Tensor

from undiffuse.build import make_network
from undiffuse.card import ConditionFacts
from undiffuse.conditions import Labels, Spectra
from undiffuse.config import Config, make_config
from undiffuse.data.recordings import read_sounds
from undiffuse.data.sounds import SoundSet
from undiffuse.domains import domain_of
from undiffuse.domains.log_mel import LogMel
from undiffuse.domains.mdct import MDCT
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.generate import Recipe, generate, sample
from undiffuse.model import Model, load, write_model
from undiffuse.networks import Vocoder
from undiffuse.networks.vocoder import at_frames
from undiffuse.provenance import read_provenance
from undiffuse.training.batches import make_batch
from undiffuse.training.loop import training_steps
from undiffuse.training.settings import decided
from undiffuse.training.spectrograms import Spectrograms
from undiffuse.training.state import make_learner
from undiffuse.training.statistics import data_facts
from undiffuse.vocoder import rows_of, vocoded, with_vocoder

RATE, HOP, BANDS, FRAMES = 8000, 160, 32, 16  # 5 frames of an MDCT of 32 bands in a hop, as at 16 kHz with 64


def tones(count: int = 64, domain: str = "mdct") -> SoundSet:
    """Sines of 16 hops, each of one of four frequencies in turn and of a phase of its own."""
    draw = np.random.default_rng(0)
    time = np.arange(FRAMES * HOP) / RATE
    frequency = np.array([300, 800, 1500, 2800])[np.arange(count) % 4, None]
    phase = draw.uniform(0, 2 * np.pi, (count, 1))
    rows = np.rint(8000 * np.sin(2 * np.pi * frequency * time + phase)).astype(np.int16)
    lengths = np.full(count, FRAMES * HOP)
    return SoundSet(
        name="tones",
        split="train",
        images=rows,
        labels=None,
        classes=(),
        names=(),
        licence="",
        fingerprint="",
        domain=domain,
        rate=RATE,
        lengths=lengths,
    )


def network(**options: int) -> Vocoder:
    """One with random weights everywhere, also where they begin as 0."""
    torch.manual_seed(0)
    made = Vocoder(BANDS, 64, 1, **{"width": 16, "blocks": 3, "patch": 1, **options}).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False)


def spectra(count: int, frames: int = FRAMES) -> Spectra:
    return Spectra.of(torch.rand(count, 64, frames, generator=torch.Generator().manual_seed(1)) * 2 - 1, RATE)


def noisy(count: int, frames: int = FRAMES) -> Tensor:
    return torch.randn(count, 1, BANDS, frames * HOP // BANDS, generator=torch.Generator().manual_seed(2))


def test_levels_are_interpolated_between_the_centres_of_frames() -> None:
    """Against np.interp over the times of both kinds of frame, in samples; beyond the ends it is constant, too."""
    condition = spectra(2)
    for count in (FRAMES, 40, 80):
        found = at_frames(condition, count)
        centres = (np.arange(count) + 0.5) * FRAMES * HOP / count
        known = (np.arange(FRAMES) + 0.5) * HOP
        wanted = [[np.interp(centres, known, level) for level in one] for one in condition.levels.numpy()]
        assert np.abs(found[:, :-1].numpy() - wanted).max() < 1e-5  # weights from positions up to 80 in float32
        assert (found[:, -1] == 1).all()


def test_a_click_is_in_the_same_place_in_both() -> None:
    """The centres of energy of a click, of its MDCT and of its spectrogram, in samples."""
    row = np.zeros((1, FRAMES * HOP), np.int16)
    place = 7 * HOP + HOP // 2
    row[0, place] = 20_000

    def centre(energy: Tensor) -> float:
        times = (torch.arange(len(energy)) + 0.5) * FRAMES * HOP / len(energy)
        return float((energy * times).sum() / energy.sum())

    coefficients = MDCT((FRAMES * HOP,), RATE, (1.0,) * BANDS).encode(row)[0, 0]
    power = 10 ** (4 * (LogMel((FRAMES * HOP,), RATE).encode(row)[0, 0] - 1))
    assert abs(centre(coefficients.pow(4).sum(0)) - place) < BANDS / 2  # half a frame
    assert abs(centre(power.sum(0)) - place) < 1


@pytest.mark.parametrize("patch", [1, 5])
def test_the_spectrogram_is_heard_within_the_receptive_field_alone(patch: int) -> None:
    net, place = network(patch=patch, blocks=1), 7
    changed = spectra(1).levels.clone()
    changed[:, :, place] += 1
    one, other = (net(noisy(1), torch.zeros(1), made) for made in (spectra(1), Spectra.of(changed, RATE)))
    moved = (one != other).any(2)[0, 0]
    frames = FRAMES * HOP // BANDS
    folded = (np.arange(frames // patch) + 0.5) * patch / 5 - 0.5  # in frames of the spectrogram
    reach = 1 + 1  # the stem's neighbours and those of one block
    touched = np.abs(folded - place) < 1
    wanted = [touched[max(0, t - reach) : t + reach + 1].any() for t in range(len(folded))]
    assert moved.tolist() == np.repeat(wanted, patch).tolist()
    assert 0 < moved.sum() < frames


def test_a_shift_by_whole_hops_shifts_the_output() -> None:
    net, shift = network(), 2
    here = net(noisy(1), torch.zeros(1), spectra(1))
    there = net(noisy(1).roll(5 * shift, 3), torch.zeros(1), Spectra.of(spectra(1).levels.roll(shift, 2), RATE))
    inside = slice(10, -10)  # the receptive field, 8 frames, and those between two centres
    assert (there.roll(-5 * shift, 3) - here)[..., inside][..., : -5 * shift].abs().max() < 1e-4 * here.abs().max()


def test_clips_of_a_batch_and_their_noise_levels_are_apart() -> None:
    net, log_snr = network(), torch.tensor([-3.0, 0.0, 5.0])
    together = net(noisy(3), log_snr, spectra(3))
    for k in range(3):
        alone = net(noisy(3)[k : k + 1], log_snr[k : k + 1], spectra(3)[k : k + 1])
        assert (alone - together[k]).abs().max() < 1e-5 * together.abs().max()  # other products, other rounding


def test_a_new_network_gives_zero_and_names_its_matrices() -> None:
    net = Vocoder(BANDS, 64, 2, patch=1, width=16, blocks=2)
    assert net(noisy(1), torch.zeros(1), spectra(1)).eq(0).all()
    assert net(noisy(1), torch.zeros(1), spectra(1)).shape == (1, 2, BANDS, 80)
    shapes = [tuple(weight.shape) for weight in net.matrices()]
    assert shapes == [(16, 3 * (BANDS + 65)), (32, 48), (16, 32), (32, 48), (16, 32)]


def test_a_network_without_a_spectrogram_refuses() -> None:
    for condition in (None, Labels(torch.zeros(1, dtype=torch.int64), 2)):
        with pytest.raises(ValueError, match="takes the spectrograms"):
            network()(noisy(1), torch.zeros(1), condition)


def test_dropped_spectra_are_silence_with_a_flag() -> None:
    whole = spectra(3)
    where = torch.tensor([False, True, False])
    part = whole.dropped(where)
    assert part.levels[1].eq(-1).all() and part.present.tolist() == [True, False, True]
    assert part.levels[where.logical_not()].equal(whole.levels[where.logical_not()])
    assert whole.dropped().joined(whole)[np.array([0, 3])].present.tolist() == [False, True]
    assert (at_frames(part, 80)[:, -1] == torch.tensor([1.0, 0.0, 1.0])[:, None]).all()
    net = network()
    silent = Spectra.of(torch.full((1, 64, FRAMES), -1.0), RATE)  # silence asked for is not the same as nothing
    assert not net(noisy(1), torch.zeros(1), silent).equal(net(noisy(1), torch.zeros(1), silent.dropped()))
    with pytest.raises(ValueError, match="cannot be joined"):
        whole.joined(Spectra.of(whole.levels, 2 * RATE))
    with pytest.raises(ValueError, match="with a flag each"):
        Spectra(whole.levels[:, :3], whole.present, RATE)


def settings(**more: object) -> Config:
    small = {"network.kind": "vocoder", "network.channels": [32], "network.blocks": 2, "data.sound": "mdct"}
    options = {"training.batch_size": 16, "training.warmup": 5, "training.label_dropout": 0.0, "training.steps": 150}
    return make_config({**small, **options, **{key.replace("__", "."): value for key, value in more.items()}})


def test_the_condition_of_a_batch_is_the_spectrogram_of_its_clips() -> None:
    data, config = tones(), decided(settings(), tones(), "fp32")
    batch = make_batch(config, data, 3, slice(4, 9))
    assert isinstance(batch.condition, Spectra)
    rows = domain_of(data).decode(batch.x0)
    assert batch.condition.levels.equal(LogMel((FRAMES * HOP,), RATE).encode(rows)[:, 0])
    assert len(Spectrograms(data.images, RATE)) == 64 and data_facts(config, data).condition == ConditionFacts(
        "spectra", {"bands": 64, "frames": FRAMES, "rate": RATE}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A vocoder of tones, from its folder."""
    data, folder = tones(), tmp_path_factory.mktemp("models") / "tones"
    config = decided(settings(network__patch=2), data, "fp32")
    facts = data_facts(config, data)
    accelerator = Accelerator(cpu=True)
    learner = make_learner(config, data, facts, accelerator)
    for step in training_steps(config, data, learner, accelerator):
        if step.number == 150:
            break
    folder.mkdir()
    write_model(folder, config, facts, {"steps": 150}, dict(learner.network.state_dict()))
    return load(folder)


def test_training_uses_the_spectrogram(trained: Model) -> None:
    """At a noise level that hides a tone, the error is below that of the mean and of a wrong spectrogram's."""
    data = tones()
    x0, condition = trained.domain.encode(data.images), Spectrograms(data.images, RATE)[:]
    t = float(trained.denoiser.process.schedule.time(torch.tensor(0.0, dtype=torch.float64)))
    level = trained.denoiser.process.noise_level(t)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    x_t = (level.alpha * x0 + level.sigma * noise).float()

    def error(given: Spectra) -> float:
        return float((trained.denoiser(x_t, t, given).x0 - x0).square().mean())

    power = float(x0.square().mean())
    best_linear = power / (1 + power)  # of each number alone: alpha = sigma
    right, wrong = error(condition), error(condition[torch.arange(64).roll(1)])
    assert right < 0.8 * best_linear and right < 0.8 * wrong


def test_the_model_folder_keeps_the_condition(trained: Model) -> None:
    assert trained.data.takes == ConditionFacts("spectra", {"bands": 64, "frames": FRAMES, "rate": RATE})
    assert trained.config.network.options == {"bands": trained.domain.shape[1]}
    silence = trained.condition(range(3))
    assert isinstance(silence, Spectra) and silence.levels.eq(-1).all() and silence.present.all()
    rows = next(generate(trained, Recipe(steps=2), [0, 1], trained.condition([0, 1])))
    assert rows.shape == (2, FRAMES * HOP) and rows.dtype == np.int16


def test_waveforms_are_a_function_of_the_vocoder_the_spectrogram_and_the_seed(trained: Model) -> None:
    levels = Spectrograms(tones().images, RATE)[:5].levels
    rows = vocoded(trained, levels, steps=3)
    assert rows.shape == (5, FRAMES * HOP) and rows.dtype == np.int16
    assert (rows == vocoded(trained, levels, steps=3)).all()
    assert np.abs(rows[3:4].astype(int) - vocoded(trained, levels[3:4], steps=3)).max() <= 1  # rounding
    assert (rows != vocoded(trained, levels, steps=3, seed=1)).any(1).all()
    numbered = vocoded(trained, levels, steps=3, numbers=[4, 3, 2, 1, 0])
    alone = vocoded(trained, levels[2:3], steps=3, numbers=[2])
    assert np.abs(numbered[2:3].astype(int) - alone).max() <= 1
    assert (numbered[:4] != rows[:4]).any(1).all() and np.abs(numbered[4].astype(int) - rows[4]).max() <= 1


@pytest.mark.parametrize("frames", [1, 7, FRAMES, 45])
def test_any_number_of_frames_can_be_heard(trained: Model, frames: int) -> None:
    """7 hops are 35 frames of the MDCT, which are no whole number of patches of 2."""
    levels = torch.zeros(2, 64, frames)
    assert vocoded(trained, levels, steps=2).shape == (2, frames * HOP)


def of_spectrograms(folder: Path, data: SoundSet) -> Model:
    """An untrained model of log-mel spectrograms."""
    config = decided(make_config({"network.channels": [16], "data.sound": "log-mel"}), data, "fp32")
    facts = data_facts(config, data)
    shape = domain_of(data).shape
    made = make_network(config, shape[0], facts.takes, len(shape) - 1)
    folder.mkdir()
    write_model(folder, config, facts, {}, dict(made.state_dict()))
    return load(folder)


def test_samples_of_spectrograms_are_vocoded(trained: Model, tmp_path: Path) -> None:
    model = of_spectrograms(tmp_path / "mel", tones(domain="log-mel"))
    with_one = with_vocoder(model, trained.name)
    assert with_one.fingerprint != model.fingerprint
    x0 = model.domain.encode(tones(3).images)
    assert (rows_of(with_one, x0) == vocoded(trained, x0[:, 0])).all()
    assert (rows_of(model, x0) == model.domain.decode(x0)).all()
    plain = with_vocoder(with_one, "griffin-lim")
    assert plain.vocoder is None and plain.fingerprint == model.fingerprint
    assert (sample(model, 2, steps=2, vocoder=trained) != sample(model, 2, steps=2, vocoder="griffin-lim")).any()
    with pytest.raises(UsageError, match="is no vocoder"):
        with_vocoder(model, model)
    with pytest.raises(UsageError, match="for models of log-mel spectrograms"):
        with_vocoder(trained, trained)
    faster = dataclasses.replace(trained.data, sound={**(trained.data.sound or {}), "rate": 2 * RATE})
    with pytest.raises(UsageError, match=r"at 16000 Hz.* at 8000 Hz"):
        with_vocoder(model, dataclasses.replace(trained, data=faster))


def test_what_a_vocoder_cannot_be(tmp_path: Path, trained: Model) -> None:
    def build(**more: object) -> None:
        data = tones(domain=str(more.get("data__sound", "mdct")))
        config = decided(settings(**more), data, "fp32")
        shape = domain_of(data).shape
        make_network(config, shape[0], data_facts(config, data).takes, len(shape) - 1)

    build()
    for wrong, reason in {
        "training__conditional": (False, "set training.conditional=true"),
        "network__patch": (3, "does not divide the 40 frames"),
        "network__channels": ([16, 32], "one width"),
        "network__head": (8, "has no network.attention, head"),
        "network__options": ({"bands": 32}, "have 64 bands"),
        "data__sound": ("log-mel", "does not fit log-mel: it is for data.sound=mdct"),
    }.items():
        value, message = reason
        with pytest.raises(UsageError, match=message):
            build(**{wrong: value})
    takes = ConditionFacts("spectra", {"bands": 64, "frames": FRAMES, "rate": RATE})
    other = trained.config.model_copy(update={"network": make_config({"network.channels": [16]}).network})
    with pytest.raises(UndiffuseError, match="network"):
        make_network(other, 1, takes, 2)


def test_the_command_names_a_vocoder(command: Command, trained: Model, tmp_path: Path) -> None:
    model = of_spectrograms(tmp_path / "mel", tones(domain="log-mel"))
    files = {name: tmp_path / f"{number}.wav" for number, name in enumerate((trained.name, "griffin-lim"))}
    for name, file in files.items():
        code, _, error = command("sample", model.name, "-n", 2, "--steps", 2, "--vocoder", name, "--out", file)
        assert code == 0, error
    recorded = [read_provenance(file) for file in files.values()]
    assert recorded[0].fingerprint != recorded[1].fingerprint == model.fingerprint
    for words in (("sample",), ("evaluate",), ("explain", "--out", tmp_path / "pictures")):
        code, _, error = command(words[0], trained.name, *words[1:])
        assert code == 2 and "is a vocoder" in error and f"undiffuse edit {trained.name}" in error, words
    assert not (tmp_path / "pictures").exists()


def test_a_sound_is_made_anew_from_its_spectrogram(command: Command, trained: Model, tmp_path: Path) -> None:
    """`edit` with a vocoder: what `vocoded` makes of the spectrogram, at the level of the file."""
    (row,) = tones(1).images
    trained.domain.save(row, tmp_path / "tone.wav")
    code, _, error = command("edit", trained.name, tmp_path / "tone.wav", "--steps", 3, "--out", tmp_path / "again.wav")
    assert code == 0, error
    clips = read_sounds([tmp_path / "tone.wav"], trained.domain, True)
    spectrograms = LogMel(trained.data.shape, RATE).encode(clips.rows)
    expected = clips.at_their_level(vocoded(trained, spectrograms[:, 0], steps=3))
    with wave.open(str(tmp_path / "again.wav")) as file:
        found = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert (found == expected[0]).all()
    code, _, error = command("edit", trained.name, tmp_path / "tone.wav", "--strength", 0.5)
    assert code == 2 and "--strength is not for vocoders" in error


@pytest.mark.parametrize("patch", [1, 2, 5])
def test_the_gain_is_of_the_coefficient_itself(patch: int) -> None:
    """A gain of each band's own and no shift: the coefficients times it, in their places, whatever is folded."""
    net, gain = network(patch=patch), torch.linspace(-1, 1, BANDS)
    net.out.weight.zero_(), net.out.bias.zero_()
    net.out.bias[BANDS * patch :] = gain.repeat_interleave(patch)
    found = net(noisy(2), torch.zeros(2), spectra(2))
    assert found.equal(gain[:, None] * noisy(2))
