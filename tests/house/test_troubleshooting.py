"""The messages that docs/troubleshooting.md quotes are those that are raised."""

import re
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from checkout import ROOT
from processes import python

import cudeform
from cudeform.cpu.language import disk

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
IMAGE, OFFSET, WEIGHT = (
    np.ones(s, np.float32) for s in ((1, 4, 8, 8), (1, 18, 8, 8), (4, 4, 3, 3))
)
LOST = "[torch.backends]\ncudeform = a_module_that_is_gone:define\n"


def convolve(input=IMAGE, offset=OFFSET, weight=WEIGHT, **options):
    return cudeform.deform_conv2d(input, offset, weight, **options)


def without_cupy(monkeypatch, _):
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "cupy", None)
    from cudeform.torch import exchange

    exchange.to_array(torch.empty(1, device="meta"))  # where a tensor of a GPU goes as well


def without_nvrtc(monkeypatch, _):
    from cudeform.cuda.cupy_device import CupyDevice

    runtime = SimpleNamespace(runtimeGetVersion=lambda: 13000)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    what = "NVRTC, which compiles the kernels at their first call"
    CupyDevice._explain(SimpleNamespace(_cupy=cupy), ImportError("libnvrtc.so"), "nvrtc", what)


def lost_folder(_, folder):
    pytest.importorskip("torch")
    info = folder / "cudeform-0.0.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(LOST)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cudeform\nVersion: 0.0.0\n")
    said = python(f"""
import sys
sys.path.insert(0, {str(folder)!r})
try:
    import torch
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}")
""")
    raise RuntimeError(said.strip().partition(": ")[2])


def nowhere_to_write(monkeypatch, _):
    monkeypatch.setattr(disk, "_said", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save = disk._Cache.save_overload
        save(SimpleNamespace(_cache_path="/"), None, None)


def mixed_frameworks(*_):
    torch = pytest.importorskip("torch")
    convolve(torch.from_numpy(IMAGE))


def scripted(*_):
    torch = pytest.importorskip("torch")
    from cudeform.torch import nn

    torch.jit.script(nn.DeformConv2d(4, 4, 3))


def exported(*_):
    jax = pytest.importorskip("jax")
    given = [jax.numpy.asarray(array) for array in (OFFSET, WEIGHT)]
    program = jax.jit(lambda image: convolve(image, *given, padding=1))
    jax.export.export(program)(jax.numpy.asarray(IMAGE))


def picture(*_):
    convolve(pytest.importorskip("PIL.Image").new("RGB", (8, 8)))


def six_arguments(*_):
    cudeform.ms_deform_attn(IMAGE, ((4, 4),), None, IMAGE, IMAGE, 64)


RAISES = {  # in the order of the page
    "no CuPy": without_cupy,
    "no NVRTC": without_nvrtc,
    "lost folder": lost_folder,
    "nowhere to write": nowhere_to_write,
    "mixed": mixed_frameworks,
    "picture": picture,
    "uint8": lambda *_: convolve(IMAGE.astype(np.uint8)),
    "no padding": lambda *_: convolve(),
    "offset and mask": lambda *_: convolve(offset=np.ones((1, 27, 8, 8), np.float32), padding=1),
    "half": lambda *_: convolve(IMAGE.astype(np.float16), padding=1),
    "six arguments": six_arguments,
    "script": scripted,
    "export": exported,
}


@pytest.mark.parametrize("name", RAISES)
def test_a_quoted_message_is_raised(name, monkeypatch, tmp_path):
    quotes = re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)
    assert len(quotes) == len(RAISES)
    quote = quotes[list(RAISES).index(name)]
    with pytest.raises(Exception) as caught:
        RAISES[name](monkeypatch, tmp_path)
    said = f"{caught.type.__name__}: {caught.value}"
    assert re.fullmatch(".*".join(map(re.escape, quote.split("..."))), said, re.DOTALL), said


def test_offsets_that_are_not_numbers_are_not_seen_in_the_loss():
    lost = np.full_like(OFFSET, np.nan)
    assert not convolve(offset=lost, padding=1).any()
    found = cudeform.deform_conv2d_backward(IMAGE, IMAGE, lost, WEIGHT, padding=1)
    assert np.isfinite(found.offset).all() and not found.offset.any()


def test_arguments_may_be_read_only_and_results_are_not():
    image = IMAGE.view()
    image.setflags(write=False)
    assert convolve(image, padding=1).flags.writeable
