/* Calling an entry of a library over and over, timed or not. Shared by runner.c and timer.c.
 *
 * An entry takes up to 16 pointers: its inputs, then its outputs. It is always called with 16: under the C calling
 * conventions of x86-64 and AArch64 the caller owns the argument area, so a function never sees surplus ones. Its
 * siblings take up to two more: `_ws` a workspace, `_profile` also an array for times. */
#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { MAX_TENSORS = 16, MAX_POINTERS = MAX_TENSORS + 2 };

typedef int (*entry_function)(void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *,
                              void *, void *, void *, void *, void *);

static inline int call_entry(entry_function f, void *const p[MAX_TENSORS]) {
    return f(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], p[12], p[13], p[14], p[15]);
}

static inline int call_sibling(entry_function f, void *const p[MAX_POINTERS]) {
    typedef int (*sibling)(void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *,
                           void *, void *, void *, void *, void *, void *);
    return ((sibling)(uintptr_t)f)(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], p[12],
                                   p[13], p[14], p[15], p[16], p[17]);
}

static inline double nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Push everything out of the L2 cache by reading `bytes` of `memory`. */
static inline void read_all(const volatile uint8_t *memory, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) (void)memory[i];
}

/* One call a time: ns[i] is what call i took, on sample i modulo `samples`. Returns the first code that is not 0.
 * `pointers` holds MAX_TENSORS pointers a sample. */
static inline int time_calls(entry_function f, void *const *pointers, long samples, long repeats,
                             const uint8_t *flush, size_t flush_bytes, double *ns) {
    for (long i = 0; i < repeats; i++) {
        void *const *sample = pointers + (i % samples) * MAX_TENSORS;
        read_all(flush, flush_bytes);
        double start = nanoseconds();
        int code = call_entry(f, sample);
        ns[i] = nanoseconds() - start;
        if (code) return code;
    }
    return 0;
}
