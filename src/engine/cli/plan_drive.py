"""A run carried out, or watched, from a terminal: the live table, prompts, Ctrl-C.

Ctrl-C ends no operation in the middle: it asks for a pause, and this process ends when what
had begun has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from ..errors import Error
from ..plans.events import Event, NodeState, RunState
from .plan_tell import go_on

if TYPE_CHECKING:
    from ..plans.running import Settings
    from ..plans.store import Store
    from ..plans.stream import Stream

INTERRUPTED = 130
REFRESHES_A_SECOND = 4

Word = Literal["retry", "skip", "cancelled"]


class Cockpit:
    """What the operator sees of a run, and what he presses. `see` is called a few times a
    second, by the thread that made it.

    Args:
        store: Takes what he asks for.
        live: Draw the table; else nothing is printed but warnings.
        stream: Gets the events.
    """

    def __init__(self, store: Store, *, live: bool, stream: Stream | None = None) -> None:
        self.stop = threading.Event()
        self.interrupts = 0
        self._store = store
        self._stream = stream
        self._is_live = live
        self._state: RunState | None = None
        self._heeded = 0
        self._answered: set[tuple[str, int]] = set()
        self._confirms = False  # the next key says whether the run is really cancelled
        self._note = ""
        self._keys = live and os.isatty(0) and _in_front()
        self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Signals are heeded, keys read, and the table is drawn, inside."""
        with contextlib.ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM):
                former = signal.signal(number, self._interrupt)
                stack.callback(signal.signal, number, former)
            if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
                stack.callback(signal.signal, signal.SIGHUP, signal.SIG_DFL)
                signal.signal(signal.SIGHUP, self._lose_terminal)
            if self._keys:
                stack.enter_context(_single_keys())
            if self._is_live:
                from rich.console import Console
                from rich.live import Live

                stack.enter_context(
                    Live(
                        get_renderable=self._drawn,
                        console=Console(file=cast(IO[str], _Screen())),
                        refresh_per_second=REFRESHES_A_SECOND,
                        vertical_overflow="crop",
                    )
                )
            yield

    def see(self, events: list[Event], state: RunState) -> None:
        """What is new of the run."""
        self._state = state
        if any(not os.isatty(number) for number in self._terminals):
            self._lose_terminal()
        if self._stream is not None and events:
            self._stream.send(events)
        self._answer(state)
        self._heed(state)

    def tell(self, says: str) -> None:
        """Of the database: it is away, or with "" back. Called by any thread."""
        waits = f"{says}; all waits for it, twice Ctrl-C ends that"
        self._say(waits if says else "the database is back")

    def _drawn(self) -> Any:
        from rich.text import Text

        from .plan_table import RunView

        if self._state is None:
            return Text("")
        return RunView(self._state, prompt=self._prompt(self._state) or self._note)

    # ---- Ctrl-C ----

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupts += 1

    def _lose_terminal(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """A connection that breaks does not stop a failover: it goes on without a terminal."""
        self._keys = False
        nowhere = os.open(os.devnull, os.O_RDWR)
        while self._terminals:
            os.dup2(nowhere, self._terminals.pop())
        os.close(nowhere)

    def _heed(self, state: RunState) -> None:
        """Once: what has begun is finished. Twice: the step that each task is in."""
        if not self.interrupts or state.ended:
            return
        at = [n for n in state.nodes.values() if n.state in ("queued", "running")]
        if self._heeded == 0:
            if not (state.paused or state.asked_to_cancel):
                self._request("paused")
            self._say(
                f"pausing: {len(at)} task(s) that have begun are finished, then this ends; "
                f"{go_on(state)} goes on. Ctrl-C again: only the step that each is in"
            )
        if self._heeded < 2 <= self.interrupts:
            self._say(f"ending as soon as each task's step is done; {go_on(state)} goes on")
            self.stop.set()
        self._heeded = self.interrupts
        if (state.paused or state.asked_to_cancel) and not at:
            self.stop.set()

    def _say(self, text: str) -> None:
        """In the table's last line, or where there is none on standard error."""
        self._note = text
        if not self._is_live:
            print(f"rollpoint: {text}", file=sys.stderr, flush=True)

    # ---- prompts ----

    def _asking(self, state: RunState) -> NodeState | None:
        for node in state.nodes.values():
            if node.state == "asking" and (node.key, node.attempt) not in self._answered:
                return node
        return None

    def _prompt(self, state: RunState) -> str:
        node = self._asking(state) if self._keys else None
        if node is None:
            return ""
        if self._confirms:
            return "cancel the whole run? y: yes, any other key: no"
        return f"{node.key} failed.  r: retry   s: skip, and go on   c: cancel the run"

    def _answer(self, state: RunState) -> None:
        node = self._asking(state)
        if node is None:
            self._confirms = False
        for key in self._pressed():
            if node is None:
                continue
            if self._confirms:
                self._confirms = False
                if key == "y":
                    self._request("cancelled")
            elif key in ("r", "s"):
                self._answered.add((node.key, node.attempt))
                self._request("retry" if key == "r" else "skip", node.key)
                node = self._asking(state)
            elif key == "c":
                self._confirms = True

    def _pressed(self) -> str:
        pressed = ""
        while self._keys and _in_front() and select.select([0], [], [], 0)[0]:
            try:
                data = os.read(0, 64)
            except OSError:
                data = b""
            if not data:
                self._lose_terminal()
            pressed += data.decode("ascii", "replace").lower()
        return pressed

    def _request(self, kind: Word | Literal["paused"], *names: str) -> None:
        """Where somebody else was faster, his word counts."""
        from ..plans import running

        assert self._state is not None
        try:
            running.request(self._store, self._state, kind, names)
        except Error as error:
            self._say(error.message)


class _Screen:
    """Standard error; a terminal that is gone takes everything, and says nothing."""

    def __init__(self) -> None:
        self._file = sys.stderr  # rich puts another one in its place
        self.encoding = sys.stderr.encoding

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


def _in_front() -> bool:
    """Whether the terminal is ours: one that is in the background would be stopped by it."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return os.isatty(0)  # it controls nobody here


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Keys come without a return, and are not shown."""
    before = termios.tcgetattr(0)
    tty.setcbreak(0)
    try:
        yield
    finally:
        if _in_front():
            with contextlib.suppress(termios.error, OSError):  # the terminal is gone
                termios.tcsetattr(0, termios.TCSADRAIN, before)


def drive(
    plan: str,
    run: str,
    where: Settings,
    *,
    as_json: bool,
    stream: Stream | None = None,
    take_over: bool = False,
) -> tuple[RunState, int]:
    """Carry a run out. The run, and the exit code that it stands for.

    Raises:
        LockedError: Another process does.
    """
    from ..plans import running

    with contextlib.ExitStack() as stack:
        store = stack.enter_context(running.opened(plan, where))
        cockpit = Cockpit(store, live=not as_json and _is_live(), stream=stream)
        # Twice Ctrl-C ends the waiting for a database that is away.
        where = where._replace(gives_up=lambda: cockpit.interrupts > 1)
        with cockpit.shown():
            state = running.drive(
                plan,
                run,
                where,
                on_events=cockpit.see,
                stop=cockpit.stop,
                take_over=take_over,
                tell=cockpit.tell,
            )
    if not state.ended:
        return state, INTERRUPTED
    return state, 0 if state.state == "done" else 1


def watch(
    plan: str, state: RunState, where: Settings, *, live: bool, events: str = ""
) -> RunState:
    """Look on, and answer what is asked, while another process carries it out."""
    from ..plans import running
    from ..plans.events import fold
    from ..plans.supervising import all_events

    with contextlib.ExitStack() as stack:
        store = stack.enter_context(running.opened(plan, where))
        stream = stack.enter_context(streaming(events))
        cockpit = _Onlooker(store, live=live and _is_live(), stream=stream)
        stack.enter_context(cockpit.shown())
        cockpit.see(all_events(store, state.spec.run), state)
        while not state.ended and not cockpit.stop.is_set():
            new = store.wait(state.spec.run, state.seq, running.POLL_SECONDS)
            state = fold(new, state) if new else state
            cockpit.see(new, state)
    return state


class _Onlooker(Cockpit):
    def _heed(self, state: RunState) -> None:
        """The run is another process's: whoever looks on just leaves."""
        if self.interrupts:
            self.stop.set()


def _is_live() -> bool:
    return sys.stderr.isatty()


@contextlib.contextmanager
def streaming(events: str) -> Iterator[Stream | None]:
    """Where events go to; None: nowhere.

    Raises:
        UsageError: They cannot.
    """
    if not events:
        yield None
        return
    from ..plans.stream import Stream

    with Stream(events) as stream:
        yield stream
