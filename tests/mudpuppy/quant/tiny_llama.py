"""A random Llama of two small blocks, for the tests of this folder."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig


def make_llama(
    *, dtype: torch.dtype = torch.float32, bias: bool = False, spread: float = 6.0, **changes: int
):
    torch.manual_seed(0)
    settings = {
        "vocab_size": 96,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "hidden_size": 32,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    config = LlamaConfig(**{**settings, **changes}, attention_bias=bias)
    # not .to(dtype), which would round the rotary frequencies too; loading keeps them exact
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    # the default 0.02 makes the logits so small that nothing can be told apart
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(spread)
            elif name.endswith("bias"):
                parameter.normal_()
    return model


def make_ids(batch: int = 2, length: int = 9, vocabulary: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (batch, length), generator=generator)
