"""Low-bit weights: the int4 base of QLoRA, and GPTQ."""
