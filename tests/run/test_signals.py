"""A process that is asked to stop ends at once, or finishes first what it is at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from rlvr_pl.run.signals import Interrupted, StopSignals
from tests.helpers.paths import ROOT


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_it_ends_at_once(signum: signal.Signals, status: int) -> None:
    before = signal.getsignal(signum)
    with StopSignals().handled(), pytest.raises(Interrupted, match=f"Interrupted by {signum.name}") as stopped:
        os.kill(os.getpid(), signum)
    assert stopped.value.status == status
    assert not isinstance(stopped.value, Exception)
    assert signal.getsignal(signum) is before


def test_it_finishes_first_and_a_second_signal_ends_it() -> None:
    stop, announced = StopSignals(), []
    with stop.handled():
        stop.finish_first(announced.append)
        os.kill(os.getpid(), signal.SIGTERM)
        assert announced == [stop.received] == [signal.SIGTERM]
        stop.check()  # not yet
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
        stop.end_at_once()
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.check()


def test_what_was_swallowed_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Swallows:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(1000))

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    stop = StopSignals()
    with stop.handled():
        victim = Swallows()
        del victim
        with pytest.raises(Interrupted):
            stop.check()


def test_nohup_is_heeded_and_the_end_is_not_disturbed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopSignals()
        with stop.handled():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
            stop.end()
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_while_the_libraries_load(signum: signal.Signals) -> None:
    """The interpreter is stopped inside the first import of the command line, however that ends exceptions."""
    program = (
        "import sys, types, os, runpy\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'rlvr_pl.main':\n"
        "            try: os.kill(os.getpid(), int(sys.argv[1])); [None for _ in range(99)]\n"
        "            except BaseException: pass\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('rlvr_pl', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, str(int(signum))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 128 + signum
    assert ended.stderr == f"Interrupted by {signum.name}. Nothing was begun; the same command starts again.\n"
