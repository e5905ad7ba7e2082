"""The monitor: snapshots taken at an interval, shown on a terminal, printed, or exported.

Theory of operation. `Watch` asks the manager and goes on asking when it is away. On a terminal it runs in a thread of
its own, so that the keyboard is answered at once even while a call hangs; the main thread waits for the keyboard and
for one pipe, into which the watch and arriving signals write a byte. Nothing is drawn from anywhere else.

What the picture looks like is decided in `taskq.views`. The terminal library is imported only when it is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from taskq import views
from taskq.clock import Clock
from taskq.errors import TaskqError

SILENCE = 3.0
"""Seconds over the interval after which an answer counts as missing."""

_NEWS = b"\0"
_REDRAW = (signal.SIGWINCH, signal.SIGCONT)
_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

STYLES = {
    "title": "bold",
    "head": "bold cyan",
    "row": "",
    "failed": "red",
    "hint": "dim",
    "warning": "bold yellow",
    "space": "",
}
"""Line kind -> how a terminal shows it."""


class Source(Protocol):
    """Where snapshots come from: `taskq.wire.client.RemoteQueue`, or a queue in this process."""

    def snapshot(self) -> dict[str, Any]:
        """The figures of now."""
        ...

    def close(self) -> None:
        """End the connection; a call that is under way ends with an error."""
        ...


class Sample(NamedTuple):
    """What is known at one time. ``snapshot``: the last there was, ``asked``: monotonic seconds of that.

    ``away_since``: wall seconds, None while the manager answers. ``problem``: why it does not.
    """

    snapshot: dict[str, Any] | None
    asked: float
    away_since: float | None = None
    problem: str = ""


class Watch:
    """Takes a snapshot every ``interval`` seconds, through one connection that is made anew when it fails."""

    def __init__(self, connect: Callable[[], Source], interval: float, clock: Clock) -> None:
        self._connect = connect
        self._interval = interval
        self._clock = clock
        self._closed = threading.Event()
        self._source: Source | None = None

    def samples(self) -> Iterator[Sample]:
        """One sample an interval until `close`. Raises what the first attempt raises; later failures are samples."""
        last: Sample | None = None
        while not self._closed.is_set():
            asked = self._clock.monotonic()
            try:
                last = Sample(self._ask(), asked)
            except TaskqError as error:
                self._drop()
                if last is None:
                    raise
                last = last._replace(away_since=last.away_since or self._clock.wall(), problem=error.message)
            if self._closed.is_set():
                return
            yield last
            self._closed.wait(max(0.0, asked + self._interval - self._clock.monotonic()))

    def close(self) -> None:
        """End `samples`, from any thread; a call that hangs is cut off."""
        self._closed.set()
        self._drop()

    def _ask(self) -> dict[str, Any]:
        source = self._source
        if source is None:
            source = self._source = self._connect()
            if self._closed.is_set():  # `close` may have come too early to see this one
                source.close()
        return source.snapshot()

    def _drop(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()


def picture(sample: Sample, now: float, width: int, height: int | None, interval: float = 0.0) -> list[views.Line]:
    """The lines to show at ``now`` (monotonic): the picture of the sample, under a warning if it is not current."""
    snapshot = sample.snapshot or {}
    trouble = ""
    if sample.away_since is not None:
        since = datetime.fromtimestamp(sample.away_since)
        trouble = f"! manager away since {since:%H:%M:%S}, retrying ({sample.problem})"
    elif now - sample.asked > interval + SILENCE:
        trouble = f"! no answer for {now - sample.asked:.0f} s, waiting"
    if not trouble:
        return views.render(snapshot, width, height)
    below = None if height is None else height - 1
    return [views.Line("warning", trouble[:width]), *views.render(snapshot, width, below)]


def print_forever(watch: Watch, clock: Clock, interval: float, write: Callable[[str], None]) -> None:
    """The picture once an interval, one under the other: for output that is no terminal."""
    for sample in watch.samples():
        write(views.to_text(picture(sample, clock.monotonic(), views.WIDTH, None, interval)))


def export_line(snapshot: dict[str, Any]) -> str:
    """A snapshot as one line of JSON."""
    return json.dumps(snapshot, ensure_ascii=False, separators=(",", ":"))


def export_lines(watch: Watch, write: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """One snapshot a line, once an interval; while the manager is away there is no line and one warning."""
    away = False
    for sample in watch.samples():
        if sample.away_since is None:
            write(export_line(sample.snapshot or {}))
        elif not away:
            warn(f"{sample.problem}; retrying")
        away = sample.away_since is not None


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by one with this line: who reads it sees the old or the new one, whole. Raises `TaskqError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(f"{text}\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _cannot_write(path, error) from None


def append(path: Path, text: str) -> None:
    """Add a line to a file, in one write. Raises `TaskqError`."""
    try:
        with path.open("ab", buffering=0) as file:
            file.write(f"{text}\n".encode())
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> TaskqError:
    return TaskqError(f"cannot write to {path}: {(error.strerror or 'error').lower()}", hint="choose another with -o")


class Screen:
    """The picture on a terminal, redrawn in place; ``q`` or a signal ends it, and the terminal is as it was."""

    def __init__(
        self, watch: Watch, clock: Clock, interval: float, *, keys: IO[str], output: IO[str], color: bool
    ) -> None:
        self._watch = watch
        self._clock = clock
        self._interval = interval
        self._keys = keys
        self._output = output
        self._color = color
        self._sample: Sample | None = None
        self._failure: BaseException | None = None

    def run(self) -> int:
        """Show until told to stop; gives 0, or 128 + the signal's number. Raises what the first snapshot raised."""
        with _wake_pipe() as (read_end, write_end):
            fetching = threading.Thread(target=self._fetch, args=(write_end,), name="snapshots", daemon=True)
            fetching.start()
            try:
                with _signals_to(write_end), _single_keys(self._keys) as keyboard:
                    return self._show(read_end, keyboard)
            finally:
                self._watch.close()
                fetching.join(timeout=1.0)

    def _fetch(self, write_end: int) -> None:
        try:
            for sample in self._watch.samples():
                self._sample = sample
                _write_byte(write_end)
        except TaskqError as error:  # of the first attempt: the main thread raises it
            self._failure = error
            _write_byte(write_end)

    def _show(self, read_end: int, keyboard: int | None) -> int:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._output, no_color=not self._color, highlight=False)
        waiting = [read_end] if keyboard is None else [read_end, keyboard]
        live: Live | None = None
        with contextlib.ExitStack() as stack:
            while True:
                ready, _, _ = select.select(waiting, [], [], self._interval + SILENCE)
                ended, resumed = _signals_in(os.read(read_end, 4096) if read_end in ready else b"")
                if ended:
                    return 128 + ended
                if keyboard in ready and _quits(keyboard, waiting):
                    return 0
                if self._failure is not None:
                    raise self._failure
                if resumed and keyboard is not None:
                    tty.setcbreak(keyboard)
                if self._sample is None:
                    continue
                if live is None:
                    # The alternate screen, drawn by this thread alone: nothing scrolls, and nothing remains.
                    live = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False)
                    stack.enter_context(live)
                live.update(self._drawn(console.width, console.height), refresh=True)

    def _drawn(self, width: int, height: int) -> Any:
        """The sample as a rich text of exactly the terminal's size."""
        from rich.text import Text

        assert self._sample is not None
        lines = picture(self._sample, self._clock.monotonic(), width, height - 1, self._interval)
        lines += [views.Line("space", "")] * (height - 1 - len(lines))
        lines.append(views.Line("hint", " q quits"[:width]))
        return Text("\n", no_wrap=True, overflow="crop").join(Text(text, STYLES[kind]) for kind, text in lines)


@contextlib.contextmanager
def _wake_pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        yield read_end, write_end
    finally:
        os.close(read_end)
        os.close(write_end)


def _write_byte(write_end: int) -> None:
    with contextlib.suppress(BlockingIOError):  # full: the reader has enough to wake it
        os.write(write_end, _NEWS)


@contextlib.contextmanager
def _signals_to(write_end: int) -> Iterator[None]:
    """Let signals do nothing but write their number into the pipe."""
    handlers = {number: signal.signal(number, lambda *_: None) for number in (*_END, *_REDRAW)}
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _signals_in(data: bytes) -> tuple[int | None, bool]:
    """(the signal that ends us, whether we were suspended and are back) of what was in the pipe."""
    return next((number for number in data if number in _END), None), signal.SIGCONT in data


@contextlib.contextmanager
def _single_keys(stream: IO[str]) -> Iterator[int | None]:
    """Keys one by one, unseen; None when the stream is no terminal. Afterwards the terminal is as it was."""
    if not stream.isatty():
        yield None
        return
    keyboard = stream.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _quits(keyboard: int | None, waiting: list[int]) -> bool:
    """Whether ``q`` was pressed; a keyboard that is gone is not waited for any more."""
    assert keyboard is not None
    keys = os.read(keyboard, 64)
    if not keys:
        waiting.remove(keyboard)
    return b"q" in keys.lower()
