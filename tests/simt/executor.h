// The contract between compiled kernels and the executor. Plain C; tests/simt/metal/metal_stdlib restates the
// functions in C++ for OpenCL.
#pragma once
#include <stdint.h>
// Threads meet in these calls, so that the compiler must keep each one where it stands.
#define SIMT_EXPORT __attribute__((visibility("default")))
#define SIMT_COLLECTIVE SIMT_EXPORT __attribute__((convergent, nomerge))

#ifdef __cplusplus
extern "C" {
#endif

// What a thread asks about itself; `which` is 4 * row + axis. Rows: 0 its place in its group, 1 the group's place in
// the grid, 2 the group size that was asked for, 3 the size of its own group, 4 the number of groups. 20: its index in
// the group, 21: its lane, 22: the index of its simdgroup. Never changes while a thread runs.
uint32_t simt_id(uint32_t which) SIMT_EXPORT __attribute__((const));

// Waits for every thread of the group, or of the simdgroup. memory: bit 0 orders device memory, bit 1 threadgroup
// memory.
void simt_barrier(uint32_t memory) SIMT_COLLECTIVE;
void simt_simdgroup_barrier(uint32_t memory) SIMT_COLLECTIVE;

// Every lane of the simdgroup gives `bytes` (at most 16) and gets what all gave: 32 slots of 16 bytes. Slots of lanes
// that do not exist hold ones in every bit, a NaN.
const void *simt_exchange(const void *value, uint32_t bytes) SIMT_COLLECTIVE;

// Whether the launch leaves out what the text gives this number, from 1 on: a mutation, for which nothing is compiled anew.
uint32_t simt_left_out(uint32_t number) SIMT_EXPORT __attribute__((const));

// CUDA's `extern __shared__` memory.
void *simt_dynamic_shared(void) SIMT_EXPORT __attribute__((const));

// Ends the kernel with this fault.
void simt_refuse(const char *what) SIMT_EXPORT;

#ifdef __cplusplus
}
#endif
