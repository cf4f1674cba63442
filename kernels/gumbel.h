// Gumbel noise in plain IEEE steps (no fused multiply-add, no approximate logarithm): bit for bit what sampling.py computes.
#pragma once
#include "compat.h"

// Natural logarithm of a normal x > 0: 2 atanh((m - 1) / (m + 1)) + exponent ln 2, m in [sqrt 0.5, sqrt 2).
__device__ __forceinline__ float exact_log(float x) {
    unsigned bits = __float_as_uint(x);
    int exponent = static_cast<int>(bits >> 23) - 126;
    float m = __uint_as_float((bits & 0x007fffffu) | 0x3f000000u);
    if (m < 0.70710678f) {
        m = __fmul_rn(m, 2.0f);
        --exponent;
    }
    float s = __fdiv_rn(__fsub_rn(m, 1.0f), __fadd_rn(m, 1.0f)), square = __fmul_rn(s, s), series = 0.0f;
    constexpr float terms[] = {2.0f / 11, 2.0f / 9, 2.0f / 7, 2.0f / 5, 2.0f / 3};
#pragma unroll
    for (int i = 0; i < 5; ++i) series = __fmul_rn(__fadd_rn(series, terms[i]), square);
    float rest = __fadd_rn(__fmul_rn(series, s), __fmul_rn(2.0f, s));
    return __fadd_rn(__fmul_rn(static_cast<float>(exponent), 0.6931472f), rest);
}

__device__ __forceinline__ float gumbel(unsigned bits) {
    float u = __fmul_rn(__fadd_rn(static_cast<float>(bits >> 9), 0.5f), 1.0f / 8388608);
    return -exact_log(-exact_log(u));
}
