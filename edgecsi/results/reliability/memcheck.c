/* Calls an entry of a library for valgrind to watch: every array and the workspace is a block of the heap of exactly its
 * size. (That no answer depends on memory which nobody has written is `guarded.c`'s to show: int8 kernels do read it, at
 * the end of a row, and multiply it by zero.)
 *
 *   memcheck LIBRARY NAME IN_SIZES OUT_SIZES WORKSPACE      sizes in float32, comma separated; the workspace in bytes
 *
 * Exit code 1: the entry refused the call. */
#define main runner_main
#include "runner.c"
#undef main

#include <dlfcn.h>

static int call(void *library, const char *name, const size_t *sizes, int inputs, int tensors, size_t workspace) {
    void *pointers[MAX_POINTERS] = {0};
    for (int t = 0; t < tensors; t++) {
        float *values = pointers[t] = malloc(sizes[t] * sizeof *values);
        for (size_t i = 0; t < inputs && i < sizes[t]; i++) values[i] = (float)(i * 2654435761u % 1000) / 1000;
    }
    pointers[tensors] = workspace ? aligned_alloc(64, workspace) : NULL;
    entry_function function = (entry_function)(uintptr_t)dlsym(library, name);
    if (!function) die("%s is missing", name);
    int code = call_sibling(function, pointers);
    for (int t = 0; t <= tensors; t++) free(pointers[t]);
    return code;
}

int main(int argc, char **argv) {
    if (argc != 6) die("see the first lines of memcheck.c");
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) die("%s", dlerror());
    size_t sizes[MAX_TENSORS], workspace = strtoul(argv[5], NULL, 10);
    int inputs = parse_sizes(argv[3], sizes), tensors = inputs + parse_sizes(argv[4], sizes + inputs);
    char given[256];
    snprintf(given, sizeof given, "%s_ws", argv[2]);
    return call(library, argv[2], sizes, inputs, tensors, 0) || call(library, given, sizes, inputs, tensors, workspace);
}
