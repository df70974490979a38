"""The mathematics of the metrics: closed forms, exact expectations, invariances, other implementations."""

import sys
from collections.abc import Callable, Iterator
from itertools import combinations, product
from math import comb, prod
from types import ModuleType
from unittest.mock import MagicMock

import mpmath
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
import torch

from undiffuse.metrics import manifold
from undiffuse.metrics.blocks import blocks, pick
from undiffuse.metrics.frechet import Gaussian, frechet_distance, measure_frechet, moments
from undiffuse.metrics.intervals import Measure, bootstrap, mean, resampled
from undiffuse.metrics.kernel import measure_kernel
from undiffuse.metrics.manifold import measure_copying, measure_manifold, nearest
from undiffuse.metrics.scores import class_entropy, inception_score, recognised


@pytest.fixture
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 rows, so that small arrays have many, the last of them shorter."""
    monkeypatch.setattr(blocks, "__defaults__", (7,))


short_blocks = pytest.mark.usefixtures("_short_blocks")


@pytest.fixture(scope="module")
def fidelity() -> Iterator[ModuleType]:
    """torch-fidelity. The package imports torchvision, of which this needs nothing: a stub."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            patch.setitem(sys.modules, f"torchvision{name}", MagicMock())
        module = pytest.importorskip("torch_fidelity")
    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        del sys.modules[name]


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def features(seed: int, n: int, d: int) -> np.ndarray:
    """Gaussian rows with a mean and a covariance of their own, well-conditioned where n is well above d."""
    return drawn(seed, n, d) @ (np.eye(d) + 0.5 * drawn(seed + 100, d, d) / d**0.5) + 0.3 * drawn(seed + 200, d)


def rotation(d: int) -> np.ndarray:
    return scipy.stats.ortho_group.rvs(d, random_state=3)


def splits(pool: np.ndarray, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every way to part the rows into n and the rest. Equally distributed rows come in any of these ways equally often.

    So the mean over them of any statistic is its expectation, exactly.
    """
    for chosen in combinations(range(len(pool)), n):
        here = np.isin(np.arange(len(pool)), chosen)
        yield pool[here], pool[~here]


def spread(measure: Measure) -> float:
    """The standard error in an interval."""
    assert measure.low is not None and measure.high is not None
    return (measure.high - measure.low) / (2 * 1.96)


# Blocks and the bootstrap


@pytest.mark.parametrize("n", [0, 1, 6, 7, 8, 50])
def test_blocks_are_the_array(n: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (n, 2, 3, 1), dtype=np.uint8)
    parts = list(blocks(array, 7))
    assert [row for rows, _ in parts for row in range(n)[rows]] == list(range(n))
    assert all(x.dtype == torch.float64 and len(x) <= 7 for _, x in parts)
    assert all((x.numpy() == array[rows].reshape(-1, 6)).all() for rows, x in parts)


def test_pick_is_in_order_and_always_the_same() -> None:
    array = np.arange(100)
    chosen = pick(array, 30)
    assert len(chosen) == 30 and (np.diff(chosen) > 0).all() and (pick(array, 30) == chosen).all()
    assert pick(array, 100) is array and pick(array, 101) is array
    often = np.bincount(np.concatenate([pick(array, n) for n in range(100)]), minlength=100)
    assert often.std() < 3 * np.sqrt(sum(n / 100 * (1 - n / 100) for n in range(100)))  # as chance has it


def test_resampled_is_multinomial() -> None:
    """Counts add up, always the same; in their mean 1, with the variance 1 - 1/n and the covariance -1/n."""
    n, replicates = 8, 20_000
    counts = np.array(list(resampled(n, replicates)))
    assert (counts.sum(1) == n).all()
    assert (counts == np.array(list(resampled(n, replicates)))).all()
    # 5 standard errors of a mean, and (kurtosis about 3) of a variance
    np.testing.assert_allclose(counts.mean(0), 1, atol=5 / replicates**0.5)
    np.testing.assert_allclose(np.cov(counts.T), np.eye(n) - 1 / n, atol=5 * (3 / replicates) ** 0.5)


def test_the_interval_of_a_mean_is_sigma_over_root_n() -> None:
    """2000 replicates know a standard deviation to 1.6%, their quantiles an interval to some 3%."""
    values = drawn(0, 400) ** 2
    sigma = values.std() / 20
    measures = bootstrap(400, lambda counts: float(counts @ values) / 400, 2000), mean(values)
    for measure, tolerance in zip(measures, (0.05, 0.1), strict=True):
        assert measure.value == pytest.approx(values.mean(), rel=1e-14)
        assert spread(measure) == pytest.approx(sigma, rel=tolerance)
    again = mean(np.full(10, 0.5))
    assert (again.low, again.value, again.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("p", [0.5, 0.15])
def test_the_interval_of_a_mean_covers(p: float) -> None:
    """The truth is in the 95% interval of 200 Bernoulli draws in 95% of 200 repetitions (its own error is 1.5%)."""
    generator = np.random.default_rng(1)
    inside = [m.low <= p <= m.high for m in (mean(generator.random(200) < p) for _ in range(200))]
    assert 0.9 <= np.mean(inside) <= 0.99


# The Frechet distance


def gaussian(mu: np.ndarray, covariance: np.ndarray) -> Gaussian:
    return Gaussian(torch.from_numpy(mu), torch.from_numpy(covariance))


@pytest.mark.parametrize("d", [1, 2, 30])
def test_frechet_of_commuting_covariances(d: int) -> None:
    """|mu_a - mu_b|^2 + sum (sqrt a_i - sqrt b_i)^2, in any basis; also where some of the variances are zero."""
    generator, q = np.random.default_rng(d), rotation(d) if d > 1 else np.eye(1)
    mu = generator.standard_normal((2, d))
    for zeros in (0.0, 0.5, 1.0):
        a, b = generator.uniform(0.01, 10, (2, d)) * (generator.random((2, d)) >= zeros)
        expected = ((mu[0] - mu[1]) ** 2).sum() + ((a**0.5 - b**0.5) ** 2).sum()
        for basis in (np.eye(d), q):
            ours = frechet_distance(gaussian(mu[0], basis * a @ basis.T), gaussian(mu[1], basis * b @ basis.T))
            assert ours == pytest.approx(expected, rel=1e-12)


def test_frechet_in_two_dimensions_and_of_lines() -> None:
    """tr (AB)^(1/2) = (tr AB + 2 det(AB)^(1/2))^(1/2) for 2 x 2 matrices, |u . v| for u u^T and v v^T."""
    for seed in range(20):
        a, b = (z @ z.T for z in drawn(seed, 2, 2, 2))
        overlap = (np.trace(a @ b) + 2 * np.linalg.det(a @ b) ** 0.5) ** 0.5
        expected = np.trace(a) + np.trace(b) - 2 * overlap
        zero = np.zeros(2)
        assert frechet_distance(gaussian(zero, a), gaussian(zero, b)) == pytest.approx(expected, rel=1e-8, abs=1e-12)
        u, v = drawn(seed, 2, 50)
        ours = frechet_distance(gaussian(u, np.outer(u, u)), gaussian(v, np.outer(v, v)))
        assert ours == pytest.approx(((u - v) ** 2).sum() + u @ u + v @ v - 2 * abs(u @ v), rel=1e-12)


def fitted(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(moments(a), moments(b))


@pytest.mark.parametrize("n", [200, 12])
def test_frechet_invariances(n: int) -> None:
    """Symmetric, zero for equals, the same moved and rotated, c^2 times as far scaled by c; for few samples too."""
    a, b = features(0, n, 20), features(1, n + 5, 20)
    q, far, distance = rotation(20), 10 * drawn(2, 20), fitted(a, b)
    assert distance > 1
    assert fitted(b, a) == pytest.approx(distance, rel=1e-12)
    assert fitted(a @ q, b @ q) == pytest.approx(distance, rel=1e-12)
    assert fitted(a + far, b + far) == pytest.approx(distance, rel=1e-12)
    assert fitted(100 * a, 100 * b) == pytest.approx(1e4 * distance, rel=1e-12)
    assert fitted(a, a + far) == pytest.approx(far @ far, rel=1e-12)
    assert fitted(a, a[::-1]) == pytest.approx(0, abs=1e-12)
    assert fitted(a, a @ q) > 1e-2  # a rotation of one alone is seen


def test_frechet_is_scipys_and_torch_fidelitys(fidelity: ModuleType) -> None:
    """Of well-conditioned covariances, from the samples on."""
    a, b = features(0, 300, 25), features(1, 200, 25)
    ours = measure_frechet(a, b, replicates=2)["frechet"].value
    (mu, s), (nu, t) = ((z.mean(0), np.cov(z, rowvar=False)) for z in (a, b))
    root = scipy.linalg.sqrtm(s @ t)
    assert ours == pytest.approx(((mu - nu) ** 2).sum() + np.trace(s + t - 2 * root), rel=1e-11)
    statistics = [fidelity.metric_fid.fid_features_to_statistics(torch.from_numpy(z)) for z in (a, b)]
    (theirs,) = fidelity.metric_fid.fid_statistics_to_metric(*statistics, False).values()
    assert ours == pytest.approx(theirs, rel=1e-11)


@pytest.mark.parametrize(("n", "m", "d"), [(5, 8, 40), (5, 100, 40), (2, 3, 40), (30, 20, 200)])
def test_frechet_of_fewer_samples_than_dimensions(n: int, m: int, d: int) -> None:
    """tr (S_a S_b)^(1/2) is the nuclear norm of A B^T / sqrt((n - 1) (m - 1)), A and B the centred data: n x m only."""
    a, b = features(0, n, d), features(1, m, d)
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (a, b))
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * overlap
    assert fitted(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_of_samples_in_planes_of_their_own() -> None:
    """Nothing overlaps, so the distance is the two variances and what lies between the means."""
    a, b = features(0, 5, 40), features(1, 100, 40)
    a[:, 20:], b[:, :20] = 0, 0
    total = a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() + ((a.mean(0) - b.mean(0)) ** 2).sum()
    assert fitted(a, b) == pytest.approx(total, rel=1e-12)
    assert fitted(np.ones((3, 4)), np.zeros((2, 4))) == 4  # points have no covariance at all


@pytest.mark.parametrize("d", [3, 6, 9])
def test_frechet_of_ill_conditioned_covariances(d: int) -> None:
    """Hilbert matrices and their shifts, in 60 digits. An eigenvalue off by eps has a root that is off by sqrt(eps).

    Only the eigenvalues below the noise, d eps = 2e-15 of the largest, are lost; the sum of roots keeps 1e-9 at worst.
    """
    with mpmath.workdps(60):
        a = mpmath.hilbert(d)
        b = mpmath.matrix([[mpmath.mpf(1) / (i + j + 2) for j in range(d)] for i in range(d)])
        values, _ = mpmath.eig(a * b)
        trace = sum(a[i, i] + b[i, i] for i in range(d))
        expected = float(trace - 2 * sum(mpmath.sqrt(mpmath.re(value)) for value in values))
    one, other = (gaussian(np.zeros(d), np.array(z.tolist(), dtype=np.float64)) for z in (a, b))
    assert frechet_distance(one, other) == pytest.approx(expected, abs=1e-9 if d == 9 else 1e-12)


@short_blocks
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_moments_are_numpys(shift: float) -> None:
    """Also of rows that count several times or never, which is as if they were there so often; and far from zero."""
    a = features(0, 40, 6)
    counts = np.random.default_rng(0).integers(0, 4, 40)
    for ours, rows in [(moments(a + shift), a), (moments(a + shift, counts), np.repeat(a, counts, axis=0))]:
        # far away the data themselves are rounded to 1e6 eps = 2e-10
        np.testing.assert_allclose(ours.mean, rows.mean(0) + shift, rtol=1e-13)
        np.testing.assert_allclose(ours.covariance, np.cov(rows, rowvar=False), atol=1e-8 if shift else 1e-13)
    again = moments(np.repeat(a, counts, axis=0))
    torch.testing.assert_close(moments(a, counts).covariance, again.covariance, rtol=1e-12, atol=1e-13)


def standard(n: int, d: int) -> np.ndarray:
    """n rows whose mean is exactly 0 and whose covariance exactly the identity, to rounding."""
    x = drawn(99, n, d)
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_the_bias_of_frechet_falls_as_one_over_n() -> None:
    """Of N samples from the reference's own Gaussian it is D (D + 5) / (4 N) to first order.

    The means give D / N; S + I - 2 S^(1/2) = (S - I)^2 / 4 + ..., and E tr (S - I)^2 = D (D + 1) / (N - 1).
    """
    d, target = 4, moments(standard(50, 4))
    for n, seeds in [(50, 1000), (100, 1000), (400, 1000)]:
        found = n * np.array([frechet_distance(moments(drawn(seed, n, d)), target) for seed in range(seeds)])
        error = found.std() / seeds**0.5
        assert found.mean() == pytest.approx(d * (d + 5) / 4, abs=3 * error + 5 * d / n)  # the second order


def test_frechet_limit_has_no_first_order_bias() -> None:
    """Towards a known distance, 0 or 0.6, of Gaussians with covariances I and c I and means apart by u."""
    n, d, seeds = 100, 4, 200
    reference = standard(50, d)
    for c, u in [(1.0, 0.0), (1.3**2, 0.3)]:
        truth = d * u**2 + d * (1 - c**0.5) ** 2
        found = [measure_frechet(c**0.5 * drawn(seed, n, d) + u, reference, replicates=2) for seed in range(seeds)]
        at_n, limit = (np.array([z[key].value for z in found]) for key in ("frechet", "frechet_limit"))
        error = limit.std() / seeds**0.5
        assert abs(limit.mean() - truth) < 3 * error + 0.1 * (at_n.mean() - truth)
        assert at_n.mean() - truth > 10 * error


def test_the_interval_of_frechet_is_how_it_varies() -> None:
    """Over seeds: their standard deviation, of 200, is known to 5%; the mean of 20 intervals of 30 replicates to 3%."""
    n, d, reference = 200, 4, standard(50, 4)

    def samples(seed: int) -> np.ndarray:
        return 1.3 * drawn(seed, n, d) + 0.3

    target = moments(reference)
    varies = np.std([frechet_distance(moments(samples(seed)), target) for seed in range(200)])
    told = [measure_frechet(samples(seed), reference)["frechet"] for seed in range(20)]
    assert np.mean([spread(measure) for measure in told]) == pytest.approx(varies, rel=0.15)
    assert all(measure.low < measure.value < measure.high for measure in told)


# The kernel distance


def unbiased_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """By the definition, pair by pair."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return (float(np.dot(x, y)) / len(x) + 1) ** 3

    within = [np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (a, b)]
    return sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    return measure_kernel(a, b)["kernel"].value


@short_blocks
def test_kernel_and_its_jackknife_are_the_definitions() -> None:
    """Each item left out and all computed again."""
    a, b = features(0, 9, 5), features(1, 16, 5)
    ours = measure_kernel(a, b)["kernel"]
    assert ours.value == pytest.approx(unbiased_mmd(a, b), rel=1e-12)
    without_a = np.array([unbiased_mmd(np.delete(a, i, 0), b) for i in range(9)])
    without_b = np.array([unbiased_mmd(a, np.delete(b, i, 0)) for i in range(16)])
    error = np.sqrt(8 / 9 * ((without_a - without_a.mean()) ** 2).sum() + without_b.var() * 15)
    assert spread(ours) == pytest.approx(error, rel=1e-10)
    assert ours.high - ours.value == pytest.approx(ours.value - ours.low, rel=1e-12)
    assert kernel(b, a) == pytest.approx(ours.value, rel=1e-12)


@short_blocks
def test_kernel_is_torch_fidelitys(fidelity: ModuleType) -> None:
    """With every subset the whole."""
    a, b = features(0, 60, 30), features(1, 60, 30)
    theirs = fidelity.metric_kid.kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=2, kid_subset_size=60, verbose=False
    )
    assert kernel(a, b) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-11)


def test_kernel_is_zero_in_expectation_for_equal_distributions() -> None:
    pool = features(0, 8, 2)
    found = [kernel(a, b) for a, b in splits(pool, 3)]
    assert np.mean(found) == pytest.approx(0, abs=1e-13 * np.abs(found).max() * 10)
    assert min(found) < 0 < max(found)


def test_kernel_is_unbiased_for_coins() -> None:
    """k = (x y + 1)^3 has the features x^j binom(3, j)^(1/2); so MMD^2 = sum of binom(3, j) (E x^j - E y^j)^2.

    x is 2 or -1, y is 1 or 0.5; the expectation is the sum over all samples of 3 and 4, with their probabilities.
    """
    p, q = 0.3, 0.6
    moment = [(p * 2**j + (1 - p) * (-1) ** j, q + (1 - q) * 0.5**j) for j in range(4)]
    truth = sum(comb(3, j) * (x - y) ** 2 for j, (x, y) in enumerate(moment))
    expectation = 0.0
    for first, second in product(product([2.0, -1.0], repeat=3), product([1.0, 0.5], repeat=4)):
        weight = prod(p if x == 2 else 1 - p for x in first) * prod(q if y == 1 else 1 - q for y in second)
        expectation += weight * kernel(np.array(first)[:, None], np.array(second)[:, None])
    assert expectation == pytest.approx(truth, rel=1e-12)


def test_the_interval_of_kernel_covers_and_is_how_it_varies() -> None:
    """Of Gaussians N(0, 1) and N(u, s^2), by their moments u, u^2 + s^2, u^3 + 3 u s^2; 300 seeds."""
    u, s, seeds = 0.5, 0.8, 300
    truth = 3 * u**2 + 3 * (u**2 + s**2 - 1) ** 2 + (u**3 + 3 * u * s**2) ** 2
    found = [
        measure_kernel(drawn(seed, 150, 1), u + s * drawn(seed + seeds, 250, 1))["kernel"] for seed in range(seeds)
    ]
    values = np.array([measure.value for measure in found])
    assert values.mean() == pytest.approx(truth, abs=3 * values.std() / seeds**0.5)
    assert np.mean([spread(measure) ** 2 for measure in found]) ** 0.5 == pytest.approx(values.std(), rel=0.15)
    assert 0.9 <= np.mean([measure.low <= truth <= measure.high for measure in found]) <= 0.99


# Precision, recall, density, coverage


def values(measures: dict[str, Measure]) -> dict[str, float]:
    return {name: measure.value for name, measure in measures.items()}


def stratified(cells: int, first: int, last: int, seed: int) -> np.ndarray:
    """One point in each of the cells first .. last - 1 of size 1 / cells on a line, anywhere in it. (N, 1).

    Two points of a cell are at most one cell apart. A point's k-th nearest other is between (k - 1) // 2 and k + 1
    cells away: at least half of them lie on one side; at the ends all of them do.
    """
    inside = np.random.default_rng(seed).random(last - first)
    return ((np.arange(first, last) + inside) / cells)[:, None]


@short_blocks
@pytest.mark.parametrize(("n", "m", "d"), [(60, 80, 2), (80, 50, 3), (6, 6, 2), (100, 100, 64)])
def test_manifold_is_prdcs(n: int, m: int, d: int) -> None:
    """Naeem's own code, with the neighbours of each paper; distances to points of no ties, so < is <=."""
    compute_prdc = pytest.importorskip("prdc").compute_prdc
    a, b = drawn(0, n, d) * 0.8 + 0.2, drawn(1, m, d)
    three, five = compute_prdc(b, a, nearest_k=3), compute_prdc(b, a, nearest_k=5)
    ours = values(measure_manifold(a, b))
    assert ours["precision"] == three["precision"] and ours["recall"] == three["recall"]
    assert ours["coverage"] == five["coverage"]
    assert ours["density"] == pytest.approx(five["density"], rel=1e-7)  # a sum in float32


def test_manifold_of_more_rows_than_a_block() -> None:
    """The same as in blocks that hold everything, on a line where balls are found by sorting."""
    a, b = np.sort(drawn(0, 2100)) * 0.5, np.sort(drawn(1, 2060))
    ours = values(measure_manifold(a[:, None], b[:, None]))

    def reach(z: np.ndarray, k: int) -> np.ndarray:
        return np.sort(np.abs(z[:, None] - z), axis=1)[:, k]

    distances = np.abs(a[:, None] - b)
    assert ours["precision"] == (distances <= reach(b, 3)).any(1).mean()
    assert ours["recall"] == (distances <= reach(a, 3)[:, None]).any(0).mean()
    assert ours["coverage"] == (distances <= reach(b, 5)).any(0).mean()
    assert ours["density"] == pytest.approx((distances <= reach(b, 5)).sum() / (5 * 2100), rel=1e-7)


@pytest.mark.parametrize("move", [lambda x: x + 1e6, lambda x: 1e-3 * x, lambda x: x @ rotation(8)])
def test_manifold_invariances(move: Callable[[np.ndarray], np.ndarray]) -> None:
    """Moved, scaled or rotated together they are the same to the last item; far from zero too."""
    a, b = 0.9 * drawn(0, 90, 8), drawn(1, 70, 8)
    assert values(measure_manifold(move(a), move(b))) == values(measure_manifold(a, b))


def test_precision_and_recall_swap() -> None:
    a, b = 0.7 * drawn(0, 90, 4), drawn(1, 70, 4)
    one, other = values(measure_manifold(a, b)), values(measure_manifold(b, a))
    assert (one["precision"], one["recall"]) == (other["recall"], other["precision"])
    assert one["precision"] > one["recall"]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.8, 1.0])
def test_manifold_of_overlapping_intervals(overlap: float) -> None:
    """What two uniform distributions share, up to the k + 1 cells that the balls at its ends reach beyond."""
    n = 500
    gap = round((1 - overlap) * n)
    ours = values(measure_manifold(stratified(n, gap, gap + n, 0), stratified(n, 0, n, 1)))
    for name, k in (("precision", 3), ("recall", 3), ("coverage", 5)):
        assert overlap <= ours[name] <= overlap + (k + 1) / n
    assert ours["density"] == pytest.approx(overlap, abs=0.03)  # some 5 of 500 in each ball, by chance


def test_manifold_of_dropped_and_invented_modes() -> None:
    """Clusters far apart. Of the data's 1, 2, 3, 4 the samples have 2, 3 and 4, and three of their own."""

    def clusters(modes: range, seed: int) -> np.ndarray:
        return np.concatenate([100 * c + stratified(30, 0, 30, seed + c) for c in modes])

    ours = values(measure_manifold(clusters(range(2, 8), 0), clusters(range(1, 5), 50)))
    assert (ours["precision"], ours["recall"], ours["coverage"]) == (3 / 6, 3 / 4, 3 / 4)
    apart = values(measure_manifold(clusters(range(5, 8), 0), clusters(range(1, 5), 50)))
    assert set(apart.values()) == {0}


def test_manifold_in_expectation_for_equal_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Density is 1. Uncovered is an item whose 5 nearest are all real: E = 1 - (M-1)...(M-5) / (N+M-1)...(N+M-5).

    The latter is Naeem et al. 2020, section 3.2.
    """
    monkeypatch.setattr(manifold, "mean", lambda x: Measure(float(np.mean(x, dtype=np.float64))))  # no bootstrap
    n, m = 6, 7
    found = [values(measure_manifold(a, b)) for a, b in splits(drawn(0, n + m, 2), n)]
    uncovered = prod((m - i) / (n + m - i) for i in range(1, 6))
    assert np.mean([z["coverage"] for z in found]) == pytest.approx(1 - uncovered, rel=1e-12)
    assert np.mean([z["density"] for z in found]) == pytest.approx(1, rel=1e-7)
    # nothing tells samples from items, where there are as many
    both = [values(measure_manifold(a, b)) for a, b in splits(drawn(1, 12, 2), 6)]
    assert np.mean([z["precision"] - z["recall"] for z in both]) == pytest.approx(0, abs=1e-12)


def test_manifold_of_the_same_arrays() -> None:
    """All is covered; each item is in its own ball, and in the 5 of each other's on average: density 6 / 5."""
    a = drawn(0, 200, 5)
    ours = values(measure_manifold(a, a))
    assert (ours["precision"], ours["recall"], ours["coverage"]) == (1, 1, 1)
    assert ours["density"] == pytest.approx(6 / 5, rel=1e-7)


# Copies


def images(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 5, 4, 3), dtype=np.uint8)


@short_blocks
def test_nearest_is_scipys() -> None:
    """Root mean square differences of pixels in [0, 1]; a copy is at 0, an inverted black image at 1."""
    queries, items = images(0, 40), images(1, 60)
    queries[[3, 20]] = items[[50, 0]]
    queries[-1], items[30] = 255, 0
    items[31:33] = items[30]  # the first of equals
    distance, index = nearest(queries[:-1], items)
    between = scipy.spatial.distance.cdist(*(z.reshape(len(z), -1) / 255 for z in (queries[:-1], items))) / 60**0.5
    assert (index == between.argmin(1)).all()
    np.testing.assert_allclose(distance, between.min(1), rtol=1e-14, atol=0)
    assert (distance[[3, 20]] == 0).all() and (index[[3, 20]] == [50, 0]).all()
    for query, expected in ((queries[-1:], 1), (items[30:31], 0)):
        distance, index = nearest(query, items[30:33])
        assert (distance, index) == (expected, 0)


def test_copying_is_mann_whitneys() -> None:
    """`nearer` is U / (N M), ties counting half."""
    for decimals in (8, 1):
        a, b = np.abs(drawn(0, 50)).round(decimals), 1.2 * np.abs(drawn(1, 70)).round(decimals)
        u = scipy.stats.mannwhitneyu(b, a).statistic
        assert measure_copying(a, b)["nearer"].value == pytest.approx(u / (50 * 70), rel=1e-12)


def test_copying_without_and_with_copies() -> None:
    """Exact copies have the distance 0, where held-out images have none; equal arrays say nothing."""
    held_out = 0.1 + np.random.default_rng(0).random(500)
    assert values(measure_copying(np.zeros(20), held_out)) == {"nearer": 1, "copies": 1}
    assert values(measure_copying(np.full(20, 2.0), held_out)) == {"nearer": 0, "copies": 0}
    equal = values(measure_copying(held_out, held_out))
    assert equal["nearer"] == pytest.approx(0.5, rel=1e-12) and equal["copies"] == 5 / 500
    some = np.where(np.arange(500) % 4 == 0, 0, held_out)
    mixed = values(measure_copying(some, held_out))
    assert mixed["nearer"] == pytest.approx(0.25 + 0.75 * 0.5, abs=0.01) and 0.25 <= mixed["copies"] <= 0.26


def test_copying_in_expectation_for_equal_distributions() -> None:
    """0.5. The 1% quantile of M = 1 + 100 r is the (r + 1)-th of them: E = (r + 1) / (M + 1), which tends to 0.01."""
    pool = drawn(0, 202)
    found = [values(measure_copying(a, b)) for a, b in splits(pool, 1)]
    assert np.mean([z["nearer"] for z in found]) == pytest.approx(0.5, rel=1e-12)
    assert np.mean([z["copies"] for z in found]) == pytest.approx(3 / 202, rel=1e-12)


# What a classifier says


def test_inception_score_of_sure_and_unsure() -> None:
    """Sure and uniform: the number of classes. Always the same: 1. Between, log of the former less the entropy of one.

    Here e^t is the odds of the class seen against each other one.
    """
    k = 7
    classes = np.eye(k, dtype=np.float32)[np.arange(10 * k) % k]
    assert inception_score(1000 * classes).value == pytest.approx(k, rel=1e-12)
    assert inception_score(classes[:1].repeat(20, 0)).value == pytest.approx(1, rel=1e-12)
    assert inception_score(np.zeros((20, k))).value == pytest.approx(1, rel=1e-12)
    two = inception_score(1000 * classes[np.arange(10 * k) % k < 2])
    assert two.value == pytest.approx(2, rel=1e-12) and two.low < 2  # a resampled coin is rarely fair
    for t in (0.5, 3.0):
        p = np.array([np.exp(t)] + [1] * (k - 1)) / (np.exp(t) + k - 1)
        score = inception_score(t * classes + 1e3 * drawn(0, 10 * k, 1).round()).value
        assert score == pytest.approx(k * np.exp(np.sum(p * np.log(p))), rel=1e-12)


def test_inception_score_is_torch_fidelitys(fidelity: ModuleType) -> None:
    logits = 3 * drawn(0, 100, 12).astype(np.float32)
    theirs = fidelity.metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits=1)
    assert inception_score(logits).value == pytest.approx(theirs["inception_score_mean"], rel=1e-12)


def test_class_entropy_is_scipys() -> None:
    """log2 K for K classes alike, 0 for one alone; absent classes change nothing."""
    for k in (1, 2, 8):
        assert class_entropy(np.arange(5 * k) % k, 10).value == pytest.approx(np.log2(k), abs=1e-14)
    labels = np.random.default_rng(0).integers(0, 5, 100) ** 2
    counts = np.unique(labels, return_counts=True)[1]
    assert class_entropy(labels, 30).value == pytest.approx(scipy.stats.entropy(counts, base=2), rel=1e-13)


def test_the_interval_of_class_entropy_is_how_it_varies() -> None:
    """By the delta method, sqrt(Var log2 p(y) / n); 200 replicates know it to 5%."""
    p = np.array([0.6, 0.3, 0.1])
    labels = np.repeat(np.arange(3), (p * 1000).astype(int))
    expected = np.sqrt((p @ np.log2(p) ** 2 - (p @ np.log2(p)) ** 2) / 1000)
    assert spread(class_entropy(labels, 3)) == pytest.approx(expected, rel=0.15)


def test_recognised_is_a_share() -> None:
    asked = np.arange(40) % 4
    ours = recognised(np.where(np.arange(40) < 10, asked, asked + 1), asked)
    assert ours.value == 0.25 and ours.low < 0.25 < ours.high
    assert recognised(asked, asked) == Measure(1, 1, 1)
