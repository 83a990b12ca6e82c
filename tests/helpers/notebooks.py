"""Execute the notebooks with this interpreter.

``python -m tests.helpers.notebooks`` executes every notebook and saves it with its outputs, as the test wants it
saved.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from pathlib import Path

import nbformat
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from tests.helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def execute(path: Path) -> NotebookNode:
    """The notebook with fresh outputs, executed top to bottom in its own folder; the file is left as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A python3 kernel of the user's own may be another interpreter, with other packages and start-up files.
        write_kernel_spec(Path(folder) / "python3")
        client = NotebookClient(
            nbformat.read(path, as_version=4),
            km=AsyncKernelManager(
                kernel_spec_manager=KernelSpecManager(kernel_dirs=[folder]),
                kernel_name="python3",
                transport_encryption="auto",
            ),
            timeout=300,  # seconds a cell
            record_timing=False,  # it would make every saved notebook differ from the last
            resources={"metadata": {"path": str(path.parent)}},
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": folder, "OMP_NUM_THREADS": "1"}
        environment.pop("MPLBACKEND", None)  # the kernel's own backend draws into the notebook
        return client.execute(env=environment, cleanup_kc=True)


def palette_png(png: str) -> str:
    """The image in 256 colours, base64 as it came: a third of the size, and a chart needs no more."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256)
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    for path in NOTEBOOKS:
        notebook = execute(path)
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = palette_png(output.data["image/png"])
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
