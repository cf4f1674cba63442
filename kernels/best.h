// The best of a block's candidates: the highest score, of equal scores the lowest code. Does not depend on the order of comparing.
#pragma once
#include "compat.h"

#define INFINITE __int_as_float(0x7f800000)
constexpr int NO_CODE = 0x7fffffff;

struct Best {
    float score;
    int code;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    return b.score > a.score || (b.score == a.score && b.code < a.code) ? b : a;
}

// Every lane of the warp takes part; the result is valid in lane 0.
__device__ __forceinline__ Best warp_best(Best mine) {
    for (int distance = 16; distance > 0; distance >>= 1) {
        Best other;
        other.score = __shfl_down_sync(0xffffffffu, mine.score, distance);
        other.code = __shfl_down_sync(0xffffffffu, mine.code, distance);
        mine = better(mine, other);
    }
    return mine;
}
