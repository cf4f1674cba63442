// This step's key and value rows into the attention rings of the active slots: see slots.py for shapes and cost.
#include "compat.h"

extern "C" __global__ void __launch_bounds__(256) kv_ring_write(
    unsigned* __restrict__ k, unsigned* __restrict__ v, const unsigned* __restrict__ k_row, const unsigned* __restrict__ v_row,
    long long* __restrict__ pos, const unsigned char* __restrict__ active, int layers, int window, int row_words) {
    size_t slot = blockIdx.x;
    if (!active[slot]) return;
    long long now = pos[slot];
    size_t at = now % window;
    for (int i = threadIdx.x; i < layers * row_words; i += blockDim.x) {
        int layer = i / row_words, word = i - layer * row_words;
        size_t from = slot * layers * row_words + i, to = ((slot * layers + layer) * window + at) * row_words + word;
        k[to] = k_row[from];
        v[to] = v_row[from];
    }
    __syncthreads();  // all have read pos
    if (threadIdx.x == 0) pos[slot] = now + 1;
}
