"""The model on an NVIDIA GPU: engines, captured steps, and what happens where there is no GPU. Nothing here imports CUDA before it is asked to."""
