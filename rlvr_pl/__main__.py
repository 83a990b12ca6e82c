"""``rlvr_pl {fit,validate,test,predict,plan,compare,report}``, and ``python -m rlvr_pl`` likewise."""

import sys

from rlvr_pl.run.signals import STOP


def start() -> None:
    """Run the command that this process was started with."""
    if sys.argv[1:] == ["--version"]:
        from rlvr_pl.version import __version__

        print(f"rlvr_pl {__version__}")
        return
    with STOP.handled():
        STOP.start()
        from rlvr_pl.main import main

        main()


def start_installed() -> None:
    """Run the command that the installed program ``rlvr_pl`` was started with."""
    sys.path.insert(0, "")  # as python -m has it: objectives and rewards of one's own lie in the current folder
    start()


if __name__ == "__main__":
    start()
