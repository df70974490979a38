"""The metrics' mathematics: closed forms, independent implementations, and what chance says of them."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from scipy.linalg import sqrtm

from undiffuse.metrics import blocks
from undiffuse.metrics.frechet import Gaussian, frechet_distance, measure_frechet, moments
from undiffuse.metrics.intervals import bootstrap, mean, resampled
from undiffuse.metrics.kernel import measure_kernel
from undiffuse.metrics.manifold import measure_copying, measure_manifold, nearest
from undiffuse.metrics.scores import class_entropy, inception_score, recognised


def draw(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 rows, so that every sum and minimum runs over several."""
    original: Callable = blocks.blocks
    for module in ("frechet", "kernel", "manifold"):
        monkeypatch.setattr(f"undiffuse.metrics.{module}.blocks", lambda array: original(array, 7))


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    return Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance))


def test_frechet_of_commuting_gaussians() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2, in any basis, both ways round."""
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.standard_normal((6, 6)))[0]
    s1, s2 = generator.uniform(0, 2, (2, 6))
    s1[:3], s2[2:4] = 0, 0  # singular ones too
    m1, m2 = generator.standard_normal((2, 6))
    a, b = (gaussian(m, basis * s**2 @ basis.T) for m, s in ((m1, s1), (m2, s2)))
    exact = np.square(m1 - m2).sum() + np.square(s1 - s2).sum()
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(exact, rel=1e-12)
    assert abs(frechet_distance(a, a)) < 1e-12


def test_frechet_against_a_matrix_square_root() -> None:
    x, y = draw(50, 5, 1), draw(60, 5, 2, 0.3) @ np.random.default_rng(3).standard_normal((5, 5))
    a, b = np.cov(x.T), np.cov(y.T)
    exact = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(exact, rel=1e-10)


@pytest.mark.usefixtures("small_blocks")
def test_frechet_of_fewer_samples_than_dimensions() -> None:
    """tr (S1 S2)^(1/2) is the nuclear norm of X Y^T / sqrt((n - 1)(m - 1)), which needs no covariance at all."""
    x, y = draw(12, 40, 4), draw(30, 40, 5, 0.1)
    cx, cy = x - x.mean(0), y - y.mean(0)
    overlap = np.linalg.norm(cx @ cy.T, "nuc") / np.sqrt(11 * 29)
    exact = np.square(x.mean(0) - y.mean(0)).sum() + np.square(cx).sum() / 11 + np.square(cy).sum() / 29 - 2 * overlap
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(exact, rel=1e-9)


@pytest.mark.usefixtures("small_blocks")
def test_moments_count_rows() -> None:
    x, counts = draw(20, 3, 6), np.random.default_rng(7).integers(0, 4, 20)
    counted, repeated = moments(x, counts), np.repeat(x, counts, axis=0)
    np.testing.assert_allclose(counted.mean, repeated.mean(0), rtol=1e-12)
    np.testing.assert_allclose(counted.covariance, np.cov(repeated.T), rtol=1e-12)


def test_the_limit_has_less_bias() -> None:
    """Samples of the reference's own law: the distance falls as 1 / N, what it is taken to at infinity is nearer 0."""
    reference = draw(20_000, 8, 8)
    found = {n: [measure_frechet(draw(n, 8, 100 + k), reference, 2) for k in range(12)] for n in (200, 800)}
    bias = {n: np.mean([one["frechet"].value for one in values]) for n, values in found.items()}
    assert bias[200] / bias[800] == pytest.approx(4, rel=0.35)  # 12 seeds
    limit = np.mean([one["frechet_limit"].value for one in found[200]])
    assert abs(limit) < bias[200] / 5


def test_the_frechet_interval_is_the_spread_over_draws() -> None:
    reference = draw(5000, 4, 9)
    found = [measure_frechet(draw(300, 4, 200 + k, 0.5), reference)["frechet"] for k in range(40)]
    spread = np.std([one.value for one in found])
    widths = np.mean([(one.high - one.low) / 2 / 1.96 for one in found if one.low is not None and one.high is not None])
    assert widths == pytest.approx(spread, rel=0.35)  # 40 draws know their spread to 11%, 30 replicates theirs to 13%


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    n, m = len(x), len(y)
    xx, yy = cubic(x, x), cubic(y, y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * cubic(x, y).mean())


@pytest.mark.usefixtures("small_blocks")
def test_kernel_distance_and_its_jackknife() -> None:
    """The value from its definition; the error from leaving each item out and starting again."""
    x, y = draw(17, 3, 10), draw(23, 3, 11, 0.4)
    found = measure_kernel(x, y)["kernel"]
    assert found.value == pytest.approx(mmd(x, y), rel=1e-12)
    without = [np.delete(x, i, 0) for i in range(17)], [np.delete(y, j, 0) for j in range(23)]
    variance = 16 * np.var([mmd(z, y) for z in without[0]]) + 22 * np.var([mmd(x, z) for z in without[1]])
    assert found.high is not None
    assert found.high - found.value == pytest.approx(1.96 * np.sqrt(variance), rel=1e-9)


def test_kernel_distance_of_the_same_law_is_zero_in_the_mean() -> None:
    values = [measure_kernel(draw(60, 4, 2 * k), draw(80, 4, 2 * k + 1))["kernel"].value for k in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


def test_kernel_distance_of_two_known_laws() -> None:
    """In one dimension (x y + 1)^3 sees the first three moments: MMD^2 = 3 d1^2 + 3 d2^2 + d3^2 for differences d."""
    exact = 3 * 0.5**2 + 3 * 0.25**2 + (0.5**3 + 3 * 0.5) ** 2
    found = measure_kernel(draw(4000, 1, 12, 0.5), draw(4000, 1, 13))["kernel"]
    assert found.low is not None and found.high is not None
    assert found.low < exact < found.high


@pytest.mark.usefixtures("small_blocks")
def test_manifold_is_prdcs() -> None:
    x, y = draw(40, 3, 14), draw(33, 3, 15, 0.7)
    found = {name: measure.value for name, measure in measure_manifold(x, y).items()}
    three, five = (compute_prdc(real_features=y, fake_features=x, nearest_k=k) for k in (3, 5))
    theirs = {name: (three if name in ("precision", "recall") else five)[name] for name in found}
    assert found == pytest.approx(theirs, rel=1e-6)


def test_manifolds_of_known_overlap() -> None:
    """Two far modes of which the samples have one: all precise, half recalled and covered; far samples: nothing."""
    one, two = draw(100, 2, 16), draw(100, 2, 17, 1000.0)
    found = {name: measure.value for name, measure in measure_manifold(one, np.concatenate([one, two])).items()}
    assert found["precision"] == 1 and found["recall"] == 0.5 and found["coverage"] == 0.5
    far = measure_manifold(draw(100, 2, 18, -1000.0), one)
    assert all(measure.value == 0 for measure in far.values())


def test_repeated_items_recall_themselves() -> None:
    """Balls of radius 0 hold what is at their centre, whatever the rounding: collapsed samples are such."""
    repeated = np.repeat(draw(20, 50, 0), 8, axis=0)
    assert measure_manifold(repeated, repeated)["recall"].value == 1
    assert measure_manifold(repeated, repeated[:90])["recall"].value == 1
    x = draw(200, 5, 0)
    assert measure_manifold(x, x)["density"].value == pytest.approx(1.2, rel=1e-6)  # itself and 5 neighbours, over 5


def test_density_and_coverage_of_the_same_law() -> None:
    """Density 1, coverage 1 - prod_j (M - j) / (N + M - j) for j = 1 .. k (Naeem et al. 2020)."""
    found = [measure_manifold(draw(150, 3, 300 + k), draw(100, 3, 400 + k)) for k in range(30)]
    missed = np.prod([(100 - j) / (250 - j) for j in range(1, 6)])
    for name, exact in (("density", 1.0), ("coverage", 1 - missed)):
        values = [one[name].value for one in found]
        assert np.mean(values) == pytest.approx(exact, abs=3 * np.std(values) / np.sqrt(30))


def pictures(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)


@pytest.mark.usefixtures("small_blocks")
def test_nearest() -> None:
    queries, items = pictures(20, 0), pictures(31, 1)
    items[17] = queries[5]
    distance, index = nearest(queries, items)
    apart = np.sqrt(np.square((queries[:, None].astype(float) - items[None]) / 255).mean((2, 3, 4)))
    assert index.tolist() == apart.argmin(1).tolist()
    np.testing.assert_allclose(distance, apart.min(1), rtol=1e-12)
    assert distance[5] == 0


def test_copying() -> None:
    held_out = np.random.default_rng(2).uniform(1, 2, 1000)
    same = measure_copying(held_out, held_out)
    assert same["nearer"].value == pytest.approx(0.5, abs=1e-12)
    assert same["copies"].value == pytest.approx(0.01, abs=1e-12)
    copied = measure_copying(np.zeros(50), held_out)
    assert copied["nearer"].value == copied["copies"].value == 1
    assert measure_copying(np.full(50, 3.0), held_out)["nearer"].value == 0


def test_scores() -> None:
    """Sure of one of K classes each, evenly: K; the same of all: 1. Entropy log2 K and 0."""
    sure = 1000 * np.eye(5)[np.arange(50) % 5]
    assert inception_score(sure).value == pytest.approx(5, rel=1e-12)
    assert inception_score(np.tile(np.arange(5.0), (50, 1))).value == pytest.approx(1, rel=1e-12)
    assert class_entropy(np.arange(80) % 8, 8).value == pytest.approx(3, rel=1e-12)
    assert class_entropy(np.zeros(80, dtype=int), 8).value == 0
    assert recognised(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])).value == 0.75


def test_intervals_cover() -> None:
    """95% intervals of the mean of 100 coins hold the truth in 95% of cases; 300 cases know that to 4%."""
    generator = np.random.default_rng(3)
    found = [mean(generator.random(100) < 0.3) for _ in range(300)]
    inside = np.mean([one.low <= 0.3 <= one.high for one in found if one.low is not None and one.high is not None])
    assert 0.9 < inside < 0.985
    assert [counts.sum() for counts in resampled(9, 4)] == [9] * 4


def test_few_samples_have_the_distance_of_their_moments() -> None:
    """With fewer samples than dimensions it is taken another way, and is the same, interval and limit too."""
    rng = np.random.default_rng(3)
    reference = (rng.normal(size=(300, 40)) @ rng.normal(size=(40, 40))).astype(np.float32)
    for count in (2, 7, 39):
        samples = (rng.normal(1, 2, (count, 40))).astype(np.float32)
        found = measure_frechet(samples, reference, replicates=5)
        target = moments(reference)

        def distance(counts: np.ndarray, samples: np.ndarray = samples, target: Gaussian = target) -> float:
            return frechet_distance(moments(samples, counts), target)

        expected = bootstrap(count, distance, 5)
        for ours, theirs in zip(dataclasses.astuple(found["frechet"]), dataclasses.astuple(expected), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-10)
        # and against the matrix root itself, whose imaginary part is the rounding of a singular product
        product = moments(samples).covariance.numpy() @ target.covariance.numpy()
        root = np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
        direct = ((samples.mean(0) - reference.mean(0)) ** 2).sum(dtype=np.float64) - 2 * root
        direct += np.trace(moments(samples).covariance) + np.trace(target.covariance)
        assert found["frechet"].value == pytest.approx(direct, rel=1e-5)
