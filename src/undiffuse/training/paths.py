"""The paths of a teacher from noise to data, drawn once and kept in the cache: a student learns from them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from undiffuse.cache import folder_for, locked, writing
from undiffuse.conditions import Condition
from undiffuse.config import Config
from undiffuse.generate import Recipe, states
from undiffuse.guidance import Guidance
from undiffuse.model import Model
from undiffuse.objectives.paths import Leaps
from undiffuse.progress import bar
from undiffuse.randomness import KeyedDraw, Purpose, keyed_draws
from undiffuse.sampling import make_grid

FORMAT = 1
STEPS = 8
"""Steps of a path, or as many as there are jumps."""
BATCH = 64


@dataclass(frozen=True)
class TeachersPaths:
    """`states` float16 (N, jumps, *shape of x_0): where path k is at the later ends of its jumps, a memory map.

    Path k begins with the noise of a key and has the condition that sample k of the model has; evaluation draws other
    noise.
    """

    model: Model
    times: Tensor
    states: np.ndarray

    def leaps(self, u: Tensor) -> Leaps:
        """The path and the jump that u (B,) in [0, 1) chooses, on the model's device."""
        count, jumps = self.states.shape[:2]
        place = (u * count * jumps).long().clamp(max=count * jumps - 1)
        numbers, part = (place // jumps).numpy(), (place % jumps).numpy()
        ends = torch.from_numpy(self.states[numbers, part].astype(np.float32)).to(self.model.device)
        begins = ends.clone()
        first, later = np.flatnonzero(part == 0), np.flatnonzero(part)
        if len(first):
            begins[first] = start(self.model, numbers[first])
        if len(later):
            before = self.states[numbers[later], part[later] - 1].astype(np.float32)
            begins[later] = torch.from_numpy(before).to(begins)
        condition: Condition | None = self.model.condition(numbers)
        return Leaps(begins, self.times[part], ends, self.times[part + 1], condition)


def noise(numbers: np.ndarray) -> KeyedDraw:
    """The random numbers of paths."""
    return keyed_draws(0, numbers.tolist(), Purpose.PATHS)(0)


def start(model: Model, numbers: np.ndarray) -> Tensor:
    """Where the paths begin, float32 (B, *shape of x_0)."""
    like = torch.empty(len(numbers), *model.domain.shape, device=model.device)
    return model.denoiser.process.prior(like).sample(noise(numbers))


def drawn_paths(model: Model, config: Config, precision: str) -> TeachersPaths:
    """`objective.paths` paths of `model`, guided by `objective.guidance`: from the cache, or drawn now."""
    objective, schedule = config.objective, model.denoiser.process.schedule
    jumps, count = objective.jumps, objective.paths
    assert count is not None, "a run has decided it"
    recipe = Recipe("unipc", max(STEPS, jumps), guidance=Guidance(objective.guidance))
    grid = make_grid("jumps", schedule, recipe.steps)
    kept = range(0, recipe.steps + 1, recipe.steps // jumps)
    identity = [FORMAT, model.fingerprint, dataclasses.asdict(recipe), jumps, count, precision]
    folder = folder_for("paths", identity)
    with locked(folder):
        if not folder.exists():
            with writing(folder) as temporary, bar("drawing the teacher's paths", count) as tick:
                shape = (count, jumps, *model.domain.shape)
                ends = np.lib.format.open_memmap(temporary / "states.npy", "w+", np.float16, shape)
                for numbers in np.array_split(np.arange(count), -(-count // BATCH)):
                    ends[numbers] = _ends(model, recipe, numbers, grid, kept)
                    tick(len(numbers))
                ends.flush()
    stored = np.load(folder / "states.npy", mmap_mode="r", allow_pickle=False)
    return TeachersPaths(model, grid[list(kept)], stored)


def _ends(model: Model, recipe: Recipe, numbers: np.ndarray, grid: Tensor, kept: Sequence[int]) -> np.ndarray:
    """Where the paths are at the times numbered `kept`, but for the first: float16 (B, jumps, *shape of x_0)."""
    path = states(model, recipe, numbers.tolist(), model.condition(numbers), grid, lambda _: noise(numbers))
    found = [state.x for number, state in enumerate(path) if number in kept[1:]]
    return torch.stack(found, 1).to(torch.float16).cpu().numpy()
