"""The prompt of the viewer without a display: words in, an image file out.

Owns the words, with history and completion as the terminal has them. Knows no figure.
"""

from __future__ import annotations

import cmd
from collections.abc import Callable
from typing import Any, Final

from zarrbuf.common.printing import printable
from zarrbuf.errors import InvalidInputError, ZarrbufError
from zarrbuf.viewer.session import Viewing

WORDS: Final = {
    "n": "next",
    "next": "next",
    "p": "prev",
    "prev": "prev",
    "nn": "far_next",
    "pp": "far_prev",
    "nt": "next_trajectory",
    "nexttraj": "next_trajectory",
    "pt": "prev_trajectory",
    "prevtraj": "prev_trajectory",
    "nb": "next_env",
    "nextbatch": "next_env",
    "pb": "prev_env",
    "prevbatch": "prev_env",
    "home": "home",
    "end": "end",
    "c": "next_camera",
    "a": "cameras",
    "g": "envs",
    "r": "refresh",
    "refresh": "refresh",
}
"""Words -> commands; those of RLinf's headless visualizer mean what they do there."""
_WITH_ARGUMENT: Final = ("j", "step", "env", "camera")
_OTHERS: Final = (*_WITH_ARGUMENT, "info", "help", "q", "quit", "exit")
HELP: Final = """\
n / next         next step, into the next trajectory at the end
p / prev         previous step, into the previous trajectory at the start
nn, pp           ten steps on, ten steps back
nt / nexttraj    next trajectory
pt / prevtraj    previous trajectory
nb / nextbatch   next environment (batch index)
pb / prevbatch   previous environment
home, end        first, last step of the trajectory
j ID             trajectory with that id
step T, env B    that step, that environment of the trajectory
c, camera NAME   next camera, that camera
a                all cameras, or one again
g                all environments, or one again
r / refresh      read the list anew, as n and nt do at its end
info             where this is
q / quit         leave; so does the end of input
An empty line does the last command again.
"""


class Prompt(cmd.Cmd):
    """Reads commands until one of them, or the end of input, ends it."""

    prompt = "Command: "

    def __init__(
        self,
        viewing: Viewing,
        *,
        show: Callable[[], None],
        say: Callable[[str], None],
        stdin: Any = None,
    ) -> None:
        """Ask nothing yet.

        Args:
            viewing: what is looked at.
            show: shows the scene anew and says its message; may raise errors of this
                project.
            say: says a line.
            stdin: where lines come from; None for the terminal.
        """
        super().__init__(stdin=stdin)
        self.use_rawinput = stdin is None
        self._viewing = viewing
        self._show = show
        self._say = say

    def onecmd(self, line: str) -> bool:
        """Do one line; return whether it is the last."""
        line = line.strip()
        if line == "EOF":  # what `cmd` makes of the end of input
            return True
        if not line:
            return self.emptyline()
        self.lastcmd = line
        word, _, argument = line.partition(" ")
        word = word.lower()
        if word in ("q", "quit", "exit"):
            return True
        rows = self._viewing.playback.rows
        try:
            self._do(word, argument.strip())
        except ZarrbufError as exc:
            if self._viewing.playback.rows is not rows:  # the place may be another
                self._show()
            self._say(f"Error: {exc}")
        return False

    def _do(self, word: str, argument: str) -> None:
        viewing = self._viewing
        if word in WORDS and not argument:
            viewing.do(WORDS[word])
        elif word == "j":
            viewing.jump(argument)
        elif word == "step":
            viewing.go_to(step=_number(word, argument))
        elif word == "env":
            viewing.go_to(env=_number(word, argument))
        elif word == "camera" and argument:
            viewing.choose_camera(argument)
        else:
            self._tell(word, argument)
            return
        self._show()

    def _tell(self, word: str, argument: str) -> None:
        if word == "info" and not argument:
            for one in self._viewing.info():
                self._say(one)
        elif word in ("help", "?"):
            self._say(HELP)
        else:
            known = " ".join(dict.fromkeys((*WORDS, *_OTHERS)))
            self._say(f"Unknown command: {word} {argument}".rstrip())
            self._say(f"There are: {known}")

    def completenames(self, text: str, *ignored: Any) -> list[str]:
        """Return the words that begin so."""
        return sorted({w for w in (*WORDS, *_OTHERS) if w.startswith(text)})

    def completedefault(
        self, text: str = "", line: str = "", *ignored: Any
    ) -> list[str]:
        """Return the cameras or ids that an argument may be."""
        found: list[str] = []
        if line.startswith("camera "):
            found = self._viewing.cameras()
        elif line.startswith("j "):
            found = [str(n) for n in self._viewing.playback.rows.trajectory_ids]
        return [one for one in map(printable, found) if one.startswith(text)]


def _number(word: str, argument: str) -> int:
    try:
        return int(argument)
    except ValueError:
        raise InvalidInputError(
            f"{word} is {argument!r:.40}; a whole number is needed"
        ) from None
