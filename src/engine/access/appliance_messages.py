"""What the engine and an appliance's process say to each other, on a Unix stream socket.

A message is a JSON object, then raw bytes: their two lengths come first. Descriptors travel
with the lengths. No side takes more from the other than the limits below.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

HEAD = struct.Struct(">IQ")
FIELDS_BYTES_MAX = 256 << 20
DATA_BYTES_MAX = (256 << 20) + (1 << 20)
DESCRIPTORS_MAX = 200


class HungUpError(Exception):
    """The other side is gone, or does not keep to the format."""


class Message(NamedTuple):
    """fields: the JSON object. descriptors: whoever receives them closes them."""

    fields: dict[str, Any]
    data: bytes = b""
    descriptors: tuple[int, ...] = ()


def send(to: socket.socket, message: Message) -> None:
    """Send it whole, within the socket's own timeout for each part.

    Raises:
        HungUpError: It could not be sent.
    """
    fields = json.dumps(message.fields).encode()
    head = HEAD.pack(len(fields), len(message.data))
    try:
        sent = socket.send_fds(to, [head], list(message.descriptors))
        to.sendall(head[sent:] + fields)
        if message.data:
            to.sendall(message.data)
    except OSError as error:
        raise HungUpError(str(error)) from error


def receive(of: socket.socket, seconds: float | None = None) -> Message:
    """The next message. seconds: for all of it; None waits for ever.

    Raises:
        HungUpError: There is none any more, or it is longer than the limits.
        TimeoutError: It did not come in time.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    descriptors: list[int] = []
    try:
        head = _take(of, HEAD.size, deadline, descriptors)
        fields_length, data_length = HEAD.unpack(head)
        if fields_length > FIELDS_BYTES_MAX or data_length > DATA_BYTES_MAX:
            raise HungUpError(f"a message of {fields_length} and {data_length} bytes")
        fields = json.loads(_take(of, fields_length, deadline))
        if not isinstance(fields, dict):
            raise HungUpError("a message that is no object")
        data = _take(of, data_length, deadline)
    except BaseException as error:
        close_all(descriptors)
        if isinstance(error, TimeoutError | HungUpError):
            raise
        if isinstance(error, OSError | ValueError | RecursionError):
            raise HungUpError(str(error)) from error
        raise
    return Message(fields, data, tuple(descriptors))


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that came with a message."""
    for descriptor in descriptors:
        os.close(descriptor)


def _take(
    of: socket.socket, length: int, deadline: float | None, descriptors: list[int] | None = None
) -> bytes:
    """Exactly length bytes; descriptors that come with them go into the list."""
    data = bytearray()
    while len(data) < length:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            of.settimeout(left)
        wanted = min(length - len(data), 1 << 20)
        if descriptors is None:
            piece = of.recv(wanted)
        else:
            piece, came, _, _ = socket.recv_fds(of, wanted, DESCRIPTORS_MAX)
            descriptors += came
        if not piece:
            raise HungUpError("it has hung up")
        data += piece
    return bytes(data)
