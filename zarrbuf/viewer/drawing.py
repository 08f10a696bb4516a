"""One panel, and one curve, on axes of a figure.

Owns how they look, and that names are text and numbers may be of any size. Lays nothing
out.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from zarrbuf.common.printing import printable
from zarrbuf.viewer.curves import Curve, Curves
from zarrbuf.viewer.images import GAP, Picture, shrink, square_columns, tile_corner
from zarrbuf.viewer.scene import Panel

_MAX_SIDE: Final = 1280
"""Pixels of a picture handed to the canvas, which has about half as many for it."""
LETTERS_AN_INCH: Final = 13
_LARGEST: Final = 1e300
"""Beyond this, the ticks of an axis cannot be counted."""
_MAX_LABELS: Final = 100
_DONE_COLOUR: Final = "tab:red"
_PERSON_COLOUR: Final = "tab:orange"
_CHOSEN_COLOUR: Final = "tab:red"


class PanelAxes:
    """Axes that show panels of one kind, one after the other.

    Attributes:
        axes: the axes.
        moving: artists that are drawn over the rest, the lowest first.
    """

    def __init__(
        self, axes: Axes, panel: Panel, span: tuple[float, float], *, animated: bool
    ) -> None:
        """Make the artists for panels like this one; see matplotlib on `animated`."""
        self.axes = axes
        self._panel = panel
        figure: Any = axes.figure
        width = axes.get_position().width * figure.get_figwidth()
        title = _fitting(panel.title, width)
        axes.set_title(title, fontsize=9, pad=3, parse_math=False)
        self._image: AxesImage | None = None
        self._bars: list[Any] = []
        over: list[Any] = []
        if panel.picture is not None:
            axes.set(xticks=[], yticks=[])
            self._image = _make_image(axes, panel.picture, animated)
            over = list(_label_tiles(axes, panel, animated))
            for spine in axes.spines.values():
                spine.set(color="grey", linewidth=0.5, animated=animated)
                over.append(spine)
        elif panel.values is not None:
            axes.tick_params(labelsize=7)
            axes.axhline(0, color="grey", linewidth=0.5)
            axes.set_ylim(*span)
            numbers = range(len(panel.values))
            self._bars = list(axes.bar(numbers, 0, animated=animated))
        else:
            axes.set_axis_off()
        self._error = axes.text(
            0.5,
            0.5,
            "",
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=8,
            color="white",
            bbox={"facecolor": "darkred", "alpha": 0.85},
            animated=animated,
            parse_math=False,
        )
        images = [] if self._image is None else [self._image]
        moving: list[Any] = [*images, *self._bars, *over, self._error]
        self.moving = sorted(moving, key=lambda artist: artist.get_zorder())

    def show(self, panel: Panel) -> None:
        """Show another panel of the same kind."""
        if self._image is not None and panel.picture is not None:
            self._image.set_data(shrink(panel.picture, max_side=_MAX_SIDE))
        if panel.values is not None:
            values = np.clip(panel.values, -_LARGEST, _LARGEST)
            for bar, value in zip(self._bars, values.tolist(), strict=True):
                bar.set_height(value)
        self._error.set_text(textwrap.fill(printable(panel.error), 60))
        self._error.set_visible(bool(panel.error))

    def env_at(self, x: float, y: float) -> int | None:
        """Return the environment whose tile is at a point of the axes."""
        if self._panel.picture is None:
            return None
        size, columns = _tiles(self._panel)
        row, column = (
            int((y + 0.5) // (size[0] + GAP)),
            int((x + 0.5) // (size[1] + GAP)),
        )
        number = row * columns + column
        inside = 0 <= column < columns and 0 <= number < len(self._panel.envs)
        return self._panel.envs[number] if inside else None


def kind_of(panel: Panel) -> tuple[Any, ...]:
    """Return what of a panel needs axes of its own if it changes."""
    picture, values = panel.picture, panel.values
    return (
        panel.title,
        panel.envs,
        panel.env,
        None if picture is None else picture.shape,
        None if values is None else len(values),
    )


def value_range(panels: Sequence[Panel]) -> tuple[float, float]:
    """Return the ends of an axis for all panels, the same for values about as large."""
    values = [panel.values for panel in panels if panel.values is not None]
    together = np.concatenate([np.zeros(0), *values])
    finite = np.clip(together[np.isfinite(together)], -_LARGEST, _LARGEST)
    largest = float(abs(finite).max(initial=0))
    end = 2.0 ** math.ceil(math.log2(largest)) if largest else 1.0
    return (-end if (finite < 0).any() else 0.0), end


def _make_image(axes: Axes, picture: Picture, animated: bool) -> AxesImage:
    """Show a picture; a large one with fewer pixels, in coordinates of its own."""
    height, width = picture.shape[:2]
    return axes.imshow(
        shrink(picture, max_side=_MAX_SIDE),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        animated=animated,
    )


def _tiles(panel: Panel) -> tuple[tuple[int, int], int]:
    """Return height and width of the tiles of a grid, and the number of columns."""
    assert panel.picture is not None
    columns = square_columns(len(panel.envs))
    rows = -(-len(panel.envs) // columns)
    height, width = panel.picture.shape[:2]
    return (
        (height + GAP) // max(1, rows) - GAP,
        (width + GAP) // columns - GAP,
    ), columns


def _label_tiles(axes: Axes, panel: Panel, animated: bool) -> Iterator[Any]:
    """Write on tiles which environment they show, and frame the one looked at.

    Of very many, the first of each row is labelled.
    """
    if not panel.envs:
        return
    size, columns = _tiles(panel)
    for number, env in enumerate(panel.envs):
        top, left = tile_corner(number, size, num_columns=columns)
        if env == panel.env:
            frame = Rectangle((left - 0.5, top - 0.5), size[1], size[0])
            frame.set(fill=False, edgecolor=_CHOSEN_COLOUR, linewidth=3)
            frame.set_animated(animated)
            yield axes.add_patch(frame)
        elif len(panel.envs) > _MAX_LABELS and number % columns:
            continue
        yield axes.text(
            left,
            top,
            f"{env}",
            fontsize=7,
            color="white",
            va="top",
            bbox={"facecolor": "black", "edgecolor": "none", "pad": 1},
            animated=animated,
            clip_on=True,
        )


def _fitting(title: str, width: float) -> str:
    """Return a title no wider than some inches, without its middle if need be."""
    title, room = printable(title), max(8, int(width * LETTERS_AN_INCH))
    if len(title) > room:
        title = title.replace(" observation", "", 1)
    if len(title) <= room:
        return title
    start = room // 2
    return f"{title[:start]}\N{HORIZONTAL ELLIPSIS}{title[start + 1 - room :]}"


def draw_curve(axes: Axes, curve: Curve, curves: Curves) -> None:
    """Draw a curve, with the episodes and interventions of all `curves`."""
    steps = np.arange(curves.num_steps)
    values = np.clip(curve.values, -_LARGEST, _LARGEST)
    values[~np.isfinite(curve.values)] = np.nan  # a gap
    axes.plot(steps, values, linewidth=0.9)
    name = curve.name + (f" (+{curve.num_left_out})" if curve.num_left_out else "")
    _write(axes, name, 0.004, axes.transAxes, ha="left")
    axes.tick_params(labelsize=6, length=2, pad=1)
    axes.set_xlim(-0.5, curves.num_steps - 0.5)
    axes.locator_params(axis="y", nbins=3)
    whole_height = axes.get_xaxis_transform()
    axes.broken_barh(
        [(start - 0.5, stop - start) for start, stop in curves.intervened],
        (0, 1),
        transform=whole_height,
        color=_PERSON_COLOUR,
        alpha=0.25,
        lw=0,
    )
    ends = [one.stop - 0.5 for one in curves.episodes if one.is_over]
    axes.vlines(ends, 0, 1, transform=whole_height, color=_DONE_COLOUR, lw=0.8, ls="--")
    if curve.name == "return" and len(curves.episodes) <= _MAX_LABELS // 5:
        for episode in curves.episodes:
            middle = (episode.start + episode.stop - 1) / 2
            _write(axes, f"{episode.total:.8g}", middle, whole_height, ha="center")


def _write(axes: Axes, text: str, x: float, transform: Any, *, ha: str) -> None:
    """Write at the top of the axes of a curve."""
    axes.text(
        x,
        0.92,
        printable(text),
        transform=transform,
        fontsize=7,
        ha=ha,
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
        parse_math=False,
    )
