"""Whether this process is a fork of one that had threads: OpenMP's and Numba's do not survive it.

A kernel that wanted them in the child would wait for ever, so there it runs on one thread. A backend that
starts threads sets ``had_threads``.
"""

import os
import sys

had_threads = False
is_fork_of_threads = False


def _after_fork() -> None:
    global is_fork_of_threads
    is_fork_of_threads = had_threads or _somebody_else_used_numbas()


def _somebody_else_used_numbas() -> bool:
    try:
        sys.modules["numba"].threading_layer()
    except (KeyError, ValueError, AttributeError):  # not imported, or not started
        return False
    return True


os.register_at_fork(after_in_child=_after_fork)
