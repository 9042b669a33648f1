"""Models of timm, with random weights and images as small as their strides allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import nn

from .case import Case, image, unsettle

_FIXED: Mapping[str, Any] = {"num_classes": 10}
_NETS: tuple[tuple[str, str, int, Mapping[str, Any]], ...] = (
    ("resnet18", "residual", 64, {}),
    ("resnet26d", "bottleneck, average pool in the shortcut", 64, {}),
    ("resnetv2_50", "pre-activation residual", 64, {}),
    ("resnext26ts", "grouped convolution", 64, {}),
    ("legacy_seresnet18", "squeeze-and-excitation", 64, {}),
    ("skresnet18", "selective kernels", 64, {}),
    ("resnest14d", "split attention", 64, {}),
    ("res2net50_26w_4s", "hierarchical split", 64, {}),
    ("densenet121", "dense concatenation", 64, {}),
    ("vgg11_bn", "plain", 64, {}),
    ("dla34", "aggregation tree", 64, {}),
    ("hrnet_w18_small", "parallel resolutions", 64, {}),
    ("cspresnet50", "cross-stage partial", 64, {}),
    ("ese_vovnet19b_dw", "one-shot aggregation", 64, {}),
    ("inception_v3", "branches", 96, {}),
    ("xception41", "separable convolution", 96, {}),
    ("mobilenetv1_100", "depthwise", 64, {}),
    ("mobilenetv2_050", "inverted bottleneck", 64, {}),
    ("mobilenetv3_small_050", "hard swish, squeeze-and-excitation", 64, {}),
    ("mobilenetv4_conv_small_035", "universal inverted bottleneck", 64, {}),
    ("mnasnet_small", "searched", 64, {}),
    ("efficientnet_b0", "compound scaling", 64, {}),
    ("efficientnetv2_rw_t", "fused inverted bottleneck", 64, {}),
    ("tf_mixnet_s", "mixed kernel sizes", 64, {}),
    ("ghostnet_050", "cheap operations, concatenation", 64, {}),
    ("regnety_002", "grouped, squeeze-and-excitation", 64, {}),
    ("repvgg_a0", "parallel 3x3, 1x1 and identity", 64, {}),
    ("rexnet_100", "partial residual", 64, {}),
    ("nf_regnet_b0", "weight standardisation, no norm", 64, {}),
    ("convnext_atto", "layer norm, layer scale", 64, {}),
    ("convnextv2_atto", "global response norm", 64, {}),
    ("mambaout_femto", "gated convolution", 64, {}),
    ("starnet_s1", "multiplied branches", 64, {}),
    ("inceptionnext_atto", "depthwise branches by split", 64, {}),
    ("vit_tiny_patch16_224", "ViT, fused qkv", 64, {"img_size": 64, "depth": 4}),
    ("deit3_small_patch16_224", "ViT, layer scale", 64, {"img_size": 64, "depth": 4}),
    ("cait_xxs24_224", "talking heads, class attention", 64, {"img_size": 64, "depth": 4}),
    ("eva02_tiny_patch14_224", "rotary embedding, gated MLP", 56, {"img_size": 56, "depth": 4}),
    ("beit_base_patch16_224", "relative position bias", 64, {"img_size": 64, "depth": 2}),
    ("xcit_nano_12_p16_224", "cross-covariance attention", 64, {"depth": 3}),
    ("volo_d1_224", "outlook attention", 64, {"img_size": 64, "layers": (1, 1, 2, 1)}),
    ("swin_tiny_patch4_window7_224", "windows", 224, {"depths": (2, 2, 2, 2)}),
    ("swinv2_tiny_window8_256", "windows, cosine attention", 256, {"depths": (2, 2, 2, 2)}),
    ("pvt_v2_b0", "pyramid attention", 64, {}),
    ("twins_svt_small", "local and global attention", 64, {"depths": (1, 1, 2, 1), "img_size": 64}),
    ("poolformer_s12", "pooling instead of attention", 64, {}),
    ("efficientformer_l1", "convolution, then attention", 224, {}),
    ("mobilevit_xxs", "convolution around attention", 64, {}),
    ("mobilevitv2_050", "separable attention", 64, {}),
    ("edgenext_xx_small", "split depthwise, cross-covariance", 64, {}),
    ("efficientvit_b0", "linear attention", 64, {}),
    ("levit_128s", "attention with batch norm", 224, {}),
    ("tiny_vit_5m_224", "convolution and windows", 224, {}),
    ("coatnet_nano_rw_224", "convolution, relative attention", 224, {}),
    ("fastvit_t8", "reparametrised mixers", 64, {}),
    ("repvit_m0_9", "reparametrised, squeeze-and-excitation", 64, {}),
    ("mixer_s32_224", "MLP-Mixer", 64, {"img_size": 64}),
    ("resmlp_12_224", "ResMLP, affine scales", 64, {"img_size": 64}),
    ("gmlp_ti16_224", "spatial gating", 64, {"img_size": 64}),
)
_QUICK = ("resnet18", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224")


def timm_cases() -> Iterator[Case]:
    """All of them; timm is imported when a model is built."""
    for name, family, size, options in _NETS:
        yield Case(name, "timm", family, partial(_build, name, size, options), name in _QUICK)


def _build(name: str, size: int, options: Mapping[str, Any]) -> tuple[nn.Module, Any]:
    import timm

    return unsettle(timm.create_model(name, pretrained=False, **_FIXED, **options)), image(size)
