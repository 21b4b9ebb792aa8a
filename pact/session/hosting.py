"""The life of a session of ``host``: PAM's session around it, the person's process in it, and what it leaves."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from pact.session import account, cast, cgroups, spawn
from pact.session.host import Session
from pact.session.places import NEVER_BEGAN, started_at
from pact.session.prepare import Prepared, log_in


class Hosted(Session):
    """A session with its beginning and its end."""

    def ready(self) -> dict[str, Any]:
        """Open PAM's session. Returns what the agent records. Raises Refused, OSError."""
        made = self.made
        more = self._ask_pam(made.entry.pw_name)
        if spawn.login()[0] not in (None, made.person):
            log_in(made.person)  # a module of PAM has made it a login of the account, which is root's
        env = {**made.env, **more, **made.late}
        self.plan = spawn.Plan(made.entry, made.shell, made.argv, env, made.fds, made.terminal)
        if made.request.get("transcript"):
            self.cast = cast.Cast(made.request["transcript"], int(made.request["transcript_max"]))
        said = "".join("\r\n".join([*text.splitlines(), ""]) for text in (self.pam.said if self.pam else ()))
        if said and self.terminal:
            self.outputs[b"O"].put(said.encode())
            if self.cast is not None:
                self.cast.output(said.encode())
        loginuid, audit = spawn.login()
        own = {"pid": os.getpid(), "start": started_at(os.getpid()), "shell": 0, "shell_start": 0}
        self.state |= {**own, "login": loginuid, "audit": audit, "attached": "", "end": None}
        self._save()
        return self.state

    def _ask_pam(self, name: str) -> dict[str, str]:
        if account.libraries() is None:
            return {}
        request = self.made.request
        self.pam = account.Pam(
            name,
            tty=self.made.tty or "pact",
            rhost=str(request.get("rhost", "")),
            ruser=str(request.get("person", "")),
        )
        self.pam.require_account(name)
        before = cgroups.places()
        more = self.pam.open_session()
        cgroups.moved_on(before, int(request["tasks"]), self.made.weight)
        return more

    def start(self) -> None:
        """The agent has recorded it: run the person's process."""
        if self.whole:
            spawn.adopt_orphans()
        self.pid = spawn.start(self.plan)
        for fd in set(self.plan.fds):
            os.close(fd)
        self.pidfd = os.pidfd_open(self.pid)
        self.state |= {"shell": self.pid, "shell_start": started_at(self.pid)}
        self._save()

    def never(self, *, recorded: bool) -> None:
        """It never runs. ``recorded``: the agent may have recorded it, and is gone: its file says how it ended."""
        if self.pam is not None:
            self.pam.close()
        if recorded:
            self.state["end"] = {"exit": None, "why": NEVER_BEGAN, **self._counts()}
            self._save()
            os.unlink(self.made.socket_path)
            cgroups.remove(self.made.cgroups)
        else:
            self.made.undo()
        if self.cast is not None:
            self.cast.close()
            if not recorded:
                cast.forget(self.cast.path)

    def close(self) -> None:
        """Everything has ended: the files stay until the agent has read them."""
        self.listener.close()
        for client in (*self.newcomers.values(), *([self.client] if self.client is not None else [])):
            client.sock.close()
        try:
            os.unlink(self.made.socket_path)
        except OSError:
            pass
        if self.cast is not None:
            self.cast.close()
            self.state["cast"] = {"dropped": self.cast.dropped, "why": self.cast.why_ended}
        self.state["end"] = {**(self.end or {}), "why": self.why, **self._counts()}
        if not self.whole or self.client is None:  # who was told records it now, and removes the file, which knows it
            self._save()
        if self.pam is not None:
            self.pam.close()
        cgroups.remove(self.made.cgroups)


def serve(made: Prepared, conn: socket.socket) -> int:
    """Wait for the agent's word, and run the session. Returns the exit code."""
    session, word = Hosted(made), b"no\n"
    try:
        conn.sendall(json.dumps({"ready": session.ready()}).encode() + b"\n")
        word = conn.recv(16)
    except account.Refused as exc:
        conn.sendall(json.dumps({"refused": str(exc)}).encode() + b"\n")
    except TimeoutError:
        word = b""
    except OSError:
        pass
    if word != b"go\n":
        session.never(recorded=word != b"no\n")
        return 1
    conn.close()
    session.start()
    session.run()
    session.close()
    return 0
