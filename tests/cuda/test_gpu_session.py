"""benchmarks/gpu_session.py: its first run on a real GPU must not fail for its own sake."""

import json
import os
import sys

import numpy as np
import pytest
from checkout import ROOT

from cudeform.bench import cuda_contender
from cudeform.bench.workload import error

sys.path.append(str(ROOT / "benchmarks"))

SANITIZER = """#!/bin/sh
[ "$1 $3 $4" = "--tool --error-exitcode 99" ] && echo "$2 of $*"
"""
ONE = ["--dtype", "float16"]


@pytest.fixture
def session(cupy, monkeypatch, tmp_path):
    """Runs it with small workloads, and with a sanitizer that only says what it was told.

    The self-test is that of one operator: all of them are run elsewhere, on this same stand-in.
    """
    import gpu_session

    paths = [ROOT / "tests" / "standin", ROOT / "tests", ROOT]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(gpu_session, "CUDA", gpu_session.QUICK)
    monkeypatch.setattr(gpu_session, "SELFTEST", [*gpu_session.SELFTEST, *ONE])
    (only,) = (row for row in gpu_session.OPERATORS if row.name == "bilinear_sample")
    monkeypatch.setattr(gpu_session, "OPERATORS", [only])
    few = [unit for unit in gpu_session.units() if unit.file == "layout.cu"][:2]
    monkeypatch.setattr(gpu_session, "units", lambda: few)
    gpu_session.file = tmp_path / "gpu.json"

    def run(*options):
        given = ["gpu_session", "--turns", "1", "--json", str(gpu_session.file), *options]
        monkeypatch.setattr(sys, "argv", given)
        return gpu_session.main(), json.loads(gpu_session.file.read_text())

    gpu_session.run = run
    return gpu_session


def test_every_step_runs(session, capsys):
    status, found = session.run()
    assert (status, found["failures"], found["left_out"]) == (0, [], []), capsys.readouterr().out
    assert found["machine"]["gpu"] == "emulated GPU"
    assert found["compile"] == {"units": len(session.units())}
    assert "the GPU (emulated GPU" in found["selftest"]["output"]
    assert "2 checks, 0 failed" in found["selftest"]["output"]  # the operator, and conversions
    for tool in ("memcheck", "racecheck"):
        assert f"{tool} of " in found[tool]["output"]
        assert "selftest --device cuda" in found[tool]["output"]
    ours = {"cudeform", "cudeform, graph"}
    last = {"cudeform NHWC", "cudeform NHWC, graph"}
    graphs = {"deform_conv2d": ours | last, "roi_align": {"cudeform"}}
    for result in found["results"]:
        assert set(result["median_ms"]) == graphs.get(result["operator"], ours)
    settings = {(r["operator"], r["pass"], r["dtype"]) for r in found["results"]}
    assert len(settings) == 2 * (4 + 4 * 3)
    others = {name for result in found["results"] for name in result["unavailable"]}
    extensions = {"Deformable DETR", "DCNv3", "DCNv4"}
    assert others == {"torchvision", "deformops", "kernel hub", *extensions}
    assert set(found["seconds"]) >= {"machine", "compile", "selftest", "report"}


def test_what_fails_is_recorded_and_the_rest_runs(session, monkeypatch):
    """An operator that is wrong, one that cannot be called, and a self-test that fails."""
    monkeypatch.setattr(session, "CUDA", session.QUICK[1:3])
    monkeypatch.setattr(session.cuda, "settings", lambda work: [("float32", "ieee")])
    monkeypatch.setattr(session, "SELFTEST", [sys.executable, "-c", "raise SystemExit('broken')"])
    ours = cuda_contender.ours

    def spoiled(cupy, work, host, backward, *given, **options):
        if work.operator == "dcnv3":
            raise MemoryError("no memory left")
        contender = ours(cupy, work, host, backward, *given, **options)
        if not backward:
            return contender
        return cuda_contender.Contender(
            contender.calls,
            lambda arrays: [2 * array for array in contender.on_host(arrays)],
            contender.capture,
        )

    monkeypatch.setattr(cuda_contender, "ours", spoiled)
    status, found = session.run()
    forward, backward = (result for result in found["results"] if result["errors"])
    assert status == 1 and len(found["results"]) == 4
    assert "broken" in found["selftest"]["error"]
    assert not forward["wrong"] and backward["wrong"]["cudeform"] > 0.9
    wrong = [r["wrong"]["cudeform"] for r in found["results"] if r["operator"] == "dcnv3"]
    assert wrong == ["MemoryError: no memory left"] * 2
    assert len(found["failures"]) == 4 and "selftest" in found["failures"]


def test_what_there_is_no_time_for_is_named(session, monkeypatch):
    """A command that takes too long is ended, and nothing begins after that."""
    talk = "print('so far', flush=True); import time; time.sleep(600)"
    monkeypatch.setattr(session, "SELFTEST", [sys.executable, "-c", talk])
    status, found = session.run("--minutes", "0.05")
    assert status == 0 and found["failures"] == [] and found["results"] == []
    assert found["selftest"] == {"left out": "not done in time", "output": "so far\n"}
    assert len(found["left_out"]) == 1 + 2 * (4 + 4 * 3) + 2
    assert found["memcheck"] == {"left out": "no time"}


def test_the_file_is_whole_after_each_step(session, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "checked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert list(json.loads(session.file.read_text()))[:2] == ["machine", "compile"]


def test_two_slopes_of_a_point_on_a_line_are_both_right():
    """A few gradients of coordinates may be anything but NaN; more, or other ones, are wrong."""
    expected = np.linspace(-1, 1, 2000)
    found = expected.copy()
    found[:2] = 7
    assert error(found, expected, 1e-3) == 0 < error(found, expected)
    found[2] = 7
    assert error(found, expected, 1e-3) > 1
    found = expected.copy()
    found[0] = np.nan
    assert np.isnan(error(found, expected, 1e-3))
