"""Targets round-trip through x_0, and are those of their papers; what networks promise to denoisers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from references import EPS, SCHEDULES, TABLES, ZERO_SNR, as64, gaussian_denoiser, levels
from scipy import special, stats
from torch import Tensor

from undiffuse.conditions import Labels, label_encoder
from undiffuse.denoiser import LOG_SNR_LIMIT, Denoiser
from undiffuse.networks import MLP, UNet
from undiffuse.process import GaussianProcess, Prediction, linear
from undiffuse.randomness import Given
from undiffuse.registry import CATEGORICAL, TARGETS

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_target = pytest.mark.parametrize("target", TARGETS)

# sub-VP and flow matching sink below unit variance, VE and EDM rise above it
TIMES = as64(1e-6, 1e-3, 0.05, 0.3, 0.5, 0.77, 0.95, 0.999, 1.0)


def silent(x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
    """A network that says nothing."""
    return torch.zeros_like(x)


def says(output: Tensor) -> Any:
    """A network that says `output` whatever it hears."""
    return lambda x, log_snr, condition: output


def times_of(name: str, target: str) -> Tensor:
    """The levels at which a target is defined."""
    return TIMES[:-1] if name in ZERO_SNR and target in ("eps", "score") else TIMES


def data(count: int) -> tuple[Tensor, Tensor]:
    x0, noise = torch.randn(2, count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    return x0, noise


@every_schedule
@every_target
def test_a_perfect_network_gives_back_data_and_noise(name: str, target: str) -> None:
    """A network that says exactly target_of(x_0, noise) predicts that x_0 and that noise, from data to pure noise."""
    process = GaussianProcess(SCHEDULES[name])
    t = times_of(name, target)
    x0, noise = data(len(t))
    denoiser = Denoiser(silent, process, target)
    prediction = Denoiser(says(denoiser.target_of(x0, noise, t)), process, target)(
        process.corrupt(x0, t, Given(noise)), t
    )
    level = process.noise_level(t)
    u = (level.sigma / level.alpha)[:, None] if target in ("eps", "score") else as64(0.0)
    # x_0 = (x_t - sigma eps) / alpha: rounding of size eps |noise| is multiplied by sigma / alpha.
    assert ((prediction.x0 - x0).abs() <= 16 * EPS * (1 + u) * (1 + x0.abs() + noise.abs())).all()
    u = (level.alpha / level.sigma)[:, None]
    error = (prediction.eps - noise).abs()
    assert (error <= 32 * EPS * (1 + u) * (1 + x0.abs() + noise.abs())).all()


@every_schedule
@every_target
def test_targets_of_one_time_and_of_many_agree(name: str, target: str) -> None:
    """A float t is the same as that t for every sample."""
    denoiser = Denoiser(silent, GaussianProcess(SCHEDULES[name]), target)
    x0, noise = data(3)
    for t in times_of(name, target).tolist():
        one, many = (denoiser.target_of(x0, noise, times) for times in (t, as64(t, t, t)))
        assert (one == many).all()
        one, many = denoiser(x0, t), denoiser(x0, as64(t, t, t))
        assert (one.x0 == many.x0).all()
        assert (one.eps == many.eps).all()


@every_schedule
def test_targets_are_the_papers(name: str) -> None:
    """eps, x_0, v (Salimans & Ho), the score, the velocity and EDM's F (Karras, eq. 7), each by its own formula."""
    process = GaussianProcess(SCHEDULES[name])
    x0, noise = data(2)
    for t in (1e-3, 0.3, 0.77, 0.999):
        ((alpha, sigma),) = levels(process, as64(t))
        x_t = alpha * x0 + sigma * noise
        norm = math.hypot(alpha, sigma)
        phi = math.atan2(sigma, alpha)  # v = d x / d phi on the unit circle
        # Karras et al., table 1, for x = x_t / alpha at the noise level u = sigma / alpha
        u, sd = sigma / alpha, 0.7
        c_skip, c_out = sd**2 / (u**2 + sd**2), u * sd / math.sqrt(u**2 + sd**2)
        expected = {
            "eps": noise,
            "x0": x0,
            "v": math.cos(phi) * noise - math.sin(phi) * x0,
            "score": -norm * (x_t - alpha * x0) / sigma**2,  # of x_t / norm
            "flow": noise - x0,
            "edm": (x0 - c_skip * x_t / alpha) / c_out,
        }
        if math.isclose(norm, 1):
            torch.testing.assert_close(expected["v"], alpha * noise - sigma * x0, rtol=1e-12, atol=1e-13)
        for target, value in expected.items():
            ours = Denoiser(silent, process, target, sigma_data=sd, least_log_snr=-40).target_of(x0, noise, t)
            # (x_t - alpha x_0) / sigma^2 and (x_0 - c_skip x) / c_out cancel all but sigma of x_0
            tolerance = 16 * EPS * (1 + 1 / sigma) * (1 if target != "score" else 1 + 1 / sigma)
            torch.testing.assert_close(ours, value, rtol=tolerance, atol=8 * tolerance)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 3.0, 80.0])
def test_edm_preconditioning_is_table_1(sigma: float) -> None:
    """c_skip, c_out, c_in and c_noise of Karras et al. 2022, table 1, as seen from outside: input, output, log-SNR."""
    heard: list[Tensor] = []

    def network(x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        heard.extend([x, log_snr])
        return torch.full_like(x, 0.25)

    x, sd = as64(-3.0, 0.1, 7.0)[:, None] * max(1.0, sigma), 0.5
    prediction = Denoiser(network, GaussianProcess(SCHEDULES["edm"]), "edm", sd)(x, sigma / 80)
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / math.sqrt(sd**2 + sigma**2)
    torch.testing.assert_close(prediction.x0, c_skip * x + c_out * 0.25, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(heard[0], x / math.sqrt(sd**2 + sigma**2), rtol=1e-14, atol=0)
    # c_noise = ln(sigma) / 4 is a function of the same number
    assert (heard[1].double() / -8).tolist() == pytest.approx(3 * [math.log(sigma) / 4], rel=1e-6)


@every_schedule
def test_network_input_has_unit_variance(name: str) -> None:
    """For data of variance sigma_data^2 the input's variance is exactly 1 at every level: x_0 = +-sd, noise = +-1."""
    heard: list[Tensor] = []

    def network(x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        heard.append(x)
        return x

    process, sd = GaussianProcess(SCHEDULES[name]), 0.3
    signs = as64(1, 1, -1, -1)[:, None], as64(1, -1, 1, -1)[:, None]
    for t in TIMES.tolist():
        Denoiser(network, process, "x0", sd)(process.corrupt(sd * signs[0], t, Given(signs[1])), t)
        assert heard[-1].square().mean().item() == pytest.approx(1, abs=8 * EPS)


@every_schedule
def test_network_hears_the_log_snr(name: str) -> None:
    """float32 of shape (B,), the schedule's log-SNR cut to +-20; the condition arrives as it was given."""
    heard: list[Any] = []

    def network(x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        heard.append((log_snr, condition))
        return x

    process, marker = GaussianProcess(SCHEDULES[name]), object()
    x = torch.zeros(len(TIMES), 2)
    Denoiser(network, process, "x0")(x, TIMES, marker)
    alpha, sigma = np.array(levels(process, TIMES)).T
    with np.errstate(divide="ignore"):
        expected = np.clip(2 * (np.log(alpha) - np.log(sigma)), -LOG_SNR_LIMIT, LOG_SNR_LIMIT)
    log_snr, condition = heard[-1]
    assert condition is marker
    assert log_snr.dtype == torch.float32
    np.testing.assert_allclose(log_snr.numpy(), expected, rtol=1e-6, atol=1e-6)
    Denoiser(network, process, "x0").bind("cat")(x, TIMES[3].item())
    assert heard[-1][1] == "cat"
    assert (heard[-1][0] == log_snr[3]).all()
    assert heard[-1][0].shape == (len(TIMES),)


@pytest.mark.parametrize("name", sorted(ZERO_SNR))
@pytest.mark.parametrize("target", ["eps", "score"])
def test_eps_and_score_refuse_pure_noise(name: str, target: str) -> None:
    """ValueError where alpha = 0, alone or for one sample of many, asked for the target or the prediction."""
    denoiser = Denoiser(silent, GaussianProcess(SCHEDULES[name]), target)
    x = torch.zeros(2, 1)
    for t in (1.0, as64(0.5, 1.0)):
        with pytest.raises(ValueError, match=f"target {target} .*alpha = 0"):
            denoiser(x, t)
        with pytest.raises(ValueError, match="zero SNR"):
            denoiser.target_of(x, x, t)


@every_target
@every_schedule
def test_float32_costs_only_its_rounding(name: str, target: str) -> None:
    """A float32 network and state give x_0 within a few float32 roundings of what float64 gives."""
    process = GaussianProcess(SCHEDULES[name])
    t = times_of(name, target)
    x0, noise = data(len(t))
    denoiser = Denoiser(silent, process, target)
    output, x_t = denoiser.target_of(x0, noise, t).float(), process.corrupt(x0, t, Given(noise)).float()
    prediction = Denoiser(says(output), process, target)(x_t, t)
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32
    level = process.noise_level(t)
    u = (level.sigma / level.alpha)[:, None] if target in ("eps", "score") else as64(0.0)
    bound = 8 * torch.finfo(torch.float32).eps * (1 + u) * (1 + x0.abs() + noise.abs())
    assert ((prediction.x0.double() - x0).abs() <= bound).all()


def test_half_precision_output_is_read_at_the_precision_of_the_state() -> None:
    """A bfloat16 network on a float64 state: only the output is rounded, x_0 is computed in float64."""
    process, t = GaussianProcess(linear(50)), 0.5
    x0, noise = data(2)
    denoiser = Denoiser(silent, process, "v")
    output = denoiser.target_of(x0, noise, t).bfloat16()
    x_t = process.corrupt(x0, t, Given(noise))
    prediction = Denoiser(says(output), process, "v")(x_t, t)
    ((alpha, sigma),) = levels(process, as64(t))
    torch.testing.assert_close(prediction.x0, alpha * x_t - sigma * output.double(), rtol=1e-13, atol=1e-14)


def test_another_x0_gets_the_eps_that_fits() -> None:
    """with_x0 keeps x_t = alpha x_0 + sigma eps, and everything else of the prediction."""
    process = GaussianProcess(linear(50))
    x_t, x0 = data(3)
    for t in (as64(0.1, 0.5, 1.0), 0.3):
        changed = Prediction(x_t, x_t, x_t).with_x0(x0, x_t, process.noise_level(t))
        assert changed.x0 is x0
        assert changed.v is x_t
        torch.testing.assert_close(process.corrupt(changed.x0, t, Given(changed.eps)), x_t, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_learned_variance_is_iddpm(name: str) -> None:
    """Sigma = exp(v ln beta + (1 - v) ln beta_tilde), v = (output + 1) / 2 (Nichol & Dhariwal 2021, eq. 15)."""
    table = TABLES[name](50)
    process = GaussianProcess(table)
    v = torch.stack(6 * [as64(-1.0, -0.5, 0.0, 0.3, 1.0, 1.2).view(2, 3)])  # its own for each element
    network = says(torch.cat([torch.zeros_like(v), v], 1))
    x_t = torch.ones_like(v)
    betas = table.betas.numpy()
    bars = np.concatenate([[1.0], np.cumprod(1 - betas)])
    prediction = Denoiser(network, process, "x0", learned_variance=True)(x_t, 0.4)
    for i in (2, 20, 50):
        beta, tilde = betas[i - 1], (1 - bars[i - 1]) / (1 - bars[i]) * betas[i - 1]
        for s, t in (((i - 1) / 50, i / 50), (table.time_of(torch.full((6,), k)) for k in (i - 1, i))):
            model = process.reverse(prediction, x_t, s, t, "learned")
            mix = (v.numpy() + 1) / 2
            np.testing.assert_allclose(model.variance.numpy(), beta**mix * tilde ** (1 - mix), rtol=1e-10)
            noise = torch.full_like(x_t, 2.0)
            expected = model.mean.numpy() + 2 * np.sqrt(beta**mix * tilde ** (1 - mix))
            np.testing.assert_allclose(model.at(noise).numpy(), expected, rtol=1e-10)
            ends = [process.reverse(prediction, x_t, s, t, kind).variance.numpy() for kind in ("small", "large")]
            np.testing.assert_allclose(ends[0], tilde, rtol=1e-10)
            np.testing.assert_allclose(ends[1], beta, rtol=1e-10)


def test_learned_variance_needs_a_network_that_learned_it() -> None:
    """ValueError, in words, where the prediction has no variance."""
    process = GaussianProcess(linear(10))
    prediction = Denoiser(silent, process)(torch.zeros(1, 2), 0.5)
    assert prediction.v is None
    with pytest.raises(ValueError, match="learned"):
        process.reverse(prediction, torch.zeros(1, 2), 0.4, 0.5, "learned")


@pytest.mark.parametrize("shape", [(3,), (1, 2, 5)])
def test_levels_are_bayes(shape: tuple[int, ...]) -> None:
    """ln p(x_0 = v | x_t) = r_v + ln N(v; m, (sigma_data e^-a)^2) + ln N(x_t; alpha v, sigma^2) + constant.

    The network gives m / sigma_data, a and 256 logits r. Here in NumPy, from two densities and a sum; x_0 is the mean.
    """
    process, t = GaussianProcess(linear(50)), as64(0.02, 0.3, 1.0)
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(3, 258, *shape, dtype=torch.float64, generator=generator)
    x_t = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    told = torch.cat([output[:, :2].flatten(1, 2), output[:, 2:].transpose(1, 2).flatten(1, 2)], 1)
    prediction = Denoiser(says(told), process, CATEGORICAL, sigma_data=0.6)(x_t, t)
    assert prediction.logits is not None
    mean, sharpness, free = np.split(np.moveaxis(output.numpy(), 1, -1), [1, 2], -1)
    values = np.arange(256) / 127.5 - 1
    alpha, sigma = (np.reshape(each, (3, *[1] * (len(shape) + 1))) for each in zip(*levels(process, t), strict=True))
    log_p = free + stats.norm.logpdf(values, 0.6 * mean, 0.6 * np.exp(-sharpness))
    log_p += stats.norm.logpdf(x_t.numpy()[..., None], alpha * values, sigma)
    p = np.exp(log_p - special.logsumexp(log_p, -1, keepdims=True))
    np.testing.assert_allclose(prediction.logits.softmax(-1).numpy(), p, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(prediction.x0.numpy(), p @ values, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(process.corrupt(prediction.x0, t, Given(prediction.eps)), x_t, rtol=1e-12, atol=1e-12)


@every_schedule
def test_large_variance_is_right_for_unit_normal_data(name: str) -> None:
    """For x_0 ~ N(0, 1), p(x_s | x_t) with the large variance is q(x_s | x_t): from x_t's law it gives x_s's.

    Exact for every interval and every schedule: x_s, x_t are jointly normal with variances r^2 = alpha^2 + sigma^2.
    """
    process = GaussianProcess(SCHEDULES[name])
    denoise = gaussian_denoiser(process, as64(0.0), as64(1.0))
    for s, t in ((0.05, 0.1), (0.3, 0.8), (0.5, 0.95)):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = levels(process, as64(s, t))
        x_t = as64(1.0)
        model = process.reverse(denoise(x_t, t), x_t, s, t, "large")
        variance_t, variance_s = alpha_t**2 + sigma_t**2, alpha_s**2 + sigma_s**2
        covariance = alpha_t / alpha_s * variance_s
        assert model.mean.item() == pytest.approx(covariance / variance_t, rel=1e-12)
        assert model.variance.item() == pytest.approx(variance_s - covariance**2 / variance_t, rel=1e-11)


# Networks: what a denoiser relies on, whatever they compute.

UNETS = {
    "one level": {"patch": 1, "channels": (8,), "blocks": 1, "attention": ()},
    "two levels": {"patch": 1, "channels": (8, 16), "blocks": 2, "attention": (1,)},
    "three levels": {"patch": 1, "channels": (8, 16, 32), "blocks": 1, "attention": (0, 2)},
    "patch": {"patch": 2, "channels": (8, 16), "blocks": 1, "attention": (1,)},
}


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """`network` in float64 with random weights everywhere, the zero-initialised layers included."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.double().eval()


@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (30, 30), (27, 31), (1, 5)])
def test_unet_takes_any_size(kind: str, size: tuple[int, int]) -> None:
    """Any multiple of the patch comes out at its size, every output pixel depending on the input somewhere."""
    settings = UNETS[kind]
    if any(n % settings["patch"] for n in size):
        pytest.skip("not a multiple of the patch")
    network = shaken(UNet(2, 3, **settings))
    x = torch.randn(2, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = network(x, torch.zeros(2).double())
    assert out.shape == (2, 3, *size)
    assert out.isfinite().all()
    assert ((network(x + 0.1, torch.zeros(2).double()) - out).abs() > 0).all()


@pytest.mark.parametrize("kind", [*UNETS, "mlp"])
def test_networks_begin_by_saying_nothing(kind: str) -> None:
    """At initialisation the output is exactly 0, so that the first prediction is p x_t."""
    network = MLP(2, 4) if kind == "mlp" else UNet(2, 4, **UNETS[kind])
    x = torch.randn(3, 2) if kind == "mlp" else torch.randn(3, 2, 8, 8)
    assert (network(x, torch.tensor([-20.0, 0.0, 20.0])) == 0).all()


@pytest.mark.parametrize("kind", [*UNETS, "mlp"])
def test_networks_treat_each_sample_alone(kind: str) -> None:
    """No statistics of the batch: a sample's output is the same in any company, order and batch size."""
    network = shaken(
        MLP(2, 2, width=16, encoders=label_encoder(3))
        if kind == "mlp"
        else UNet(2, 2, encoders=label_encoder(3), **UNETS[kind])
    )
    x = torch.randn(5, 2, *([] if kind == "mlp" else [6, 10]), dtype=torch.float64)
    log_snr, labels = as64(-5, -1, 0, 2, 9), Labels(torch.tensor([0, 3, 1, 2, 0]), 3)
    together = network(x, log_snr, labels)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(network(x[order], log_snr[order], labels[order]), together[order], rtol=1e-9, atol=1e-10)
    for k in range(5):
        one = slice(k, k + 1)
        torch.testing.assert_close(network(x[one], log_snr[one], labels[one]), together[one], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["two levels", "mlp"])
def test_a_dropped_label_is_the_last_row_of_the_embedding(kind: str) -> None:
    """Other labels and other log-SNRs change the output."""
    network = shaken(
        MLP(2, 2, width=16, encoders=label_encoder(3))
        if kind == "mlp"
        else UNet(2, 2, encoders=label_encoder(3), **UNETS[kind])
    )
    x = torch.randn(2, 2, *([] if kind == "mlp" else [4, 4]), dtype=torch.float64)
    log_snr = as64(-1.0, 3.0)
    dropped = Labels(torch.tensor([0, 2]), 3).dropped()
    unconditional = network(x, log_snr, dropped)
    assert (network(x, log_snr, Labels(torch.tensor([3, 3]), 3)) == unconditional).all()
    for other in (network(x, log_snr, Labels(torch.tensor([0, 2]), 3)), network(x, log_snr + 0.5, dropped)):
        assert ((other - unconditional).abs() > 1e-6).any(1).all()


def test_unet_is_the_same_in_either_memory_layout() -> None:
    """Channels-last weights and input give what contiguous ones give, to rounding; so do the gradients."""
    torch.manual_seed(0)
    network = shaken(UNet(3, 3, channels=(16, 32), encoders=label_encoder(4)))
    x, log_snr, labels = torch.randn(2, 3, 16, 16).double(), as64(0.0, 3.0), Labels(torch.tensor([1, 4]), 4)
    expected = network(x, log_snr, labels)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    network.to(memory_format=torch.channels_last)
    ours = network(x.to(memory_format=torch.channels_last), log_snr, labels)
    ours.square().sum().backward()
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-9)
