// Complex FFT of any size by one block, in shared memory: Stockham's self-sorting form (decimation in time), radix 4 first, then the
// prime factors. A prime factor p costs p products a point, so sizes of small factors are fast and all sizes are right.
#pragma once
#include "compat.h"

__device__ __forceinline__ int next_radix(int n) {
    if (n % 4 == 0) return 4;
    for (int p = 2; p * p <= n; ++p)
        if (n % p == 0) return p;
    return n;
}

// twiddle[k] = exp(direction * 2 pi i k / points); direction -1 forward, +1 inverse.
__device__ __forceinline__ void fill_twiddles(float2* twiddle, int points, float direction) {
    for (int k = threadIdx.x; k < points; k += blockDim.x) {
        int near = 2 * k > points ? k - points : k;  // the smaller angle is the more exact one
        float s, c;
        sincospif(2.0f * near / points, &s, &c);
        twiddle[k] = make_float2(c, direction * s);
    }
}

// `from` and `twiddle` are filled and a barrier has passed. Returns whichever buffer holds the result; a barrier has passed again.
__device__ __forceinline__ float2* fft(float2* from, float2* to, const float2* twiddle, int points) {
    for (int done = 1; done < points;) {
        int radix = next_radix(points / done), length = done * radix, groups = points / length;
        for (int o = threadIdx.x; o < points; o += blockDim.x) {
            int group = o / length, k = o - group * length;
            const float2* in = from + group * done + k % done;
            float2 sum = in[0];
            for (int r = 1, turn = 0; r < radix; ++r) {
                in += groups * done;
                turn += k * groups;
                if (turn >= points) turn -= points;
                float2 w = twiddle[turn], x = *in;
                sum.x = fmaf(w.x, x.x, fmaf(-w.y, x.y, sum.x));
                sum.y = fmaf(w.x, x.y, fmaf(w.y, x.x, sum.y));
            }
            to[o] = sum;
        }
        __syncthreads();
        float2* filled = to;
        to = from;
        from = filled;
        done = length;
    }
    return from;
}
