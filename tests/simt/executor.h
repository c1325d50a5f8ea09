// The contract between compiled kernels and the executor. Plain C; tests/simt/metal/metal_stdlib restates the
// functions in C++ for OpenCL.
#pragma once
#include <stdint.h>
// Threads meet in these calls, so that the compiler must keep each one where it stands.
#define SIMT_COLLECTIVE __attribute__((convergent, nomerge))

#ifdef __cplusplus
extern "C" {
#endif

// What a thread asks about itself: 0-2 its place in its group, 3-5 the group's place in the grid, 6-8 the group size
// that was asked for, 9 its lane. Never changes while a thread runs.
uint32_t simt_id(uint32_t which) __attribute__((const));

// Waits for every thread of the group. memory: bit 0 orders device memory, bit 1 threadgroup memory.
void simt_barrier(uint32_t memory) SIMT_COLLECTIVE;

// Every lane of the simdgroup gives `bytes` (at most 16) and gets what all gave: 32 slots of 16 bytes. Slots of lanes
// that do not exist hold ones in every bit, a NaN.
const void *simt_exchange(const void *value, uint32_t bytes) SIMT_COLLECTIVE;

#ifdef __cplusplus
}
#endif
