// One depth token a slot, drawn or the largest, and its embedding: see sampling.py for shapes, cost and the draw.
#include "best.h"
#include "gumbel.h"
#include "philox.h"

// A key that orders as (logit, lower code first) does, different for every code: 32 bits of logit, 10 of code.
__device__ __forceinline__ unsigned long long rank_key(float logit, int code) {
    unsigned bits = __float_as_uint(logit), ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<unsigned long long>(ordered) << 10 | (1023 - code);
}

extern "C" __global__ void __launch_bounds__(1024) depth_sample(
    const float* __restrict__ logits, const unsigned* __restrict__ table, const unsigned long long* __restrict__ seed,
    const long long* __restrict__ position, const float* __restrict__ temperature, const int* __restrict__ top_k,
    const unsigned char* __restrict__ active, int* __restrict__ token, unsigned* __restrict__ embedded, int layer, int layers, int codes,
    int row_words) {
    __shared__ Best found[32];
    __shared__ int chosen;
    size_t slot = blockIdx.x;
    if (!active[slot]) return;
    int code = threadIdx.x, lane = code & 31, warp = code >> 5, warps = blockDim.x >> 5;
    bool allowed = code < codes;
    float score = allowed ? logits[slot * codes + code] : -INFINITE, heat = temperature[slot];
    score = isnan(score) ? -INFINITE : score + 0.0f;  // no negative zero: its key would differ

    if (heat > 0.0f && heat < INFINITE) {
        int k = top_k[slot];
        if (k >= 1 && k < codes) {  // the k-th largest key, bit by bit
            unsigned long long key = rank_key(score, code), least = 0;
            for (int bit = 41; bit >= 0; --bit) {
                unsigned long long higher = least | 1ull << bit;
                if (__syncthreads_count(allowed && key >= higher) >= k) least = higher;
            }
            allowed = allowed && key >= least;
        }
        unsigned long long key = seed[slot], at = position[slot];
        uint4 counter = make_uint4(static_cast<unsigned>(at), static_cast<unsigned>(at >> 32), layer, code >> 2);
        uint4 random = philox(counter, make_uint2(static_cast<unsigned>(key), static_cast<unsigned>(key >> 32)));
        unsigned bits = code & 2 ? (code & 1 ? random.w : random.z) : (code & 1 ? random.y : random.x);
        score = __fadd_rn(__fdiv_rn(score, heat), gumbel(bits));
    }
    Best best = warp_best(allowed ? Best{score, code} : Best{-INFINITE, NO_CODE});
    if (lane == 0) found[warp] = best;
    __syncthreads();
    if (warp == 0) {
        best = warp_best(lane < warps ? found[lane] : Best{-INFINITE, NO_CODE});
        if (lane == 0) {
            chosen = best.code;
            token[slot * layers + layer] = best.code;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < row_words; i += blockDim.x) embedded[slot * row_words + i] = table[static_cast<size_t>(chosen) * row_words + i];
}
