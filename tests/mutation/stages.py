"""Which tests should notice a change of which files: the quickest and most specific first."""

import shlex
from fnmatch import fnmatch

__all__ = ["stages"]

_EDGES = "operators/test_edges operators/test_operators"
_EMULATOR = [
    f"{_EDGES} -k 'emulator and float32'",
    "cuda/test_cuda_host",
    "cuda/test_emulator_roi",
    "cuda/test_cupy_device -k 'not benchmark'",
]
_CPU = [
    f"{_EDGES} cpu/test_cpu_taps -k 'cpu and (float32 or taps) and ({{}})'",
    f"{_EDGES} -k 'cpu and ({{}})'",
]
_CPU_CONVOLUTIONS = [
    *(stage.format("conv or padding or channels or sample or points") for stage in _CPU),
    "operators/test_deform_conv operators/test_sampling -k 'not emulator and not cuda'",
    "cpu/test_cpu_blocking -k 'not memory'",
]
_CPU_REGIONS = [
    *(stage.format("roi") for stage in _CPU),
    "cpu/test_cpu_roi -k 'not memory'",
]
_ARGUMENTS = [
    "house/test_public_api -k 'default or types or takes'",
    "operators/test_arguments operators/test_roi_arguments",
    _EMULATOR[0],
    "operators/test_inputs",
    "operators/test_any_argument",
]
_TORCH = [
    "bridges/test_torch_eager",
    "bridges/test_torch",
    "bridges/test_torch_requires_grad",
    "bridges/test_torch_compile",
    "bridges/test_torch_modes",
]

# The first pattern that matches.
_STAGES = {
    "kernels/sort.cu": ["cuda/test_cuda_host -k sort", *_EMULATOR],
    "kernels/layout.cu": [
        "cuda/test_emulator_roi cuda/test_cuda_host -k 'transpose or 16_bit'",
        *_EMULATOR,
    ],
    "kernels/region*": ["operators/test_edges -k 'emulator and float32 and roi'", *_EMULATOR],
    "kernels/*": [
        "operators/test_edges -k 'emulator and float32 and (points or conv or channels)'",
        *_EMULATOR,
    ],
    "cudeform/cuda/cupy_device.py": [
        "cuda/test_cupy_device -k product",
        "cuda/test_cupy_device -k 'not benchmark'",
    ],
    "cudeform/cuda/device.py": ["cuda/test_cupy_device -k 'not benchmark'", "cuda/test_cuda_host"],
    "cudeform/cuda/gemm.py": ["cuda/test_cupy_device -k product", *_EMULATOR],
    "cudeform/cuda/sort.py": ["cuda/test_cuda_host -k sort", *_EMULATOR],
    "cudeform/cuda/chunks.py": ["cuda/test_cuda_host -k 'chunks or workspace'", *_EMULATOR],
    "cudeform/cuda/regions/*": [
        "operators/test_edges -k 'emulator and float32 and roi'",
        *_EMULATOR,
    ],
    "cudeform/cuda/*": ["operators/test_edges -k 'emulator and float32 and not roi'", *_EMULATOR],
    "cudeform/threads.py": ["cpu/test_cpu_threads"],
    "cudeform/cpu/language/disk.py": ["cpu/test_cpu_cache"],
    "cudeform/cpu/language/compiler.py": ["cpu/test_cpu_cache", _CPU_CONVOLUTIONS[0]],
    "cudeform/cpu/regions/largest.py": [
        "operators/test_edges -k 'cpu and float32 and largest'",
        *_CPU_REGIONS,
    ],
    "cudeform/cpu/regions/*": [
        "operators/test_edges -k 'cpu and float32 and roi_align'",
        *_CPU_REGIONS,
    ],
    "cudeform/cpu/taps.py": ["cpu/test_cpu_taps", *_CPU_CONVOLUTIONS],
    "cudeform/cpu/conv/narrow.py": ["cpu/test_cpu_taps", *_CPU_CONVOLUTIONS],
    "cudeform/cpu/conv/corners.py": ["cpu/test_cpu_blocking -k little", *_CPU_CONVOLUTIONS],
    "cudeform/cpu/conv/parts.py": ["cpu/test_cpu_blocking -k little", *_CPU_CONVOLUTIONS],
    "cudeform/cpu/*": [
        "operators/test_edges -k 'cpu and float32 and convolution'",
        *_CPU_CONVOLUTIONS,
        *_CPU_REGIONS[:1],
    ],
    "cudeform/torch/nn.py": ["bridges/test_torch_modules"],
    "cudeform/torch/onnx.py": ["bridges/test_torch_modules -k onnx"],
    "cudeform/torch/patching.py": ["bridges/test_torch_modules"],
    "cudeform/torch/scripting.py": ["bridges/test_torch_modules"],
    "cudeform/torch/sharding.py": ["bridges/test_torch_distributed"],
    "cudeform/torch/vmap.py": ["bridges/test_torch -k 'vmap or along or per_sample'", *_TORCH],
    "cudeform/torch/library.py": ["bridges/test_torch -k 'schema or opcheck'", *_TORCH],
    "cudeform/torch/autograd.py": ["bridges/test_torch -k gradients", *_TORCH],
    "cudeform/torch/*": _TORCH,
    "cudeform/jax/*": ["bridges/test_jax", "bridges/test_jax_devices"],
    "cudeform/dlpack.py": ["bridges/test_dlpack", "cuda/test_cupy_device -k frameworks"],
    "cudeform/dispatch.py": [
        "bridges/test_dispatch bridges/test_dlpack",
        *_TORCH[:2],
        "bridges/test_jax",
    ],
    "cudeform/derivatives/*": [
        "operators/test_derivatives",
        "bridges/test_jax",
        "bridges/test_torch",
    ],
    "cudeform/layers/*": ["bridges/test_layers"],
    "cudeform/converters/offsets.py": [
        "operators/test_offset_layouts",
        "operators/test_converters",
    ],
    "cudeform/converters/*": ["operators/test_coordinates", "operators/test_converters"],
    "cudeform/*": _ARGUMENTS,
}


def stages(file):
    """Of a file: what pytest is called with, one time after the other."""
    tests = next(tests for pattern, tests in _STAGES.items() if fnmatch(file, pattern))
    return [_arguments(stage) for stage in dict.fromkeys(tests)]


def _arguments(stage):
    return tuple(f"tests/{word}.py" if "/test_" in word else word for word in shlex.split(stage))
