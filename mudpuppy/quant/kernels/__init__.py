"""Optional kernels of 4-bit layers: compiled C on processors, Triton on GPUs; or PyTorch alone."""
