"""What evaluation caches on disk, keyed by content: features of images, samples of models.

Nothing is keyed by a name, a date or a path, so nothing stale can be used; a deleted cache is rebuilt.
Arrays are memory-mapped: memory does not grow with their length.
"""

import dataclasses
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from undiffuse.cache import folder_for, locked, writing
from undiffuse.data.stored import fingerprint
from undiffuse.devices import shares_a_cpu
from undiffuse.errors import UndiffuseError
from undiffuse.files import atomic_file
from undiffuse.generate import Recipe, generate
from undiffuse.guidance import Guidance
from undiffuse.metrics.features.extractor import Extracted, Extractor
from undiffuse.model import Model

FORMAT, DRAWN = 2, 3
"""Of features, and of samples: another number when the same recipe draws something else."""
SHARD = 64
Tick = Callable[[int], None]


def features_of(images: np.ndarray, extractor: Extractor, tick: Tick | None = None) -> Extracted:
    """The features of uint8 (N, H, W, C) images, from the cache if this extractor processed these images before.

    `tick` gets the number of further images done. Raises UndiffuseError if a feature is not finite.
    """
    content = fingerprint(images, None, ())
    folder = folder_for("features", [FORMAT, content, extractor.name, extractor.facts])
    with locked(folder):
        if not (folder / "pooled.npy").exists():
            with writing(folder) as temporary:
                _extract(images, extractor, temporary, tick)
        elif tick:
            tick(len(images))
    parts = {
        name: np.load(path, mmap_mode="r", allow_pickle=False)
        for name in ("pooled", "spatial", "logits")
        if (path := folder / f"{name}.npy").exists()
    }
    return Extracted(images, **parts)


def _extract(images: np.ndarray, extractor: Extractor, folder: Path, tick: Tick | None) -> None:
    maps: dict[str, np.memmap] = {}
    for first in range(0, len(images), extractor.batch_size):
        rows = slice(first, first + extractor.batch_size)
        batch = np.array(images[rows])
        features = extractor.extract(torch.from_numpy(batch))
        for name, part in features._asdict().items():
            if part is None:
                continue
            if not part.isfinite().all():
                raise UndiffuseError(
                    f"the features {extractor.name} of images {first} to {first + len(batch) - 1} are not finite"
                )
            if name not in maps:
                shape = (len(images), part.shape[1])
                maps[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, shape)
            maps[name][rows] = part.numpy()
        if tick:
            tick(len(batch))
    for written in maps.values():
        written.flush()


@dataclass(frozen=True)
class Samples:
    """The first n samples of a model by a recipe, in the cache: shards of 64, each complete or absent."""

    folder: Path
    n: int

    @property
    def shards(self) -> list[tuple[Path, range]]:
        """The file of each shard and the samples it holds; the last may go beyond n."""
        return [(self.folder / f"{first:08d}.npz", range(first, first + SHARD)) for first in range(0, self.n, SHARD)]

    def gathered(self) -> np.ndarray:
        """The rows, such as images, uint8 (n, H, W, C): a memory map of a file that is deleted at the end."""
        out: np.ndarray | None = None
        for path, numbers in self.shards:
            try:
                with np.load(path, allow_pickle=False) as file:
                    images = file["images"]
            except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
                raise UndiffuseError(
                    f"cannot read the samples {path}: {error}. Delete them, or, with several machines, set "
                    "$UNDIFFUSE_CACHE to a folder they all see."
                ) from error
            if out is None:
                with tempfile.TemporaryFile() as file:
                    out = np.memmap(file, images.dtype, "w+", shape=(self.n, *images.shape[1:]))
            rows = slice(numbers.start, min(numbers.stop, self.n))
            out[rows] = images[: rows.stop - rows.start]
        assert out is not None
        return out


def sample_into_cache(model: Model, recipe: Recipe, n: int, tick: Tick | None = None) -> Samples | None:
    """Draws those of the first n samples that are not cached; the processes of a torchrun share the shards.

    After an interruption it continues where it stopped; with a larger n later, it draws only the new samples. `tick`
    gets every step of every sample, at once for cached ones. None in all processes but the first.
    """
    state = PartialState(cpu=shares_a_cpu())
    # Engines differ in the last digits, which can change a pixel's rounding: the cache key includes the engine.
    settings = dataclasses.asdict(recipe)
    if recipe.guidance == Guidance():  # the same key as before guidance existed, so that older caches stay valid
        del settings["guidance"]
    times = None if model.rival is not None else recipe.for_model(model).times(model).tolist()
    identity = [DRAWN, model.fingerprint, settings, times, model.engine]
    samples = Samples(folder_for("samples", identity), n)
    for path, numbers in samples.shards[state.process_index :: state.num_processes]:
        if path.exists():
            if tick:
                tick(len(numbers) * recipe.steps)
            continue
        (images,) = generate(model, recipe, numbers, model.condition(numbers), batch_size=SHARD, tick=tick)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, images=images)
    state.wait_for_everyone()
    return samples if state.is_main_process else None
