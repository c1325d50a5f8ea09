// Checks every load and store of a kernel.
//
// Kernels are compiled with -fsanitize=thread, but linked without the sanitizer's runtime: its calls land here.
//
// Two accesses of one place, one of them a write, are a data race unless one thread makes both, or both threads are of
// one group with a barrier between that orders this memory, or of one simdgroup with such a barrier of the simdgroup.
// So whether a race is found does not depend on who ran first.
#include "launch.h"

// What is known of one granule of memory.
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
static uint32_t region_count;

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
  if (!launch->check) return;
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
#define HOOK(name, bytes, write) \
  SIMT_EXPORT void __tsan_##name##bytes(void *p) { CALLED_FROM, check(p, bytes, write); }
#define HOOKS(bytes) \
  HOOK(read, bytes, 0) HOOK(write, bytes, 1) HOOK(unaligned_read, bytes, 0) HOOK(unaligned_write, bytes, 1)
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
SIMT_EXPORT void *__tsan_memset(void *p, int value, size_t n) {
  CALLED_FROM, check(p, n, 1);
  return __builtin_memset(p, value, n);
}
SIMT_EXPORT void *__tsan_memcpy(void *to, const void *from, size_t n) {
  CALLED_FROM, check(from, n, 0), check(to, n, 1);
  return __builtin_memcpy(to, from, n);
}
SIMT_EXPORT void __tsan_init(void) {}
SIMT_EXPORT void __ubsan_handle_type_mismatch_v1(void *what, void *p) { CALLED_FROM, fault("misaligned access"); }
SIMT_EXPORT void __ubsan_handle_out_of_bounds(void *what, uintptr_t index) {
  CALLED_FROM, fault("index %zd is outside its array", index);
}

// ---------------------------------------------------------------- a launch
void start_checking(void) {
  last = NULL;
  region_count = 0;
  if (!launch->check) return;
  if (launch->buffer_count > MAX_REGIONS) return fail(NULL, "%u arrays (at most %d)", launch->buffer_count, MAX_REGIONS);
  for (uint32_t i = 0; i < launch->buffer_count; i++) {
    const buffer_t *b = &launch->buffers[i];
    const uint32_t granule = b->element < 4 && b->element != 3 ? b->element : 4;
    regions[region_count++] = (region_t){
        b->name, (uintptr_t)b->data, (uintptr_t)b->data + b->bytes, b->writable, b->initialised, granule,
        b->shared ? SHARED : DEVICE, __builtin_calloc(b->bytes / granule + 1, sizeof(cell_t))};
  }
}

void end_checking(void) {
  for (region_t *r = regions; r < regions + region_count; r++) {
    size_t missing = 0, first = 0;
    for (size_t i = 0; r->memory == DEVICE && i < (r->high - r->low) / r->granule; i++) {
      launch->read += r->cells[i].read ? r->granule : 0;
      launch->written += r->cells[i].written ? r->granule : 0;
    }
    if (r->memory == DEVICE && r->writable && !r->initialised)
      for (size_t i = (r->high - r->low + r->granule - 1) / r->granule; i-- > 0;)
        if (!r->cells[i].written) missing++, first = i;
    if (missing) fail(NULL, "%zu of %zu bytes of %s were never written, the first is byte %zu", missing * r->granule,
                      (size_t)(r->high - r->low), r->name, first * r->granule);
    __builtin_free(r->cells);
  }
}
