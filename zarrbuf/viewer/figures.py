"""Figures of a place in a buffer, and of one trajectory. Opens no window.

Owns how a scene is laid out, how a panel and a curve look, and that names are text and
numbers may be of any size. A figure that shows one place is changed to show another;
only what differs is made anew.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from zarrbuf.common.printing import printable
from zarrbuf.errors import InvalidInputError
from zarrbuf.storage.files import check_local_file, write_whole
from zarrbuf.viewer.cursor import Place
from zarrbuf.viewer.curves import Curve, Curves
from zarrbuf.viewer.images import GAP, Picture, shrink, square_columns, tile_corner
from zarrbuf.viewer.scene import Panel, Scene

FIGURE_INCHES: Final = (14.0, 8.0)
SAVED_DPI: Final = 150
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.045, 0.99, 0.1, 0.9
_CURVES_SHARE: Final = 0.42
_SMALL_CURVES_SHARE: Final = 0.25
"""Where there are more pictures than two, or grids."""
_MAX_CURVES: Final = 6
_TITLE_HEIGHT: Final = 0.03
_SHEET_INCHES: Final = 13
_MAX_LINE: Final = 180
_MAX_SIDE: Final = 1280
"""Pixels of a picture handed to the canvas, which has about half as many for it."""
LETTERS_AN_INCH: Final = 13
_LARGEST: Final = 1e300
"""Beyond this, the ticks of an axis cannot be counted."""
_MAX_LABELS: Final = 100
_DONE_COLOUR: Final = "tab:red"
_PERSON_COLOUR: Final = "tab:orange"
_CHOSEN_COLOUR: Final = "tab:red"


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
        self._place: Place | None = None
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
        self._panels: list[PanelAxes] = []
        self._cursors: list[Line2D] = []
        self._shown: list[tuple[Any, ...]] = []
        self._curves: Curves | None = None
        self._background: Any = None
        if is_kept:
            figure.canvas.mpl_connect("draw_event", self._keep_background)

    def show(self, scene: Scene, *, message: str = "") -> None:
        """Show a scene, and a message for who looks; `redraw` draws it."""
        panels = [panel for pair in scene.panels for panel in pair]
        span = value_range(panels)
        shown = [(*kind_of(panel), span) for panel in panels]
        if shown != self._shown or scene.curves is not self._curves:
            self._lay_out(scene.curves, panels, span)
            self._shown, self._curves = shown, scene.curves
        for axes, panel in zip(self._panels, panels, strict=True):
            axes.show(panel)
        for cursor in self._cursors:
            cursor.set_xdata([scene.place.step, scene.place.step])
        self._place = scene.place
        lines = [*scene.heading, *([message] if message else [])]
        self._heading.set_text("\n".join(map(_shortened, lines)))

    def place_at(self, axes: Axes | None, x: float, y: float) -> Place | None:
        """Return what a point of some axes stands for: a step, or an environment."""
        if self._place is None:
            return None
        if axes in self.curve_axes:
            return replace(self._place, step=round(x))
        for one in self._panels:
            env = one.env_at(x, y) if one.axes is axes else None
            if env is not None:
                return replace(self._place, env=env)
        return None

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
        is_crowded = len(panels) > 2 or bool(panels[0].envs)
        share = _SMALL_CURVES_SHARE if is_crowded else _CURVES_SHARE
        middle = _BOTTOM + (share * (_TOP - _BOTTOM) if has_curves else 0)
        places = self._picture_axes(panels, middle)
        self._panels = [
            PanelAxes(axes, panel, span, animated=self._is_kept)
            for axes, panel in zip(places, panels, strict=True)
        ]
        self.curve_axes, self._cursors = [], []
        if has_curves:
            self._draw_curves(curves, middle)

    def _picture_axes(self, panels: Sequence[Panel], bottom: float) -> Iterator[Axes]:
        """Yield axes for pictures: current and next side by side, as large as fits."""
        bottom += 0.04  # for the numbers below bars, and those of the curves
        columns = _columns(panels, (_TOP - bottom) * FIGURE_INCHES[1])
        rows = -(-len(panels) // columns)
        width, height = (_RIGHT - _LEFT) / columns, (_TOP - bottom) / rows
        for number in range(len(panels)):
            row, column = divmod(number, columns)
            left, low = _LEFT + column * width, _TOP - (row + 1) * height
            title = min(_TITLE_HEIGHT, 0.4 * height)
            box = (left + 0.04 * width, low, 0.92 * width, height - title)
            yield self.figure.add_axes(box)

    def _draw_curves(self, curves: Curves, top: float) -> None:
        drawn = curves.curves[:_MAX_CURVES]
        num_more = len(curves.curves) - len(drawn)
        height = (top - _BOTTOM) / len(drawn)
        for number, curve in enumerate(drawn):
            low = top - (number + 1) * height
            box = (_LEFT, low + 0.006, _RIGHT - _LEFT, height - 0.012)
            axes = self.figure.add_axes(box)
            draw_curve(axes, curve, curves)
            if number + 1 < len(drawn):
                axes.tick_params(labelbottom=False)
            else:
                more = f" ({num_more} more curves are not shown)" if num_more else ""
                axes.set_xlabel(f"step{more}", fontsize=8, labelpad=1)
            self.curve_axes.append(axes)
            cursor = axes.axvline(
                0, color="black", linewidth=1.2, animated=self._is_kept
            )
            self._cursors.append(cursor)


def _columns(panels: Sequence[Panel], height: float) -> int:
    """Return how many columns, of pairs, make the pictures of a scene largest.

    Args:
        panels: pairs of the same kind.
        height: that there is for them, in inches.
    """
    shapes = [panel.picture.shape for panel in panels if panel.picture is not None]
    aspect = max((shape[1] / shape[0] for shape in shapes), default=2.0)
    width = (_RIGHT - _LEFT) * FIGURE_INCHES[0]

    def picture_height(columns: int) -> float:
        rows = -(-len(panels) // columns)
        title = _TITLE_HEIGHT * FIGURE_INCHES[1]
        return min(width / columns / aspect, height / rows - title)

    return max(range(2, len(panels) + 1, 2), key=picture_height)


def _shortened(line: str) -> str:
    return textwrap.shorten(printable(line), _MAX_LINE, placeholder=" ...")


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
    title = "\n".join(textwrap.wrap(printable(title), int(size[0] * LETTERS_AN_INCH)))
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def check_image_file(path: str | os.PathLike[str]) -> None:
    """Check that an image can be of that name.

    Raises:
        InvalidInputError: if it ends in what matplotlib does not write, is a URL, or
            something else than a file is there.
    """
    suffix = os.path.splitext(check_local_file(path))[1]
    known = sorted(set(FigureCanvasAgg.get_supported_filetypes()) - {"pgf"})  # LaTeX
    if suffix and suffix[1:].lower() not in known:
        raise InvalidInputError(
            f"{os.fspath(path)} ends in {suffix}; allowed are .{', .'.join(known)}"
        )


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as an image, 150 DPI; whoever reads the file sees a whole one.

    Args:
        figure: which; its canvas stays as it is.
        path: of a local file that ends as an image does; without an end, a png.

    Raises:
        InvalidInputError: see `check_image_file`.
        StorageError: if it cannot be written; an older one stays.
    """
    check_image_file(path)
    suffix = os.path.splitext(os.fspath(path))[1] or ".png"
    shown_on = figure.canvas

    def write(name: str) -> None:
        # Of a canvas of its own: a window's would keep pixels of this size.
        canvas = FigureCanvasAgg(figure)
        canvas.print_figure(name, dpi=SAVED_DPI, format=suffix[1:].lower())

    try:
        write_whole(path, write)
    finally:
        figure.set_canvas(shown_on)


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
