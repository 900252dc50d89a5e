/* Times calls of a C function without Python in between; see edgecsi/bench/native_calls.py. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <time.h>

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

typedef int (*call_t)(void *, void *, void *, void *);

/* Calls `function` with up to four pointers `count` times; one sample in ns each. Returns its first error code.
   The C calling conventions of x86-64 and AArch64 let a function ignore arguments it does not have. */
__attribute__((visibility("default")))
int edgecsi_time_calls(call_t function, void **arguments, int64_t count, int64_t *ns) {
    for (int64_t i = 0; i < count; i++) {
        int64_t begin = now();
        int code = function(arguments[0], arguments[1], arguments[2], arguments[3]);
        ns[i] = now() - begin;
        if (code) return code;
    }
    return 0;
}
