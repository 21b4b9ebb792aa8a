"""The programs that a login starts are remembered, as far as exec events tell."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from pact.observe import open_observers

pytestmark = [
    pytest.mark.root,
    pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
#: A login of its own, which waits for a line and then starts programs.
LOGIN = """
import subprocess, sys
open('/proc/self/loginuid', 'w').write('4101')
print(open('/proc/self/sessionid').read(), flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[1])):
    subprocess.run(['/bin/true', f'number{n}', 'x' * 300])
"""


@pytest.mark.parametrize(("count", "kept"), [(3, 3), (90, 64)])
def test_programs_of_a_login_are_remembered_and_bounded(count: int, kept: int) -> None:
    observers = open_observers()
    try:
        if "connector" in " ".join(observers.notes):
            pytest.skip("no exec events here")
        with subprocess.Popen(
            [sys.executable, "-c", LOGIN, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as login:
            assert login.stdout is not None and login.stdin is not None
            session = int(login.stdout.readline())
            observers.follow(session)
            observers.follow(session)
            subprocess.run(["/bin/true", "another"], check=True)
            login.stdin.write("go\n")
            login.stdin.flush()
            assert login.wait(60) == 0
        time.sleep(0.3)
        programs, seen = observers.unfollow(session)
        assert len(programs) <= kept and seen <= count
        assert seen >= count // 2, "most are read before they are gone"
        # One that has gone before its words were read is told by its name.
        assert all(
            uid == 0 and text.startswith(("/bin/true number", "true")) and len(text) <= 120 for uid, text in programs
        )
        assert sum(text != "true" for _, text in programs) >= len(programs) // 2
        assert observers.unfollow(session) == ([], 0)
    finally:
        observers.close()
