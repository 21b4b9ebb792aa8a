"""What is set aside after the start, and when the rest is searched for cycles that nobody uses any more."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def in_a_process_of_its_own(code: str) -> None:
    head = """
        import gc, weakref
        from pact.host import garbage

        class Knot:
            def __init__(self):
                self.me = self

        def work(rounds):
            for _ in range(rounds):
                kept = [[] for _ in range(8_000)]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)], check=True, timeout=60)


def test_old_objects_are_searched_only_when_nobody_waits() -> None:
    in_a_process_of_its_own("""
        garbage.set_aside()
        knot = Knot()
        gone = weakref.ref(knot)
        gc.collect(1)
        del knot
        before = gc.get_stats()[2]["collections"]
        kept = [[[] for _ in range(7_000)] for _ in range(2 * garbage.ENOUGH)]
        assert gc.get_stats()[2]["collections"] == before, "by itself the interpreter searches them no more"
        assert gone() is not None
        assert not garbage.search(quiet=False) and gone() is not None
        assert garbage.search(quiet=True) and gone() is None
        assert not garbage.search(quiet=True), "there is nothing to do so soon"
        assert gc.get_freeze_count() > 200_000, "what there is much of is set aside"
    """)


def test_what_was_replaced_is_searched_again() -> None:
    in_a_process_of_its_own("""
        knot = Knot()
        gone = weakref.ref(knot)
        garbage.set_aside()
        del knot
        work(2 * 7 * garbage.ENOUGH)
        kept = [[] for _ in range(7_000 * 2 * garbage.ENOUGH)]
        assert garbage.search(quiet=True) and gone() is not None
        garbage.replaced()
        more = [[] for _ in range(7_000 * 2 * garbage.ENOUGH)]
        assert garbage.search(quiet=True) and gone() is None
    """)


def test_it_is_done_in_the_end_although_somebody_waits_all_the_time() -> None:
    in_a_process_of_its_own("""
        garbage.ENOUGH, garbage.TOO_MANY = 2, 4
        garbage.set_aside()
        kept = [[] for _ in range(7_000 * 3)]
        assert not garbage.search(quiet=False)
        kept += [[] for _ in range(7_000 * 6)]
        assert garbage.search(quiet=False)
    """)
