// This step's key and value rows into the slots' attention rings: see kv_ring.py for shapes and cost.
#include "compat.h"

extern "C" __global__ void __launch_bounds__(256) kv_ring_write(
    unsigned* __restrict__ k, unsigned* __restrict__ v, const unsigned* __restrict__ k_row, const unsigned* __restrict__ v_row,
    const int* __restrict__ at, const unsigned char* __restrict__ reset, int layers, int window, int row_words) {
    size_t slot = blockIdx.x, place = slot * layers + blockIdx.y;
    int here = at[slot];
    bool on = here >= 0 && here < window;
    size_t ring = place * window * row_words, row = place * row_words;
    if (reset[slot]) {
        int written = (on ? here : window) * row_words;  // left out: the row that follows
        for (int i = threadIdx.x; i < window * row_words; i += blockDim.x)
            if (i < written || i >= written + row_words) k[ring + i] = v[ring + i] = 0;
    }
    if (!on) return;
    ring += static_cast<size_t>(here) * row_words;
    for (int i = threadIdx.x; i < row_words; i += blockDim.x) {
        k[ring + i] = k_row[row + i];
        v[ring + i] = v_row[row + i];
    }
}
