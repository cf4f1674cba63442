// Rows of state: reset from a table, or taken over from the step's output. See slots.py for shapes and cost.
#include "compat.h"

__device__ __forceinline__ void copy_row(unsigned* __restrict__ to, const unsigned* __restrict__ from, int words) {
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < words; i += gridDim.y * blockDim.x) to[i] = from[i];
}

extern "C" __global__ void __launch_bounds__(256) slot_reset(
    unsigned* __restrict__ state, const unsigned* __restrict__ fresh, const int* __restrict__ kind, const unsigned char* __restrict__ reset,
    int row_words) {
    size_t slot = blockIdx.x;
    if (reset[slot]) copy_row(state + slot * row_words, fresh + static_cast<size_t>(kind[slot]) * row_words, row_words);
}

extern "C" __global__ void __launch_bounds__(256) slot_commit(
    unsigned* __restrict__ state, const unsigned* __restrict__ news, const unsigned char* __restrict__ active, int row_words) {
    size_t slot = blockIdx.x;
    if (active[slot]) copy_row(state + slot * row_words, news + slot * row_words, row_words);
}
