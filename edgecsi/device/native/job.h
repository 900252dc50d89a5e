/* What the runner was asked for, the library it loads, and how it answers: remote.c without its modes. */
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "calls.h"

enum { FAILED = 1, CODE = 3, TOO_LONG = 4, ALONE = 5 };

static int results = 1; /* where results go: the standard output we were started with */

static _Noreturn void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(FAILED);
}

static void *allocate(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1)) die("out of memory (%zu bytes)", bytes);
    return memory;
}

static void put(const void *data, size_t bytes) {
    for (const char *at = data; bytes;) {
        ssize_t written = write(results, at, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) exit(ALONE);
        at += written, bytes -= (size_t)written;
    }
}

static void frame(const char *kind, const void *data, size_t bytes) {
    uint32_t length = (uint32_t)bytes;
    put(kind, 4), put(&length, sizeof length), put(data, bytes);
}

/* Fills `data` from standard input; 0 if that ended before. */
static int get(void *data, size_t bytes) {
    size_t got = 0;
    while (got < bytes) {
        ssize_t part = read(0, (char *)data + got, bytes - got);
        if (part < 0 && errno == EINTR) continue;
        if (part <= 0) break;
        got += (size_t)part;
    }
    return got == bytes;
}

/* ---- what was asked for --------------------------------------------------------------------------------- */

static struct job {
    const char *mode, *library, *name, *entry; /* of `rate`, several entries */
    size_t sizes[MAX_TENSORS], in_bytes, out_bytes;
    int inputs, tensors;
    double calls, repeats, flush, workspace, layers, cpu, deadline, passes, starts, held, threads, rounds, period;
    double samples, seconds, limit, turn, turn_calls, settle, cold; /* of the protocol, as in bench/measure.py */
} job = {.calls = 1, .cpu = -1, .deadline = 60, .threads = 1};

static int parse_sizes(const char *text, size_t sizes[]) {
    int count = 0;
    for (char *end; *text && count < MAX_TENSORS / 2; text = *end ? end + 1 : end)
        sizes[count++] = strtoul(text, &end, 10);
    return count;
}

static void parse(int argc, char **argv) {
    if (argc < 7) die("the runner was called with %d arguments", argc - 1);
    job.mode = argv[1], job.library = argv[2], job.name = argv[3], job.entry = argv[4];
    job.inputs = parse_sizes(argv[5], job.sizes);
    job.tensors = job.inputs + parse_sizes(argv[6], job.sizes + job.inputs);
    for (int t = 0; t < job.tensors; t++)
        *(t < job.inputs ? &job.in_bytes : &job.out_bytes) += job.sizes[t] * sizeof(float);
    const struct { const char *name; double *value; } options[] = {
        {"calls", &job.calls}, {"repeats", &job.repeats}, {"flush", &job.flush}, {"workspace", &job.workspace},
        {"layers", &job.layers}, {"cpu", &job.cpu}, {"deadline", &job.deadline}, {"passes", &job.passes},
        {"starts", &job.starts}, {"samples", &job.samples}, {"seconds", &job.seconds}, {"limit", &job.limit},
        {"turn", &job.turn}, {"turn_calls", &job.turn_calls}, {"settle", &job.settle}, {"cold", &job.cold},
        {"held", &job.held}, {"threads", &job.threads}, {"rounds", &job.rounds}, {"period", &job.period},
    };
    for (int i = 7; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        size_t known = 0, count = sizeof options / sizeof *options;
        while (known < count && !(value && !strncmp(options[known].name, argv[i], (size_t)(value - argv[i])) &&
                                  !options[known].name[value - argv[i]]))
            known++;
        if (known == count) die("the runner does not know %s", argv[i]);
        *options[known].value = strtod(value + 1, NULL);
    }
}

/* ---- the library ---------------------------------------------------------------------------------------- */

static void *symbol(void *library, const char *ending) {
    char name[256];
    snprintf(name, sizeof name, "%s_%s", job.name, ending);
    void *found = dlsym(library, name);
    if (!found) die("the library has no function %s", name);
    return found;
}

static void *load(void) {
    void *library = dlopen(job.library, RTLD_NOW | RTLD_LOCAL);
    if (!library) die("%s", dlerror());
    return library;
}

static void check(void *library, int code) {
    if (!code) return;
    const char *(*strerror_of)(int) = (const char *(*)(int))(uintptr_t)symbol(library, "strerror");
    fprintf(stderr, "%d %s\n", code, strerror_of(code));
    exit(CODE);
}

/* Memory for `calls` calls: 16 pointers each, the inputs read from standard input. */
static void **read_calls(size_t calls) {
    void **pointers = allocate(calls * MAX_TENSORS * sizeof *pointers);
    memset(pointers, 0, calls * MAX_TENSORS * sizeof *pointers);
    for (size_t c = 0; c < calls; c++) {
        char *in = allocate(job.in_bytes), *out = allocate(job.out_bytes);
        if (!get(in, job.in_bytes)) die("the input has %zu calls instead of %zu", c, calls);
        for (int t = 0; t < job.tensors; t++) {
            char **from = t < job.inputs ? &in : &out;
            pointers[c * MAX_TENSORS + (size_t)t] = *from;
            *from += job.sizes[t] * sizeof(float);
        }
    }
    return pointers;
}
