"""The snippets for prompts, in the shells that they are for: what they show, and that they start no process."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import subprocess
import termios
import time
from pathlib import Path

import pytest

PROMPTS = Path(__file__).parent.parent / "packaging" / "prompt"
SHELLS = {
    "bash": ["bash", "--noprofile", "--norc", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
ON_TERMINAL = {
    "bash": "PS1='> '; source {snippet}\r",
    "zsh": "PS1='> '; source {snippet}\r",
    "fish": "function fish_prompt; printf '> '; end; source {snippet}\r",
}


class Shell:
    """An interactive shell at a terminal, with the snippet."""

    def __init__(
        self, name: str, home: Path, state: Path, before: list[str] | None = None, first: str = "", **env: str
    ) -> None:
        self.master, slave = pty.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            [*(before or []), *SHELLS[name]],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - nothing else runs here
            env={
                "HOME": str(home),
                "PATH": os.environ["PATH"],
                "TERM": "xterm",
                "PACT_PROMPT": str(state),
                "LC_ALL": "C.UTF-8",
                **env,
            },
        )
        os.close(slave)
        self.read(1.0)
        self.type((first or ON_TERMINAL[name]).format(snippet=PROMPTS / f"pact.{name}"))
        self.read(1.0)

    def read(self, seconds: float) -> str:
        got = ""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    got += os.read(self.master, 65536).decode("utf-8", "replace")
                except OSError:
                    break
        self.text += got
        return got

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def prompt(self) -> str:
        """The next prompt, with its colours, for as long as it may take to come."""
        for _ in range(20):
            self.type("\r")
            got = self.read(0.4)
            if "> " in got:
                return got
        raise AssertionError(f"no prompt: {self.text[-500:]!r}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self.master)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][B0]?|[\x01\x02\x0f]", "", text)


def red(text: str) -> bool:
    return re.search(r"\x1b\[(?:\d+;)*31m\[?", text) is not None


@pytest.mark.parametrize("name", SHELLS)
def test_a_prompt_shows_the_changes_and_counts_the_time_down(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    state = tmp_path / "state"
    now = int(time.time())
    state.write_text(f"drifted 0.07 c7 {now + 12 * 60 + 30}\n")
    shell = Shell(name, tmp_path, state)
    try:
        shown = shell.prompt()
        assert "[pact c7 12m] > " in plain(shown), shown
        assert not red(shown)
        state.write_text(f"drifted 0.07 c7,c9 {int(time.time()) + 90}\n")
        shown = shell.prompt()
        assert re.search(r"\[pact c7,c9 \d\ds\] > ", plain(shown)), shown
        assert red(shown)
        state.write_text("committed 0 - 0\n")
        assert "pact" not in plain(shell.prompt())
        state.write_text("emergency 0.1 c7 0\n")
        assert "[pact emergency c7] > " in plain(shell.prompt())
        for bad in (
            "",
            "drifted\n",
            "drifted 1 $(touch-me) 99\n",
            "drifted 1 c7 `id`\n",
            "\x1b]0;x\x07 1 c7 99999999999\n",
        ):
            state.write_text(bad)
            shown = shell.prompt()
            assert "pact" not in plain(shown) and "error" not in shown.lower(), (bad, shown)
        state.unlink()
        shown = shell.prompt()
        assert "pact" not in plain(shown) and "such file" not in shown, shown
    finally:
        shell.close()


ODD = {
    "inside another": ("bash zsh", "source {snippet}\r"),
    "twice": ("bash zsh", "PS1='> '; source {snippet}; source {snippet}\r"),
    "nothing may be unset": ("bash zsh", "set -u; PS1='> '; source {snippet}\r"),
    "errors end it": ("bash", "set -e; PS1='> '; source {snippet}\r"),
    "other separators": ("bash zsh", "IFS=:; PS1='> '; source {snippet}\r"),
    "options of another shell": ("zsh", "PS1='> '; source {snippet}; setopt ksh_arrays sh_glob no_glob ksh_glob\r"),
}


@pytest.mark.parametrize(("name", "how"), [(n, how) for how, (names, _) in ODD.items() for n in names.split()])
def test_a_prompt_is_shown_once_whatever_the_shell_is_like(name: str, how: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    state = tmp_path / "state"
    state.write_text(f"drifted 0.07 c7 {int(time.time()) + 750}\n")
    handed_on = {"PS1": "${PACT_PS1-}> "} if how == "inside another" else {}
    shell = Shell(name, tmp_path, state, first=ODD[how][1], **handed_on)
    try:
        shown = plain(shell.prompt())
        assert "[pact c7 12m] " in shown and "[pact c7 12m] [pact" not in shown, shown
        assert "PACT_PS1" not in shown.replace("source", ""), shown
    finally:
        shell.close()


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_a_prompt_that_may_not_be_changed_stays(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    fixed = "PS1='> '; readonly PS1" + ("; readonly PROMPT_COMMAND=true" if name == "bash" else "")
    shell = Shell(name, tmp_path, tmp_path / "state", first=fixed + "; source {snippet}\r")
    try:
        shell.prompt()
        assert "read" not in plain(shell.text).replace("readonly PS1", "").replace("readonly PROMPT", ""), shell.text
    finally:
        shell.close()


@pytest.mark.parametrize("name", SHELLS)
def test_a_prompt_leaves_the_exit_code_to_the_person_s_own(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    state = tmp_path / "state"
    state.write_text(f"drifted 0.07 c7 {int(time.time()) + 750}\n")
    own = {
        "bash": "PROMPT_COMMAND='code=$?'; PS1='<$code> '; source {snippet}\r",
        "zsh": "PS1='<%?> '; source {snippet}\r",
        "fish": 'function fish_prompt; echo "<$status> "; end; source {snippet}\r',
    }
    shell = Shell(name, tmp_path, state, first=own[name])
    try:
        shell.type("sh -c 'exit 7'\r")
        assert "<7> " in plain(shell.read(2.0)), shell.text
    finally:
        shell.close()


@pytest.mark.needs("strace")
@pytest.mark.parametrize("name", SHELLS)
def test_a_prompt_starts_no_process(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    state, trace = tmp_path / "state", tmp_path / "trace"
    state.write_text(f"drifted 0.07 c7 {int(time.time()) + 900}\n")
    shell = Shell(
        name, tmp_path, state, ["strace", "-f", "-qq", "-e", "trace=fork,vfork,clone,clone3,execve", "-o", str(trace)]
    )
    try:
        shell.prompt()
        begun = trace.read_text().count("\n")
        for _ in range(3):
            assert "[pact c7" in plain(shell.prompt())
        after = trace.read_text().splitlines()[begun:]
        made = [line for line in after if re.search("exec|fork|clone", line) and "resumed>" not in line]
        assert [line for line in made if "CLONE_THREAD" not in line] == []  # fish has threads of its own
    finally:
        shell.close()


def test_a_shell_that_ends_on_errors_goes_on_after_a_code_that_was_none(tmp_path: Path) -> None:
    """``set -e`` lets ``false && true`` pass; the next prompt must not make an error of it."""
    state = tmp_path / "state"
    state.write_text("drifted 0.07 c7 0\n")
    shell = Shell("bash", tmp_path, state)
    try:
        shell.type("set -eu\r")
        shell.prompt()
        shell.type("false && true\r")
        assert "[pact c7]" in shell.prompt()
        assert shell.process.poll() is None
    finally:
        shell.close()
