"""``rlvr_pl {fit,validate,test,predict,chat,plan,compare,report}``, and ``python -m rlvr_pl`` likewise."""

import os
import sys

from rlvr_pl.run.signals import STOP

_SPINS = "10000"


def start() -> None:
    """Run the command that this process was started with."""
    bear_company()
    if sys.argv[1:] == ["--version"]:
        from rlvr_pl.version import __version__

        print(f"rlvr_pl {__version__}")
        return
    with STOP.handled():
        STOP.start()
        from rlvr_pl.main import main

        main()


def bear_company() -> None:
    """Have idle threads of GNU's OpenMP give up their core soon; before torch, which brings it, is imported.

    By default they spin for milliseconds, so that two quickstarts at a time on two cores take twelve times as long as
    with short waits, which cost one alone 6 to 8 % (benchmarks/RESULTS.md). Whoever set how threads wait is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def start_installed() -> None:
    """Run the command that the installed program ``rlvr_pl`` was started with."""
    sys.path.insert(0, "")  # as python -m has it: objectives and rewards of one's own lie in the current folder
    start()


if __name__ == "__main__":
    start()
