"""`python -m cudeform bench`: who is measured, in which processes, and what is made of it."""

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import run

from cudeform import __main__ as command_line
from cudeform.bench import command, contender, contest, cuda, peers
from cudeform.bench.workload import CPU, Aggregation, Attention, Convolution, Pooling, cast
from cudeform.commands import CommandError, machine

SMALL = Convolution(2, 8, 6, 7, 4)
AGGREGATIONS = [Aggregation(name, 1, 32, 5, 6) for name in ("dcnv3", "dcnv4")]
# Of each pooling, and of each way in which `bench` calls one
POOLINGS = [
    Pooling(work.operator, 2, 98 if "ps_" in work.operator else 6, 9, 11, 5, work.chosen)
    for work in CPU
    if isinstance(work, Pooling)
]


# Which library has what; "msra" is a convention of ps_roi_pool.
PEERS = {
    "cudeform": {
        "deform_conv2d",
        "dcnv3",
        "dcnv4",
        "ms_deform_attn",
        "msra",
        *(work.operator for work in POOLINGS),
    },
    "onnxruntime": {"deform_conv2d", "roi_align", "roi_pool"},
    "openvino": {"deform_conv2d", "roi_align", "msra", "deform_ps_roi_pool"},
    "torchvision": {"deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"},
    "transformers": {"ms_deform_attn"},
    "torch-ms-deform-attn": {"ms_deform_attn"},
    "grid_sample": {"dcnv3", "dcnv4"},
    "deform_conv2d": {"dcnv3"},
    "bare GEMM": {"deform_conv2d"},
}


@pytest.fixture
def in_this_process(monkeypatch):
    """Contenders without processes of their own, which take seconds to start."""
    monkeypatch.setattr(contest, "in_process", lambda task, turn: list(contender.compute(task)))


class TestBench:
    def test_quick_run_and_its_json(self, tmp_path):
        arguments = ("--operator", "conv", "--quick", "--json", "results.json")
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
            assert set(result["processes"].values()) == {2}
            for peer, value in medians.items():
                assert 0 < result["fastest_ms"][peer] <= value <= result["slowest_ms"][peer]
                assert result["ratio"][peer] == pytest.approx(value / medians["cudeform"], rel=0.01)
            assert set(result["errors"]) == set(medians) - {"cudeform", "bare GEMM"}
            assert not result["wrong"]
        assert re.search(r"^deform_conv2d +2x32x56x56 -> 32 +float32 +forward", done.stdout, re.M)

    @pytest.mark.parametrize(
        "work",
        [SMALL, *AGGREGATIONS, Attention(1, 5), *POOLINGS],
        ids=lambda work: work.operator,
    )
    def test_every_peer_is_measured_or_named(self, work, in_this_process):
        for result in contest.measure([work], processes=1, threads=[1], seconds=0):
            group = contender.PASSES[result["pass"]]
            what = work.options.get("convention", work.operator)
            having = {name for name in group if what in PEERS[name]}
            assert having == set(result["median_ms"]) | set(result["unavailable"])
            assert all(error < 1e-5 for error in result["errors"].values()), result["errors"]

    def test_contenders_take_turns_in_longer_and_longer_environments(self, monkeypatch):
        started = []

        def answer(task, turn):
            started.append((turn, task.peer))
            for row in range(len(task.rows) if task.keep else 0):
                np.savez(f"{task.keep}/{row}-{task.peer}.npz", np.ones(1))
            if task.peer == "openvino":
                return [{"unavailable": "not here"}] * len(task.rows)
            seconds = 1e-3 * (turn + 1) * (2 if task.peer == "torchvision" else 1)
            return [{"seconds": seconds * (row + 1)} for row in range(len(task.rows))]

        monkeypatch.setattr(contest, "in_process", answer)
        forward, backward = contest.measure([SMALL], processes=5, threads=[2], seconds=0)
        expected = {name: 3 for name in contender.PASSES["forward"] if name != "openvino"}
        assert forward["median_ms"] == expected | {"torchvision": 6}
        assert backward["median_ms"]["torchvision"] == 12
        assert forward["fastest_ms"]["cudeform"] == 1
        assert forward["slowest_ms"]["cudeform"] == 5
        assert forward["ratio"]["torchvision"] == 2
        assert forward["unavailable"] == {"openvino": "not here"}
        assert forward["threads"] == 2
        first = {turn: peer for turn, peer in reversed(started)}
        assert len(started) == 5 * len(forward["median_ms"]) + 1
        assert len(set(first.values())) > 3  # each begins once

    def test_environment_and_processors_of_a_contender(self, monkeypatch):
        seen = []

        def start(command, **how):
            processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
            seen.append((how["env"], processors))
            return SimpleNamespace(returncode=0, stdout=b'{"seconds": 1}', stderr=b"")

        monkeypatch.setattr(contest.subprocess, "run", start)
        usable = contest.usable_processors()
        task = contender.Task(((SMALL, "forward"),), "cudeform", 1, 0)
        for turn in range(4):
            assert contest.in_process(task, turn) == [{"seconds": 1}]
        assert {environment["CUDEFORM_NUM_THREADS"] for environment, _ in seen} == {"1"}
        lengths = [len(environment["CUDEFORM_BENCH_LENGTH"]) for environment, _ in seen]
        assert len({length % 64 for length in lengths}) == 4  # four places of the stack in a line
        if hasattr(os, "sched_setaffinity"):
            assert {len(processors) for _, processors in seen} == {1}
        assert contest.usable_processors() == usable

    def test_a_contender_that_crashes_is_named_and_keeps_what_it_measured(self):
        rows = (SMALL, "forward"), (SMALL, "sideways"), (SMALL, "backward")
        found, *rest = contest.in_process(contender.Task(rows, "bare GEMM", 1, 0), 0)
        assert found["seconds"] > 0
        assert rest == 2 * [{"unavailable": "ended with status 1: KeyError: 'sideways'"}]
        with pytest.raises(CommandError, match="deform_conv2d, 2x8x6x7 -> 4, sideways: KeyError"):
            contest.in_process(contender.Task(rows, "cudeform", 1, 0), 0)

    def test_more_processors_than_there_are(self):
        task = contender.Task(((SMALL, "forward"),), "cudeform", 10_000, 0)
        with pytest.raises(CommandError, match="cannot run on 10000 processors"):
            contest.in_process(task, 0)

    @pytest.mark.parametrize(
        ("names", "quick", "expected"),
        [
            (None, False, {work.operator for work in CPU}),
            (["regions"], False, {work.operator for work in POOLINGS}),
            (["roi_pool", "conv"], False, {"roi_pool", "deform_conv2d"}),
            (None, True, {"deform_conv2d", "dcnv4", "ms_deform_attn", "roi_align"}),
            (["ps_roi_pool"], True, {"ps_roi_pool"}),
        ],
    )
    def test_what_is_measured(self, names, quick, expected):
        given = SimpleNamespace(operator=names, quick=quick)
        chosen = command._chosen(CPU, given)
        assert {work.operator for work in chosen} == expected
        assert len(chosen) == len(expected) or not quick

    def test_an_operator_that_is_not_measured_is_a_usage_error(self, tmp_path):
        done = run(tmp_path, "bench", "--operator", "roi_algin")
        assert done.returncode == 2
        assert "invalid choice: 'roi_algin'" in done.stderr

    def test_a_wrong_peer_fails(self, monkeypatch, capsys, in_this_process):
        def shifted(work, arrays, threads):
            call = peers.FORWARD[peers.OURS](work, arrays, threads)
            return lambda: (call()[0] + 1,)

        forward = {peers.OURS: peers.FORWARD[peers.OURS], "shifted": shifted}
        backward = {peers.OURS: peers.BACKWARD[peers.OURS]}
        monkeypatch.setitem(contender.PASSES, "forward", forward)
        monkeypatch.setitem(contender.PASSES, "backward", backward)
        monkeypatch.setattr(command, "CPU", (SMALL,))
        assert command_line.main(["bench", "--quick", "--device", "cpu"]) == 1
        failed = "FAILED deform_conv2d, 2x8x6x7 -> 4, forward: {'shifted'"
        assert failed in capsys.readouterr().out

    def test_unwritable_json_is_found_before_anything_is_measured(self, tmp_path):
        target = str(tmp_path / "missing" / "results.json")
        assert command_line.main(["bench", "--device", "cpu", "--json", target]) == 2

    def test_results_in_a_folder_are_named_for_the_processor(self, tmp_path):
        facts = {"processor": "Intel(R) Xeon(R) Processor @ 2.50GHz"}
        named = command._target(str(tmp_path), facts)
        assert named == tmp_path / "cpu-intel-xeon-processor-2-50ghz.json"
        assert not named.exists()  # until there is something to write
        named.write_text("of an earlier run")
        assert command._target(str(tmp_path), facts).read_text() == "of an earlier run"

    def test_processors_of_one_name_are_told_apart(self, monkeypatch):
        from cudeform.cpu.language import compiler

        names = []
        for kind in ("znver4", "znver5"):
            monkeypatch.setattr(compiler.llvmlite.binding, "get_host_cpu_name", lambda k=kind: k)
            names.append(machine.processor())
        assert names[0].endswith(" (znver4)")
        assert names[1] == names[0].replace("znver4", "znver5")

    @pytest.mark.parametrize("option", ["--processes", "--threads", "--turns"])
    def test_at_least_one(self, option, capsys):
        assert command_line.main(["bench", "--device", "cpu", option, "0"]) == 2
        assert f"expected {option} of at least 1, got 0" in capsys.readouterr().err


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
@pytest.mark.parametrize("name", cuda.PASSES)
def test_cuda_bench_on_a_stand_in(work, name):
    for setting in cuda.settings(work):
        result = cuda.measure_one(StandIn, work, setting, name, turns=2)
        assert not result["wrong"]
        ours = [peer for peer in result["median_ms"] if peer.startswith("cudeform")]
        assert ours == ["cudeform", "cudeform NHWC"][: 2 if work is SMALL else 1]
        for peer in ours:
            assert result["errors"][peer] <= cuda.SETTINGS[setting]
            assert result["median_ms"][peer] == 0.5
    assert "cudeform" in command.report([result], {"threads": 1, "date": "", "processor": ""})


def test_points_near_are_beside_the_pixel_of_their_query():
    work = Attention(1, 30, ((4, 6), (2, 3)), near=True)
    locations = work.arrays()["sampling_locations"][0, :24, :, 0]  # of the first level, in it
    pixels = locations * (6, 4) - 0.5
    own = np.stack(np.divmod(np.arange(24), 6)[::-1], -1)
    offsets = pixels - own[:, None, None]
    assert abs(offsets.mean((0, 1, 2))).max() < 0.3
    assert abs(offsets.std() - 2) < 0.2
    assert str(work) == "1x30 queries, 4x6 to 2x3, points near"
