"""CUDA kernels and their loader; every kernel has a NumPy twin. Empty until the GPU engine lands (see README, Status)."""
