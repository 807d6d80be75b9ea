"""Attention on PyTorch's scaled_dot_product_attention alone: no package of kernels is needed."""
