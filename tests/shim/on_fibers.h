// CUDA threads as fibers of one thread: deterministic, fast, and a barrier that not all reach is reported instead of hanging.
#pragma once
#include <ucontext.h>

inline uint3 threadIdx, blockIdx;

namespace shim {
enum Waiting { RUNS, AT_BLOCK, AT_WARP, ENDED };
constexpr size_t STACK_BYTES = 1 << 16;
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    Waiting waiting;
    unsigned ballot_round;
};
inline std::vector<Fiber> fibers;
inline std::vector<uint64_t> slots;
inline std::function<void()> body;
inline ucontext_t scheduler;
inline unsigned current;

inline unsigned me() { return current; }
inline uint64_t* warp_slots() { return &slots[current & ~31u]; }
inline unsigned& ballot_round() { return fibers[current].ballot_round; }
inline void wait(Waiting what) {
    Fiber& f = fibers[current];
    f.waiting = what;
    swapcontext(&f.context, &scheduler);
}
inline void block_barrier() { wait(AT_BLOCK); }
inline void warp_barrier() { wait(AT_WARP); }
inline void entry() {
    body();
    wait(ENDED);
}

// Releases fibers [first, last) if all that have not ended wait for the same thing; whether it did.
inline bool release(unsigned first, unsigned last, Waiting what) {
    bool any = false;
    for (unsigned t = first; t < last; ++t) {
        if (fibers[t].waiting == ENDED) continue;
        if (fibers[t].waiting != what) return false;
        any = true;
    }
    for (unsigned t = first; t < last; ++t)
        if (fibers[t].waiting == what) fibers[t].waiting = RUNS;
    return any;
}

inline void resume(unsigned t, uint3 block) {
    current = t, blockIdx = block;
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
    swapcontext(&scheduler, &fibers[t].context);
}

inline void run_block(uint3 block, std::function<void()> work) {
    unsigned n = threads();
    body = std::move(work);
    if (fibers.size() != n) fibers = std::vector<Fiber>(n);
    slots.assign((n + 31) & ~31u, 0);
    for (Fiber& f : fibers) {
        f.waiting = RUNS, f.ballot_round = 0;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get(), f.context.uc_stack.ss_size = STACK_BYTES, f.context.uc_link = &scheduler;
        makecontext(&f.context, entry, 0);
    }
    std::vector<unsigned> warps = order((n + 31) / 32), lanes = order(32);
    for (;;) {
        bool moved = false, alive = false;
        for (unsigned w : warps) {  // each warp as far as it gets before the next one starts: what lacks a barrier shows
            unsigned first = w * 32, last = first + 32 < n ? first + 32 : n;
            do
                for (unsigned l : lanes)
                    if (first + l < last && fibers[first + l].waiting == RUNS) resume(first + l, block), moved = true;
            while (release(first, last, AT_WARP));
        }
        moved |= release(0, n, AT_BLOCK);
        for (Fiber& f : fibers) alive |= f.waiting != ENDED;
        if (!alive) return;
        if (!moved) {
            std::fprintf(stderr, "shim: a barrier or shuffle that not all threads reach, block %u\n", block.x);
            std::exit(3);
        }
    }
}
}  // namespace shim
