"""The person's side of a session, without a session."""

from __future__ import annotations

import os
import socket
import threading

from pact.session import frames
from pact.session.client import Client
from pact.session.frames import frame, said


def test_what_is_no_output_gives_no_credit() -> None:
    """A relay counts output only. Credit beyond it would be lost there and not at the session, which then sends more
    than the relay lets pass: the stream ends while somebody looks at a long output."""
    here, there = socket.socketpair()
    given: list[int] = []

    def session() -> None:
        reader = frames.Reader()
        there.sendall(said(b"A", {"lost": 7}) + frame(b"N", b"this session is idle") + frame(b"O", b"x" * 1000))
        while sum(given) < 1000:
            given.extend(int(payload) for kind, payload in reader.feed(there.recv(4096)) if kind == b"C")
        there.sendall(frame(b"N", b"and again") + said(b"X", {"exit": 3}))

    thread = threading.Thread(target=session)
    thread.start()
    null, (out, shown), (err, told) = os.open("/dev/null", os.O_RDONLY), os.pipe(), os.pipe()
    try:
        assert Client(here, terminal=False, stdin=null, stdout=shown, stderr=told).run().code == 3
        thread.join(10)
        assert sum(given) == 1000
        assert os.read(out, 4096) == b"x" * 1000
        assert os.read(err, 4096).splitlines() == [
            b"pact: 7 bytes of output are lost",
            b"pact: this session is idle",
            b"pact: and again",
        ]
    finally:
        for fd in (null, out, shown, err, told):
            os.close(fd)
        here.close()
        there.close()
