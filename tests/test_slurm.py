"""The job of docs/how-to/slurm.md, started by a Slurm of our own: two processes, and a requeue."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import compilation
import test_docs

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "slurm.md"
SRUN = """\
import os, subprocess, sys

tasks = [
    subprocess.Popen(
        [sys.executable, *sys.argv[3:]],
        env=os.environ
        | {
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i),
        },
    )
    for i in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""
"""What `srun OPTION PYTHON SCRIPT` does on one machine."""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with the page's script and job, and the commands that the job calls."""
    scripts = [b.text for b in test_docs.blocks(PAGE.read_text(encoding="utf-8"))]
    script = next(text for text in scripts if "fs.run(" in text)
    assert "num_rounds=60" in script  # so few would be over before they can be stopped
    (tmp_path / "train.py").write_text(script.replace("num_rounds=60", "num_rounds=200"))
    (tmp_path / "train.sbatch").write_text(next(text for text in scripts if "--signal" in text))
    commands = {"srun": SRUN, "scontrol": "import sys; open('requeued', 'w').write(sys.argv[2])"}
    (tmp_path / "bin").mkdir()
    for name, program in commands.items():
        command = tmp_path / "bin" / name
        command.write_text(f"#!{sys.executable}\n{program}", encoding="utf-8")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def start(cluster: Path) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", "train.sbatch"],
        cwd=cluster,
        env=os.environ
        | compilation.QUICK_ENVIRONMENT
        | {
            "PATH": f"{cluster / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(PAGE.parents[2]), *sys.path[1:]]),
            "SLURM_JOB_ID": "4711",
            "JAX_PLATFORMS": "cpu",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Slurm runs on Linux")
def test_a_job_goes_on_after_its_requeue(cluster: Path) -> None:
    job = start(cluster)
    checkpoints = cluster / "runs" / "cluster" / "checkpoint"
    try:
        while job.poll() is None and not any(checkpoints.glob("*")):
            time.sleep(0.02)
        os.kill(job.pid, signal.SIGUSR1)  # as Slurm before the time limit
        while job.poll() is None and not (cluster / "requeued").exists():
            time.sleep(0.02)
    finally:
        os.killpg(job.pid, signal.SIGKILL)  # as Slurm when it requeues
    output, _ = job.communicate()
    assert (cluster / "requeued").read_text() == "4711", output
    assert not (cluster / "runs" / "cluster" / "last.json").exists()
    again = start(cluster)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    last = json.loads((cluster / "runs" / "cluster" / "last.json").read_text())
    assert last["train/accuracy"] > 0.6
