"""The data sets that a configuration names."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from undiffuse.config import DataConfig
from undiffuse.data import ImageSet, MixedSizes
from undiffuse.data import load as load_data
from undiffuse.data.sounds import is_sounds, load_sounds
from undiffuse.data.textfiles import is_text
from undiffuse.data.texts import load_text
from undiffuse.errors import UsageError
from undiffuse.names import format_shape
from undiffuse.progress import Bar, no_bar


def make_data(config: DataConfig, split: str = "train", progress: Callable[[int, int], None] | None = None) -> ImageSet:
    """A split of the training data set, read with the settings of `config`. Raises as `undiffuse.data.load` does."""
    if config.kind == "text" or is_text(config.source):
        return load_text(
            config.source,
            split,
            tokens=config.tokens,
            vocabulary=config.vocabulary or 2048,
            length=config.length,
            progress=progress,
        )
    if is_sounds(config.source):
        sounds = load_sounds(
            config.source,
            split,
            rate=config.rate,
            seconds=config.seconds,
            trim=config.trim,
            skip_corrupt=config.skip_corrupt,
            progress=progress,
        )
        return replace(sounds, domain=config.sound)
    return load_data(
        config.source,
        split,
        size=config.size,
        channels=config.channels,
        skip_corrupt=config.skip_corrupt,
        progress=progress,
    )


def make_data_of(shape: tuple[int, ...], config: DataConfig, split: str, bar: Bar = no_bar) -> ImageSet:
    """A split as images of `shape` (H, W, C), resized only to a square. Raises UsageError if they do not fit."""
    with bar(f"reading {config.source} ({split})", 0) as tick:
        images = make_data(config, split, tick)
        if images.shape != shape and shape[0] == shape[1]:
            images = make_data(config.model_copy(update={"size": shape[0], "channels": shape[2]}), split, tick)
        elif images.shape != shape:
            load = partial(load_data, channels=shape[2], skip_corrupt=config.skip_corrupt, keep_size=True)
            try:
                images = load(config.source, split, progress=tick)
            except MixedSizes as error:
                raise UsageError(f"{config.source} has {error}; the samples are all of {format_shape(shape)}") from None
    if len(images.shape) != len(shape):
        raise UsageError(
            f"{config.source} is of the kind {images.domain}, and the model or the samples are of {format_shape(shape)}"
        )
    if images.shape != shape:
        raise UsageError(
            f"{config.source} has images of {format_shape(images.shape)}; the model or the samples are of "
            f"{format_shape(shape)}"
        )
    return images
