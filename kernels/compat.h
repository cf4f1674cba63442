// What every kernel includes first: nothing on the device, the host shim of the tests where HOST_SHIM is defined.
#pragma once
#if defined(HOST_SHIM)
#include "host_shim.h"
#else
#define DYNAMIC_SHARED(T, name) extern __shared__ __align__(16) T name[]
#endif
