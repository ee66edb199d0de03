"""`python -m cudeform`: exit statuses, what is printed, what is written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checkout import ROOT
from command_line import run

import cudeform
from cudeform import __main__ as command_line
from cudeform.commands import info, machine, selftest
from cudeform.commands.table import table
from cudeform.registry import OPERATORS


def test_no_command_is_a_usage_error(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert "usage: python -m cudeform" in done.stderr


def test_version(tmp_path):
    assert run(tmp_path, "--version").stdout == f"cudeform {cudeform.__version__}\n"


def test_ctrl_c_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted(given):
        raise KeyboardInterrupt

    stand_in = SimpleNamespace(__doc__="Wait.", add_arguments=lambda parser: None, run=interrupted)
    monkeypatch.setitem(command_line.COMMANDS, "info", stand_in)
    assert command_line.main(["info"]) == 130
    assert capsys.readouterr().err == "cudeform info: interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes of another kind")
@pytest.mark.parametrize("arguments", [("info",), ("selftest", "--device", "cpu"), ("--help",)])
def test_a_closed_pipe_ends_quietly(tmp_path, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "cudeform", *arguments],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == (0 if arguments == ("--help",) else 141)  # argparse's own is 0


def test_table_aligns_its_columns():
    assert table(("a", "bb"), [("ccc", "d")]).splitlines() == ["a    bb", "---  --", "ccc   d"]


class TestInfo:
    def test_says_what_there_is(self, tmp_path):
        done = run(tmp_path, "info")
        assert done.returncode == 0, done.stderr
        for line in (
            rf"cudeform +{re.escape(cudeform.__version__)}",
            rf"numpy +{re.escape(np.__version__)}",
            r"cpu backend +ready",
            r"cuda backend +not available: .+",
            r"threads +\d+",
            r"Numba +\S+ \(.+\)",
            r"CuPy +\S+ \(.+\)",
        ):
            assert re.search(rf"^  {line}$", done.stdout, re.MULTILINE), line

    def test_never_imports_a_framework(self, tmp_path):
        for name in ("torch", "jax", "keras", "matplotlib"):
            (tmp_path / f"{name}.py").write_text("raise SystemExit('imported ' + __name__)\n")
        (tmp_path / "numba.py").write_text("raise ImportError('not here')\n")
        done = run(tmp_path, "info", path=[tmp_path])
        assert done.returncode == 0, done.stderr
        assert re.search(r"^  Numba +Numba is missing$", done.stdout, re.MULTILINE)

    def test_shows_the_cache_that_is_used(self, tmp_path, monkeypatch):
        """An unwritable NUMBA_CACHE_DIR is not."""
        import numba

        (tmp_path / "file").write_text("")
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file" / "x"))
        assert str(tmp_path) not in info.facts()["caches"]["Numba"]
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
        shown = info.facts()["caches"]["Numba"]
        assert shown.count(str(tmp_path / "cache")) == 2  # of the two folders that have kernels

    @pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners on this system")
    @pytest.mark.parametrize("open_to", ["", "folder", "folder/cache", "folder/cache/a.cubin"])
    @pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
    def test_says_whether_others_can_write_to_a_cache(self, tmp_path, monkeypatch, open_to, mode):
        cache = tmp_path / "folder" / "cache"
        cache.mkdir(parents=True)
        (cache / "a.cubin").write_bytes(b"")
        for path in (tmp_path / "folder", cache, cache / "a.cubin"):
            path.chmod(0o755)
        monkeypatch.setenv("CUPY_CACHE_DIR", str(cache))
        if open_to:
            (tmp_path / open_to).chmod(mode)
        said = info.facts()["caches"]["CuPy"]
        if open_to and (mode, open_to) != (0o1777, "folder"):  # as /tmp
            assert f"OTHERS CAN WRITE to {tmp_path / open_to}, and" in said
        else:
            assert said == f"{cache} (others cannot write to it)"

    def test_names_the_command_for_what_is_missing(self, monkeypatch, capsys):
        installed = machine.version
        monkeypatch.setattr(
            machine, "version", lambda *names: None if "rich" in names else installed(*names)
        )
        assert command_line.main(["info"]) == 0
        assert re.search(r"demo, plot +pip install 'cudeform\[demo\]'", capsys.readouterr().out)

    @pytest.mark.parametrize(("driver", "major"), [("570.86", 12), ("580.65.06", 13), ("", 13)])
    def test_extra_fits_the_driver(self, driver, major):
        assert machine.cuda_extra(driver) == f"pip install 'cudeform[cuda{major}]'"

    def test_gpu_without_cupy(self, monkeypatch):
        monkeypatch.setattr(machine, "nvidia_gpu", lambda: ("Tesla T4", "550.1"))
        monkeypatch.setitem(sys.modules, "cupy", None)
        found, reason = machine.cupy_or_reason()
        assert found is None
        assert reason.endswith("pip install 'cudeform[cuda12]'")


class TestSelftest:
    def test_passes_and_says_what_it_did_not_test(self, tmp_path):
        done = run(tmp_path, "selftest")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "The GPU is NOT tested" in done.stdout
        for operator in OPERATORS:
            for dtype in ("float16", "bfloat16", "float32"):
                assert re.search(rf"^{operator.name} +{dtype} .* yes +ok$", done.stdout, re.M)

    def test_asked_for_a_gpu_that_is_not_there(self, tmp_path):
        done = run(tmp_path, "selftest", "--device", "cuda")
        assert done.returncode == 2
        assert "no GPU to test" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_wrong_result_fails(self, monkeypatch, capsys):
        def doubled(array):
            return array * 2

        monkeypatch.setattr(selftest, "_same", doubled)
        sampling = [row for row in OPERATORS if row.name == "bilinear_sample"]
        monkeypatch.setattr(selftest, "OPERATORS", sampling)
        assert command_line.main(["selftest", "--device", "cpu"]) == 1
        printed = capsys.readouterr().out
        assert "FAILED bilinear_sample in float32: case NCHW-zeros: output is off by" in printed
        assert "3 checks, 3 failed" in printed

    def test_an_error_fails_one_check_and_not_the_run(self, monkeypatch, capsys):
        def cannot(array):
            raise MemoryError("out of memory")

        outcome = selftest.check(OPERATORS[-1], "float32", cannot, cannot)
        assert not outcome.passed
        assert "MemoryError: out of memory" in outcome.failure

    def test_a_backward_that_varies_fails(self):
        seen = []

        def noisy(array):
            seen.append(array)
            return array + np.float32(1e-7) * len(seen) * array.max(initial=0)

        outcome = selftest.check(OPERATORS[-1], "float32", lambda array: array, noisy)
        assert not outcome.repeatable
        assert "differs between two runs" in outcome.failure

    @pytest.mark.parametrize("wrong", [a.name for a in OPERATORS[0].arguments if a.differentiable])
    def test_every_gradient_is_compared(self, wrong):
        row = OPERATORS[0]

        def spoiled(grad_output, case, convert):
            gradients = row.call_backward(grad_output, case, convert)
            gradient = getattr(gradients, wrong)
            if gradient is None or gradient.dtype == np.float64:
                return gradients
            return gradients._replace(**{wrong: -gradient})

        stand_in = SimpleNamespace(
            name=row.name,
            arguments=row.arguments,
            cases=row.cases,
            call=row.call,
            call_backward=spoiled,
        )
        outcome = selftest.check(stand_in, "float32", np.asarray, np.asarray)
        assert f"gradient of {wrong} is off" in outcome.failure


class TestScripts:
    def test_gpu_session_records_that_there_is_no_gpu(self, tmp_path):
        script = ROOT / "benchmarks" / "gpu_session.py"
        done = run(tmp_path, "--quick", "--json", "gpu.json", program=(script,))
        assert done.returncode == 1
        written = json.loads((tmp_path / "gpu.json").read_text())
        assert "selftest" in written["failures"]
        assert "no GPU" in written["selftest"]["error"]
        assert written["results"] == []
        assert written["machine"]["cudeform"] == cudeform.__version__

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
    @pytest.mark.parametrize("name", ["forward", "backward"])
    def test_peak_memory_does_not_hold_the_columns(self, tmp_path, name):
        script = ROOT / "benchmarks" / "memory.py"
        done = run(tmp_path, "--one", "cudeform", name, 2, program=(script,))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["extra_mb"] < 64  # the columns alone are 75
