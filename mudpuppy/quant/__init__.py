"""Low-bit weights: the int4 base of QLoRA, GPTQ, fake-quant and int8, and fp8 products."""
