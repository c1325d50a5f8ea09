// Runs a kernel on the CPU, thread by thread.
//
// A threadgroup's threads are fibers: each runs until it waits at a barrier or a simdgroup operation, then another
// one runs, in the order that the schedule names.
#include "launch.h"

#include <stdarg.h>

// ---------------------------------------------------------------- fibers
// Saves the registers that a function must keep, swaps stacks, takes up the other's registers.
void simt_switch(void **save, void *to);
__asm__(
    ".text\n"
    ".globl simt_switch\n"
    ".hidden simt_switch\n"
    "simt_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n");

char stacks[MAX_THREADS][STACK] __attribute__((aligned(4096)));
char slots[SIMD][SLOT] __attribute__((aligned(SLOT)));
launch_t *launch;
thread_t *self;
const void *at;
uint32_t group_id[3], failed, now, group_start, barrier_at[2], simdgroup_barrier_at[2][SIMDGROUPS];

static thread_t threads[MAX_THREADS];
static uint32_t thread_count, group_size[3], groups[3];
static void *scheduler;

void fail(const void *where, const char *format, ...) {
  if (failed) return;
  failed = 1;
  launch->where = where;
  va_list list;
  va_start(list, format);
  int n = __builtin_vsnprintf(launch->message, sizeof launch->message, format, list);
  va_end(list);
  if (self && n > 0 && n < (int)sizeof launch->message)
    __builtin_snprintf(launch->message + n, sizeof launch->message - n, " [thread (%u, %u, %u) of group (%u, %u, %u)]",
                       self->id[0], self->id[1], self->id[2], group_id[0], group_id[1], group_id[2]);
}

void end_kernel(void) { simt_switch(&self->stack, scheduler); }

static void wait(enum state state) {
  self->state = state;
  self->where = at;
  simt_switch(&self->stack, scheduler);
}

static void run_thread(void) {
  launch->entry(launch->arguments);
  wait(ENDED);
}

// ---------------------------------------------------------------- what a kernel calls
uint32_t simt_id(uint32_t which) {
  const uint32_t axis = which % 4;
  switch (which / 4) {
    case 0: return self->id[axis];
    case 1: return group_id[axis];
    case 2: return launch->group[axis];
    case 3: return group_size[axis];
    case 4: return groups[axis];
    default: return axis == 0 ? self->index : axis == 1 ? self->index % SIMD : self->index / SIMD;
  }
}

void simt_barrier(uint32_t memory) {
  CALLED_FROM;
  self->memory = memory;
  wait(AT_BARRIER);
}

void simt_simdgroup_barrier(uint32_t memory) {
  CALLED_FROM;
  self->memory = memory;
  self->bytes = 0;
  wait(AT_SIMDGROUP);
}

const void *simt_exchange(const void *value, uint32_t bytes) {
  CALLED_FROM;
  self->given = value;
  self->memory = 0;
  self->bytes = bytes;
  wait(AT_SIMDGROUP);
  return slots;
}

uint32_t simt_left_out(uint32_t number) { return launch->without == number; }

void *simt_dynamic_shared(void) { return launch->dynamic_shared; }

void simt_refuse(const char *what) {
  CALLED_FROM;
  fault("%s", what);
}

// ---------------------------------------------------------------- scheduling
static uint64_t random_state;

// The numbers below `count` in the schedule's order.
static void arrange(uint32_t *order, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) order[i] = launch->schedule == 1 ? count - 1 - i : i;
  if (launch->schedule < 2) return;
  for (uint32_t i = count; i > 1; i--) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    const uint32_t j = (random_state >> 33) % i, moved = order[i - 1];
    order[i - 1] = order[j];
    order[j] = moved;
  }
}

static void diverged(thread_t *a, const thread_t *b, const char *what) {
  static const char *places[] = {"", "a barrier, %other", "a simdgroup operation, %other", "its end"};
  self = a;
  launch->other = b->where;
  fail(a->where, "divergent %s: this thread waits at %%where, thread %u of the group is at %s", what, b->index, places[b->state]);
}

// Runs one simdgroup until all its threads wait at a barrier or have ended.
static void run_simdgroup(thread_t *first, uint32_t count) {
  uint32_t order[SIMD];
  for (;;) {
    arrange(order, count);
    for (uint32_t i = 0; i < count; i++) {
      self = first + order[i];
      if (self->state == READY) simt_switch(&scheduler, self->stack);
      if (failed) return;
    }
    self = NULL;
    thread_t *waiting = NULL;
    for (thread_t *t = first; t < first + count; t++)
      if (t->state == AT_SIMDGROUP) waiting = t;
    if (!waiting) return;
    __builtin_memset(slots, 0xff, sizeof slots);
    for (thread_t *t = first; t < first + count; t++) {
      if (t->state != AT_SIMDGROUP || t->where != waiting->where) return diverged(waiting, t, "simdgroup operation");
      __builtin_memcpy(slots[t - first], t->given, t->bytes);
      t->state = READY;
    }
    // Each lane reads the slots before it waits again, and the next exchange begins when all wait.
    if (waiting->memory) now++;
    for (int m = 0; m < 2; m++)
      if (waiting->memory >> m & 1) simdgroup_barrier_at[m][first->index / SIMD] = now;
  }
}

static void run_group(void) {
  uint32_t order[SIMDGROUPS];
  const uint32_t simdgroups = (thread_count + SIMD - 1) / SIMD;
  for (;;) {
    arrange(order, simdgroups);
    for (uint32_t i = 0; i < simdgroups && !failed; i++) {
      const uint32_t first = order[i] * SIMD;
      run_simdgroup(threads + first, thread_count - first < SIMD ? thread_count - first : SIMD);
    }
    self = NULL;
    thread_t *waiting = NULL;
    for (thread_t *t = threads; t < threads + thread_count; t++)
      if (t->state == AT_BARRIER) waiting = t;
    if (failed || !waiting) return;
    for (thread_t *t = threads; t < threads + thread_count; t++) {
      if (t->state != AT_BARRIER || t->where != waiting->where) return diverged(waiting, t, "barrier");
      t->state = READY;
    }
    now++;
    for (int m = 0; m < 2; m++)
      if (waiting->memory >> m & 1) barrier_at[m] = now;
  }
}

static void start_group(void) {
  for (int d = 0; d < 3; d++) {  // a group at the grid's edge is smaller, as Metal's dispatchThreads has it
    uint32_t left = launch->grid[d] - group_id[d] * launch->group[d];
    group_size[d] = left < launch->group[d] ? left : launch->group[d];
  }
  thread_count = group_size[0] * group_size[1] * group_size[2];
  for (uint32_t i = 0; i < thread_count; i++) {
    void **top = (void **)(stacks[i] + STACK - i % 16 * 320);  // not all in the same sets of the cache
    *--top = NULL;  // where run_thread would return to; keeps its stack aligned to 16 bytes
    *--top = (void *)run_thread;
    threads[i] = (thread_t){.stack = top - 6, .index = i,
                            .id = {i % group_size[0], i / group_size[0] % group_size[1], i / group_size[0] / group_size[1]}};
  }
  group_start = barrier_at[DEVICE] = barrier_at[SHARED] = ++now;
  for (uint32_t i = 0; i < launch->buffer_count; i++) {
    const buffer_t *b = launch->buffers + i;
    if (b->shared) __builtin_memset(b->data, 0xff, b->bytes);  // NaN, -1
  }
}

// 0, or 1 with launch->message, launch->where and launch->other set.
SIMT_EXPORT int simt_launch(launch_t *given) {
  launch = given;
  self = NULL;
  failed = now = 0;
  random_state = given->schedule;
  __builtin_memset(simdgroup_barrier_at, 0, sizeof simdgroup_barrier_at);
  const uint32_t size = given->group[0] * given->group[1] * given->group[2];
  if (size > MAX_THREADS) {
    fail(NULL, "%u threads in a group (at most %d)", size, MAX_THREADS);
    return 1;
  }
  start_checking();
  for (int d = 0; d < 3; d++) groups[d] = (given->grid[d] + given->group[d] - 1) / given->group[d];
  const uint32_t count = groups[0] * groups[1] * groups[2];
  uint32_t *order = __builtin_malloc((count + 1) * sizeof *order);
  arrange(order, count);
  for (uint32_t i = 0; i < count && !failed; i++) {
    group_id[0] = order[i] % groups[0];
    group_id[1] = order[i] / groups[0] % groups[1];
    group_id[2] = order[i] / groups[0] / groups[1];
    start_group();
    run_group();
  }
  __builtin_free(order);
  self = NULL;
  end_checking();
  return failed;
}
