// Nearest code of every layer of a residual quantiser in one launch: see rvq.py for shapes and cost.
#include "best.h"

constexpr int TILE = 4;  // slots a block: each element of a codebook is read once for all of them

extern "C" __global__ void __launch_bounds__(1024) rvq_nearest(
    const float* __restrict__ z, const float* __restrict__ codebooks, const float* __restrict__ half_norms,
    const unsigned char* __restrict__ active, int* __restrict__ index, float* __restrict__ quantised, int slots, int layers, int codes, int dim) {
    DYNAMIC_SHARED(float, left);  // [dim][TILE]: what the layers before left over
    __shared__ Best found[32][TILE];
    __shared__ int chosen[TILE];
    int first = blockIdx.x * TILE, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    bool on[TILE], any = false;
#pragma unroll
    for (int t = 0; t < TILE; ++t) {
        on[t] = first + t < slots && active[first + t];
        any |= on[t];
    }
    if (!any) return;
    for (int d = threadIdx.x; d < dim; d += blockDim.x)
#pragma unroll
        for (int t = 0; t < TILE; ++t) left[d * TILE + t] = on[t] ? z[static_cast<size_t>(first + t) * dim + d] : 0.0f;

    for (int layer = 0; layer < layers; ++layer) {
        const float* book = codebooks + static_cast<size_t>(layer) * dim * codes;
        Best best[TILE];
#pragma unroll
        for (int t = 0; t < TILE; ++t) best[t] = Best{-INFINITE, NO_CODE};
        __syncthreads();
        for (int k = threadIdx.x; k < codes; k += blockDim.x) {
            float score[TILE];  // <z, c> - 0.5 |c|^2: highest is nearest
#pragma unroll
            for (int t = 0; t < TILE; ++t) score[t] = -half_norms[layer * codes + k];
            for (int d = 0; d < dim; ++d) {
                float c = book[static_cast<size_t>(d) * codes + k];
#pragma unroll
                for (int t = 0; t < TILE; ++t) score[t] = fmaf(left[d * TILE + t], c, score[t]);
            }
#pragma unroll
            for (int t = 0; t < TILE; ++t) best[t] = better(best[t], Best{isnan(score[t]) ? -INFINITE : score[t], k});
        }
#pragma unroll
        for (int t = 0; t < TILE; ++t) {
            best[t] = warp_best(best[t]);
            if (lane == 0) found[warp][t] = best[t];
        }
        __syncthreads();
        if (warp == 0)
#pragma unroll
            for (int t = 0; t < TILE; ++t) {
                Best winner = warp_best(lane < warps ? found[lane][t] : Best{-INFINITE, NO_CODE});
                if (lane == 0) {
                    chosen[t] = winner.code;
                    if (on[t]) index[static_cast<size_t>(first + t) * layers + layer] = winner.code;
                }
            }
        __syncthreads();
        for (int d = threadIdx.x; d < dim; d += blockDim.x)
#pragma unroll
            for (int t = 0; t < TILE; ++t) left[d * TILE + t] -= book[static_cast<size_t>(d) * codes + chosen[t]];
    }
    for (int d = threadIdx.x; d < dim; d += blockDim.x)
#pragma unroll
        for (int t = 0; t < TILE; ++t) {
            size_t at = static_cast<size_t>(first + t) * dim + d;
            if (on[t]) quantised[at] = z[at] - left[d * TILE + t];
        }
}
