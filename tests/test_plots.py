"""Names in figures lie where they can be read."""

import itertools

import numpy as np
from matplotlib.figure import Figure
from matplotlib.path import Path as Route
from matplotlib.text import Annotation, Text

from undiffuse.plots import name_points


def test_names_cover_neither_points_nor_each_other() -> None:
    """Of a crowd in the middle and of points at the edges, which have room on one side only."""
    crowd = np.exp(0.15 * np.random.default_rng(0).standard_normal((6, 2)))
    points = [tuple(place) for place in [*crowd, (0.1, 1.0), (10.0, 1.0), (1.0, 0.1), (1.0, 10.0)]]
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    axes.scatter(*zip(*points, strict=True))
    axes.loglog()
    names = [f"the model of number {number}" for number in range(len(points))]
    name_points(axes, points, names)
    texts = [one for one in axes.texts if isinstance(one, Annotation)]
    assert [one.get_text() for one in texts] == names
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(one) for one in texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    places = axes.transData.transform(np.array(points))
    assert not any(box.count_contains(places) for box in boxes)
    assert all(axes.bbox.count_contains(box.corners()) == 4 for box in boxes)
    for number, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        end = (box.x0 if text.get_ha() == "left" else box.x1, (box.y0 + box.y1) / 2)
        line = Route([places[number], end])
        assert not any(line.intersects_bbox(other) for place, other in enumerate(boxes) if place != number)
