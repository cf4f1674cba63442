// Streaming STFT and inverse, one block a slot: see stft.py for shapes and cost.
#include "fft.h"

constexpr int MAX_HOP = 480, BINS = MAX_HOP;

// Clears the carried row of a reset slot; whether the slot takes part. The same for all threads of a block.
__device__ __forceinline__ bool begin(float* carried, int hop, bool active, bool reset) {
    if (reset)
        for (int i = threadIdx.x; i < MAX_HOP; i += blockDim.x) carried[i] = 0.0f;  // read and written below by the same thread
    return active && hop >= 1 && hop <= MAX_HOP;
}

__device__ __forceinline__ float window(int i, int hop) {
    return sinpif(static_cast<float>(i) / (2 * hop));
}

extern "C" __global__ void __launch_bounds__(256) stft_analyse(
    const float* __restrict__ heard, float* __restrict__ tail, const int* __restrict__ hops, const unsigned char* __restrict__ active,
    const unsigned char* __restrict__ reset, float* __restrict__ spec) {
    DYNAMIC_SHARED(float2, shared);
    size_t slot = blockIdx.x;
    int hop = hops[slot], points = 2 * hop;
    float* carried = tail + slot * MAX_HOP;
    if (!begin(carried, hop, active[slot], reset[slot])) return;
    const float* frame = heard + slot * 2 * MAX_HOP;
    float2 *twiddle = shared, *a = shared + 2 * MAX_HOP, *b = shared + 4 * MAX_HOP;

    fill_twiddles(twiddle, points, -1.0f);
    for (int i = threadIdx.x; i < points; i += blockDim.x) {  // first hop of the frame is real, second imaginary
        float w = window(i, hop), first = i < hop ? carried[i] : frame[i - hop];
        a[i] = make_float2(first * w, frame[i] * w);
    }
    __syncthreads();
    const float2* z = fft(a, b, twiddle, points);

    float2* out = reinterpret_cast<float2*>(spec) + slot * 2 * BINS;
    float scale = 0.5f / hop;
    for (int k = threadIdx.x; k < BINS; k += blockDim.x) {
        float2 first = make_float2(0.0f, 0.0f), second = first;
        if (k <= hop) {
            float2 p = z[k], q = z[k == 0 ? 0 : points - k];
            first = make_float2(scale * (p.x + q.x), scale * (p.y - q.y));
            second = make_float2(scale * (p.y + q.y), scale * (q.x - p.x));
        }
        out[k] = first;
        out[BINS + k] = second;
    }
}

extern "C" __global__ void __launch_bounds__(256) stft_synthesise(
    const float* __restrict__ spec, const float* __restrict__ heard, float* __restrict__ tail, float* __restrict__ overlap,
    const int* __restrict__ hops, const float* __restrict__ dry, const unsigned char* __restrict__ active,
    const unsigned char* __restrict__ reset, float* __restrict__ pcm) {
    DYNAMIC_SHARED(float2, shared);
    size_t slot = blockIdx.x;
    int hop = hops[slot], points = 2 * hop;
    float* carried = overlap + slot * MAX_HOP;
    if (!begin(carried, hop, active[slot], reset[slot])) return;
    const float2* in = reinterpret_cast<const float2*>(spec) + slot * 2 * BINS;
    float2 *twiddle = shared, *a = shared + 2 * MAX_HOP, *b = shared + 4 * MAX_HOP;

    fill_twiddles(twiddle, points, 1.0f);
    for (int k = threadIdx.x; k <= hop; k += blockDim.x) {  // first + i second, continued as spectra of real signals are
        float2 first = make_float2(0.0f, 0.0f), second = first;
        if (k < BINS) first = in[k], second = in[BINS + k];
        if (k == 0 || k == hop) first.y = second.y = 0.0f;
        a[k] = make_float2(first.x - second.y, first.y + second.x);
        if (k > 0 && k < hop) a[points - k] = make_float2(first.x + second.y, second.x - first.y);
    }
    __syncthreads();
    const float2* z = fft(a, b, twiddle, points);

    const float* frame = heard + slot * 2 * MAX_HOP;
    float *before = tail + slot * MAX_HOP, *out = pcm + slot * 2 * MAX_HOP;
    float share = dry[slot], kept = share < 0.0f ? 1.0f : share;
    float wet = 0.5f * (share < 0.0f ? -share - 1.0f : 1.0f - share);  // 1 / (2 hop) of the inverse times hop of the scaling
    for (int i = threadIdx.x; i < hop; i += blockDim.x) {
        float rise = window(i, hop), fall = window(hop + i, hop), second = frame[hop + i];
        out[i] = carried[i] + rise * fmaf(wet, z[i].x, kept * rise * before[i]);
        out[hop + i] = wet * fmaf(fall, z[hop + i].x, rise * z[i].y) + kept * frame[i];  // the squares of the windows add up to one
        carried[i] = fall * fmaf(wet, z[hop + i].y, kept * fall * second);
        before[i] = second;
    }
}
