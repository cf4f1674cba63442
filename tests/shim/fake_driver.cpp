// A libcuda.so.1 for machines without a GPU: the calls that voicewire makes, memory in host memory, and launches run by the host shim.
// cuda-python loads it as it would load the real one, so signatures, handles and the packing of arguments are the real ones.
// Work in a stream is done when somebody waits for it; a graph keeps the values of the arguments it captured.
#include "host_shim.h"
#include "sources.inc"

#include <cstdint>
#include <dlfcn.h>
#include <list>
#include <map>
#include <string>

namespace {
enum Result { SUCCESS = 0, INVALID_VALUE = 1, NOT_FOUND = 500 };
using Work = std::function<void()>;
struct Stream { std::vector<Work> queue; bool capturing = false; };
struct Graph { std::vector<Work> work; };
struct Function { size_t parameters; std::vector<size_t> sizes; void (*launch)(dim3, dim3, size_t, void**); };
std::map<char*, size_t> memory;

template <auto kernel, class... A> Function function(void (*)(A...)) {
    return {sizeof...(A), {sizeof(A)...}, [](dim3 g, dim3 b, size_t shared, void** a) { shim::launch(kernel, g, b, shared, a); }};
}
std::map<std::string, Function>& functions() {
    static std::map<std::string, Function> all;
#define ENTRY(name) all[#name] = function<name>(name);
    if (all.empty()) { ENTRIES }
    return all;
}
bool inside(uint64_t address, size_t bytes) {
    auto next = memory.upper_bound(reinterpret_cast<char*>(address));
    return next != memory.begin() && (--next, reinterpret_cast<char*>(address) + bytes <= next->first + next->second);
}
void drain(Stream* s) {
    for (auto queue = std::move(s->queue); Work & w : queue) w();
    s->queue.clear();
}
}  // namespace

extern "C" {
int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int* v) { return *v = 13000, SUCCESS; }
int cuDeviceGet(int* device, int) { return *device = 0, SUCCESS; }
int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "host shim"), SUCCESS; }
int cuDeviceGetAttribute(int* value, int which, int) { return *value = which == 75 ? 9 : 0, SUCCESS; }  // compute capability 9.0
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &memory, SUCCESS; }
int cuCtxSynchronize(void) { return SUCCESS; }
int cuCtxSetCurrent(void* context) { return context == &memory ? SUCCESS : INVALID_VALUE; }
int cuModuleLoadData(void** module, const void* image) { return *module = &memory, std::memcmp(image, "\x7f" "ELF", 4) ? INVALID_VALUE : SUCCESS; }
int cuModuleGetFunction(void** f, void*, const char* name) {
    auto found = functions().find(name);
    return found == functions().end() ? NOT_FOUND : (*f = &found->second, SUCCESS);
}
int cuFuncGetAttribute(int* value, int, void*) { return *value = 0, SUCCESS; }
int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    char* p = static_cast<char*>(std::malloc(bytes));
    return memory[p] = bytes, *address = reinterpret_cast<uint64_t>(p), SUCCESS;
}
int cuMemFree_v2(uint64_t address) {
    char* p = reinterpret_cast<char*>(address);
    return memory.erase(p) ? (std::free(p), SUCCESS) : INVALID_VALUE;
}
int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    return inside(to, bytes) ? (std::memcpy(reinterpret_cast<void*>(to), from, bytes), SUCCESS) : INVALID_VALUE;
}
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    return inside(from, bytes) ? (std::memcpy(to, reinterpret_cast<void*>(from), bytes), SUCCESS) : INVALID_VALUE;
}
int cuStreamCreate(void** stream, unsigned) { return *stream = new Stream, SUCCESS; }
int cuStreamSynchronize(void* stream) { return drain(static_cast<Stream*>(stream)), SUCCESS; }
int cuStreamBeginCapture_v2(void* stream, int) {
    Stream* s = static_cast<Stream*>(stream);
    return drain(s), s->capturing = true, SUCCESS;
}
int cuStreamEndCapture(void* stream, void** graph) {
    Stream* s = static_cast<Stream*>(stream);
    *graph = new Graph{std::exchange(s->queue, {})};
    return s->capturing = false, SUCCESS;
}
int cuGraphInstantiateWithFlags(void** ready, void* graph, unsigned long long) { return *ready = new Graph(*static_cast<Graph*>(graph)), SUCCESS; }
int cuGraphLaunch(void* ready, void* stream) {
    for (const Work& w : static_cast<Graph*>(ready)->work) static_cast<Stream*>(stream)->queue.push_back(w);
    return SUCCESS;
}
int cuGraphExecDestroy(void* ready) { return delete static_cast<Graph*>(ready), SUCCESS; }
int cuGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), SUCCESS; }
int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream, void** values, void**) {
    const Function* kernel = static_cast<Function*>(f);
    std::vector<std::vector<char>> held;  // the values are read now, whatever becomes of them
    for (size_t i = 0; i < kernel->parameters; ++i) held.emplace_back(static_cast<char*>(values[i]), static_cast<char*>(values[i]) + kernel->sizes[i]);
    static_cast<Stream*>(stream)->queue.push_back([=]() mutable {
        std::vector<void*> addresses;
        for (auto& h : held) addresses.push_back(h.data());
        kernel->launch({gx, gy, gz}, {bx, by, bz}, shared, addresses.data());
    });
    return SUCCESS;
}
int cuEventCreate(void** event, unsigned) { return *event = new double{0}, SUCCESS; }
int cuEventRecord(void*, void* stream) { return drain(static_cast<Stream*>(stream)), SUCCESS; }
int cuEventSynchronize(void*) { return SUCCESS; }
int cuEventElapsedTime(float* ms, void*, void*) { return *ms = 1.0f, SUCCESS; }
int cuEventElapsedTime_v2(float* ms, void*, void*) { return *ms = 1.0f, SUCCESS; }
int cuEventDestroy_v2(void* event) { return delete static_cast<double*>(event), SUCCESS; }
int cuGetProcAddress_v2(const char* symbol, void** address, int, uint64_t, int*) {
    void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    for (const char* version : {"_v2", "WithFlags", ""})
        if ((*address = dlsym(self, (std::string(symbol) + version).c_str()))) return SUCCESS;
    return NOT_FOUND;
}
}
