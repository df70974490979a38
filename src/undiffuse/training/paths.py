"""The paths of a teacher from noise to data, drawn once and kept in the cache: a student learns from them."""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from undiffuse.cache import folder_for
from undiffuse.conditions import Condition
from undiffuse.config import Config
from undiffuse.data import ImageSet
from undiffuse.devices import shares_a_cpu
from undiffuse.files import atomic_file
from undiffuse.generate import Recipe, states
from undiffuse.guidance import Guidance
from undiffuse.model import Model
from undiffuse.objectives.paths import Leaps
from undiffuse.progress import bar
from undiffuse.randomness import KeyedDraw, Purpose, keyed_draws
from undiffuse.sampling import make_grid
from undiffuse.training.batches import condition_of
from undiffuse.training.settings import DEFAULT_STEPS, clock_of

FORMAT = 2
STEPS = 8
"""Steps of a path, or as many as there are jumps."""
BATCH, CHUNK = 64, 512
"""Paths at once, and in a file."""
SHARE = 0.2
"""Of a budget of minutes, for drawing."""
MOST = 100_000
TIMES_SEEN = 4
"""How often each is seen, at least, in a number of steps."""


@dataclass(frozen=True)
class TeachersPaths:
    """The first `count` paths of a teacher, for rows of a data set drawn at random, with those rows' conditions.

    Path k is a pure function of k. Its noise is not that of the samples that evaluation draws.
    """

    model: Model
    config: Config
    data: ImageSet
    precision: str
    count: int
    chunks: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def jumps(self) -> int:
        """Those of the student."""
        return self.config.objective.jumps

    @property
    def recipe(self) -> Recipe:
        """How the teacher goes."""
        return Recipe("unipc", max(STEPS, self.jumps), guidance=Guidance(self.config.objective.guidance))

    @cached_property
    def grid(self) -> Tensor:
        """The times of a path: float64 (steps + 1,)."""
        return make_grid("jumps", self.model.denoiser.process.schedule, self.recipe.steps)

    @property
    def stride(self) -> int:
        """The steps of a jump."""
        return self.recipe.steps // self.jumps

    @cached_property
    def times(self) -> Tensor:
        """Where jumps begin and end: float64 (jumps + 1,)."""
        return self.grid[:: self.stride]

    def leaps(self, u: Tensor) -> Leaps:
        """The path and the jump that u (B,) in [0, 1) chooses, on the model's device."""
        place = (u * self.count * self.jumps).long().clamp(max=self.count * self.jumps - 1)
        numbers, part = (place // self.jumps).numpy(), place % self.jumps
        ends = torch.from_numpy(np.stack([self._states(k) for k in numbers]).astype(np.float32)).to(self.model.device)
        states_of = torch.cat([self.start(numbers)[:, None], ends], 1)  # (B, jumps + 1, *shape)
        rows = torch.arange(len(u), device=states_of.device)
        now = part.to(states_of.device)
        times = self.times
        return Leaps(states_of[rows, now], times[part], states_of[rows, now + 1], times[part + 1], self.asked(numbers))

    def draw(self) -> None:
        """Draws those that are not in the cache; processes of a torchrun share them."""
        state = PartialState(cpu=shares_a_cpu())
        missing = [first for first in range(0, self.count, CHUNK) if not self._file(first).exists()]
        mine = missing[state.process_index :: state.num_processes]
        with bar("drawing the teacher's paths", CHUNK * len(mine)) as tick:
            for first in mine:
                parts = []
                for numbers in np.array_split(np.arange(first, first + CHUNK), CHUNK // BATCH):
                    parts.append(self.drawn(numbers))
                    tick(len(numbers))
                with atomic_file(self._file(first)) as temporary, temporary.open("wb") as out:
                    np.save(out, np.concatenate(parts))
        state.wait_for_everyone()

    def drawn(self, numbers: np.ndarray) -> np.ndarray:
        """Where some paths are at the later ends of their jumps: float16 (B, jumps, *shape of x_0)."""
        draw = _noise(numbers)
        path = states(self.model, self.recipe, numbers.tolist(), self.asked(numbers), self.grid, lambda _: draw)
        found = [state.x for state in itertools.islice(path, self.stride, None, self.stride)]
        return torch.stack(found, 1).to(torch.float16).cpu().numpy()

    def pace(self, clock: Callable[[], float]) -> float:
        """Seconds that a path takes to draw, of a few and after a few."""
        self.drawn(np.arange(BATCH))
        began = clock()
        self.drawn(np.arange(BATCH))
        return (clock() - began) / BATCH

    def start(self, numbers: np.ndarray) -> Tensor:
        """Where paths begin, float32 (B, *shape of x_0)."""
        like = torch.empty(len(numbers), *self.model.domain.shape, device=self.model.device)
        return self.model.denoiser.process.prior(like).sample(_noise(numbers))

    def asked(self, numbers: np.ndarray) -> Condition | None:
        """The conditions of paths: those of rows of the data, dropped as they are in training."""
        folds = itertools.count(1)

        def uniform() -> np.ndarray:
            like, draw = torch.empty(len(numbers), 1), _noise(numbers).fold(next(folds))
            return draw.uniform(like)[:, 0].numpy()

        items = (uniform() * len(self.data)).astype(np.int64)
        condition = condition_of(self.config, self.data, items, uniform)
        return None if condition is None else condition.to(self.model.device)

    def _states(self, number: int) -> np.ndarray:
        first = number - number % CHUNK
        if first not in self.chunks:
            self.chunks[first] = np.load(self._file(first), mmap_mode="r", allow_pickle=False)
        found: np.ndarray = self.chunks[first][number - first]
        return found

    def _file(self, first: int) -> Path:
        return self._folder / f"{first:08d}.npy"

    @cached_property
    def _folder(self) -> Path:
        training, network = self.config.training, self.config.network
        conditions = [training.conditional, training.condition, training.label_dropout, network.text, network.tokens]
        identity = [FORMAT, self.model.fingerprint, dataclasses.asdict(self.recipe), self.jumps, self.precision]
        return folder_for("paths", [*identity, self.data.fingerprint, *conditions])


def paths_of(model: Model, config: Config, data: ImageSet, precision: str) -> tuple[TeachersPaths, Config]:
    """The paths that a run learns from, in the cache, and its configuration with their number.

    If `objective.paths` leaves that open, drawing them takes SHARE of a budget of minutes, or each is seen TIMES_SEEN
    times in a number of steps.
    """
    count, training = config.objective.paths, config.training
    paths = TeachersPaths(model, config, data, precision, count or MOST)
    if count is None:
        count = (training.steps or DEFAULT_STEPS) * training.batch_size // TIMES_SEEN
        state = PartialState(cpu=shares_a_cpu())
        if training.minutes:
            count = round(SHARE * 60 * training.minutes / paths.pace(clock_of(config)) * state.num_processes)
        count = min(max(count, 1), MOST)
        if state.num_processes > 1:
            (count,) = broadcast_object_list([count])
        config = config.model_copy(update={"objective": config.objective.model_copy(update={"paths": count})})
        paths = dataclasses.replace(paths, config=config, count=count)
    paths.draw()
    return paths, config


def _noise(numbers: np.ndarray) -> KeyedDraw:
    """The random numbers of paths."""
    return keyed_draws(0, numbers.tolist(), Purpose.PATHS)(0)
