/* An allocator for NumPy: pages without access on both sides of every array, poison inside it.
 *
 * An array lies against one of the two guard pages, to the byte, and what is left of its pages on the
 * other side holds a pattern that is looked at when the array is freed. Freed pages are unmapped, so that
 * a late access stops the process as well.
 *
 * pages: header | guard | data ... | guard
 */

#define _DEFAULT_SOURCE
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PATTERN = 0xA5, POISON = 0xFF /* NaN in every floating dtype, -1 in the integers */ };

typedef struct {
    size_t size, pages;
} Header;

typedef struct {
    void *ctx;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *, size_t);
} Allocator;

/* PyDataMem_Handler of numpy/ndarraytypes.h */
typedef struct {
    char name[127];
    uint8_t version;
    Allocator allocator;
} Handler;

static long allocations, damaged, failing = -1;
static int at_start;

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static uint8_t *data_pages(void *array) {
    return (uint8_t *)((uintptr_t)array & ~(uintptr_t)(page_size() - 1));
}

static Header *header_of(void *array) { return (Header *)(data_pages(array) - 2 * page_size()); }

static void *allocate(void *ctx, size_t size) {
    (void)ctx;
    if (failing >= 0 && failing-- == 0) return NULL;
    size_t page = page_size(), kept = size ? size : 1, pages = (kept + page - 1) / page;
    uint8_t *base = mmap(NULL, (pages + 3) * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return NULL;
    mprotect(base, page, PROT_READ | PROT_WRITE);
    mprotect(base + 2 * page, pages * page, PROT_READ | PROT_WRITE);
    *(Header *)base = (Header){kept, pages};
    memset(base + 2 * page, PATTERN, pages * page);
    at_start = __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED) % 3 == 0;
    uint8_t *array = base + 2 * page + (at_start ? 0 : pages * page - kept);
    memset(array, POISON, kept);
    return array;
}

static int is_pattern(const uint8_t *from, const uint8_t *to) {
    while (from < to)
        if (*from++ != PATTERN) return 0;
    return 1;
}

static void release(void *ctx, void *array, size_t size) {
    (void)ctx, (void)size;
    if (!array) return;
    size_t page = page_size();
    Header header = *header_of(array);
    uint8_t *data = data_pages(array), *end = (uint8_t *)array + header.size;
    if (!is_pattern(data, array) || !is_pattern(end, data + header.pages * page))
        __atomic_add_fetch(&damaged, 1, __ATOMIC_RELAXED);
    munmap(data - 2 * page, (header.pages + 3) * page);
}

static void *allocate_zeros(void *ctx, size_t count, size_t size) {
    void *array = allocate(ctx, count * size);
    return array ? memset(array, 0, count * size ? count * size : 1) : NULL;
}

static void *resize(void *ctx, void *array, size_t size) {
    void *moved = allocate(ctx, size);
    if (!moved || !array) return moved;
    size_t before = header_of(array)->size;
    memcpy(moved, array, before < size ? before : size);
    release(ctx, array, before);
    return moved;
}

Handler handler = {"guarded", 1, {NULL, allocate, allocate_zeros, resize, release}};

/* Let the n-th allocation from now on fail; a negative n means none. */
void fail_after(long n) { failing = n; }

/* Arrays freed so far around which something was written. */
long count_damaged(void) { return damaged; }
