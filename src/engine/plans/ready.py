"""All tables that are read on many threads, made ready on one.

msgspec finds out at the first use of a Struct what its fields are, with the interpreter's lock
given up in between; a second thread that comes then finds half of it, and the process dies by a
segmentation fault. Source: msgspec 0.22, StructInfo_Convert; seen with sixteen threads.
"""

from __future__ import annotations

import contextlib

import msgspec

PACKAGE = __name__.partition(".")[0]


def ready() -> int:
    """Have msgspec know all Structs of this package that are imported; returns how many.

    Called before threads begin that read any. Modules that are imported later, on a thread,
    do the same with their own Structs where they define them.
    """
    found, waiting = 0, list(msgspec.Struct.__subclasses__())
    while waiting:
        struct = waiting.pop()
        waiting += struct.__subclasses__()
        if struct.__module__.partition(".")[0] == PACKAGE:
            # One with a field of a type that cannot be read is never read.
            with contextlib.suppress(TypeError, NameError):
                msgspec.json.Decoder(struct)
                found += 1
    return found
