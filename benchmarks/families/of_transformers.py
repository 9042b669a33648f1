"""Models of transformers, made small by their configurations, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from .case import BATCH, WORDS, Case, image, mask, unsettle, words

_LENGTH = 12
_ENCODER: Mapping[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_DECODER: Mapping[str, Any] = {**_ENCODER, "use_cache": False, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
_GROUPED: Mapping[str, Any] = {**_DECODER, "num_key_value_heads": 2, "head_dim": 8}
_VISION: Mapping[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_SEQ2SEQ: Mapping[str, Any] = {
    "vocab_size": WORDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
}
_AUDIO: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (32, 32),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "apply_spec_augment": False,
}


def _text() -> dict[str, Any]:
    return {"input_ids": words(_LENGTH), "attention_mask": mask(_LENGTH)}


def _pixels() -> dict[str, Any]:
    return {"pixel_values": image(32)}


def _wide_pixels() -> dict[str, Any]:
    return {"pixel_values": image(64)}


def _pairs() -> dict[str, Any]:
    return {**_text(), "decoder_input_ids": words(8)}


def _text_and_pixels() -> dict[str, Any]:
    return {**_text(), **_pixels()}


def _wave() -> dict[str, Any]:
    return {"input_values": torch.randn(BATCH, 800)}


def _spectrum() -> dict[str, Any]:
    return {"input_features": torch.randn(BATCH, 16, 40), "decoder_input_ids": words(8)}


Inputs = Callable[[], dict[str, Any]]
_CLASSIFIER = "ForSequenceClassification"
_NETS: tuple[tuple[str, str, str, str, Mapping[str, Any], Inputs], ...] = (
    ("bert", "encoder", "Bert", _CLASSIFIER, _ENCODER, _text),
    ("roberta", "encoder", "Roberta", _CLASSIFIER, {**_ENCODER, "pad_token_id": 1}, _text),
    ("distilbert", "encoder", "DistilBert", _CLASSIFIER, {
        "vocab_size": WORDS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64,
    }, _text),
    ("albert", "layers that share their weights", "Albert", _CLASSIFIER, {**_ENCODER, "embedding_size": 16}, _text),
    ("electra", "narrow embedding", "Electra", _CLASSIFIER, {**_ENCODER, "embedding_size": 16}, _text),
    ("deberta_v2", "disentangled attention", "DebertaV2", _CLASSIFIER, {
        **_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
    }, _text),
    ("mpnet", "relative position bias", "MPNet", _CLASSIFIER, _ENCODER, _text),
    ("convbert", "span convolution", "ConvBert", _CLASSIFIER, {**_ENCODER, "embedding_size": 32}, _text),
    ("squeezebert", "grouped 1x1 convolution", "SqueezeBert", _CLASSIFIER, {
        **_ENCODER, "embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2,
        "post_attention_groups": 1, "intermediate_groups": 2, "output_groups": 2,
    }, _text),
    ("mobilebert", "bottleneck encoder", "MobileBert", _CLASSIFIER, {
        **_ENCODER, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16,
    }, _text),
    ("modernbert", "rotary, gated MLP", "ModernBert", _CLASSIFIER, {
        **_ENCODER, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "cls_token_id": 0, "sep_token_id": 1,
        "local_attention": 8,
    }, _text),
    ("fnet", "Fourier mixing", "FNet", _CLASSIFIER, _ENCODER, lambda: {"input_ids": words(_LENGTH)}),
    ("gpt2", "decoder, fused qkv, tied embedding", "GPT2", "LMHeadModel", {
        "vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False,
    }, _text),
    ("gpt_neox", "decoder, rotary, parallel branches", "GPTNeoX", "ForCausalLM", _DECODER, _text),
    ("opt", "decoder, learned positions", "OPT", "ForCausalLM", {
        **_DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32,
    }, _text),
    ("bloom", "decoder, ALiBi", "Bloom", "ForCausalLM", {
        "vocab_size": WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False,
    }, _text),
    ("falcon", "decoder, multi-query", "Falcon", "ForCausalLM", _DECODER, _text),
    ("phi", "decoder, partial rotary", "Phi", "ForCausalLM", _DECODER, _text),
    ("llama", "decoder, grouped-query, RMS norm, SwiGLU", "Llama", "ForCausalLM", _GROUPED, _text),
    ("mistral", "decoder, sliding window", "Mistral", "ForCausalLM", {**_GROUPED, "sliding_window": 8}, _text),
    ("qwen3", "decoder, norm of queries and keys", "Qwen3", "ForCausalLM", _GROUPED, _text),
    ("gemma2", "decoder, capped logits", "Gemma2", "ForCausalLM", {**_GROUPED, "sliding_window": 8}, _text),
    ("mixtral", "decoder, mixture of experts", "Mixtral", "ForCausalLM", {
        **_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2,
    }, _text),
    ("mamba", "state space, a loop over time", "Mamba", "ForCausalLM", {
        "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "use_cache": False,
        "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
    }, lambda: {"input_ids": words(_LENGTH)}),
    ("t5", "encoder and decoder, relative bias", "T5", "ForConditionalGeneration", {
        "vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
        "use_cache": False, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    }, _pairs),
    ("bart", "encoder and decoder", "Bart", "ForConditionalGeneration", _SEQ2SEQ, _pairs),
    ("whisper", "speech, encoder and decoder", "Whisper", "ForConditionalGeneration", {
        **_SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 16,
        "suppress_tokens": None, "begin_suppress_tokens": None,
    }, _spectrum),
    ("wav2vec2", "speech, 1-D convolution", "Wav2Vec2", "ForSequenceClassification", _AUDIO, _wave),
    ("vit", "ViT, separate q, k, v", "ViT", "ForImageClassification", _VISION, _pixels),
    ("dinov2", "ViT, layer scale", "Dinov2", "ForImageClassification", _VISION, _pixels),
    ("yolos", "detection tokens, several outputs", "Yolos", "ForObjectDetection", {
        **_VISION, "image_size": [32, 32], "num_detection_tokens": 5, "use_mid_position_embeddings": False,
    }, _pixels),
    ("segformer", "pyramid attention, segmentation", "Segformer", "ForSemanticSegmentation", {
        "hidden_sizes": [16, 32], "depths": [1, 1], "num_encoder_blocks": 2, "num_attention_heads": [1, 2],
        "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 32,
    }, _wide_pixels),
    ("clip", "two towers, several inputs and outputs", "CLIP", "Model", {
        "text_config": {**_ENCODER, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1},
        "vision_config": dict(_VISION), "projection_dim": 16,
    }, _text_and_pixels),
    ("detr", "detection by queries", "Detr", "ForObjectDetection", {
        "use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "d_model": 32,
        "backbone_config": {
            "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1],
            "layer_type": "basic", "out_features": ["stage2"],
        },
        "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 5,
    }, lambda: {"pixel_values": image(64), "pixel_mask": torch.ones(BATCH, 64, 64, dtype=torch.long)}),
)  # fmt: skip
_QUICK = ("bert", "llama", "clip")


def transformers_cases() -> Iterator[Case]:
    """All of them; transformers is imported when a model is built."""
    for name, family, prefix, suffix, options, inputs in _NETS:
        build = partial(_build, prefix, suffix, options, inputs)
        yield Case(name, "transformers", family, build, name in _QUICK)


def _build(prefix: str, suffix: str, options: Mapping[str, Any], inputs: Inputs) -> tuple[nn.Module, Any]:
    import transformers

    config = getattr(transformers, f"{prefix}Config")(**options)
    return unsettle(getattr(transformers, prefix + suffix)(config)), inputs()
