"""The axes of the rule table: methods, precisions, and what can be switched on beside them.

Standard library only: a rejection is spoken before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

SFT_METHODS = ("full", "lora", "qlora")
"""Methods that learn to say what the dataset says."""
PREFERENCE_METHODS = ("dpo", "ipo", "kto", "orpo")
"""Methods that learn which of two answers is better."""
METHODS = (*SFT_METHODS, "gptq", "qat", *PREFERENCE_METHODS, "grpo", "rm", "prm", "multimodal")
"""Training methods, in the order they are listed everywhere."""
ADAPTER_METHODS = frozenset({"lora", "qlora"})
"""Methods that are named for the adapter they train."""
ADAPTER_BY_DEFAULT = ADAPTER_METHODS | {*PREFERENCE_METHODS, "grpo", "rm", "prm", "multimodal"}
"""Methods that train an adapter unless `--no-use-peft` says otherwise."""
PRECISIONS = ("fp32", "bf16", "fp16", "fp8")
"""Precisions, by the names people use for them."""
QUANT_BLOCK_SIZES = {"nf4": 64, "int4": 64, "mxfp4": 32, "int8": 64}
"""Weights that share a scale in the formats of a frozen base, where nothing else is asked for."""
MOST_QUANT_SEARCH = 256
"""Further scales that may be tried for a block of a 4-bit weight."""

METHOD_ALIASES = {
    "preference": "dpo",
    "rl": "grpo",
    "reward": "rm",
    "process-reward": "prm",
    "process_reward": "prm",
}
"""Other spellings of the methods (seed 001); `--preference` says which `preference` it is."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """Something that can be switched on beside a method and a precision."""

    name: str
    """Stable name, as used in scenario files and tables."""
    flag: str
    """What a person types to switch it on."""
    what: str
    """What it does, in a few words."""


_TABLE = (
    ("streaming", "--stream", "layers wait on the host, one at a time computes"),
    (
        "gradient-checkpointing",
        "--gradient-checkpointing",
        "activations are recomputed in the backward pass",
    ),
    (
        "early-stopping",
        "--early-stopping",
        "training ends when the evaluation loss stops falling",
    ),
    (
        "lr-scheduler",
        "--lr-scheduler cosine",
        "a schedule for the learning rate other than linear",
    ),
    (
        "merge-lora",
        "--merge-lora",
        "the trained adapter is folded into the base and saved as a model",
    ),
    ("merge-precision", "--merge-precision bf16", "the merged model is saved in another type"),
    ("no-evaluation", "--eval-fraction 0", "no sample is held out for evaluation"),
    ("full-weights", "--no-use-peft", "all weights are trained instead of an adapter"),
    ("dora", "--use-dora", "the adapter learns direction and magnitude apart (DoRA)"),
    ("rslora", "--use-rslora", "the adapter is scaled by alpha over the root of its rank (rsLoRA)"),
    ("continue-adapter", "--adapter DIR", "an adapter that exists is trained on"),
    ("packing", "--packing", "several samples share a row, each blind to the others"),
    (
        "tokens-per-batch",
        "--tokens-per-batch 2048",
        "batches are filled to a number of tokens, padding included",
    ),
    ("device-map", "--device-map auto", "the layers are spread over the devices"),
    ("zero-offload", "--zero-offload", "optimizer states live and step on the host"),
    ("compile", "--compile", "the model is compiled with torch.compile"),
    ("checkpoints", "--save-steps 10", "checkpoints that --resume continues from"),
    ("all-tokens", "--no-response-only", "the loss covers the prompt, too"),
    ("no-chat-template", "--no-chat-template", "samples are joined as plain text"),
    ("num-workers", "--num-workers 2", "batches are prepared by processes of their own"),
    ("preprocess-workers", "--preprocess-workers 2", "samples are tokenised by several processes"),
    ("logging", "--report-to tensorboard", "numbers are also written for TensorBoard or W&B"),
    ("quant", "--quant int4", "the frozen base is held in a format that is named"),
    ("quant-block-size", "--quant-block-size 32", "so many weights share one scale"),
    ("quant-search", "--quant-search 16", "the scales of the frozen base are searched"),
    ("no-kernels", "--kernels off", "the 4-bit base is computed by PyTorch alone"),
    ("fsdp", "--fsdp full_shard", "weights and optimizer are sharded over several processes"),
    (
        "static-activations",
        "--qat-activations tensor",
        "all inputs of a layer share one int8 scale, which training finds",
    ),
    ("learned-ranges", "--qat-ranges learned", "int8 scales are trained beside the weights"),
    (
        "delayed-scaling",
        "--fp8-scaling delayed",
        "fp8 scales follow the largest values of the steps before",
    ),
    ("unlearning", "--unlearn npo", "rows marked unlearn are forgotten, the others learnt"),
    ("retain-kl", "--retain-kl 1", "rows that are kept stay near the untrained model"),
)
FEATURES: dict[str, Feature] = {
    name: Feature(name=name, flag=flag, what=what) for name, flag, what in _TABLE
}
"""Every feature by its name, in the order they are listed everywhere."""
