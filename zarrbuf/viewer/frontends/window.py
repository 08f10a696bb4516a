"""A figure that answers to keys, clicks and a text box, on whatever canvas it is.

Owns what an event means. Opens no window and runs no loop: the same on a desktop, in a
browser and in tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.widgets import TextBox

from zarrbuf.errors import ZarrbufError
from zarrbuf.viewer.figures import Screen, save_figure
from zarrbuf.viewer.session import HELP_LINE, KEYS, Viewing

_QUIT_KEYS: Final = ("q", "escape")


class Window:
    """Shows what somebody looks at, and does what their keys say.

    Attributes:
        figure: the figure.
        viewing: what is looked at.
    """

    def __init__(
        self,
        figure: Figure,
        viewing: Viewing,
        *,
        output: str | os.PathLike[str],
        save_each: bool = False,
        say: Callable[[str], None] = lambda line: None,
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        """Draw the first scene and listen.

        Args:
            figure: an empty one, on its canvas.
            viewing: what is looked at.
            output: the image that `s` saves.
            save_each: write it at every move, too.
            say: says a line.
            leave: called when somebody wants to leave.
        """
        self.figure = figure
        self.viewing = viewing
        self._output = output
        self._save_each = save_each
        self._say = say
        self._leave = leave
        self._screen = Screen(figure)
        self._is_entered = False
        figure.text(0.5, 0.012, HELP_LINE, fontsize=7, ha="center", color="dimgrey")
        manager: Any = figure.canvas.manager
        if manager is not None:  # its own keys: `s`, `p`, `home` mean other things here
            figure.canvas.mpl_disconnect(manager.key_press_handler_id)
        # Before the box, which submits what is in it however it is left.
        figure.canvas.mpl_connect("key_press_event", self._on_key)
        self._box = TextBox(
            figure.add_axes((0.45, 0.035, 0.1, 0.03)), "Jump to traj ID: "
        )
        self._box.label.set_fontsize(8)
        self._box.on_submit(self._on_submit)
        figure.canvas.mpl_connect("button_press_event", self._on_click)
        self._show()

    def _on_key(self, event: Any) -> None:
        if self._box.capturekeystrokes:
            self._is_entered = event.key == "enter"
            if event.key == "escape":
                self._leave_box()
            return
        if event.key in _QUIT_KEYS:
            self._leave()
        elif event.key == "s":
            self._do(self._save)
        elif event.key in KEYS:
            self._do(lambda: self.viewing.do(KEYS[event.key]))

    def _on_click(self, event: Any) -> None:
        # A drag of the tools that zoom and pan begins with a press, too.
        toolbar: Any = self.figure.canvas.toolbar
        if event.inaxes is None or (toolbar is not None and toolbar.mode):
            return
        place = self._screen.place_at(event.inaxes, event.xdata, event.ydata)
        if place is not None:
            self._do(lambda: self.viewing.go_to(step=place.step, env=place.env))

    def _on_submit(self, text: str) -> None:
        if self._is_entered:
            self._leave_box()
            if text.strip():
                self._do(lambda: self.viewing.jump(text))

    def _leave_box(self) -> None:
        """Empty the text box, and have keys be moves again."""
        self._is_entered = False
        self._box.set_val("")
        self._box.stop_typing()

    def _save(self) -> None:
        save_figure(self.figure, self._output)
        self.viewing.message = f"saved to {os.fspath(self._output)}"

    def _do(self, what: Callable[[], None]) -> None:
        """Do something, show the outcome, and go on if it was an error."""
        try:
            what()
        except ZarrbufError as exc:
            self.viewing.message = str(exc)
        self._show()

    def _show(self) -> None:
        scene = self.viewing.scene()
        self._screen.show(scene, message=self.viewing.message)
        if self._save_each:
            try:
                save_figure(self.figure, self._output)
            except ZarrbufError as exc:
                self.viewing.message = str(exc)
                self._screen.show(scene, message=self.viewing.message)
        self._screen.redraw()
        self.viewing.tell(self._say)
