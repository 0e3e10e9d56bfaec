"""The notebook in examples/, executed; and a kernel's Interrupt."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "bakapara.ipynb"


def execute(notebook, tmp_path):
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    return client


def test_the_example_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    execute(notebook, tmp_path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert any("<progress" in page and "tasks finished" in page for page in pages), outputs
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_an_interrupt_leaves_the_jobs_alone(tmp_path):
    """The cell interrupts its own kernel, as Kernel → Interrupt does: SIGINT to its process group's leader."""
    cells = [
        "from bakapara import Bakapara\nbp = Bakapara(slots=2)",
        "import os, signal, threading\njobs = [{'cmd': 'sleep 2; echo done'}] * 1\nbp.run(jobs)\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\nbp.status(interval=0.1)\nprint('interrupted', bp.ready())",
        "print(bp.join(), jobs[0]['result']['stdout_tail'])\nbp.shutdown()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    execute(notebook, tmp_path)
    said = ["".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells]
    assert "interrupted False" in said[1] and said[2] == "True done\n\n", said
