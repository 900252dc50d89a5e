/* Calls an entry of a library with nothing but forbidden memory around what it may touch.
 *
 *   guarded LIBRARY NAME IN_SIZES OUT_SIZES WORKSPACE arrays      every array and the workspace between guard pages, at
 *                                                                 every alignment the header allows; then inputs of
 *                                                                 nothing but NaN, infinity, and the ends of integers
 *   guarded LIBRARY NAME IN_SIZES OUT_SIZES WORKSPACE stack N     NAME in a thread with N bytes of stack, below it a
 *                                                                 guard page, and below that memory that must not change
 *
 * Sizes are in float32, comma separated; the workspace in bytes. Prints what it found; exit 0, or 1 with the fault on
 * stderr. It has the runner's loader, so it runs the bytes that ship under an emulator too. */
#define main runner_main
#include "runner.c"
#undef main

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

enum { PAGE = 4096, UNTOUCHED = 0xA5, BEYOND = 1 << 18 };
static const uint8_t FILLS[] = {UNTOUCHED, 0xFF /* float NaN */, 0x00};
/* Inputs as float32: NaN, infinity, the largest number, -0; as int32, places far outside of any table. */
static const uint32_t EXTREMES[] = {0xFFFFFFFF, 0x7FC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x80000000, 0x7FFFFFFF};
enum { EXTREME = sizeof EXTREMES / sizeof *EXTREMES };

static const char *doing = "";

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)number, (void)context, (void)info;
    const char *parts[] = {"touched memory outside of its arrays: ", doing, "\n"};
    for (int i = 0; i < 3; i++)
        if (write(2, parts[i], strlen(parts[i])) < 0) _exit(1);
    _exit(1);
}

static uint8_t *map(size_t bytes, int flags) {
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) die("mmap: %s", strerror(errno));
    return memory;
}

/* A buffer between two guard pages. */
struct guarded {
    uint8_t *first; /* of the pages that may be touched */
    size_t room, bytes;
    uint8_t *start; /* of the buffer now */
    uint8_t fill;   /* what is in and around it before a call */
};

static struct guarded guard(size_t bytes) {
    struct guarded g = {.bytes = bytes, .room = (bytes + 64 + PAGE - 1) / PAGE * PAGE};
    uint8_t *all = map(g.room + 2 * PAGE, MAP_PRIVATE);
    if (mprotect(all, PAGE, PROT_NONE) || mprotect(all + PAGE + g.room, PAGE, PROT_NONE)) die("mprotect");
    g.first = all + PAGE;
    return g;
}

/* Put the buffer at its first page's start, or so that it ends as near to its last page's end as the alignment
 * allows (`modulo` 64); -1: exactly at its end. */
static void place(struct guarded *g, int at_end, int modulo, uint8_t fill) {
    memset(g->first, g->fill = fill, g->room);
    uint8_t *last = g->first + g->room - g->bytes;
    g->start = at_end ? modulo < 0 ? last : last - (((uintptr_t)last - (uintptr_t)modulo) & 63) : g->first;
}

static void check_untouched(const struct guarded *g, const char *what) {
    for (const uint8_t *p = g->first; p < g->first + g->room; p++)
        if ((p < g->start || p >= g->start + g->bytes) && *p != g->fill)
            die("%s: %s written %td bytes from its start", doing, what, p - g->start);
}

static void fill(float *values, size_t count, uint32_t seed) {
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)(seed >> 8) / (float)(1 << 24);
    }
}

static int arrays(const struct library *library, const char *name, const size_t *sizes, int inputs, int tensors,
                  size_t workspace) {
    char symbol[256];
    entry_function whole = (entry_function)(uintptr_t)find(library, name);
    snprintf(symbol, sizeof symbol, "%s_ws", name);
    entry_function given = (entry_function)(uintptr_t)find(library, symbol);
    struct guarded buffers[MAX_TENSORS + 1];
    float *expected[MAX_TENSORS];
    for (int t = 0; t < tensors; t++) buffers[t] = guard(sizes[t] * sizeof(float)), expected[t] = NULL;
    buffers[tensors] = guard(workspace);
    int count = 0;
    /* Alignments 0, 4, … 60 near the end; 64: exactly at the end; 65: exactly at the start. */
    for (int where = 65; where >= 0; where = where > 64 ? 64 : where > 60 ? 60 : where - 4) {
        for (int own = 0; own < 2; own++, count++) {
            static char text[200];
            snprintf(text, sizeof text, "%s, %s, placed %d", name, own ? "its own workspace" : "ours", where);
            doing = text;
            void *pointers[MAX_POINTERS] = {0};
            for (int t = 0; t < tensors; t++) {
                place(&buffers[t], where < 65, where == 64 ? -1 : where, FILLS[count % 3]);
                if (t < inputs) fill((float *)(void *)buffers[t].start, sizes[t], 17u + (unsigned)t);
                pointers[t] = buffers[t].start;
            }
            place(&buffers[tensors], where < 65, 0, FILLS[count % 3]);
            pointers[tensors] = buffers[tensors].start;
            int code = call_sibling(own ? whole : given, pointers);
            if (code) die("%s: code %d", doing, code);
            for (int t = 0; t < tensors; t++) {
                check_untouched(&buffers[t], t < inputs ? "an input's surroundings" : "an output's surroundings");
                if (!expected[t]) memcpy(expected[t] = allocate(buffers[t].bytes), buffers[t].start, buffers[t].bytes);
                if (memcmp(expected[t], buffers[t].start, buffers[t].bytes))
                    die("%s: %s", doing, t < inputs ? "an input was changed" : "another answer than elsewhere");
            }
            check_untouched(&buffers[tensors], "the workspace's surroundings");
        }
    }
    for (int extreme = 0; extreme < EXTREME; extreme++, count++) {
        static char text[200];
        snprintf(text, sizeof text, "%s, inputs of 0x%08X", name, (unsigned)EXTREMES[extreme]);
        doing = text;
        void *pointers[MAX_POINTERS] = {0};
        for (int t = 0; t <= tensors; t++) {
            place(&buffers[t], 1, t < tensors ? -1 : 0, UNTOUCHED);
            if (t < inputs)
                for (size_t i = 0; i < sizes[t]; i++) memcpy(buffers[t].start + 4 * i, &EXTREMES[extreme], 4);
            if (t < tensors) pointers[t] = buffers[t].start;
        }
        pointers[tensors] = buffers[tensors].start;
        int code = call_sibling(given, pointers);
        if (code) die("%s: code %d", doing, code);
        for (int t = 0; t <= tensors; t++) check_untouched(&buffers[t], "something's surroundings");
    }
    printf("%d placements, one answer\n", count);
    return 0;
}

static entry_function threaded;
static void *thread_pointers[MAX_TENSORS];
static void *run_thread(void *code) {
    *(int *)code = call_entry(threaded, thread_pointers);
    return NULL;
}

static int stack(const struct library *library, const char *name, const size_t *sizes, int inputs, int tensors,
                 size_t bytes) {
    threaded = (entry_function)(uintptr_t)find(library, name);
    for (int t = 0; t < tensors; t++) {
        thread_pointers[t] = allocate(sizes[t] * sizeof(float));
        if (t < inputs) fill(thread_pointers[t], sizes[t], 17u);
    }
    uint8_t *all = map(BEYOND + PAGE + bytes, MAP_SHARED), *own = all + BEYOND + PAGE;
    memset(all, UNTOUCHED, BEYOND);
    memset(own, UNTOUCHED, bytes);
    if (mprotect(all + BEYOND, PAGE, PROT_NONE)) die("mprotect");
    pid_t child = fork();
    if (child < 0) die("fork: %s", strerror(errno));
    if (!child) {
        pthread_attr_t attributes;
        pthread_t thread;
        int code = -99;
        if (pthread_attr_init(&attributes) || pthread_attr_setstack(&attributes, own, bytes)) _exit(90);
        if (pthread_create(&thread, &attributes, run_thread, &code) || pthread_join(thread, NULL)) _exit(91);
        _exit(code ? 92 : 0);
    }
    int status;
    if (waitpid(child, &status, 0) != child) die("waitpid: %s", strerror(errno));
    for (size_t i = 0; i < BEYOND; i++)
        if (all[i] != UNTOUCHED) die("written %zu bytes below the guard page", BEYOND - i);
    size_t free_bytes = 0;
    while (free_bytes < bytes && own[free_bytes] == UNTOUCHED) free_bytes++;
    if (WIFSIGNALED(status)) printf("stopped by signal %d\n", WTERMSIG(status));
    else if (WEXITSTATUS(status)) die("the thread ended with %d", WEXITSTATUS(status));
    else printf("%zu bytes\n", bytes - free_bytes);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 7) die("see the first lines of guarded.c");
    struct library library = load(argv[1]);
    size_t sizes[MAX_TENSORS];
    int inputs = parse_sizes(argv[3], sizes), tensors = inputs + parse_sizes(argv[4], sizes + inputs);
    if (argc == 8) return stack(&library, argv[2], sizes, inputs, tensors, strtoul(argv[7], NULL, 10));
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    return arrays(&library, argv[2], sizes, inputs, tensors, strtoul(argv[5], NULL, 10));
}
