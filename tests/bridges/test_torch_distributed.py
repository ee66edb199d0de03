"""DDP, FSDP2 and DTensor with gloo on two processes: gradients are those of the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch with gloo",
)
SCRIPT = Path(__file__).with_name("torch_ranks.py")


def test_two_processes_get_the_gradients_of_one(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in (0, 1)
    ]
    try:
        shown = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (output, errors) in zip(ranks, shown, strict=True):
        assert rank.returncode == 0, errors[-3000:]
        told = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
        assert told == ["ddp ok", "fsdp ok", "dtensor ok", "local_map ok"]
