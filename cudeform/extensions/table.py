"""Which compiled modules have stand-ins, who imports them, and what they hold: data, and no code.

A name in a module stands for a function or a class, written as where it lies in
`cudeform.torch.extensions`: "convolution.deform_conv_forward". An empty text is a name that is
there, so that the module's users can be imported, and says so when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Names = Mapping[str, str]


@dataclass(frozen=True)
class Extension:
    """A compiled module that others import, and what stands in for it."""

    name: str
    users: str
    modules: Mapping[str, Names]  # of the same name, and what lies below it in a package
    on_request: bool = False  # other software has a module of this name
    distribution: bool = False  # its users ask for the version that is installed

    @property
    def functions(self) -> tuple[str, ...]:
        """The names that can be called."""
        names = {name for held in self.modules.values() for name, code in held.items() if code}
        return tuple(sorted(names))

    @property
    def missing(self) -> tuple[str, ...]:
        """The names that are there and raise `NotImplementedError`."""
        names = {name for held in self.modules.values() for name, code in held.items() if not code}
        return tuple(sorted(names))

    def called(self, name: str) -> Extension:
        """The same under another name."""
        modules = {name + module[len(self.name) :]: held for module, held in self.modules.items()}
        return Extension(name, self.users, modules)


def _names(room: str, *names: str) -> dict[str, str]:
    return {name: f"{room}.{name}" for name in names}


def _both(room: str, *stems: str) -> dict[str, str]:
    return _names(room, *(f"{stem}_{way}" for stem in stems for way in ("forward", "backward")))


# mmcv's own list, which it asserts at import.
_MMCV = """
active_rotated_filter_backward active_rotated_filter_forward assign_score_withk_backward
assign_score_withk_forward ball_query_forward bbox_overlaps bezier_align_backward
bezier_align_forward bias_act border_align_backward border_align_forward box_iou_quadri
box_iou_rotated carafe_backward carafe_forward carafe_naive_backward carafe_naive_forward
chamfer_distance_backward chamfer_distance_forward contour_expand convex_giou convex_iou
correlation_backward correlation_forward deform_conv_backward_input
deform_conv_backward_parameters deform_conv_forward deform_roi_pool_backward
deform_roi_pool_forward diff_iou_rotated_sort_vertices_forward dynamic_point_to_voxel_backward
dynamic_point_to_voxel_forward dynamic_voxelize_forward filtered_lrelu filtered_lrelu_act_
furthest_point_sampling_forward furthest_point_sampling_with_dist_forward fused_bias_leakyrelu
fused_indice_conv_forward gather_points_backward gather_points_forward get_compiler_version
get_compiling_cuda_version get_indice_pairs_2d_backward get_indice_pairs_2d_forward
get_indice_pairs_3d_backward get_indice_pairs_3d_forward get_indice_pairs_4d_forward
group_points_backward group_points_forward hard_voxelize_forward indice_conv_backward
indice_conv_forward indice_maxpool_backward indice_maxpool_forward
iou3d_boxes_overlap_bev_forward iou3d_nms3d_forward iou3d_nms3d_normal_forward knn_forward
masked_col2im_forward masked_im2col_forward min_area_polygons modulated_deform_conv_backward
modulated_deform_conv_forward ms_deform_attn_backward ms_deform_attn_forward nms nms_match
nms_quadri nms_rotated pixel_group points_in_boxes_all_forward points_in_boxes_cpu_forward
points_in_boxes_part_forward points_in_polygons_forward prroi_pool_backward
prroi_pool_coor_backward prroi_pool_forward psamask_backward psamask_forward
riroi_align_rotated_backward riroi_align_rotated_forward roi_align_backward roi_align_forward
roi_align_rotated_backward roi_align_rotated_forward roi_pool_backward roi_pool_forward
roiaware_pool3d_backward roiaware_pool3d_forward roipoint_pool3d_forward
rotated_feature_align_backward rotated_feature_align_forward sigmoid_focal_loss_backward
sigmoid_focal_loss_forward softmax_focal_loss_backward softmax_focal_loss_forward softnms
stack_ball_query_forward stack_group_points_backward stack_group_points_forward
sync_bn_backward_data sync_bn_backward_param sync_bn_forward_mean sync_bn_forward_output
sync_bn_forward_var three_interpolate_backward three_interpolate_forward three_nn_forward
tin_shift_backward tin_shift_forward upfirdn2d
""".split()

_IN_PLACE = {
    **_names("convolution", "deform_conv_forward", "deform_conv_backward_input"),
    **_names("convolution", "deform_conv_backward_parameters"),
    **_both("convolution", "modulated_deform_conv"),
}
_ATTENTION = _both("attention", "ms_deform_attn")
_DCNV3, _DCNV4 = _both("dcnv3", "dcnv3"), _both("dcnv3", "dcnv4")
_FLASH = _both("attention", "flash_deform_attn")
_DCNV4_MODULES = _names("dcnv4", "DCNv4", "FlashDeformAttn")
_DCNV4_FUNCTIONS = _names("dcnv4", "DCNv4Function", "FlashDeformAttnFunction")


def _module(name: str, users: str, names: Names, **options: bool) -> Extension:
    """One that is no package."""
    return Extension(name, users, {name: names}, **options)


_ROWS = (
    _module(
        "mmcv._ext",
        "mmcv, and with it mmdetection, mmsegmentation, BEVFormer",
        {
            **dict.fromkeys(_MMCV, ""),
            **_IN_PLACE,
            **_both("regions", "deform_roi_pool", "roi_align", "roi_pool"),
            **_both("located", "prroi_pool", "roi_align_rotated"),
            **_names("located", "prroi_pool_coor_backward"),
            **_ATTENTION,
            "ms_deform_attn_backward": "attention.ms_deform_attn_backward_",
            **_names("boxes", "bbox_overlaps", "nms", "nms_match", "softnms"),
            **_both("losses", "sigmoid_focal_loss", "softmax_focal_loss"),
            **_names("versions", "get_compiler_version", "get_compiling_cuda_version"),
        },
    ),
    _module(
        "MultiScaleDeformableAttention",
        "Deformable DETR, Mask2Former, OneFormer, DINO, ViT-Adapter, TransTrack",
        _ATTENTION,
    ),
    _module("groundingdino._C", "Grounding DINO", _ATTENTION),
    _module("detrex._C", "detrex", {**_ATTENTION, **_DCNV3}),
    _module(
        "_ext",
        "DCNv2 of CharlesShang, CenterNet, FairMOT, CenterTrack, YOLACT++",
        {
            **_both("convolution", "dcn_v2"),
            "dcn_v2_psroi_pooling_forward": "regions.deform_psroi_pooling_forward",
            "dcn_v2_psroi_pooling_backward": "regions.deform_psroi_pooling_backward",
        },
        on_request=True,
    ),
    _module(
        "DCN",
        "Deformable-Convolution-V2-PyTorch of chengdazhi",
        {
            "deform_conv_forward": "convolution.dcn_forward",
            "deform_conv_backward": "convolution.dcn_backward",
            "modulated_deform_conv_forward": "convolution.modulated_dcn_forward",
            "modulated_deform_conv_backward": "convolution.modulated_dcn_backward",
            **_both("regions", "deform_psroi_pooling"),
        },
        on_request=True,
    ),
    _module("DCNv3", "InternImage", _DCNV3, distribution=True),
    Extension(
        "DCNv4",
        "DCNv4, FlashInternImage",
        {
            "DCNv4": {**_DCNV4_MODULES, **_DCNV4_FUNCTIONS},
            "DCNv4.modules": _DCNV4_MODULES,
            "DCNv4.functions": _DCNV4_FUNCTIONS,
            "DCNv4.ext": {**_DCNV4, **_FLASH},
        },
    ),
    _module("basicsr.ops.dcn.deform_conv_ext", "BasicSR, GFPGAN, Real-ESRGAN", _IN_PLACE),
    _module("basicsr.models.ops.dcn.deform_conv_ext", "EDVR, early BasicSR", _IN_PLACE),
    _module("mmdet.ops.dcn.deform_conv_ext", "mmdetection 1.1 to 1.2", _IN_PLACE),
    _module(
        "detectron2._C",
        "detectron2",
        {
            **{k: v for k, v in _IN_PLACE.items() if k != "deform_conv_backward_parameters"},
            "deform_conv_backward_filter": "convolution.deform_conv_backward_parameters",
            **_names("versions", "get_compiler_version", "get_cuda_version", "has_cuda"),
            "COCOevalAccumulate": "",
            "COCOevalEvaluateImages": "",
            "InstanceAnnotation": "",
            "ImageEvaluation": "",
        },
        # With it, detectron2 no longer evaluates with pycocotools, as it does without its own.
        on_request=True,
    ),
    _module(
        "mmdet.ops.dcn.deform_conv_cuda",
        "mmdetection 1.0, SOLO",
        {
            "deform_conv_forward_cuda": "convolution.deform_conv_forward",
            "deform_conv_backward_input_cuda": "convolution.deform_conv_backward_input",
            "deform_conv_backward_parameters_cuda": "convolution.deform_conv_backward_parameters",
            "modulated_deform_conv_cuda_forward": "convolution.modulated_deform_conv_forward",
            "modulated_deform_conv_cuda_backward": "convolution.modulated_deform_conv_backward",
        },
    ),
    _module(
        "mmdet.ops.dcn.deform_pool_cuda",
        "mmdetection 1.0, SOLO",
        {
            "deform_psroi_pooling_cuda_forward": "regions.deform_psroi_pooling_forward_",
            "deform_psroi_pooling_cuda_backward": "regions.deform_psroi_pooling_backward_",
        },
    ),
    _module(
        "mmdet.ops.dcn.deform_pool_ext",
        "mmdetection 1.1 to 1.2",
        {
            "deform_psroi_pooling_forward": "regions.deform_psroi_pooling_forward_",
            "deform_psroi_pooling_backward": "regions.deform_psroi_pooling_backward_",
        },
    ),
)
EXTENSIONS = {row.name: row for row in _ROWS}
