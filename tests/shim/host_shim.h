// What CUDA C++ needs to run unmodified on the host: its words, one block at a time, on fibers (-DFIBERS) or real threads.
// Proves arithmetic, indexing and barriers; not the memory model between blocks, launch limits or speed.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time, so a function's static array is the block's shared memory
#define __align__(n) alignas(n)
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(shim::dynamic_shared.data())

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct float2 { float x, y; };
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline dim3 blockDim, gridDim;

namespace shim {
inline std::vector<uint64_t> dynamic_shared;
inline unsigned threads() { return blockDim.x * blockDim.y * blockDim.z; }
// Blocks and fibers run in this order: 0 forward, 1 backward, any other seeds a shuffle. What depends on the order is a bug.
inline std::vector<unsigned> order(unsigned n) {
    const char* text = std::getenv("SHIM_ORDER");
    unsigned kind = text ? std::atoi(text) : 0;
    std::vector<unsigned> turns(n);
    for (unsigned i = 0; i < n; ++i) turns[i] = kind == 1 ? n - 1 - i : i;
    if (kind > 1) {
        uint64_t x = kind * 0x9E3779B97F4A7C15ull;
        for (unsigned i = n; i-- > 1;) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            std::swap(turns[i], turns[x % (i + 1)]);
        }
    }
    return turns;
}
}  // namespace shim

#if defined(FIBERS)
#include "on_fibers.h"
#else
#include "on_threads.h"
#endif

namespace shim {
struct Ballot { std::atomic<int> count[3]; };  // one counts, one is read, one is cleared for the next round
inline Ballot ballot;

// All lanes of the warp call it, as with a full mask on the device. A lane outside the warp answers with the caller's own value.
template <class T> T exchange(T value, int source) {
    static_assert(sizeof(T) <= 8);
    unsigned lane = me() & 31;
    uint64_t* slots = warp_slots();
    std::memcpy(&slots[lane], &value, sizeof(T));
    warp_barrier();
    T result = value;
    if (source >= 0 && source < 32 && (me() & ~31u) + source < threads()) std::memcpy(&result, &slots[source], sizeof(T));
    warp_barrier();
    return result;
}

// Runs a kernel over a grid; arguments as cuLaunchKernel takes them: the address of each value.
template <class... A, size_t... I> void run(void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, void** arguments, std::index_sequence<I...>) {
    gridDim = grid, blockDim = block;
    for (unsigned b : order(grid.x * grid.y * grid.z)) {
        dynamic_shared.assign(shared / 8 + 1, 0xCDCDCDCDCDCDCDCD);  // reading what was not written shows
        for (auto& c : ballot.count) c = 0;
        run_block({b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)}, [&] { kernel(*static_cast<A*>(arguments[I])...); });
    }
}
template <class... A> void launch(void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, void** arguments) {
    run(kernel, grid, block, shared, arguments, std::index_sequence_for<A...>{});
}
}  // namespace shim

inline void __syncthreads() { shim::block_barrier(); }
inline int __syncthreads_count(int yes) {
    unsigned& round = shim::ballot_round();
    shim::ballot.count[round % 3] += yes != 0;
    shim::block_barrier();
    int total = shim::ballot.count[round % 3];
    shim::ballot.count[(round + 2) % 3] = 0;
    ++round;
    return total;
}
template <class T> T __shfl_down_sync(unsigned, T value, int distance) { return shim::exchange(value, int(shim::me() & 31) + distance); }

template <class To, class From> To bits_as(From x) { To y; std::memcpy(&y, &x, sizeof y); return y; }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float sinpif(float x) { return std::sin(M_PI * x); }
inline void sincospif(float x, float* s, float* c) { *s = std::sin(M_PI * x), *c = std::cos(M_PI * x); }
using std::isnan;
