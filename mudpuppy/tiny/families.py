"""Random tiny models of other families: the structure of the real ones, and no knowledge at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mudpuppy.tiny.build import save_folder, write_manifest
from mudpuppy.tiny.corpus import conversations
from mudpuppy.tiny.fingerprint import family_hash, file_sha256
from mudpuppy.tiny.names import check_family
from mudpuppy.tiny.tokenizer import MAX_LENGTH, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 1024
"""Entries of every tokenizer, and rows of every embedding."""
EXTRA_TOKENS = {
    # transformers loads a qwen2 tokenizer by its own class, which adds this one if it is not there
    "qwen2": ("<|endoftext|>",),
    "llava": ("<image>",),
    "qwen2-vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
}
"""Further special tokens, by family; most stand for pictures."""
IMAGE_TEMPLATE_PATH = Path(__file__).with_name("image_chat_template.jinja")
IMAGE_SIDE, PATCH_SIDE = 16, 8
"""Pixels of an image and of a patch of it, in tiny:llava."""

# two layers, so that order matters; twice as many query heads as key heads, as in the real ones
_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.05,
}
# class name, and what its configuration has beyond the shape
_TEXT_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},
    ),
    "phi3": ("Phi3Config", {"tie_word_embeddings": False}),
    "mistral": ("MistralConfig", {"tie_word_embeddings": False, "sliding_window": None}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def build_family(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write the random model of `family` and its tokenizer to `folder`, and return `folder`.

    Raises:
        ModelError: the family is not known.
    """
    import torch

    check_family(family)
    texts = [message["content"] for messages in conversations() for message in messages]
    extra = EXTRA_TOKENS.get(family, ())
    tokenizer = train_tokenizer(texts, VOCAB_SIZE, extra_tokens=extra)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_family_model(family, tokenizer)
    if family == "llava":
        tokenizer.chat_template = IMAGE_TEMPLATE_PATH.read_text(encoding="utf-8")
        _llava_processor(tokenizer).save_pretrained(folder)
    save_folder(folder, model, tokenizer)
    facts = {
        "family": family,
        "seed": seed,
        "content_hash": family_hash(family, seed),
        "weights_sha256": file_sha256(folder / "model.safetensors"),
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }
    write_manifest(folder, facts)
    return folder


def make_family_model(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return the model of `family` with weights from the current random state, in fp32."""
    import transformers

    if family == "llava":
        return transformers.LlavaForConditionalGeneration(_llava_config(tokenizer)).eval()
    if family == "qwen2-vl":
        return transformers.Qwen2VLForConditionalGeneration(_qwen2_vl_config(tokenizer)).eval()
    return transformers.AutoModelForCausalLM.from_config(_text_config(family, tokenizer)).eval()


def _text_config(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    import transformers

    name, special = _TEXT_FAMILIES[family]
    return getattr(transformers, name)(**_SHAPE, **_ids(tokenizer), **special)


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _llava_config(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    from transformers import CLIPVisionConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
        projection_dim=32,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=_text_config("llama", tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )


def _llava_processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return the processor of text and images; it needs Pillow and no torchvision."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIDE},
        crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIDE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" leaves out again
        chat_template=tokenizer.chat_template,
    )


def _qwen2_vl_config(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    from transformers import Qwen2VLConfig

    start, end, image, video = tokenizer.convert_tokens_to_ids(list(EXTRA_TOKENS["qwen2-vl"]))
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    return Qwen2VLConfig(
        # Qwen2-VL's vision tower ends in the width of the text model
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": _SHAPE["hidden_size"],
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
        },
        text_config={**_SHAPE, **_ids(tokenizer), "rope_parameters": rope},
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
