"""Two ranks in two processes, which do one run after another: loading the libraries takes longer than a tiny run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.paths import ROOT


def run_on_two_ranks(runs: Sequence[Sequence[str]], folder: Path) -> list[tuple[int, int]]:
    """Have two processes call ``main`` with each of these arguments, as ``torchrun`` starts them.

    Returns:
        For each run the exit status on each rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "runs.json").write_text(json.dumps(runs))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TORCHELASTIC_RUN_ID": "two_ranks",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = []
    for rank in ("0", "1"):
        own = {**environment, "RANK": rank, "LOCAL_RANK": rank}
        with (folder / f"output_{rank}").open("w") as output:
            command = [sys.executable, "-m", "tests.helpers.two_ranks", str(folder)]
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=output, stderr=subprocess.STDOUT))
    try:
        ended = [process.wait(timeout=600) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert ended == [0, 0], (folder / "output_0").read_text()[-3000:] + (folder / "output_1").read_text()[-3000:]
    first, second = (json.loads((folder / f"statuses_{rank}.json").read_text()) for rank in (0, 1))
    return list(zip(first, second, strict=True))


def _rank(folder: Path) -> None:
    from rlvr_pl.main import main

    statuses = []
    for arguments in json.loads((folder / "runs.json").read_text()):
        status = 0
        try:
            main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
        statuses.append(status)
    (folder / f"statuses_{os.environ['RANK']}.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
