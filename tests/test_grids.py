"""Time grids: N + 1 times, exact ends, strictly decreasing, and where the papers put them."""

import numpy as np
import pytest
import torch
from references import SCHEDULES, TABLES

from undiffuse.process import EDM, VP, Schedule, cosine, linear
from undiffuse.sampling import GRIDS, make_grid

BY_INDEX = ["trailing", "leading", "linspace", "quadratic"]
BY_LEVEL = ["karras", "log-snr"]


def is_grid(grid: torch.Tensor, steps: int) -> bool:
    """N + 1 times from exactly 1 to exactly 0, strictly decreasing, float64."""
    whole = grid.shape == (steps + 1,) and grid.dtype == torch.float64
    return bool(whole and grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all())


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
@pytest.mark.parametrize("rule", GRIDS)
@pytest.mark.parametrize("name", TABLES)
def test_every_count_of_steps_of_small_tables(name: str, rule: str, steps: int) -> None:
    """All N from 1 to T; rules by index stay on the table's own times i / T."""
    if steps == 1 and name == "zero-snr":
        pytest.skip("one beta cannot both stay and become 1")
    schedule = TABLES[name](steps)
    for n in range(1, steps + 1):
        grid = make_grid(rule, schedule, n)
        assert is_grid(grid, n), n
        if rule in BY_INDEX:
            assert (schedule.time_of(schedule.index(grid)) == grid).all()


@pytest.mark.parametrize("rule", GRIDS)
def test_every_count_of_steps_of_a_thousand(rule: str) -> None:
    """All N from 1 to 1000 on DDPM's table; N = T visits every step for the rules by index."""
    schedule = linear(1000)
    assert all(is_grid(make_grid(rule, schedule, n), n) for n in range(1, 1001))
    if rule in BY_INDEX:
        assert schedule.index(make_grid(rule, schedule, 1000)).tolist() == list(range(1000, -1, -1))


@pytest.mark.parametrize("rule", GRIDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_counts_of_steps_of_every_schedule(name: str, rule: str) -> None:
    """Every schedule with every rule, for few steps and (where there is no T) for many."""
    schedule = SCHEDULES[name]
    for n in (*range(1, 21), *(() if schedule.steps else (50, 333, 1000, 2500))):
        assert is_grid(make_grid(rule, schedule, n), n), n


@pytest.mark.parametrize("rule", GRIDS)
@pytest.mark.parametrize("schedule", [VP(), linear(10)], ids=["vp", "linear"])
def test_no_steps_are_refused(rule: str, schedule: Schedule) -> None:
    """ValueError for N < 1."""
    for n in (0, -3):
        with pytest.raises(ValueError, match="at least 1 step"):
            make_grid(rule, schedule, n)


@pytest.mark.parametrize("rule", BY_INDEX)
@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_more_steps_than_the_table_has_are_refused(rule: str, steps: int) -> None:
    """ValueError for N > T where the rule is by index."""
    with pytest.raises(ValueError, match="too many"):
        make_grid(rule, linear(steps), steps + 1)


@pytest.mark.parametrize(
    ("rule", "published"),
    [
        ("leading", [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        ("linspace", [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]),
        ("trailing", [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]),
    ],
)
def test_published_table_of_ten_steps(rule: str, published: list[int]) -> None:
    """Lin et al. 2024, table 2: T = 1000, N = 10, but for the first, moved to T, and the data at the end."""
    indices = linear(1000).index(make_grid(rule, linear(1000), 10)).tolist()
    assert indices == [1000, *published[1:], 0]


@pytest.mark.parametrize("n", [2, 4, 5, 20, 25, 50, 100, 250, 500])
def test_leading_is_one_plus_multiples_of_the_stride(n: int) -> None:
    """1, 1 + T/N, 1 + 2 T/N, ... where N divides T, the first moved to T, as DDPM's and DDIM's code have them."""
    indices = linear(1000).index(make_grid("leading", linear(1000), n)).tolist()
    assert indices == [1000, *(1 + k * (1000 // n) for k in range(n - 2, -1, -1)), 0]


@pytest.mark.parametrize("n", [1, 2, 4, 5, 10, 20, 25, 50, 100, 250, 500, 1000])
def test_trailing_is_multiples_of_the_stride(n: int) -> None:
    """T, T - T/N, ..., T/N, 0 where N divides T."""
    assert linear(1000).index(make_grid("trailing", linear(1000), n)).tolist() == list(range(1000, -1, -1000 // n))


@pytest.mark.parametrize("n", [3, 7, 48, 333, 700])
def test_trailing_and_linspace_are_rounded_even_spacings(n: int) -> None:
    """Within half a step of even spacing for every N, whether or not it divides T."""
    schedule = linear(1000)
    trailing = schedule.index(make_grid("trailing", schedule, n)).numpy()
    assert np.abs(trailing - np.linspace(1000, 0, n + 1)).max() <= 0.5 + 1e-9
    spaced = schedule.index(make_grid("linspace", schedule, n)).numpy()
    assert np.abs(spaced[:-1] - np.linspace(1000, 1, n)).max() <= 0.5 + 1e-9


def test_quadratic_is_ddims() -> None:
    """(1 - i / N)^2 T, rounded: tau_i = c i^2 (Song et al. 2021, appendix D.2); exact without a table."""
    ours = make_grid("quadratic", linear(1000), 10)
    assert linear(1000).index(ours).tolist() == [1000, 810, 640, 490, 360, 250, 160, 90, 40, 10, 0]
    np.testing.assert_allclose(make_grid("quadratic", VP(), 7).numpy(), (np.arange(7, -1, -1) / 7) ** 2, atol=1e-15)


@pytest.mark.parametrize("n", [2, 3, 18, 64])
def test_karras_grid_is_his(n: int) -> None:
    """sigma_i = (max^(1/7) + i / (N - 1) (min^(1/7) - max^(1/7)))^7, then 0, on EDM's schedule (eq. 5)."""
    i = np.arange(n)
    sigma = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(make_grid("karras", EDM(), n).numpy() * 80, [*sigma, 0], rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_karras_and_log_snr_grids_are_even_in_their_measure(name: str) -> None:
    """u^(1/7) and ln u, u = sigma / alpha, are even from the schedule's noisiest (at most 80) to its least (0.002)."""
    schedule, n = SCHEDULES[name], 12

    def u(t: torch.Tensor) -> np.ndarray:
        level = schedule.noise_level(t)
        return (level.sigma / level.alpha).numpy()

    noisiest, least = u(torch.tensor([1.0, schedule.t_min], dtype=torch.float64))
    ends = np.array([min(noisiest, 80.0), max(least, 0.002)])
    measures = {"karras": (lambda x: x ** (1 / 7), lambda y: y**7), "log-snr": (np.log, np.exp)}
    for rule, (measure, inverse) in measures.items():
        expected = inverse(np.linspace(*measure(ends), n))
        # the first is moved to t = 1 whatever its level; u is as exact as t where the schedule is steep
        np.testing.assert_allclose(u(make_grid(rule, schedule, n))[1:-1], expected[1:], rtol=1e-9)


@pytest.mark.parametrize("name", GRIDS)
def test_a_schedule_of_one_step_has_room_for_one(name: str) -> None:
    """From the prior to the data; a second time there is none of, and what was too much is said."""
    assert make_grid(name, cosine(1), 1).tolist() == [1, 0]
    with pytest.raises(ValueError, match="2 steps are too many"):
        make_grid(name, cosine(1), 2)
