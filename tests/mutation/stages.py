"""Which tests should notice a change of which files: the quickest and most specific first."""

import shlex
from fnmatch import fnmatch

__all__ = ["stages"]

_EDGES = "operators/test_edges operators/test_operators"
_EMULATOR = [
    f"{_EDGES} -k 'emulator and float32'",
    "cuda/test_cuda_host",
    "cuda/test_sort cuda/test_index",
    "cuda/test_emulator_roi",
    "cuda/test_cupy_device -k 'not benchmark'",
]
_EMULATED_REGIONS = [
    _EMULATOR[0],
    "cuda/test_emulator_roi -k 'workspace or parts or groups or equal or takes'",
    *_EMULATOR[1:],
]
_EDGES_ON_A_GPU = "operators/test_edges -k 'emulator and float32 and ({})'"
_CONVOLUTIONS = "conv or padding or channels or sample or points"
_CPU = [
    f"{_EDGES} -k 'cpu and float32 and ({{}})'",
    f"{_EDGES} -k 'cpu and ({{}})'",
]
_CPU_CONVOLUTIONS = [
    *(stage.format(_CONVOLUTIONS) for stage in _CPU),
    "operators/test_deform_conv operators/test_sampling -k 'not emulator and not cuda'",
    "cpu/test_cpu_taps",
    "cpu/test_cpu_blocking -k 'not memory'",
]
_CPU_REGIONS = [
    *(stage.format("roi") for stage in _CPU),
    "cpu/test_cpu_roi -k 'not memory'",
]
_CPU_ATTENTION = [
    *(stage.format("attention or ms_deform") for stage in _CPU),
    "operators/test_attention operators/test_aggregation -k 'not emulator and not cuda'",
]
_ARGUMENTS = [
    "house/test_public_api house/test_caches -k 'default or types or takes or plans'",
    "operators/test_arguments operators/test_roi_arguments",
    _EMULATOR[0],
    "operators/test_inputs operators/test_large -k 'not cuda'",
    "operators/test_any_argument",
]
_TORCH = [
    "bridges/test_torch_eager",
    "bridges/test_torch -k 'vmap or along or schema or functional or argmax or backward_takes'",
    "bridges/test_torch",
    "bridges/test_torch_requires_grad bridges/test_torch_compile",
    "bridges/test_torch_modes",
]
_CONVERTERS = ["operators/test_converters -k 'kind or errors'", "operators/test_converters"]

# The first pattern that matches.
_STAGES = {
    "kernels/sort.cu": ["cuda/test_sort", *_EMULATOR],
    "kernels/layout.cu": [
        "cuda/test_emulator_roi cuda/test_cuda_numbers -k 'transpose or 16_bit'",
        *_EMULATOR,
    ],
    "kernels/aggregate.cu": ["cuda/test_emulator_attention", *_EMULATOR],
    "kernels/gather_values.cu": ["cuda/test_emulator_attention", *_EMULATOR],
    "kernels/levels.cuh": ["cuda/test_emulator_attention", *_EMULATOR],
    "kernels/tasks.cuh": ["cuda/test_emulator_attention", *_EMULATOR],
    "kernels/region*": [_EDGES_ON_A_GPU.format("roi"), *_EMULATED_REGIONS],
    "kernels/*": [_EDGES_ON_A_GPU.format("points or conv or channels"), *_EMULATOR],
    "cudeform/cuda/cupy_device.py": [
        "cuda/test_cupy_device -k product",
        "cuda/test_cupy_device -k 'not benchmark'",
    ],
    "cudeform/cuda/device.py": ["cuda/test_cupy_device -k 'not benchmark'", "cuda/test_cuda_host"],
    "cudeform/cuda/gemm.py": ["cuda/test_cupy_device -k product", *_EMULATOR],
    "cudeform/cuda/sort.py": ["cuda/test_sort", *_EMULATOR],
    "cudeform/cuda/chunks.py": [
        "cuda/test_cuda_host -k 'chunks or groups or workspace'",
        *_EMULATOR,
    ],
    "cudeform/cuda/a[gt]*": ["cuda/test_emulator_attention cuda/test_emulator_aggregation"],
    "cudeform/cuda/regions/*": [_EDGES_ON_A_GPU.format("roi"), *_EMULATED_REGIONS],
    "cudeform/cuda/[prt]*": [
        "cuda/test_recorded",
        "cuda/test_cupy_device -k 'not benchmark'",
        *_EMULATOR,
    ],
    "cudeform/cuda/*": [_EDGES_ON_A_GPU.format("not roi"), *_EMULATOR],
    "cudeform/cpu/language/disk.py": ["cpu/test_cpu_cache"],
    "cudeform/cpu/language/compiler.py": ["cpu/test_cpu_cache", *_CPU_CONVOLUTIONS],
    "cudeform/cpu/regions/largest.py": [
        "operators/test_edges -k 'cpu and float32 and largest'",
        *_CPU_REGIONS,
    ],
    "cudeform/cpu/regions/*": [
        "operators/test_edges -k 'cpu and float32 and roi_align'",
        *_CPU_REGIONS,
    ],
    "cudeform/cpu/attention.py": _CPU_ATTENTION,
    "cudeform/cpu/aggregation.py": ["operators/test_aggregation", *_CPU_ATTENTION],
    "cudeform/cpu/aggregator.py": ["cpu/test_cpu_aggregator", *_CPU_ATTENTION],
    "cudeform/cpu/located.py": _CPU_ATTENTION,
    "cudeform/cpu/queries.py": _CPU_ATTENTION,
    "cudeform/cpu/portions.py": ["cpu/test_cpu_aggregator", *_CPU_ATTENTION],
    "cudeform/cpu/sorting.py": ["cpu/test_cpu_aggregator", *_CPU_ATTENTION],
    "cudeform/cpu/language/dtypes.py": ["cpu/test_cpu_rounding", *_CPU_REGIONS],
    "cudeform/cpu/language/halves.py": ["cpu/test_cpu_rounding", *_CPU_ATTENTION],
    "cudeform/cpu/language/rows.py": _CPU_ATTENTION,
    "cudeform/cpu/taps.py": ["cpu/test_cpu_taps", *_CPU_CONVOLUTIONS],
    "cudeform/cpu/conv/narrow.py": ["cpu/test_cpu_taps", *_CPU_CONVOLUTIONS],
    "cudeform/cpu/conv/corners.py": ["cpu/test_cpu_blocking -k little", *_CPU_CONVOLUTIONS],
    "cudeform/cpu/conv/parts.py": ["cpu/test_cpu_blocking -k little", *_CPU_CONVOLUTIONS],
    "cudeform/cpu/*": [
        "operators/test_edges -k 'cpu and float32 and convolution'",
        *_CPU_CONVOLUTIONS,
        *_CPU_REGIONS[:1],
    ],
    "cudeform/torch/onnx.py": ["bridges/test_torch_modules -k onnx"],
    "cudeform/torch/onnx_convolution.py": ["bridges/test_torch_modules -k onnx"],
    "cudeform/torch/onnx_regions.py": ["bridges/test_torch_modules -k onnx"],
    "cudeform/torch/onnx_*": [
        "bridges/test_torch_attention_onnx",
        "bridges/test_torch_aggregation_onnx",
    ],
    "cudeform/torch/nn/aggregation.py": ["bridges/test_torch_aggregation"],
    "cudeform/torch/nn/*": ["bridges/test_torch_attention", "bridges/test_torch_modules"],
    "cudeform/torch/originals.py": ["bridges/test_transformers"],
    "cudeform/torch/rebinding.py": ["bridges/test_transformers"],
    "cudeform/torch/patching.py": ["bridges/test_torch_modules", "bridges/test_transformers"],
    "cudeform/torch/scripting.py": ["bridges/test_torch_modules"],
    "cudeform/torch/sharding.py": ["bridges/test_torch_distributed"],
    "cudeform/torch/vmap.py": ["bridges/test_torch -k 'vmap or along or per_sample'", *_TORCH],
    "cudeform/torch/library.py": ["bridges/test_torch -k 'schema or functional'", *_TORCH],
    "cudeform/torch/autograd.py": [
        "bridges/test_torch -k 'moving or second or adaptive'",
        *_TORCH,
    ],
    "cudeform/torch/*": _TORCH,
    "cudeform/jax/*": [
        "bridges/test_jax -k '(results or transpose or called) and (bilinear or roi_align)'",
        "bridges/test_jax -k 'vmap or second_derivatives_in or scan or errors or argmax'",
        "bridges/test_jax bridges/test_jax_devices "
        "-k 'without_jit or saved or devices or tangents_of or beside'",
        "bridges/test_jax",
    ],
    "cudeform/dlpack.py": [
        "bridges/test_dlpack -k 'not callers_kind or roi_align'",
        "cuda/test_cupy_device -k frameworks",
        "bridges/test_dlpack",
    ],
    "cudeform/dispatch.py": [
        "bridges/test_dispatch bridges/test_dlpack -k 'not callers_kind or roi_align'",
        "bridges/test_torch_eager bridges/test_torch_saved -k 'named or old'",
        "bridges/test_jax -k 'errors or mix or constants or without_jit'",
        "bridges/test_torch_eager",
    ],
    "cudeform/derivatives/*": [
        "operators/test_derivatives",
        "bridges/test_torch -k 'moving or second or adaptive'",
        "bridges/test_torch",
        "bridges/test_jax",
    ],
    "cudeform/layers/*": ["bridges/test_layers bridges/test_layers_attention"],
    "cudeform/converters/offsets.py": ["operators/test_offset_layouts", *_CONVERTERS],
    "cudeform/converters/*": ["operators/test_coordinates", *_CONVERTERS],
    "cudeform/threads.py": ["cpu/test_cpu_threads"],
    "cudeform/plans/points.py": ["examples/test_plot -k 'not photograph'", *_ARGUMENTS],
    "cudeform/*": _ARGUMENTS,
}


def stages(file):
    """Of a file: what pytest is called with, one time after the other."""
    tests = next(tests for pattern, tests in _STAGES.items() if fnmatch(file, pattern))
    return [_arguments(stage) for stage in dict.fromkeys(tests)]


def _arguments(stage):
    return tuple(f"tests/{word}.py" if "/test_" in word else word for word in shlex.split(stage))
