// Runs a kernel on the CPU, thread by thread, and checks every load and store that it makes.
//
// A threadgroup's threads are fibers: each runs until it waits at a barrier or a simdgroup operation, then the next
// one runs. Kernels are compiled with -fsanitize=thread, but linked without the sanitizer's runtime: its calls land
// here. Before each call build.py has put the source line into simt_line.
//
// Two accesses of one byte, one of them a write, are a data race unless one thread makes both, or both threads are of
// one group with a barrier between that orders this memory. So whether a race is found does not depend on who ran
// first.
#include "executor.h"

#include <stdarg.h>
#include <stddef.h>

// ---------------------------------------------------------------- shared with Python (executor.py)
typedef struct {
  const char *name;
  char *data;
  uint64_t bytes;
  uint32_t writable, initialised;
} buffer_t;

typedef struct {
  void (*entry)(void **arguments);
  void **arguments;
  uint64_t argument_count;
  char *shared;                 // threadgroup arrays
  uint64_t shared_bytes;
  const buffer_t *buffers;
  uint32_t buffer_count;
  uint32_t grid[3], group[3];   // threads
  uint32_t where;               // of the fault: file << 20 | line
  char message[400];
} launch_t;

uint32_t simt_line;

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

enum { MAX_THREADS = 1024, SIMD = 32, SLOT = 16, STACK = 64 << 10 };
enum state { READY, AT_BARRIER, AT_EXCHANGE, ENDED };
enum memory { DEVICE, SHARED };

typedef struct {
  void *stack;
  enum state state;
  uint32_t index, id[3], where, memory, bytes;
  const void *given;
} thread_t;

static char stacks[MAX_THREADS][STACK] __attribute__((aligned(4096)));
static char slots[SIMD][SLOT] __attribute__((aligned(SLOT)));
static thread_t threads[MAX_THREADS], *self;
static uint32_t thread_count, group_id[3], failed;
static void *scheduler;
static launch_t *launch;

// The first fault is the one that is told.
static void fail(uint32_t where, const char *format, ...) {
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

static void wait(enum state state) {
  self->state = state;
  self->where = simt_line;
  simt_switch(&self->stack, scheduler);
}

static void run_thread(void) {
  launch->entry(launch->arguments);
  wait(ENDED);
}

// ---------------------------------------------------------------- what a kernel calls
uint32_t simt_id(uint32_t which) {
  if (which < 3) return self->id[which];
  if (which < 6) return group_id[which - 3];
  if (which < 9) return launch->group[which - 6];
  return self->index % SIMD;
}

void simt_barrier(uint32_t memory) {
  self->memory = memory;
  wait(AT_BARRIER);
}

const void *simt_exchange(const void *value, uint32_t bytes) {
  self->given = value;
  self->bytes = bytes;
  wait(AT_EXCHANGE);
  return slots;
}

// ---------------------------------------------------------------- checking
// What is known of one byte. Epochs count the barriers that order this memory and the groups, over the whole launch.
typedef struct {
  uint32_t write_epoch, read_epoch;  // 0: never
  uint16_t writer, reader;           // threads; SEVERAL readers in read_epoch
  uint8_t earlier_group_read;
} cell_t;
enum { SEVERAL = 0xffff, MAX_REGIONS = 32 };

typedef struct {
  const char *name;
  uintptr_t low, high;
  uint32_t writable, initialised;
  enum memory memory;
  cell_t *cells;
} region_t;

static region_t regions[MAX_REGIONS];
static uint32_t region_count, epoch[2], group_start;

// Ends the kernel.
#define fault(...) (fail(simt_line, __VA_ARGS__), simt_switch(&self->stack, scheduler))

static void check_byte(const region_t *region, size_t byte, int write) {
  cell_t *cell = &region->cells[byte];
  const uint32_t now = epoch[region->memory], start = region->memory == DEVICE ? group_start : 0, me = self->index;
  const char *race = write ? "data race (write after write)" : "data race (read after write)", *on = region->name;
  if (cell->write_epoch && cell->write_epoch < start) fault("%s between groups on %s, byte %zu", race, on, byte);
  if (cell->write_epoch == now && cell->writer != me)
    fault("%s on %s, byte %zu, with thread %u of the group", race, on, byte, cell->writer);
  if (write) {
    race = "data race (write after read)";
    if (cell->earlier_group_read || (cell->read_epoch && cell->read_epoch < start))
      fault("%s between groups on %s, byte %zu", race, on, byte);
    if (cell->read_epoch == now && cell->reader == SEVERAL)
      fault("%s on %s, byte %zu, with several threads of the group", race, on, byte);
    if (cell->read_epoch == now && cell->reader != me)
      fault("%s on %s, byte %zu, with thread %u of the group", race, on, byte, cell->reader);
    cell->write_epoch = now;
    cell->writer = me;
  } else {
    if (!region->initialised && !cell->write_epoch) fault("uninitialised read of %s, byte %zu", on, byte);
    if (cell->read_epoch && cell->read_epoch < start) cell->earlier_group_read = 1;
    cell->reader = cell->read_epoch == now && cell->reader != me ? SEVERAL : me;
    cell->read_epoch = now;
  }
}

static void check(const void *pointer, size_t bytes, int write) {
  const uintptr_t address = (uintptr_t)pointer;
  const char *kind = write ? "write" : "read";
  if (address - (uintptr_t)stacks < sizeof stacks) {
    if ((address - (uintptr_t)stacks) / STACK != self->index) fault("%s of another thread's private memory", kind);
    return;
  }
  if (address - (uintptr_t)slots < sizeof slots) return;
  if (address - (uintptr_t)launch->arguments < launch->argument_count * sizeof(void *)) return;  // read by the entry
  const region_t *nearest = NULL;
  uintptr_t distance = 1 << 20;  // executor.py leaves that much between buffers
  for (region_t *r = regions; r < regions + region_count; r++) {
    uintptr_t away = address < r->low ? r->low - address : address + bytes > r->high ? address + bytes - r->high : 0;
    if (away < distance) distance = away, nearest = r;
  }
  if (!nearest) fault("%s out of bounds of every array", kind);
  const size_t byte = address - nearest->low;
  if (distance) fault("%s out of bounds of %s, byte %zd", kind, nearest->name, byte);
  if (write && !nearest->writable) fault("write to the input %s, byte %zu", nearest->name, byte);
  for (size_t i = 0; i < bytes; i++) check_byte(nearest, byte + i, write);
}

// The calls that -fsanitize=thread makes before a load or store, and -fsanitize=alignment,array-bounds where it is
// wrong.
#define HOOKS(bytes)                                                      \
  void __tsan_read##bytes(void *p) { check(p, bytes, 0); }                \
  void __tsan_write##bytes(void *p) { check(p, bytes, 1); }               \
  void __tsan_unaligned_read##bytes(void *p) { check(p, bytes, 0); }      \
  void __tsan_unaligned_write##bytes(void *p) { check(p, bytes, 1); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void *__tsan_memset(void *p, int value, size_t n) { return check(p, n, 1), __builtin_memset(p, value, n); }
void *__tsan_memcpy(void *to, const void *from, size_t n) {
  check(from, n, 0);
  check(to, n, 1);
  return __builtin_memcpy(to, from, n);
}
void __tsan_init(void) {}
void __ubsan_handle_type_mismatch_v1(void *what, void *p) { fault("misaligned access"); }
void __ubsan_handle_out_of_bounds(void *what, uintptr_t index) { fault("index %zd is outside its array", index); }

// ---------------------------------------------------------------- scheduling
static const char *place(const thread_t *t) {
  static const char *names[] = {"", "a barrier", "a simdgroup operation", "its end"};
  return names[t->state];
}

static void diverged(thread_t *a, const thread_t *b, const char *what) {
  self = a;
  fail(a->where, "divergent %s: this thread waits at line %u, thread %u of the group is at %s, line %u", what,
       a->where & 0xfffff, b->index, place(b), b->where & 0xfffff);
}

// Runs one simdgroup until all its threads wait at a barrier or have ended.
static void run_simdgroup(thread_t *first, uint32_t count) {
  for (;;) {
    for (self = first; self < first + count; self++)
      if (self->state == READY) {
        simt_switch(&scheduler, self->stack);
        if (failed) return;
      }
    self = NULL;
    thread_t *at = NULL;
    for (thread_t *t = first; t < first + count; t++)
      if (t->state == AT_EXCHANGE) at = t;
    if (!at) return;
    __builtin_memset(slots, 0xff, sizeof slots);
    for (thread_t *t = first; t < first + count; t++) {
      if (t->state != AT_EXCHANGE || t->where != at->where) return diverged(at, t, "simdgroup operation");
      __builtin_memcpy(slots[t - first], t->given, t->bytes);
      t->state = READY;
    }
    // Each lane reads the slots before it waits again, and the next exchange begins when all wait.
  }
}

static void run_group(void) {
  for (;;) {
    for (uint32_t i = 0; i < thread_count && !failed; i += SIMD)
      run_simdgroup(threads + i, thread_count - i < SIMD ? thread_count - i : SIMD);
    self = NULL;
    thread_t *at = NULL;
    for (thread_t *t = threads; t < threads + thread_count; t++)
      if (t->state == AT_BARRIER) at = t;
    if (failed || !at) return;
    for (thread_t *t = threads; t < threads + thread_count; t++) {
      if (t->state != AT_BARRIER || t->where != at->where) return diverged(at, t, "barrier");
      t->state = READY;
    }
    for (int m = 0; m < 2; m++) epoch[m] += at->memory >> m & 1;
  }
}

static void start_group(void) {
  uint32_t size[3];
  for (int d = 0; d < 3; d++) {  // a group at the grid's edge is smaller, as Metal's dispatchThreads has it
    uint32_t left = launch->grid[d] - group_id[d] * launch->group[d];
    size[d] = left < launch->group[d] ? left : launch->group[d];
  }
  thread_count = size[0] * size[1] * size[2];
  for (uint32_t i = 0; i < thread_count; i++) {
    void **top = (void **)(stacks[i] + STACK);
    *--top = NULL;  // where run_thread would return to; keeps its stack aligned to 16 bytes
    *--top = (void *)run_thread;
    threads[i] = (thread_t){.stack = top - 6, .index = i,
                            .id = {i % size[0], i / size[0] % size[1], i / size[0] / size[1]}};
  }
  for (int m = 0; m < 2; m++) epoch[m]++;
  group_start = epoch[DEVICE];
  for (region_t *r = regions; r < regions + region_count; r++)
    if (r->memory == SHARED) {
      __builtin_memset((char *)r->low, 0xff, r->high - r->low);
      __builtin_memset(r->cells, 0, (r->high - r->low) * sizeof(cell_t));
    }
}

static void add_region(enum memory memory, const char *name, const char *data, size_t bytes, uint32_t writable,
                       uint32_t initialised) {
  regions[region_count++] = (region_t){name, (uintptr_t)data, (uintptr_t)data + bytes, writable, initialised, memory,
                                       __builtin_calloc(bytes, sizeof(cell_t))};
}

// 0, or 1 with launch->message and launch->where set.
int simt_launch(launch_t *given) {
  launch = given;
  self = NULL;
  failed = region_count = epoch[DEVICE] = epoch[SHARED] = 0;
  if (given->group[0] * given->group[1] * given->group[2] > MAX_THREADS || given->buffer_count >= MAX_REGIONS) {
    fail(0, "%u threads in a group (at most %d), %u buffers (at most %d)",
         given->group[0] * given->group[1] * given->group[2], MAX_THREADS, given->buffer_count, MAX_REGIONS - 1);
    return 1;
  }
  for (uint32_t i = 0; i < given->buffer_count; i++) {
    const buffer_t *b = &given->buffers[i];
    add_region(DEVICE, b->name, b->data, b->bytes, b->writable, b->initialised);
  }
  if (given->shared_bytes) add_region(SHARED, "threadgroup memory", given->shared, given->shared_bytes, 1, 0);
  uint32_t groups[3];
  for (int d = 0; d < 3; d++) groups[d] = (given->grid[d] + given->group[d] - 1) / given->group[d];
  for (uint64_t i = 0; i < (uint64_t)groups[0] * groups[1] * groups[2] && !failed; i++) {
    group_id[0] = i % groups[0];
    group_id[1] = i / groups[0] % groups[1];
    group_id[2] = i / groups[0] / groups[1];
    start_group();
    run_group();
  }
  for (region_t *r = regions; r < regions + region_count; r++) {
    size_t missing = 0, first = 0;
    if (r->memory == DEVICE && r->writable && !r->initialised)
      for (size_t i = r->high - r->low; i-- > 0;)
        if (!r->cells[i].write_epoch) missing++, first = i;
    self = NULL;
    if (missing) fail(0, "%zu of %zu bytes of %s were never written, the first is byte %zu", missing,
                      (size_t)(r->high - r->low), r->name, first);
    __builtin_free(r->cells);
  }
  return failed;
}
