"""Sounds: transforms against textbook formulas, explicit matrices and SciPy; domains, there and back and in files."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from conftest import TINY, ignore
from PIL import Image
from torch import Tensor

from undiffuse.card import DataFacts
from undiffuse.config import DataConfig
from undiffuse.data import ImageSet
from undiffuse.domains import domain_of
from undiffuse.domains.log_mel import LogMel
from undiffuse.domains.mdct import MDCT, band_scales
from undiffuse.domains.sounds import Sounds, Waves
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.generate import sample
from undiffuse.model import load
from undiffuse.sound import companding
from undiffuse.sound.griffin_lim import convergence, griffin_lim
from undiffuse.sound.mdct import inverse_mdct, mdct
from undiffuse.sound.mel import band_edges, filters, log_mel, spectrum_of
from undiffuse.sound.stft import inverse_stft, stft
from undiffuse.training import train

RATE, HOP, LENGTH = 16_000, 320, 10_240
EPS = 1e-12  # float64, sums of a few thousand numbers of unit size


def voices(count: int = 4, length: int = LENGTH) -> np.ndarray:
    """Sounds like spoken syllables, int16: gliding harmonics and hiss that fade in and out, and silence after."""
    random, time = np.random.default_rng(0), np.arange(length) / RATE
    rows = []
    for _ in range(count):
        end = random.uniform(0.5, 0.9) * length / RATE
        phase = 2 * np.pi * random.uniform(100, 250) * (time + random.uniform(-0.3, 0.3) * time**2)
        tone = sum(np.sin(k * phase) / (1 + ((k - random.uniform(3, 9)) / 2) ** 2) for k in range(1, 21))
        envelope = np.where(time < end, np.sin(np.pi * np.minimum(time / end, 1)) ** 2, 0)
        rows.append(4000 * envelope * (tone + 0.02 * random.standard_normal(length)))
    return np.round(rows).clip(-32768, 32767).astype(np.int16)


def noise(count: int = 4, length: int = LENGTH) -> np.ndarray:
    """White noise of full scale, the ends of the range among it."""
    rows = np.random.default_rng(1).integers(-32768, 32768, (count, length)).astype(np.int16)
    rows[:2] = np.where(rows[:2] < 0, -32768, 32767)
    return rows


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def textbook(length: int, bands: int) -> np.ndarray:
    """The MDCT as a matrix, from its formula: (M, L / M, L). At the ends the window is 0 outside and 1 inside."""
    n, k, count = np.arange(2 * bands), np.arange(bands)[:, None], length // bands
    cosines = np.sqrt(2 / bands) * np.cos(np.pi / bands * (n + 0.5 + bands / 2) * (k + 0.5))
    matrix = np.zeros((bands, count, length + bands))
    for t in range(count):
        window = np.sin(np.pi * (n + 0.5) / (2 * bands))
        if t == 0:
            window[:bands] = n[:bands] >= bands / 2
        if t == count - 1:
            window[bands:] = n[:bands] < bands / 2
        matrix[:, t, t * bands : (t + 2) * bands] = window * cosines
    return matrix[:, :, bands // 2 : -bands // 2]


@pytest.mark.parametrize(("length", "bands"), [(8, 8), (16, 8), (96, 8), (384, 64), (12, 2)])
def test_mdct_is_the_textbooks_and_orthogonal(length: int, bands: int) -> None:
    expected = textbook(length, bands)
    matrix = mdct(torch.eye(length, dtype=torch.float64), bands).permute(1, 2, 0).numpy()
    assert np.allclose(matrix, expected, atol=EPS, rtol=0)
    flat = matrix.reshape(length, length)
    assert np.abs(flat @ flat.T - np.eye(length)).max() < EPS
    inverse = inverse_mdct(torch.eye(length, dtype=torch.float64).view(length, bands, -1)).numpy()
    assert np.abs(inverse - flat).max() < EPS  # row i is the clip of coefficient i


@pytest.mark.parametrize("bands", [64, 128])
def test_mdct_goes_there_and_back_and_keeps_energy(bands: int) -> None:
    x = normal(3, LENGTH)
    c = mdct(x, bands)
    assert c.shape == (3, bands, LENGTH // bands)
    assert (inverse_mdct(c) - x).abs().max() < 1e-10
    assert torch.allclose(c.square().sum((1, 2)), x.square().sum(1), rtol=EPS)
    assert (inverse_mdct(mdct(x.float(), bands)) - x).abs().max() < 1e-5  # 100 steps of float32 at unit size


@pytest.mark.parametrize("band", [0, 1, 17, 40, 63])
def test_a_sinusoid_lies_in_its_band(band: int) -> None:
    """The side lobes of the sine window fall as 1 / f^2: all but a hundredth is in the band and beside it."""
    frequency = (band + 0.5) / (2 * 64)  # cycles per sample
    x = torch.sin(2 * math.pi * frequency * torch.arange(LENGTH, dtype=torch.float64) + 0.3)
    energy = mdct(x[None], 64).square().sum((0, 2))
    assert energy.argmax() == band
    assert energy[max(band - 1, 0) : band + 2].sum() > 0.99 * energy.sum()


def test_bands_that_do_not_divide_a_clip_are_refused() -> None:
    for bands in (0, 3, 48):
        with pytest.raises(ValueError, match="even number that divides"):
            mdct(normal(1, 64), bands)


def test_bits_of_an_autoregression_are_the_same_in_all_coordinates() -> None:
    """The law of a Gaussian AR(1) is known exactly, step by step; in the MDCT its covariance is D S D^T, and under
    companding its density is multiplied by dc / du, here by automatic differentiation."""
    length, bands, phi, sigma = 160, 8, 0.9, 0.05
    random = np.random.default_rng(0)
    x = random.normal(0, sigma / math.sqrt(1 - phi**2), 1)
    while len(x) < length:
        x = np.append(x, random.normal(phi * x[-1], sigma))
    law = scipy.stats.norm
    nats = -law.logpdf(x[0], 0, sigma / math.sqrt(1 - phi**2)) - law.logpdf(x[1:], phi * x[:-1], sigma).sum()
    waves, domain = Waves((length,), 1000), MDCT((length,), 1000, tuple(np.linspace(0.5, 0.1, bands).tolist()))
    bits = (nats + waves.log_volume(waves.encode(32768 * x[None]))) / (length * math.log(2))

    covariance = sigma**2 / (1 - phi**2) * scipy.linalg.toeplitz(phi ** np.arange(length))
    matrix = textbook(length, bands).reshape(length, length)
    c = mdct(torch.from_numpy(x)[None], bands)
    law_of_c = scipy.stats.multivariate_normal(cov=matrix @ covariance @ matrix.T)
    assert abs(law_of_c.logpdf(c.numpy().ravel()) + nats) < 1e-9 * abs(nats)

    scale = torch.tensor(domain.scale, dtype=torch.float64)
    u = companding.compress(c, scale)
    jacobian = torch.autograd.functional.jacobian(lambda u: companding.expand(u, scale), u)
    log_p = law_of_c.logpdf(c.numpy().ravel()) + torch.linalg.slogdet(jacobian.view(length, length))[1]
    assert torch.allclose((domain.log_volume(u[:, None]) - log_p) / (length * math.log(2)), bits, rtol=1e-9, atol=0)


def test_log_volume_is_that_of_the_whole_map() -> None:
    """ln |det| of x_0 -> row in steps of 16 bits, by automatic differentiation through both parts."""
    domain = MDCT((80,), 1000, (0.3, 0.2, 0.1, 0.05))
    u, scale = normal(1, 1, 4, 20), torch.tensor(domain.scale, dtype=torch.float64)
    rows = torch.autograd.functional.jacobian(lambda u: 32768 * inverse_mdct(companding.expand(u[:, 0], scale)), u)
    assert abs(torch.linalg.slogdet(rows.view(80, 80))[1] - domain.log_volume(u)[0]) < 1e-9
    assert domain.log_volume(0 * u) == -math.inf
    assert Waves((80,), 1000).log_volume(u.view(1, 1, 80)).tolist() == [80 * math.log(32768)]


@pytest.mark.parametrize("law", [scipy.stats.norm(0, 0.02), scipy.stats.laplace(0.01, 0.05)])
def test_a_companded_density_integrates_to_one(law: Any) -> None:
    scale = torch.tensor([0.07], dtype=torch.float64)

    def density(u: float) -> float:
        at = torch.tensor([[[u]]], dtype=torch.float64)
        return law.pdf(companding.expand(at, scale).item()) * companding.log_slope(at, scale).exp().item()

    halves = [scipy.integrate.quad(density, *ends, limit=200)[0] for ends in ((-6, -1e-9), (1e-9, 6))]
    assert abs(sum(halves) - 1) < 1e-7  # quad's own tolerance, 1.5e-8, for each half


def test_companding_levels_every_band() -> None:
    """E u^2 = E|c| / s is 1 / 4; and a silent band has the scale of rounding noise."""
    rows = voices(8)
    scale = band_scales(rows, 64)
    levels = MDCT((LENGTH,), RATE, scale).encode(rows).double().square().mean((0, 1, 3))
    loud = torch.tensor(scale) > 2**-13
    assert loud.sum() > 20 and (levels[loud] - 0.25).abs().max() < 2e-4  # four digits of the scale
    assert band_scales(np.zeros((2, LENGTH), np.int16)) == (float(f"{2**-13:.4g}"),) * 64
    assert tuple(json.loads(json.dumps(scale))) == scale


def test_stft_is_scipys() -> None:
    """With a hop of silence before and after; a sine of amplitude 1 at a bin has magnitude 1."""
    x = normal(2, 10 * HOP)
    padded = np.pad(x.numpy(), ((0, 0), (HOP, HOP)))
    options: dict[str, Any] = {"nperseg": 3 * HOP, "noverlap": 2 * HOP, "boundary": None, "padded": False}
    expected = 2 * scipy.signal.stft(padded, window=scipy.signal.windows.hann(3 * HOP, sym=False), **options)[2]
    assert np.abs(stft(x, HOP).numpy() - expected).max() < EPS
    sine = torch.sin(2 * math.pi * 30 / (3 * HOP) * torch.arange(10 * HOP, dtype=torch.float64))
    assert (stft(sine[None], HOP)[0, 30, 1:-1].abs() - 1).abs().max() < EPS


@pytest.mark.parametrize("hop", [4, 5])
def test_inverse_stft_is_the_least_squares_solution(hop: int) -> None:
    count = 6
    frames = torch.zeros(count * 3 * hop, count * hop, dtype=torch.float64)  # what cuts and windows the frames
    window = torch.from_numpy(scipy.signal.windows.hann(3 * hop, sym=False))
    for index in range(len(frames)):
        frame, place = divmod(index, 3 * hop)
        if 0 <= (at := (frame - 1) * hop + place) < count * hop:
            frames[index, at] = window[place]
    wanted = normal(count, 3 * hop)
    spectra = (torch.fft.rfft(wanted) / (0.75 * hop)).T[None]
    solution = torch.linalg.lstsq(frames, wanted.view(-1, 1)).solution[:, 0]
    assert (inverse_stft(spectra, hop)[0] - solution).abs().max() < EPS
    x = normal(2, 8 * hop)
    assert (inverse_stft(stft(x, hop), hop) - x).abs().max() < EPS


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050])
def test_mel_filters_partition_the_spectrum(rate: int) -> None:
    edges, weights = band_edges(rate), filters(rate)
    bins = torch.fft.rfftfreq(3 * (rate // 50), 1 / rate, dtype=torch.float64)
    within = (bins >= edges[0, 1]) & (bins <= edges[-1, 1])
    assert (weights.sum(0)[within] - 1).abs().max() < EPS
    assert torch.allclose(edges[[0, -1], [0, 2]], torch.tensor([50, rate / 2], dtype=torch.float64))
    mel = 1127.01 * (1 + edges[:, 1] / 700).log()  # the same scale in natural logarithms
    assert (mel.diff() / mel.diff().mean() - 1).abs().max() < EPS * 100
    left, right = edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 1]
    step = bins[1].item()  # the trapezoidal rule is wrong by a kink's change of slope times step^2 / 8 at most
    error = step * weights.sum(1) - (left + right) / 2
    assert (error.abs() <= step**2 / 4 * (1 / left + 1 / right) + EPS).all()


def test_a_tone_peaks_in_its_band() -> None:
    """At the centre of every band that is wider than the window's main lobe, and at -20 dB for an amplitude of 0.1."""
    edges = band_edges(RATE)
    for band in range(24, 64, 3):
        tone = 0.1 * torch.sin(2 * math.pi * edges[band, 1] / RATE * torch.arange(LENGTH, dtype=torch.float64))
        levels = log_mel(tone[None], RATE)[0, :, 5:-5].mean(1)
        assert levels.argmax() == band
        assert -1 < 40 * (levels[band] - 1) + 20 < 10 * math.log10(1.5)  # up to all three bins of the main lobe


def test_spectra_have_their_mel_levels() -> None:
    """The more steps, the nearer the levels of the magnitudes; nothing is negative, and silence stays silent."""
    levels = log_mel(torch.from_numpy(voices()).double() / 32768, RATE)
    errors = []
    for steps in (0, 4, 16, 64):
        spectrum = spectrum_of(levels, RATE, steps)
        again = 10 * (filters(RATE) @ spectrum.square()).log10()
        errors.append((again - 40 * (levels - 1))[levels > -1].square().mean().sqrt().item())  # dB
        assert (spectrum >= 0).all()
    assert errors == sorted(errors, reverse=True) and errors[2] < 2 and errors[3] < 0.8
    assert spectrum_of(torch.full_like(levels, -1), RATE).max() < 1e-4


def test_griffin_lim_finds_a_waveform() -> None:
    """The spectral convergence falls to a tenth of its start, and is reported as it is; nothing is random."""
    x = torch.from_numpy(voices()).double() / 32768
    magnitude = stft(x, HOP).abs()
    start, found = (griffin_lim(magnitude, HOP, steps) for steps in (0, 32))
    assert found[1].max() < 0.1 and (found[1] < start[1] / 4).all()
    error = np.linalg.norm((stft(found[0], HOP).abs() - magnitude).numpy(), axis=(1, 2))
    assert np.allclose(found[1], error / np.linalg.norm(magnitude.numpy(), axis=(1, 2)), rtol=1e-10)
    assert torch.equal(griffin_lim(magnitude, HOP)[0], found[0])
    assert convergence(x, magnitude, HOP).max() < EPS
    silence = griffin_lim(torch.zeros_like(magnitude), HOP)
    assert (silence[0] == 0).all() and (silence[1] == 0).all()


DOMAINS_OF_TEST = (Waves((LENGTH,), RATE), LogMel((LENGTH,), RATE), MDCT((LENGTH,), RATE, band_scales(voices())))
each = pytest.mark.parametrize("domain", DOMAINS_OF_TEST, ids=lambda domain: type(domain).__name__)


@each
def test_a_clip_is_itself_in_any_batch(domain: Sounds | Any) -> None:
    rows = voices(5)
    x0 = domain.encode(rows)
    assert x0.shape == (5, *domain.shape) and x0.dtype == torch.float32
    alone = torch.cat([domain.encode(row[None]) for row in rows])
    assert (alone - x0).abs().max() < 1e-6
    decoded = np.concatenate([domain.decode(one[None]) for one in x0])
    assert np.array_equal(decoded, domain.decode(x0))
    for none in (rows[:0], rows[::-1]):
        assert domain.encode(none).shape == (len(none), *domain.shape)
        assert domain.decode(domain.encode(none)).shape == none.shape


@each
def test_silence_that_is_appended_changes_nothing_before_it(domain: Sounds | Any) -> None:
    """Not a frame of a spectrogram, around which is silence anyway; of the MDCT only the last block, which meets it."""
    rows = voices()
    rows[:, -HOP:] = noise()[:, :HOP]
    longer = dataclasses.replace(domain, stored=(2 * LENGTH,)).encode(np.pad(rows, ((0, 0), (0, LENGTH))))
    x0 = domain.encode(rows)
    same = x0.shape[-1] - isinstance(domain, MDCT)
    assert (longer[..., :same] - x0[..., :same]).abs().max() < 1e-6


@pytest.mark.parametrize(
    "rows", [voices(), noise(), np.zeros((1, LENGTH), np.int16)], ids=["voices", "noise", "silence"]
)
@pytest.mark.parametrize("bands", [0, 64, 128])
def test_every_row_comes_back_exactly(rows: np.ndarray, bands: int) -> None:
    domain = MDCT((LENGTH,), RATE, band_scales(voices(), bands)) if bands else Waves((LENGTH,), RATE)
    for dtype in (torch.float32, torch.float64):
        back = domain.decode(domain.encode(rows).to(dtype))
        assert back.dtype == np.int16 and np.array_equal(back, rows)
    assert np.array_equal(domain.decode(domain.encode(np.asfortranarray(rows))), rows)


def test_what_is_too_loud_is_saturated() -> None:
    x0 = torch.tensor([-1.5, -1, 0.4 / 32768, 0.6 / 32768, 1, 9])
    rows = Waves((20,), 1000).decode(x0.repeat(20)[:20].view(1, 1, 20))
    assert rows[0, :6].tolist() == [-32768, -32768, 0, 1, 32767, 32767]


def test_a_log_mel_spectrogram_is_found_again() -> None:
    """Encoded, decoded and encoded: within 2 dB where there is sound."""
    domain, rows = LogMel((LENGTH,), RATE), voices()
    x0 = domain.encode(rows)
    again = domain.encode(domain.decode(x0))
    assert (40 * (again - x0))[x0 > -0.75].square().mean().sqrt() < 2
    assert x0[:, :, :, -1].max() == -1 and x0.max() < 1


def test_a_sound_in_a_file_and_a_picture_of_some(tmp_path: Path) -> None:
    rows = voices(18)
    for domain in DOMAINS_OF_TEST:
        domain.save(rows[0], tmp_path / "one.wav")
        rate, samples = scipy.io.wavfile.read(tmp_path / "one.wav")
        assert rate == RATE and samples.dtype == np.int16 and np.array_equal(samples, rows[0])
    for count in (1, 5, 18):
        DOMAINS_OF_TEST[0].show(rows[:count], tmp_path / f"{count}.png")
        assert min(Image.open(tmp_path / f"{count}.png").size) > 200
    assert not list(tmp_path.glob(".tmp*"))


@each
def test_settings_of_pictures_are_refused(domain: Sounds | Any) -> None:
    domain.check(DataConfig())
    for settings in (DataConfig(flip=True), DataConfig(shift=1), DataConfig(size=8)):
        with pytest.raises(UsageError, match=r"is for pictures, and these are sounds"):
            domain.check(settings)


BAD: dict[str, tuple[str, tuple[int, ...], Any, str]] = {
    "no rate": ("waves", (LENGTH,), None, "rate"),
    "slow": ("waves", (LENGTH,), {"rate": 999}, "from 1000 to 192000"),
    "fast": ("mdct", (LENGTH,), {"rate": 200_000, "scale": [1.0, 1.0]}, "from 1000 to 192000"),
    "odd rate": ("log-mel", (LENGTH,), {"rate": 11_025}, "multiple of 50 Hz"),
    "true": ("waves", (LENGTH,), {"rate": True}, "must be an integer"),
    "a string": ("waves", (LENGTH,), {"rate": "16000"}, "must be an integer"),
    "length": ("log-mel", (LENGTH + 1,), {"rate": RATE}, r"multiple of 320 \(20 ms\)"),
    "two axes": ("waves", (4, LENGTH), {"rate": RATE}, r"have a shape \(L,\)"),
    "too slow for mel": ("log-mel", (1000,), {"rate": 1000}, "at least 2000 Hz"),
    "no scale": ("mdct", (LENGTH,), {"rate": RATE}, "scale"),
    "negative": ("mdct", (LENGTH,), {"rate": RATE, "scale": [1.0, -1.0]}, "positive"),
    "infinite": ("mdct", (LENGTH,), {"rate": RATE, "scale": [1.0, math.inf]}, "positive"),
    "not a number": ("mdct", (LENGTH,), {"rate": RATE, "scale": [1.0, math.nan]}, "positive"),
    "no list": ("mdct", (LENGTH,), {"rate": RATE, "scale": "11"}, "positive"),
    "bands": ("mdct", (LENGTH,), {"rate": RATE, "scale": [1.0] * 6}, "6 bands"),
    "no bands": ("mdct", (LENGTH,), {"rate": RATE, "scale": []}, "0 bands"),
    "of pictures": ("pictures", (8, 8, 1), {"rate": RATE}, "does not fit pictures"),
    "more": ("waves", (LENGTH,), {"rate": RATE, "loud": 1}, "does not fit waves"),
}


@pytest.mark.parametrize("case", BAD)
def test_facts_that_do_not_fit_are_refused(case: str) -> None:
    domain, shape, sound, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        DataFacts("sounds", shape, 4, domain=domain, sound=sound)


@dataclasses.dataclass(frozen=True)
class Some(ImageSet):
    """Rows with what their domain needs."""

    @property
    def sound(self) -> dict[str, Any] | None:
        return {"rate": 2000} | ({"scale": list(band_scales(self.images, 16))} if self.domain == "mdct" else {})


@pytest.mark.parametrize("domain", ["waves", "log-mel", "mdct"])
def test_from_training_to_samples(domain: str, tmp_path: Path) -> None:
    """One step with each: model.json keeps the facts, and whoever loads it has the domain again."""
    data = Some("hum", "train", voices(8, 1280), None, (), (), "", "of sounds", domain=domain)
    train({**TINY, "training.steps": 1}, tmp_path / "run", data=data, report=ignore)
    model = load(tmp_path / "run", "cpu")
    assert model.domain == domain_of(data) and model.data.sound == data.sound
    rows = sample(model, 2, steps=2)
    assert rows.shape == (2, 1280) and rows.dtype == np.int16
    card = json.loads(next((tmp_path / "run").glob("checkpoints/*/model.json")).read_text())
    assert card["data"]["sound"] == data.sound
    folder = tmp_path / "broken"
    folder.mkdir()
    card["data"]["sound"]["rate"] = 2001
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(UndiffuseError, match="2001 Hz"):
        load(folder, "cpu")
