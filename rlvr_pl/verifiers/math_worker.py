"""The program of the process in which math-verify compares two expressions; it imports nothing of this package.

It reads a JSON list [answer, gold] a line and writes ``true`` or ``false``. What takes too long or too much memory ends
it, which whoever asks sees.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys

MEMORY = 4 * 2**30  # bytes of addresses
PATIENCE = 100  # times the limit on a clock: an end to what waits without working


def main(limit_s: float) -> None:
    """Answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # they are whoever's asks; the end of the input ends this process
    limits = (signal.SIGPROF, signal.SIGALRM)
    for signum in limits:
        signal.signal(signum, signal.SIG_DFL)  # it ends the process, wherever that is
    signal.pthread_sigmask(signal.SIG_UNBLOCK, limits)
    logging.disable(logging.CRITICAL)

    from math_verify import parse, verify

    parse("$\\frac{1}{2}+x$", parsing_timeout=None)  # what is made at the first call takes its time
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most), most))
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answer, gold = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE * limit_s)
        try:
            there, here = (parse(f"${text}$", parsing_timeout=None) for text in (gold, answer))
            same = bool(there) and bool(here) and verify(there, here, timeout_seconds=None)
        except Exception:  # any text may be asked about
            same = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write("true\n" if same else "false\n")
        answers.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]))
