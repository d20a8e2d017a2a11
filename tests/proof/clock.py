"""A clock that can be set: what the engine imports after this is time from here."""

from __future__ import annotations

import time


class Clock:
    """How far it is ahead of the host's."""

    ahead_ns = 0


CLOCK = Clock()
_time_ns = time.time_ns
time.time_ns = lambda: _time_ns() + CLOCK.ahead_ns
time.time = lambda: time.time_ns() / 1e9
