// CUDA threads as threads of the system, for the thread sanitizer: barriers are the only order between them.
#pragma once
#include <barrier>
#include <thread>

inline thread_local uint3 threadIdx, blockIdx;

namespace shim {
struct Warp {
    std::unique_ptr<std::barrier<>> barrier;
    uint64_t slots[32];
};
inline std::unique_ptr<std::barrier<>> block;
inline std::vector<Warp> warps;
inline thread_local unsigned current, round_of_ballot;

inline unsigned me() { return current; }
inline uint64_t* warp_slots() { return warps[current / 32].slots; }
inline unsigned& ballot_round() { return round_of_ballot; }
inline void block_barrier() { block->arrive_and_wait(); }
inline void warp_barrier() { warps[current / 32].barrier->arrive_and_wait(); }

inline void run_block(uint3 at, std::function<void()> work) {
    unsigned n = threads();
    block = std::make_unique<std::barrier<>>(n);
    warps = std::vector<Warp>((n + 31) / 32);
    for (unsigned w = 0; w < warps.size(); ++w) warps[w].barrier = std::make_unique<std::barrier<>>(n - w * 32 < 32 ? n - w * 32 : 32);
    std::vector<std::thread> running;
    for (unsigned t = 0; t < n; ++t)
        running.emplace_back([&, t] {
            current = t, threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)}, blockIdx = at;
            work();
            warps[t / 32].barrier->arrive_and_drop();  // a thread that has ended is waited for no longer
            block->arrive_and_drop();
        });
    for (std::thread& t : running) t.join();
}
}  // namespace shim
