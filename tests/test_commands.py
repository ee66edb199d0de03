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

import cudeform
from cudeform import __main__ as command_line
from cudeform.commands import bench, bench_cuda, info, machine, peers, selftest
from cudeform.commands.table import table
from cudeform.commands.workload import CPU, Convolution, Pooling, cast
from cudeform.registry import OPERATORS

ROOT = Path(cudeform.__file__).parents[1]
SMALL = Convolution(2, 8, 6, 7, 4)
# Of each pooling, and of each way in which `bench` calls one
POOLINGS = [
    Pooling(work.operator, 2, 98 if "ps_" in work.operator else 6, 9, 11, 5, work.chosen)
    for work in CPU
    if isinstance(work, Pooling)
]


# Which library has what; "msra" is a convention of ps_roi_pool.
PEERS = {
    "cudeform": {"deform_conv2d", "msra", *(work.operator for work in POOLINGS)},
    "onnxruntime": {"deform_conv2d", "roi_align", "roi_pool"},
    "openvino": {"deform_conv2d", "roi_align", "msra", "deform_ps_roi_pool"},
    "torchvision": {"deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"},
    "bare GEMM": {"deform_conv2d"},
}


def run(folder, *arguments, program=("-m", "cudeform"), path=()):
    """A Python program in an empty folder, with no GPU in sight; `path` comes first in imports."""
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", COLUMNS="120")
    search = [*map(str, path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(search)
    return subprocess.run(
        [sys.executable, *map(str, program), *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def broken_module(folder, name):
    """A module that cannot be imported, as if it were not installed."""
    (folder / f"{name}.py").write_text("raise ImportError('No module named ' + repr(__name__))\n")


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
        assert info.facts()["caches"]["Numba"].startswith(str(tmp_path / "cache" / "cpu_"))

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

    @pytest.mark.parametrize("wrong", SMALL.gradients)
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


class TestBench:
    def test_quick_run_and_its_json(self, tmp_path):
        arguments = ("--operator", "deform_conv", "--quick", "--json", "results.json")
        done = run(tmp_path, "bench", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        written = json.loads((tmp_path / "results.json").read_text())
        assert {"processor", "threads", "load", "date", "python", "numpy"} <= written[
            "machine"
        ].keys()
        assert [result["pass"] for result in written["results"]] == ["forward", "backward"]
        for result in written["results"]:
            medians = result["median_ms"]
            assert {"cudeform", "bare GEMM"} <= medians.keys()
            assert result["ratio"]["cudeform"] == 1
            for peer, value in medians.items():
                assert 0 < result["minimum_ms"][peer] <= value
                assert result["ratio"][peer] == pytest.approx(value / medians["cudeform"], rel=0.01)
            assert set(result["errors"]) == set(medians) - {"cudeform", "bare GEMM"}
            assert not result["wrong"]
        assert re.search(r"^deform_conv2d +2x32x56x56 -> 32 +float32 +forward", done.stdout, re.M)

    @pytest.mark.parametrize("work", [SMALL, *POOLINGS], ids=lambda work: work.operator)
    def test_every_peer_is_measured_or_named(self, work, monkeypatch):
        monkeypatch.setattr(bench, "REST", 0)
        for result in bench.measure([work], turns=1):
            group = peers.FORWARD if result["pass"] == "forward" else peers.BACKWARD
            what = work.options.get("convention", work.operator)
            having = {name for name in group if what in PEERS[name]}
            assert having == set(result["median_ms"]) | set(result["unavailable"])
            assert all(error < 1e-5 for error in result["errors"].values()), result["errors"]

    @pytest.mark.parametrize(
        ("names", "quick", "expected"),
        [
            (None, False, {work.operator for work in CPU}),
            (["roi"], False, {work.operator for work in POOLINGS}),
            (["roi_pool", "deform_conv"], False, {"roi_pool", "deform_conv2d"}),
            (None, True, {"deform_conv2d", "roi_align"}),
            (["ps_roi_pool"], True, {"ps_roi_pool"}),
        ],
    )
    def test_what_is_measured(self, names, quick, expected):
        given = SimpleNamespace(operator=names, quick=quick)
        chosen = bench._chosen(CPU, given)
        assert {work.operator for work in chosen} == expected
        assert len(chosen) == len(expected) or not quick

    def test_an_operator_that_is_not_measured_is_a_usage_error(self, tmp_path):
        done = run(tmp_path, "bench", "--operator", "roi_algin")
        assert done.returncode == 2
        assert "invalid choice: 'roi_algin'" in done.stderr

    def test_a_wrong_peer_fails(self, monkeypatch, capsys):
        def shifted(work, arrays, threads):
            call = peers.FORWARD[peers.OURS](work, arrays, threads)
            return lambda: (call()[0] + 1,)

        forward = {peers.OURS: peers.FORWARD[peers.OURS], "shifted": shifted}
        monkeypatch.setattr(peers, "FORWARD", forward)
        monkeypatch.setattr(peers, "BACKWARD", {peers.OURS: peers.BACKWARD[peers.OURS]})
        monkeypatch.setattr(bench, "CPU", (SMALL,))
        assert command_line.main(["bench", "--quick", "--device", "cpu"]) == 1
        failed = "FAILED deform_conv2d, 2x8x6x7 -> 4, forward: {'shifted'"
        assert failed in capsys.readouterr().out

    def test_slow_peers_have_fewer_turns(self, monkeypatch):
        clock = iter(np.arange(0, 1e6, 1.0))  # every call takes a second
        monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
        monkeypatch.setattr(bench, "REST", 0)
        times = bench._take_turns({"slow": lambda: None}, turns=40)
        assert len(times["slow"]) == 8

    def test_unwritable_json_is_refused_before_anything_is_measured(self, tmp_path, monkeypatch):
        monkeypatch.setattr(bench, "measure", None)
        for target in (tmp_path / "missing" / "results.json", tmp_path):
            arguments = ["bench", "--quick", "--device", "cpu", "--json", str(target)]
            assert command_line.main(arguments) == 2


def test_features_of_16_bits_have_boxes_of_32():
    arrays = cast(POOLINGS[0].arrays(), np.dtype(np.float16))
    assert arrays.pop("boxes").dtype == np.float32
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}


class StandIn:
    """As much of CuPy as the benchmark asks for, on NumPy arrays."""

    asarray = staticmethod(np.asarray)
    asnumpy = staticmethod(np.asarray)

    class cuda:
        Device = staticmethod(lambda: SimpleNamespace(attributes={"L2CacheSize": 1 << 14}))
        Event = staticmethod(lambda: SimpleNamespace(record=int, synchronize=int))
        get_elapsed_time = staticmethod(lambda start, stop: 0.5)


@pytest.mark.parametrize("work", [SMALL, *POOLINGS], ids=lambda work: work.operator)
@pytest.mark.parametrize("name", bench_cuda.PASSES)
def test_cuda_bench_on_a_stand_in(work, name):
    for setting in bench_cuda.settings(work):
        result = bench_cuda.measure_one(StandIn, work, setting, name, turns=2)
        assert not result["wrong"]
        ours = [peer for peer in result["median_ms"] if peer.startswith("cudeform")]
        assert ours == ["cudeform", "cudeform NHWC"][: 2 if work is SMALL else 1]
        for peer in ours:
            assert result["errors"][peer] <= bench_cuda.SETTINGS[setting]
            assert result["median_ms"][peer] == 0.5
    assert "cudeform" in bench.report([result], {"threads": 1, "date": "", "processor": ""})


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
