// What the executor's two halves know of the running launch: executor.c runs threads, checker.c looks at what they do.
#pragma once
#include "executor.h"

#include <stddef.h>

// ---------------------------------------------------------------- shared with Python (executor.py)
typedef struct {
  const char *name;
  char *data;
  uint64_t bytes;
  uint32_t element;                // bytes
  uint32_t writable, initialised, shared;
} buffer_t;

typedef struct {
  void (*entry)(void **arguments);
  void **arguments;
  uint64_t argument_count;
  const char *constants, *constants_end;   // the module itself, which kernels may read: tables
  char *dynamic_shared;
  const buffer_t *buffers;                 // arguments and shared memory
  uint32_t buffer_count;
  uint32_t grid[3], group[3];              // threads
  uint32_t check;                          // whether to look at each load and store
  uint32_t schedule;                       // 0: ascending, 1: descending, else pseudo-random
  uint32_t without;                        // the number of what simt_left_out leaves out; 0: nothing
  uint64_t loaded, stored;                 // bytes of device memory, counted where accesses are checked
  uint64_t read, written;                  // the same, each byte counted once
  const void *where, *other;               // of the fault: instructions behind the calls; the message has %where, %other
  char message[400];
} launch_t;

// ---------------------------------------------------------------- the running threads
enum { MAX_THREADS = 1024, SIMD = 32, SIMDGROUPS = MAX_THREADS / SIMD, SLOT = 16, STACK = 64 << 10 };
enum state { READY, AT_BARRIER, AT_SIMDGROUP, ENDED };
enum memory { DEVICE, SHARED };

typedef struct {
  void *stack;
  enum state state;
  uint32_t index, id[3], memory, bytes;
  const void *where, *given;
} thread_t;

extern launch_t *launch;
extern thread_t *self;
extern const void *at;                            // where the running thread has called
extern char stacks[MAX_THREADS][STACK], slots[SIMD][SLOT];
extern uint32_t group_id[3], failed;

#define CALLED_FROM (at = __builtin_return_address(0))

// Times count the barriers of the launch: now, when the running group began, when threads of the group and of each
// simdgroup last met, by the memory that it ordered.
extern uint32_t now, group_start, barrier_at[2], simdgroup_barrier_at[2][SIMDGROUPS];

// Notes a fault; the first is the one that is told.
void fail(const void *where, const char *format, ...);
// Ends the kernel from within one of its threads, with a fault noted.
void end_kernel(void);
#define fault(...) (fail(at, __VA_ARGS__), end_kernel())

// ---------------------------------------------------------------- checker.c
void start_checking(void);  // a launch
void end_checking(void);    // counts; outputs that were never written
