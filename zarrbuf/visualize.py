"""Figures of a place in a buffer, and of one trajectory. Opens no window.

Owns how a scene is laid out and drawn. A figure that shows one place is changed to show
another; only what differs is made anew.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.text import Text

from zarrbuf.curves import Curve, Curves
from zarrbuf.errors import StorageError
from zarrbuf.format import new_uuid
from zarrbuf.pictures import GAP, Picture, shrink, square_columns, tile_corner
from zarrbuf.scenes import Panel, Scene

FIGURE_INCHES: Final = (14.0, 8.0)
SAVED_DPI: Final = 150
_MAX_SIDE: Final = 1280
"""Pixels of a picture handed to the canvas, which has about half as many for it."""
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.06, 0.99, 0.1, 0.88
_CURVES_SHARE: Final = 0.42
_SHEET_INCHES: Final = 13
_MAX_LABELS: Final = 100
_MAX_LINE: Final = 180
_DONE_COLOUR: Final = "tab:red"
_PERSON_COLOUR: Final = "tab:orange"


def plot_scene(scene: Scene) -> Figure:
    """Draw one scene as a new figure, 14 by 8 inches."""
    figure = Figure(figsize=FIGURE_INCHES)
    Screen(figure, is_kept=False).show(scene)
    return figure


class Screen:
    """A figure that shows one scene after the other.

    What changes from step to step (pictures, cursors, heading) is drawn over the rest,
    which is kept: a whole figure takes a canvas several times as long.

    Attributes:
        figure: the figure.
        curve_axes: axes whose x is the step; a click there means that step.
    """

    def __init__(self, figure: Figure, *, is_kept: bool = True) -> None:
        """Show nothing yet.

        Args:
            figure: an empty one.
            is_kept: whether this object lives on, to show more; else all is drawn by
                the figure itself.
        """
        self.figure = figure
        self._is_kept = is_kept
        self.curve_axes: list[Axes] = []
        top = figure.add_axes((0, _TOP, 1, 1 - _TOP))
        top.set_axis_off()
        self._heading = top.text(
            0.5,
            0.93,
            "",
            fontsize=9,
            ha="center",
            va="top",
            animated=is_kept,
            parse_math=False,
        )
        self._panels: list[_PanelAxes] = []
        self._cursors: list[Line2D] = []
        self._shown: list[tuple[Any, ...]] = []
        self._curves: Curves | None = None
        self._background: Any = None
        if is_kept:
            figure.canvas.mpl_connect("draw_event", self._keep_background)

    def show(self, scene: Scene, *, message: str = "") -> None:
        """Show a scene, and a message for who looks; `redraw` draws it."""
        panels = [panel for pair in scene.panels for panel in pair]
        span = _value_range(panels)
        shown = [(*_kind(panel), span) for panel in panels]
        if shown != self._shown or scene.curves is not self._curves:
            self._lay_out(scene.curves, panels, span)
            self._shown, self._curves = shown, scene.curves
        for axes, panel in zip(self._panels, panels, strict=True):
            axes.show(panel)
        for cursor in self._cursors:
            cursor.set_xdata([scene.place.step, scene.place.step])
        lines = [*scene.heading, *([message] if message else [])]
        self._heading.set_text("\n".join(map(_shortened, lines)))

    def redraw(self) -> None:
        """Have the canvas show what changed; all of it, if the layout is new."""
        canvas: Any = self.figure.canvas
        if self._background is None or not canvas.supports_blit:
            canvas.draw_idle()
            return
        canvas.restore_region(self._background)
        self._draw_moving()
        canvas.blit(self.figure.bbox)

    def _keep_background(self, event: Any) -> None:
        """Keep what stays, after a whole drawing, and draw the rest over it."""
        canvas: Any = event.canvas
        if canvas.is_saving():  # then all is drawn, in other pixels
            return
        if canvas.supports_blit:
            self._background = canvas.copy_from_bbox(self.figure.bbox)
        self._draw_moving()

    def _draw_moving(self) -> None:
        moving = [self._heading, *self._cursors]
        for axes in self._panels:
            moving += axes.moving
        for artist in moving:
            self.figure.draw_artist(artist)

    def _lay_out(
        self, curves: Curves, panels: Sequence[Panel], span: tuple[float, float]
    ) -> None:
        """Make axes anew; those of others, as a text box, stay."""
        for axes in (*(one.axes for one in self._panels), *self.curve_axes):
            axes.remove()
        self._background = None
        has_curves = bool(curves.curves) and curves.num_steps > 1
        middle = _BOTTOM + (_CURVES_SHARE * (_TOP - _BOTTOM) if has_curves else 0)
        places = self._picture_axes(len(panels), middle)
        self._panels = [
            _PanelAxes(axes, panel, span, animated=self._is_kept)
            for axes, panel in zip(places, panels, strict=True)
        ]
        self.curve_axes, self._cursors = [], []
        if has_curves:
            self._draw_curves(curves, middle)

    def _picture_axes(self, count: int, bottom: float) -> Iterator[Axes]:
        """Yield axes for pictures: current and next side by side, two cameras a row."""
        columns = min(count, 4)
        rows = -(-count // columns)
        width, height = (_RIGHT - _LEFT) / columns, (_TOP - bottom) / rows
        for number in range(count):
            row, column = divmod(number, columns)
            left, low = _LEFT + column * width, _TOP - (row + 1) * height
            box = (left + 0.005, low + 0.045, width - 0.01, height - 0.075)
            yield self.figure.add_axes(box)

    def _draw_curves(self, curves: Curves, top: float) -> None:
        height = (top - _BOTTOM) / len(curves.curves)
        for number, curve in enumerate(curves.curves):
            low = top - (number + 1) * height
            box = (_LEFT, low + 0.006, _RIGHT - _LEFT, height - 0.012)
            axes = self.figure.add_axes(box)
            _draw_curve(axes, curve, curves)
            if number + 1 < len(curves.curves):
                axes.tick_params(labelbottom=False)
            else:
                axes.set_xlabel("step", fontsize=8, labelpad=1)
            self.curve_axes.append(axes)
            cursor = axes.axvline(
                0, color="black", linewidth=1.2, animated=self._is_kept
            )
            self._cursors.append(cursor)


class _PanelAxes:
    """Axes that show panels of one kind, one after the other.

    Attributes:
        axes: the axes.
        moving: artists that are drawn over the rest.
    """

    def __init__(
        self, axes: Axes, panel: Panel, span: tuple[float, float], *, animated: bool
    ) -> None:
        """Make the artists for panels like this one; see matplotlib on `animated`."""
        self.axes = axes
        axes.set_title(panel.title, fontsize=9, pad=3, parse_math=False)
        self._image: AxesImage | None = None
        self._bars: list[Any] = []
        labels: list[Text] = []
        if panel.picture is not None:
            axes.set_axis_off()
            self._image = _make_image(axes, panel.picture, animated)
            if 1 < len(panel.envs) <= _MAX_LABELS:
                labels = list(_label_tiles(axes, panel, animated))
        elif panel.values is not None:
            axes.tick_params(labelsize=7)
            axes.axhline(0, color="grey", linewidth=0.5)
            left, low, width, height = axes.get_position().bounds
            axes.set_position((left + 0.02, low, width - 0.02, height))
            axes.set_ylim(*span)
            numbers = range(len(panel.values))
            self._bars = list(axes.bar(numbers, panel.values, animated=animated))
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
        self.moving: list[Any] = [*images, *self._bars, *labels, self._error]

    def show(self, panel: Panel) -> None:
        """Show another panel of the same kind."""
        if self._image is not None and panel.picture is not None:
            self._image.set_data(shrink(panel.picture, max_side=_MAX_SIDE))
        if panel.values is not None:
            for bar, value in zip(self._bars, panel.values.tolist(), strict=True):
                bar.set_height(value)
        self._error.set_text(textwrap.fill(panel.error, 60))
        self._error.set_visible(bool(panel.error))


def _kind(panel: Panel) -> tuple[Any, ...]:
    """Return what of a panel needs axes of its own if it changes."""
    picture, values = panel.picture, panel.values
    return (
        panel.title,
        panel.envs,
        None if picture is None else picture.shape,
        None if values is None else len(values),
    )


def _value_range(panels: Sequence[Panel]) -> tuple[float, float]:
    """Return the ends of an axis for all panels, the same for values about as large."""
    values = [panel.values for panel in panels if panel.values is not None]
    together = np.concatenate([np.zeros(0), *values])
    finite = together[np.isfinite(together)]
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


def _label_tiles(axes: Axes, panel: Panel, animated: bool) -> Iterator[Text]:
    """Write on each tile which environment it shows."""
    envs, grid = panel.envs, panel.picture
    assert grid is not None
    columns = square_columns(len(envs))
    rows = -(-len(envs) // columns)
    size = (grid.shape[0] + GAP) // rows - GAP, (grid.shape[1] + GAP) // columns - GAP
    for number, env in enumerate(envs):
        top, left = tile_corner(number, size, num_columns=columns)
        yield axes.text(
            left,
            top,
            f"{env}",
            fontsize=7,
            color="white",
            va="top",
            bbox={"facecolor": "black", "edgecolor": "none", "pad": 1},
            animated=animated,
        )


def _shortened(line: str) -> str:
    return textwrap.shorten(line, _MAX_LINE, placeholder=" ...")


def _draw_curve(axes: Axes, curve: Curve, curves: Curves) -> None:
    steps = np.arange(curves.num_steps)
    axes.plot(steps, curve.values, linewidth=0.9)
    name = curve.name + (f" (+{curve.num_left_out})" if curve.num_left_out else "")
    axes.set_ylabel(
        name, fontsize=7, rotation=0, ha="right", va="center", parse_math=False
    )
    axes.tick_params(labelsize=6, length=2, pad=1)
    axes.set_xlim(-0.5, curves.num_steps - 0.5)
    axes.locator_params(axis="y", nbins=3)
    for start, stop in curves.intervened:
        axes.axvspan(start - 0.5, stop - 0.5, color=_PERSON_COLOUR, alpha=0.25, lw=0)
    for episode in curves.episodes:
        if episode.is_over:
            axes.axvline(episode.stop - 0.5, color=_DONE_COLOUR, lw=0.8, ls="--")
    if curve.name == "return" and len(curves.episodes) <= _MAX_LABELS // 5:
        for episode in curves.episodes:
            middle = (episode.start + episode.stop - 1) / 2
            axes.text(
                middle,
                0.92,
                f"{episode.total:.4g}",
                transform=axes.get_xaxis_transform(),
                fontsize=7,
                ha="center",
                va="top",
                alpha=0.7,
            )


def plot_sheet(
    pictures: Sequence[Picture], labels: Sequence[str], *, title: str
) -> Figure:
    """Draw a contact sheet: pictures in rows, a label above each.

    Args:
        pictures: at least one.
        labels: one a picture, as its step.
        title: put above all.
    """
    height, width = pictures[0].shape[:2]
    wide = math.sqrt(min(max(width / height, 0.2), 16))
    columns = max(1, min(len(pictures), round(_SHEET_INCHES / (1.6 * wide))))
    rows = -(-len(pictures) // columns)
    size = (columns * 1.6 * wide, rows * (1.6 / wide + 0.22) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, picture, label in zip(grid, pictures, labels, strict=False):
        axes.imshow(picture)
        axes.set_title(label, fontsize=7, pad=2, parse_math=False)
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as an image, 150 DPI; whoever reads the file sees a whole one.

    Raises:
        StorageError: if it cannot be written; an older one stays.
    """
    directory, name = os.path.split(os.path.abspath(path))
    suffix = os.path.splitext(name)[1] or ".png"
    partial = os.path.join(directory, f".{name}.{new_uuid()[:8]}{suffix}")
    shown_on = figure.canvas
    try:
        # Of a canvas of its own: a window's would keep pixels of this size.
        FigureCanvasAgg(figure).print_figure(partial, dpi=SAVED_DPI)
        os.replace(partial, path)
    except (OSError, ValueError) as exc:
        with suppress(OSError):
            os.remove(partial)
        raise StorageError(f"{os.fspath(path)}: cannot be written: {exc}") from exc
    finally:
        figure.set_canvas(shown_on)
