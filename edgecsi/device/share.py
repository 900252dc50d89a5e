"""A device without an open port in a farm of TVM's: registered with its tracker, served through SSH.

The bridge listens on this machine's loopback, tells the tracker so, and joins whoever the tracker sends to a session of
our agent on the device. The messages are those of ``tvm.rpc`` (``base.py`` there), little-endian.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from edgecsi.device.install_rpc import rpc_folder
from edgecsi.device.names import Endpoint
from edgecsi.device.remote import Remote
from edgecsi.device.transport import Session
from edgecsi.errors import DeviceError, Unreachable

_SERVER, _TRACKER, _MISMATCH = 0xFF271, 0x2F271, 2
_PUT, _UPDATE_INFO, _PENDING = 3, 5, 7
_SECONDS = 10.0
_MAX_MESSAGE = 1 << 20


def share(
    device: Remote, tracker: Endpoint, *, sessions: int | None = None, say: Callable[[str], None]
) -> None:
    """Serve a device to those whom a tracker sends, one after the other, until interrupted.

    Args:
        device: set up for RPC (``device setup --rpc``).
        tracker: its address, and the key under which it lists the device.
        sessions: end after so many; None for never.
        say: told what happens.

    Raises:
        Unreachable: there is no tracker.
        DeviceError: the device cannot be reached, or is not set up for RPC.
    """
    folder = rpc_folder(device.connection, device.board)
    with socket.create_server(("127.0.0.1", 0)) as listener, _registered(tracker) as known:
        port = listener.getsockname()[1]
        done = 0
        while sessions is None or done < sessions:
            ticket = f"{tracker.key}:{secrets.randbits(53)}"
            _ask(known, [_PUT, tracker.key, [port, ticket], None])
            say(f"{device.spec} waits for {tracker.key} on 127.0.0.1:{port}")
            client = _next_client(listener, known, tracker.key, ticket)
            say(f"{device.spec} is in use")
            with client:
                session = device.connection.start([f"{folder}/agent", folder])
                try:
                    _join(client, session)
                finally:
                    session.kill()
            done += 1


@contextlib.contextmanager
def _registered(tracker: Endpoint) -> Any:
    """A connection to the tracker, which has our name."""
    where = f"{tracker.host}:{tracker.port}"
    try:
        known = socket.create_connection((tracker.host, tracker.port), _SECONDS)
    except OSError as error:
        raise Unreachable(
            f"there is no tracker at {where}",
            str(error),
            "start one: python -m tvm.exec.rpc_tracker --host 127.0.0.1",
        ) from None
    with known:
        known.settimeout(_SECONDS)
        known.sendall(struct.pack("<i", _TRACKER))
        if struct.unpack("<i", _exactly(known, 4))[0] != _TRACKER:
            raise Unreachable(f"{where} is no tracker", "it answers something else", "check host and port")
        _ask(known, [_UPDATE_INFO, {"key": f"server:{tracker.key}", "addr": [None, 0]}])
        yield known


def _next_client(listener: socket.socket, known: socket.socket, key: str, ticket: str) -> socket.socket:
    """Whoever comes with the ticket that the tracker gave away."""
    while True:
        if not select.select([listener], [], [], 2.0)[0]:
            _ask(known, [_PENDING])  # the tracker forgets whoever is silent
            continue
        client, _ = listener.accept()
        client.settimeout(_SECONDS)
        try:
            if struct.unpack("<i", _exactly(client, 4))[0] == _SERVER:
                length = struct.unpack("<i", _exactly(client, 4))[0]
                said = _exactly(client, length).decode(errors="replace").split()
                if said and said[0] == f"client:{ticket}":
                    name = f"server:{key}".encode()
                    client.sendall(struct.pack("<ii", _SERVER, len(name)) + name)
                    client.settimeout(None)
                    return client
                client.sendall(struct.pack("<i", _SERVER + _MISMATCH))
        except (OSError, DeviceError):
            pass
        client.close()


def _join(client: socket.socket, session: Session) -> None:
    """Carry bytes both ways until either side ends."""

    def inwards() -> None:
        with contextlib.suppress(OSError, ValueError):
            while piece := client.recv(65536):
                while piece:
                    piece = piece[session.stdin.write(piece) :]
            session.stdin.close()

    thread = threading.Thread(target=inwards, daemon=True)
    thread.start()
    with contextlib.suppress(OSError, ValueError):
        while piece := session.stdout.read(65536):
            client.sendall(piece)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def _ask(known: socket.socket, message: Any) -> Any:
    """One message to the tracker, and its answer."""
    data = json.dumps(message).encode()
    known.sendall(struct.pack("<i", len(data)) + data)
    length = struct.unpack("<i", _exactly(known, 4))[0]
    try:
        return json.loads(_exactly(known, length))
    except ValueError as error:
        raise DeviceError(
            "the tracker answers what it should not", str(error), "see that it is TVM's"
        ) from None


def _exactly(source: socket.socket, count: int) -> bytes:
    if not 0 <= count <= _MAX_MESSAGE:
        raise DeviceError(
            "a message of TVM's RPC is malformed", f"it says that it has {count} bytes", "check the port"
        )
    data = b""
    while len(data) < count:
        try:
            piece = source.recv(count - len(data))
        except OSError as error:
            raise DeviceError(
                "the connection to the tracker was lost", str(error), "see that it still runs"
            ) from None
        if not piece:
            raise DeviceError("the connection to the tracker was lost", "it ended", "see that it still runs")
        data += piece
    return data
