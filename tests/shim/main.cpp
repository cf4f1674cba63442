// Runs one launch: argv[1] names the kernel; the launch and its arguments come on standard input, arrays go back on standard output.
// In:  7 x u32 grid, block, shared bytes; u32 count; then each argument: u32 is_array, u32 bytes, the bytes. ENTRIES
// lists the kernels, BROKEN_ENTRIES the controls: kernels that lack one barrier.
#include "host_shim.h"
#include "sources.inc"

#include <string>
#include <sys/mman.h>
#include <unistd.h>

namespace {
void get(void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(2);
}

// An array that ends where unmapped memory begins, so that reading or writing past it is a fault.
char* guarded(size_t bytes) {
    size_t page = sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    char* base = static_cast<char*>(mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base + room, page, PROT_NONE);
    return base + room - bytes;
}
}  // namespace

int main(int, char** argv) {
    uint32_t launch[7], count;
    get(launch, sizeof launch);
    get(&count, sizeof count);
    struct Argument { uint32_t is_array, bytes; char* data; };
    std::vector<Argument> arguments(count);
    std::vector<void*> addresses;
    for (Argument& a : arguments) {
        get(&a.is_array, 4);
        get(&a.bytes, 4);
        a.data = guarded(a.bytes);
        get(a.data, a.bytes);
    }
    for (Argument& a : arguments) addresses.push_back(a.is_array ? static_cast<void*>(&a.data) : a.data);
    dim3 grid{launch[0], launch[1], launch[2]}, block{launch[3], launch[4], launch[5]};
    bool known = false;
#define ENTRY(name) \
    if (argv[1] == std::string(#name)) known = true, shim::launch(name, grid, block, launch[6], addresses.data());
#define BROKEN(space, name) \
    if (argv[1] == std::string(#space "/" #name)) known = true, shim::launch(space::name, grid, block, launch[6], addresses.data());
    ENTRIES
    BROKEN_ENTRIES
    if (!known) return 2;
    for (Argument& a : arguments)
        if (a.is_array && std::fwrite(a.data, 1, a.bytes, stdout) != a.bytes) return 2;
    return 0;
}
