// Runs a kernel on the CPU, thread by thread, and checks every load and store that it makes.
//
// A threadgroup's threads are fibers: each runs until it waits at a barrier or a simdgroup operation, then another
// one runs, in the order that the schedule names. Kernels are compiled with -fsanitize=thread, but linked without the
// sanitizer's runtime: its calls land here. Before each call build.py has put the source line into simt_line. A kernel
// that was compiled without makes no such calls, and runs unchecked.
//
// Two accesses of one place, one of them a write, are a data race unless one thread makes both, or both threads are of
// one group with a barrier between that orders this memory, or of one simdgroup with such a barrier of the simdgroup.
// So whether a race is found does not depend on who ran first.
#include "executor.h"

#include <stdarg.h>
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
  uint32_t schedule;                       // 0: ascending, 1: descending, else pseudo-random
  uint64_t loaded, stored;                 // bytes of device memory, counted where accesses are checked
  uint64_t read, written;                  // the same, each byte counted once
  uint32_t where;                          // of the fault: file << 20 | line
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

enum { MAX_THREADS = 1024, SIMD = 32, SIMDGROUPS = MAX_THREADS / SIMD, SLOT = 16, STACK = 64 << 10 };
enum state { READY, AT_BARRIER, AT_SIMDGROUP, ENDED };
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
static uint32_t thread_count, group_size[3], group_id[3], groups[3], failed;
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

// Ends the kernel.
#define fault(...) (fail(simt_line, __VA_ARGS__), simt_switch(&self->stack, scheduler))

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
  self->memory = memory;
  wait(AT_BARRIER);
}

void simt_simdgroup_barrier(uint32_t memory) {
  self->memory = memory;
  self->bytes = 0;
  wait(AT_SIMDGROUP);
}

const void *simt_exchange(const void *value, uint32_t bytes) {
  self->given = value;
  self->memory = 0;
  self->bytes = bytes;
  wait(AT_SIMDGROUP);
  return slots;
}

void *simt_dynamic_shared(void) { return launch->dynamic_shared; }

void simt_refuse(const char *what) { fault("%s", what); }

// ---------------------------------------------------------------- checking
// What is known of one granule of memory. Times count the barriers of the launch, of groups and simdgroups.
typedef struct {
  uint32_t written, read;  // when last; 0: never
  uint16_t writer, reader; // threads; or several readers, see below
  uint8_t read_by_earlier_group;
} cell_t;
enum { SEVERAL = 0xffff, SEVERAL_OF = 0xff00, MAX_REGIONS = 64 };  // SEVERAL_OF + n: of simdgroup n alone

typedef struct {
  const char *name;
  uintptr_t low, high;
  uint32_t writable, initialised, granule;  // a granule is the narrowest access so far, at most 4 bytes
  enum memory memory;
  cell_t *cells;
} region_t;

static region_t regions[MAX_REGIONS], *last;
static uint32_t region_count, now, group_start, barrier_at[2], simdgroup_barrier_at[2][SIMDGROUPS];

// Whether what `who` did at `time` came before this thread's next access, whatever the schedule.
static int ordered(const region_t *region, uint32_t time, uint32_t who) {
  const uint32_t mine = self->index / SIMD, its = who >= SEVERAL_OF ? who - SEVERAL_OF : who / SIMD;
  return who == self->index || time < barrier_at[region->memory] ||
         (its == mine && time < simdgroup_barrier_at[region->memory][mine]);
}

static void check_cell(const region_t *region, size_t index, int write) {
  cell_t *cell = &region->cells[index];
  const uint32_t me = self->index;
  const size_t byte = index * region->granule;
  const char *race = write ? "data race (write after write)" : "data race (read after write)", *on = region->name;
  if (region->memory == SHARED) {  // another group's is another memory
    if (cell->written < group_start) cell->written = 0;
    if (cell->read < group_start) cell->read = 0;
  }
  if (cell->written && cell->written < group_start) fault("%s between groups on %s, byte %zu", race, on, byte);
  if (cell->written && !ordered(region, cell->written, cell->writer))
    fault("%s on %s, byte %zu, with thread %u of the group", race, on, byte, cell->writer);
  if (write) {
    race = "data race (write after read)";
    if (cell->read_by_earlier_group || (cell->read && cell->read < group_start))
      fault("%s between groups on %s, byte %zu", race, on, byte);
    if (cell->read && !ordered(region, cell->read, cell->reader)) {
      if (cell->reader >= SEVERAL_OF) fault("%s on %s, byte %zu, with several threads of the group", race, on, byte);
      fault("%s on %s, byte %zu, with thread %u of the group", race, on, byte, cell->reader);
    }
    cell->written = now;
    cell->writer = me;
  } else {
    if (!region->initialised && !cell->written) fault("uninitialised read of %s, byte %zu", on, byte);
    if (cell->read && cell->read < group_start) cell->read_by_earlier_group = 1;
    if (!cell->read || ordered(region, cell->read, cell->reader))
      cell->reader = me;
    else  // one cell remembers one reader; several are named by their simdgroup, if they have one in common
      cell->reader = (cell->reader >= SEVERAL_OF ? cell->reader - SEVERAL_OF : cell->reader / SIMD) == me / SIMD
                         ? SEVERAL_OF + me / SIMD
                         : SEVERAL;
    cell->read = now;
  }
}

static void halve_granule(region_t *region) {
  const size_t count = (region->high - region->low) / (region->granule /= 2);
  cell_t *cells = __builtin_malloc((count + 1) * sizeof(cell_t));
  for (size_t i = 0; i < count; i++) cells[i] = region->cells[i / 2];
  __builtin_free(region->cells);
  region->cells = cells;
}

static void out_of_bounds(uintptr_t address, size_t bytes, const char *kind) {
  const region_t *nearest = NULL;
  uintptr_t distance = 1 << 20;  // executor.py leaves that much between buffers
  for (region_t *r = regions; r < regions + region_count; r++) {
    uintptr_t away = address < r->low ? r->low - address : address + bytes - r->high;
    if (away < distance) distance = away, nearest = r;
  }
  if (!nearest) fault("%s out of bounds of every array", kind);
  fault("%s out of bounds of %s, byte %zd", kind, nearest->name, address - nearest->low);
}

static void check(const void *pointer, size_t bytes, int write) {
  const uintptr_t address = (uintptr_t)pointer;
  const char *kind = write ? "write" : "read";
  if (address - (uintptr_t)stacks < sizeof stacks) {
    if ((address - (uintptr_t)stacks) / STACK != self->index) fault("%s of another thread's private memory", kind);
    return;
  }
  if (address - (uintptr_t)slots < sizeof slots) return;
  region_t *region = last;
  if (!region || address < region->low || address + bytes > region->high) {
    for (region = regions; region < regions + region_count; region++)
      if (address >= region->low && address + bytes <= region->high) break;
    if (region == regions + region_count) {
      if (!write && pointer >= (void *)launch->constants && pointer < (void *)launch->constants_end) return;
      if (address - (uintptr_t)launch->arguments < launch->argument_count * sizeof(void *)) return;  // read by the entry
      return out_of_bounds(address, bytes, kind);
    }
    last = region;
  }
  const size_t offset = address - region->low;
  if (write && !region->writable) fault("write to the input %s, byte %zu", region->name, offset);
  if (region->memory == DEVICE) *(write ? &launch->stored : &launch->loaded) += bytes;
  while ((offset | bytes) & (region->granule - 1)) halve_granule(region);
  for (size_t i = offset / region->granule; i < (offset + bytes) / region->granule; i++) check_cell(region, i, write);
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
  uint32_t order[SIMD];
  for (;;) {
    arrange(order, count);
    for (uint32_t i = 0; i < count; i++) {
      self = first + order[i];
      if (self->state == READY) simt_switch(&scheduler, self->stack);
      if (failed) return;
    }
    self = NULL;
    thread_t *at = NULL;
    for (thread_t *t = first; t < first + count; t++)
      if (t->state == AT_SIMDGROUP) at = t;
    if (!at) return;
    __builtin_memset(slots, 0xff, sizeof slots);
    for (thread_t *t = first; t < first + count; t++) {
      if (t->state != AT_SIMDGROUP || t->where != at->where) return diverged(at, t, "simdgroup operation");
      __builtin_memcpy(slots[t - first], t->given, t->bytes);
      t->state = READY;
    }
    // Each lane reads the slots before it waits again, and the next exchange begins when all wait.
    if (at->memory) now++;
    for (int m = 0; m < 2; m++)
      if (at->memory >> m & 1) simdgroup_barrier_at[m][first->index / SIMD] = now;
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
    thread_t *at = NULL;
    for (thread_t *t = threads; t < threads + thread_count; t++)
      if (t->state == AT_BARRIER) at = t;
    if (failed || !at) return;
    for (thread_t *t = threads; t < threads + thread_count; t++) {
      if (t->state != AT_BARRIER || t->where != at->where) return diverged(at, t, "barrier");
      t->state = READY;
    }
    now++;
    for (int m = 0; m < 2; m++)
      if (at->memory >> m & 1) barrier_at[m] = now;
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
  for (region_t *r = regions; r < regions + region_count; r++)
    if (r->memory == SHARED) __builtin_memset((char *)r->low, 0xff, r->high - r->low);  // NaN, -1
}

static void add_region(const buffer_t *b) {
  const uint32_t granule = b->element < 4 && b->element != 3 ? b->element : 4;
  regions[region_count++] = (region_t){
      b->name, (uintptr_t)b->data, (uintptr_t)b->data + b->bytes, b->writable, b->initialised, granule,
      b->shared ? SHARED : DEVICE, __builtin_calloc(b->bytes / granule + 1, sizeof(cell_t))};
}

// 0, or 1 with launch->message and launch->where set. checked: the kernel was compiled to be checked.
int simt_launch(launch_t *given, uint32_t checked) {
  launch = given;
  self = NULL;
  last = NULL;
  failed = region_count = now = 0;
  random_state = given->schedule;
  __builtin_memset(simdgroup_barrier_at, 0, sizeof simdgroup_barrier_at);
  if (given->group[0] * given->group[1] * given->group[2] > MAX_THREADS || given->buffer_count > MAX_REGIONS) {
    fail(0, "%u threads in a group (at most %d), %u buffers (at most %d)",
         given->group[0] * given->group[1] * given->group[2], MAX_THREADS, given->buffer_count, MAX_REGIONS);
    return 1;
  }
  for (uint32_t i = 0; i < given->buffer_count; i++) add_region(&given->buffers[i]);
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
  for (region_t *r = regions; r < regions + region_count; r++) {
    size_t missing = 0, first = 0;
    for (size_t i = 0; r->memory == DEVICE && i < (r->high - r->low) / r->granule; i++) {
      given->read += r->cells[i].read ? r->granule : 0;
      given->written += r->cells[i].written ? r->granule : 0;
    }
    if (checked && r->memory == DEVICE && r->writable && !r->initialised)
      for (size_t i = (r->high - r->low + r->granule - 1) / r->granule; i-- > 0;)
        if (!r->cells[i].written) missing++, first = i;
    self = NULL;
    if (missing) fail(0, "%zu of %zu bytes of %s were never written, the first is byte %zu", missing * r->granule,
                      (size_t)(r->high - r->low), r->name, first * r->granule);
    __builtin_free(r->cells);
  }
  return failed;
}
