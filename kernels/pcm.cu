// Packed 16-bit or mu-law samples to and from the slots' float rows: see pcm.py for shapes and cost.
#include "compat.h"

constexpr int ROW = 960, BIAS = 0x84 >> 2, LARGEST = 32635 >> 2;

__device__ __forceinline__ float decode(short sample) {
    return sample * (1.0f / 32768);
}

__device__ __forceinline__ float decode(unsigned char code) {
    int u = ~code & 0xFF, size = ((((u & 0x0F) << 3) + 0x84) << ((u & 0x70) >> 4)) - 0x84;
    return (u & 0x80 ? -size : size) * (1.0f / 32768);
}

__device__ __forceinline__ void encode(int sample, short* out) {
    *out = static_cast<short>(sample);
}

__device__ __forceinline__ void encode(int sample, unsigned char* out) {
    int size = sample < 0 ? -(sample >> 2) : sample >> 2;
    size = (size < LARGEST ? size : LARGEST) + BIAS;
    int exponent = 26 - __clz(size);  // BIAS makes size at least 33
    *out = static_cast<unsigned char>(~((sample < 0 ? 0x80 : 0) | exponent << 4 | (size >> (exponent + 1) & 0x0F)));
}

__device__ __forceinline__ int rounded(float x) {
    return isnan(x) ? 0 : static_cast<int>(fminf(fmaxf(rintf(x * 32768.0f), -32768.0f), 32767.0f));
}

template <class Sample>
__device__ __forceinline__ void to_slots(const Sample* block, const int* slot, const int* samples, float* pcm) {
    size_t entry = blockIdx.x;
    if (slot[entry] < 0) return;
    float* row = pcm + static_cast<size_t>(slot[entry]) * ROW;
    for (int i = threadIdx.x; i < samples[entry] && i < ROW; i += blockDim.x) row[i] = decode(block[entry * ROW + i]);
}

template <class Sample>
__device__ __forceinline__ void from_slots(const float* pcm, const int* slot, const int* samples, Sample* block) {
    size_t entry = blockIdx.x;
    if (slot[entry] < 0) return;
    const float* row = pcm + static_cast<size_t>(slot[entry]) * ROW;
    for (int i = threadIdx.x; i < samples[entry] && i < ROW; i += blockDim.x) encode(rounded(row[i]), block + entry * ROW + i);
}

extern "C" __global__ void __launch_bounds__(256) s16_to_slots(
    const short* __restrict__ block, const int* __restrict__ slot, const int* __restrict__ samples, float* __restrict__ pcm) {
    to_slots(block, slot, samples, pcm);
}

extern "C" __global__ void __launch_bounds__(256) mulaw_to_slots(
    const unsigned char* __restrict__ block, const int* __restrict__ slot, const int* __restrict__ samples, float* __restrict__ pcm) {
    to_slots(block, slot, samples, pcm);
}

extern "C" __global__ void __launch_bounds__(256) slots_to_s16(
    const float* __restrict__ pcm, const int* __restrict__ slot, const int* __restrict__ samples, short* __restrict__ block) {
    from_slots(pcm, slot, samples, block);
}

extern "C" __global__ void __launch_bounds__(256) slots_to_mulaw(
    const float* __restrict__ pcm, const int* __restrict__ slot, const int* __restrict__ samples, unsigned char* __restrict__ block) {
    from_slots(pcm, slot, samples, block);
}
