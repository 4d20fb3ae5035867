"""The page on clusters is followed: its scripts, on this machine, where the tools are there."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "book/cluster.md").read_text()
SCRIPTS = {
    name: text for text, name in re.findall(r"```bash\n(# (\S+\.sh): .*?)```", PAGE, re.DOTALL)
}
TRAIN = ["--dataset", "digits", "--hidden", "40,30", "--algorithm", "wasap", "--json"]
pytestmark = [pytest.mark.mpi, pytest.mark.site]


def needs(*tools):
    missing = [tool for tool in tools if shutil.which(tool, path=PATH) is None]
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    return pytest.mark.skipif(
        bool(missing) or not root, reason=f"needs root and {', '.join(missing or tools)}"
    )


PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@pytest.fixture
def run(tmp_path):
    """Run the page's scripts; what they leave behind is an error."""
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text)

    def run(*command, **variables):
        environment = {**os.environ, "PATH": PATH, "UCX_TLS": "tcp,self", **variables}
        return subprocess.run(
            ["bash", *command], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip

    yield run
    left = [p for p in Path("/tmp").glob("*-??????") if p.name.startswith(("slurm-", "hosts-"))]
    assert not left


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash(name, tmp_path):
    (tmp_path / name).write_text(SCRIPTS[name])
    assert subprocess.run(["bash", "-n", tmp_path / name]).returncode == 0


def result(done):
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@needs("slurmctld", "slurmd", "srun", "munged")
def test_two_nodes_of_slurm(run):
    done = run("two-nodes-slurm.sh", "srun", "-N2", "-n2", "--mpi=pmi2",
               "python", "-m", "sparsecore", "train", *TRAIN, "--epochs", "3")  # fmt: skip
    assert result(done)["config"]["workers"] == 2


@needs("ip", "sshd", "unshare", "ssh-keygen")
def test_two_hosts(run):
    done = run("two-hosts.sh", "bash", "train-on-hosts.sh", *TRAIN, "--epochs", "3")
    found = result(done)["parallel"]
    assert [rank["host"] for rank in found["ranks"]] == ["host1", "host2"]
    assert found["window"] == "remote"


@needs("ip", "sshd", "unshare", "ssh-keygen")
def test_a_host_that_dies_is_named(run, tmp_path):
    (tmp_path / "cut.sh").write_text(
        'bash train-on-hosts.sh "$@" --checkpoint run.npz > out 2> err & job=$!\n'
        "until [ -e run.npz ]; do sleep 0.2; done\n"
        'ip link set "$LINK" down\n'
        "until grep -q 'no sign of life' err; do sleep 0.2; done\n"
        "kill -INT $job; sleep 1; kill -9 $job; true\n"
    )
    run("two-hosts.sh", "bash", "cut.sh", *TRAIN, "--epochs", "300")
    assert re.search(
        r"rank 1.* gave no sign of life for .* on host2\)", (tmp_path / "err").read_text()
    )


@needs("ip", "sshd", "unshare", "ssh-keygen")
def test_engines_on_two_hosts(run, tmp_path):
    (tmp_path / "use.py").write_text(
        "import time\nfrom sparsecore import cluster\nfrom sparsecore.config import TrainConfig\n"
        "config = TrainConfig(hidden=(40, 30), batch_size=32, epochs=3)\n"
        "for _ in range(60):\n"
        "    try:\n"
        "        with cluster.connect(2) as workers:\n"
        "            assert workers.own is None\n"
        "            result = cluster.train(workers, config, 'digits')[1]\n"
        "        break\n"
        "    except (cluster.ClusterError, AssertionError):\n"
        "        time.sleep(1)\n"
        "print([rank['host'] for rank in result['parallel']['ranks']])\n"
    )
    (tmp_path / "engines.sh").write_text(
        "bash ipcluster-on-hosts.sh > engines 2>&1 &\n"
        "until ls ipython/profile_default/security/*client.json; do sleep 0.2; done >&2\n"
        "python use.py; ipcluster stop >&2\n"
    )
    done = run("two-hosts.sh", "bash", "engines.sh", IPYTHONDIR=str(tmp_path / "ipython"))
    assert "['host1', 'host2']" in done.stdout, done.stderr[-2000:]
