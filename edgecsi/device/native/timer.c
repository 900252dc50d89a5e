/* Times a loaded library's entry without Python in between; device/local.py loads this with ctypes. */
#include "calls.h"

__attribute__((visibility("default"))) int edgecsi_time_calls(entry_function f, void *const *pointers, long samples,
                                                              long repeats, const uint8_t *flush,
                                                              size_t flush_bytes, double *ns) {
    return time_calls(f, pointers, samples, repeats, flush, flush_bytes, ns);
}
