/* Runs a bundle's library on a device: loaded by the device's own loader, with its own libc and libm.
 *
 *   remote info
 *   remote MODE LIBRARY NAME ENTRY IN_SIZES OUT_SIZES [OPTION=NUMBER ...]
 *
 * NAME is the bundle's name as a C identifier; the sizes are those of the entry's tensors in floats, comma separated.
 * Standard input holds calls, one after the other, each with all inputs as float32. MODE is
 *
 *   run      `calls` calls of the input; the outputs go to standard output in the same layout
 *   time     `repeats` single calls, on the calls of the input in turn, reading `flush` bytes before each
 *   measure  the whole protocol (see measure() below), on the first call of the input
 *   rate     samples a second (see rate() below)
 *   paced    `repeats` single calls, on the calls of the input in turn, one every `period` seconds, asleep in between
 *   profile  the layers, `passes` times or `seconds` long
 *   cold     `starts` fresh processes that load the library and call it once
 *
 * All but `run` write frames: four letters, the length in bytes (uint32), then int64 or doubles. OPTIONs of all modes:
 * `calls` in the input, `workspace` bytes, `layers`, `cpu` to keep to, `deadline` in seconds; `held=1`, whoever waits
 * for the result holds the standard input open until it has it.
 *
 * The work is done by a child process, which is watched: whether it crashes, never ends, or whether whoever waits for
 * the result has gone (nobody reads it, or a held input ended). Exit: 0; 1 (the message is on standard error); 3, the library returned a code; 4, the deadline
 * passed; 5, nobody is there any more; 128 + signal, the child crashed. */
#define _GNU_SOURCE
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cpu.h"
#include "job.h"

enum { EMPTY_CALLS = 1001 };

/* ---- the modes ------------------------------------------------------------------------------------------ */

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double peak_bytes(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return 1024.0 * (double)usage.ru_maxrss;
}

static double resident_bytes(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file && fscanf(file, "%*s %ld", &pages) != 1) pages = 0;
    if (file) fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static void run(void *library, entry_function function) {
    /* Many calls at once, so that reading and writing cost little; not more than some 4 MB. */
    size_t call_bytes = job.in_bytes + job.out_bytes, at_once = ((size_t)4 << 20) / (call_bytes ? call_bytes : 1) + 1;
    char *in = allocate(at_once * job.in_bytes), *out = allocate(at_once * job.out_bytes);
    for (size_t left = (size_t)job.calls; left;) {
        size_t calls = 0;
        for (; calls < at_once && left; calls++, left--) {
            if (!get(in + calls * job.in_bytes, job.in_bytes)) die("the input ends before its last call");
            void *pointers[MAX_TENSORS] = {0};
            char *from = in + calls * job.in_bytes, *to = out + calls * job.out_bytes;
            for (int t = 0; t < job.tensors; t++) {
                char **place = t < job.inputs ? &from : &to;
                pointers[t] = *place, *place += job.sizes[t] * sizeof(float);
            }
            check(library, call_entry(function, pointers));
        }
        put(out, calls * job.out_bytes);
    }
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count) {
    qsort(values, count, sizeof *values, ascending);
    double middle = (values[(count - 1) / 2] + values[count / 2]) / 2;
    return middle < 1 ? 1 : middle;
}

static void send_times(const char *kind, const double *ns, size_t count) {
    int64_t *whole = allocate(count * sizeof *whole);
    for (size_t i = 0; i < count; i++) whole[i] = (int64_t)ns[i];
    frame(kind, whole, count * sizeof *whole);
    free(whole);
}

/* What timing itself costs. */
static int nothing(void *a, void *b, void *c, void *d, void *e, void *f, void *g, void *h, void *i, void *j, void *k,
                   void *l, void *m, void *n, void *o, void *p) {
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h, (void)i, (void)j, (void)k, (void)l;
    (void)m, (void)n, (void)o, (void)p;
    return 0;
}

/* bench/measure.py's protocol for one engine. Warm up until the medians of two blocks agree; then turns of `turn`
 * seconds, each after `settle` untimed calls, until there are `samples` calls and `seconds` of them, or `limit`
 * seconds. Between the two, `cold` calls, each after `flush` bytes of other memory: they come first so that a result
 * that breaks off in the middle has them.
 * Frames: WARM settled, median; COLD ns; VOID and VCLD the same of calls that do nothing; TURN the ns of a turn, for each; DONE whether it is complete,
 * CPU seconds and seconds of the turns, CPU seconds and peak memory of the process. */
static void measure(void *library, entry_function function) {
    void **pointers = read_calls(1);
    size_t room = 1 << 20;
    double *ns = allocate(room * sizeof *ns), begin = nanoseconds(), now, previous, settled = 0;
    check(library, time_calls(function, pointers, 1, 4, NULL, 0, ns));
    for (now = median(ns + 1, 3); !settled && nanoseconds() - begin < 5e9;) {
        previous = now;
        double count = fmin(fmax(5, ceil(0.02e9 / previous)), (double)room);
        check(library, time_calls(function, pointers, 1, (long)count, NULL, 0, ns));
        now = median(ns, (size_t)count);
        settled = fabs(now - previous) <= 0.02 * fmin(now, previous);
    }
    double warm[] = {settled, now};
    frame("WARM", warm, sizeof warm);

    uint8_t *other = allocate((size_t)job.flush);
    memset(other, 1, (size_t)job.flush);
    size_t cold = (size_t)fmin(job.cold, (double)room);
    check(library, time_calls(function, pointers, 1, (long)cold, other, (size_t)job.flush, ns));
    send_times("COLD", ns, cold);
    time_calls(nothing, pointers, 1, (long)cold, other, (size_t)job.flush, ns);
    send_times("VCLD", ns, cold);
    time_calls(nothing, pointers, 1, EMPTY_CALLS, NULL, 0, ns);
    send_times("VOID", ns, EMPTY_CALLS);
    free(other);

    size_t length = (size_t)fmin(fmax(job.turn_calls, ceil(job.turn * 1e9 / now)), (double)room / 2);
    double counted = 0, spent = 0, computed = 0, sent = nanoseconds();
    size_t held = 0, turns = 0, ends[4096];
    int complete = 0;
    while (!complete && spent < job.limit) {
        check(library, time_calls(function, pointers, 1, (long)job.settle, NULL, 0, ns + held));
        double cpu = cpu_seconds();
        check(library, time_calls(function, pointers, 1, (long)length, NULL, 0, ns + held));
        computed += cpu_seconds() - cpu;
        for (size_t i = 0; i < length; i++) spent += 1e-9 * ns[held + i];
        counted += (double)length;
        ends[turns++] = held += length;
        complete = counted >= job.samples && spent >= job.seconds;
        /* Once a second at most: sending disturbs. What was sent is kept if the connection breaks. */
        if (complete || spent >= job.limit || nanoseconds() - sent > 1e9 || held + length + (size_t)job.settle > room ||
            turns == sizeof ends / sizeof *ends) {
            for (size_t t = 0; t < turns; t++) {
                size_t first = t ? ends[t - 1] : 0;
                send_times("TURN", ns + first, ends[t] - first);
            }
            held = turns = 0, sent = nanoseconds();
        }
    }
    double done[] = {complete, computed, spent, cpu_seconds(), peak_bytes()};
    frame("DONE", done, sizeof done);
}

static void time_repeats(void *library, entry_function function) {
    void **pointers = read_calls((size_t)job.calls);
    uint8_t *other = allocate((size_t)job.flush);
    memset(other, 1, (size_t)job.flush);
    double *ns = allocate((size_t)job.repeats * sizeof *ns);
    check(library, time_calls(function, pointers, (long)job.calls, (long)job.repeats, other, (size_t)job.flush, ns));
    frame("TIME", ns, (size_t)job.repeats * sizeof *ns);
}

/* One call every `period` seconds, as reports come. One that comes too late is made at once: the next does not wait.
 * Frames: CALL the ns of each; RESP the ns from when it was due to its answer; LATE how many were due before the one
 * before had ended. */
static void paced(void *library, entry_function function) {
    void **pointers = read_calls((size_t)job.calls);
    size_t count = (size_t)job.repeats, bytes = count * sizeof(double);
    double *call = allocate(bytes), *response = allocate(bytes), late = 0, start = nanoseconds() + 1e9 * job.period;
    for (size_t i = 0; i < count; i++) {
        double due = start + 1e9 * job.period * (double)i;
        if (nanoseconds() < due) {
            struct timespec until = {(time_t)(due / 1e9), (long)fmod(due, 1e9)};
            while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL)) {}
        } else if (i) {
            late++;
        }
        double begin = nanoseconds();
        check(library, call_entry(function, pointers + (i % (size_t)job.calls) * MAX_TENSORS));
        double end = nanoseconds();
        call[i] = end - begin, response[i] = end - due;
    }
    frame("CALL", call, bytes), frame("RESP", response, bytes), frame("LATE", &late, sizeof late);
}

/* ---- samples a second ----------------------------------------------------------------------------------- */

/* The entries of `rate` take so many samples each, the largest first; `in` and `out` hold as many as a thread gets. */
static struct {
    entry_function entries[MAX_TENSORS];
    pthread_barrier_t barrier;
    const char *input;
    size_t in_bytes, out_bytes;
    long batches; /* of each thread in a round */
    int code;
} shared;

static int compute(char *in, char *out, void *workspace) {
    size_t left = shared.in_bytes / sizeof(float);
    for (int e = 0; e < job.inputs; e++)
        for (size_t size = job.sizes[e], to = job.sizes[job.inputs + e]; left >= size; left -= size) {
            void *pointers[MAX_TENSORS] = {in, out, workspace};
            int code = call_entry(shared.entries[e], pointers);
            if (code) return code;
            in += size * sizeof(float), out += to * sizeof(float);
        }
    return 0;
}

static void *worker(void *arrays) {
    char *in = arrays, *out = in + shared.in_bytes, *workspace = allocate((size_t)job.workspace);
    for (;;) {
        pthread_barrier_wait(&shared.barrier);
        int code = 0;
        for (long i = 0; i < shared.batches && !code; i++) code = compute(in, out, workspace);
        if (code) shared.code = code;
        pthread_barrier_wait(&shared.barrier);
    }
}

static double round_of(void *library, long batches) {
    shared.batches = batches;
    double begin = nanoseconds(); /* before: we may come back from the first barrier after they are half through */
    pthread_barrier_wait(&shared.barrier);
    pthread_barrier_wait(&shared.barrier);
    double seconds = 1e-9 * (nanoseconds() - begin);
    check(library, shared.code);
    return seconds;
}

/* Every thread computes `calls` calls' worth of samples over and over, each with its own arrays, in rounds that begin
 * and end together, until there are `rounds` of them and `seconds`, or `limit` seconds.
 * Frames: RATE seconds that each thread's one batch took, of every round; DONE whether it is complete, CPU seconds and
 * seconds of the rounds. */
static void rate(void *library, entry_function function) {
    (void)function;
    char *names = strdup(job.entry), ending[128];
    int entries = 0;
    for (char *name = strtok(names, ","); name && entries < job.inputs; name = strtok(NULL, ","), entries++) {
        snprintf(ending, sizeof ending, "%s_ws", name);
        shared.entries[entries] = (entry_function)(uintptr_t)symbol(library, ending);
    }
    /* `calls` are those of the last entry, which takes the fewest samples. */
    shared.in_bytes = (size_t)job.calls * job.sizes[job.inputs - 1] * sizeof(float);
    shared.out_bytes = (size_t)job.calls * job.sizes[job.tensors - 1] * sizeof(float);
    char *input = allocate(shared.in_bytes);
    if (!get(input, shared.in_bytes)) die("the input ends before its last call");
    pthread_t thread;
    pthread_barrier_init(&shared.barrier, NULL, (unsigned)job.threads + 1);
    for (int t = 0; t < (int)job.threads; t++) {
        char *arrays = allocate(shared.in_bytes + shared.out_bytes);
        memcpy(arrays, input, shared.in_bytes);
        if (pthread_create(&thread, NULL, worker, arrays)) die("no more than %d threads can be started", t);
    }
    double once = round_of(library, 1), spent = 0, computed = 0, rounds[1 << 14], begin = nanoseconds();
    while (nanoseconds() - begin < 0.2e9) once = round_of(library, 1); /* warm up */
    long batches = (long)fmax(1, ceil(job.turn / once));
    size_t count = 0;
    int complete = 0;
    while (!complete && spent < job.limit && count < sizeof rounds / sizeof *rounds) {
        double cpu = cpu_seconds(), seconds = round_of(library, batches);
        computed += cpu_seconds() - cpu, spent += seconds;
        rounds[count++] = seconds / (double)batches;
        complete = (double)count >= job.rounds && spent >= job.seconds;
    }
    double done[] = {complete, computed, spent};
    frame("RATE", rounds, count * sizeof *rounds), frame("DONE", done, sizeof done);
}

static void profile(void *library, entry_function function) {
    (void)function; /* its sibling is called: it takes a workspace and an array for the times besides */
    char ending[128];
    snprintf(ending, sizeof ending, "%s_profile", job.entry);
    entry_function profiled = (entry_function)(uintptr_t)symbol(library, ending);
    void *pointers[MAX_POINTERS];
    memcpy(pointers, read_calls(1), MAX_TENSORS * sizeof *pointers);
    double *ns = allocate(((size_t)job.layers + 1) * sizeof *ns), begin = nanoseconds();
    pointers[job.tensors] = allocate((size_t)job.workspace), pointers[job.tensors + 1] = ns;
    for (double pass = 0; pass < job.passes && (pass < 5 || nanoseconds() - begin < 1e9 * job.seconds); pass++) {
        check(library, call_sibling(profiled, pointers));
        frame("LAYR", ns, (size_t)job.layers * sizeof *ns);
    }
}

static void cold_start(void) {
    void **pointers = read_calls(1);
    for (double start = 0; start < job.starts; start++) {
        pid_t child = fork();
        if (child < 0) die("fork: %s", strerror(errno));
        if (!child) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            double before = resident_bytes(), begin = nanoseconds();
            void *library = load();
            entry_function function = (entry_function)(uintptr_t)symbol(library, job.entry);
            double middle = nanoseconds();
            check(library, call_entry(function, pointers));
            double end = nanoseconds();
            double found[] = {1e-6 * (middle - begin), 1e-6 * (end - middle), peak_bytes(),
                              resident_bytes() - before};
            frame("COLD", found, sizeof found);
            exit(0);
        }
        int status;
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
        if (WIFSIGNALED(status)) signal(WTERMSIG(status), SIG_DFL), raise(WTERMSIG(status));
        if (WEXITSTATUS(status)) exit(WEXITSTATUS(status));
    }
}

static void work(void) {
    if (job.cpu >= 0) {
        cpu_set_t only;
        CPU_ZERO(&only);
        CPU_SET((int)job.cpu, &only);
        if (sched_setaffinity(0, sizeof only, &only)) die("CPU %d: %s", (int)job.cpu, strerror(errno));
    }
    if (!strcmp(job.mode, "cold")) {
        cold_start();
        return;
    }
    const struct { const char *name; void (*mode)(void *, entry_function); } modes[] = {
        {"run", run}, {"time", time_repeats}, {"measure", measure},
                 {"rate", rate}, {"paced", paced}, {"profile", profile}};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(job.mode, modes[i].name)) {
            void *library = load();
            entry_function function = strchr(job.entry, ',') ? NULL : (entry_function)(uintptr_t)symbol(library, job.entry);
            modes[i].mode(library, function);
            return;
        }
    die("the runner has no mode %s", job.mode);
}

/* ---- the watch ------------------------------------------------------------------------------------------ */

/* Until the child ends, the deadline passes or whoever waits has gone; all without waking up in between. */
static int watch(pid_t child, int alive) {
    double end = nanoseconds() + 1e9 * job.deadline;
    for (;;) {
        double left = 1e-6 * (end - nanoseconds());
        struct pollfd watched[] = {{.fd = alive}, {.fd = results}, {.fd = job.held ? 0 : -1, .events = POLLRDHUP}};
        int events = poll(watched, 3, left > 0 ? (int)fmin(left + 1, 1e9) : 0);
        if (events < 0 && errno == EINTR) continue;
        int ended = watched[0].revents != 0;
        int alone = (watched[1].revents | watched[2].revents) & (POLLERR | POLLHUP | POLLRDHUP | POLLNVAL);
        if (!ended && !alone && nanoseconds() < end) continue;
        if (!ended) kill(child, SIGKILL);
        int status = 0;
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
        if (!ended && !alone) fprintf(stderr, "no end after %.0f s\n", job.deadline);
        if (!ended) return alone ? ALONE : TOO_LONG;
        if (WIFSIGNALED(status)) {
            fprintf(stderr, "%s\n", strsignal(WTERMSIG(status)));
            return 128 + WTERMSIG(status);
        }
        return WEXITSTATUS(status);
    }
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "info")) return describe_cpu();
    parse(argc, argv);
    results = dup(1); /* what the library may print goes to standard error */
    dup2(2, 1);
    signal(SIGPIPE, SIG_IGN);
    int pipe_ends[2];
    if (results < 0 || pipe(pipe_ends)) die("%s", strerror(errno));
    pid_t parent = getpid(), child = fork();
    if (child < 0) die("fork: %s", strerror(errno));
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* nothing of ours outlives the watch */
        if (getppid() != parent) _exit(ALONE);
        close(pipe_ends[0]);
        work();
        exit(0);
    }
    close(pipe_ends[1]);
    return watch(child, pipe_ends[0]);
}
