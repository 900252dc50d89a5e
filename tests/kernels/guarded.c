/* Runs kernels with nothing but forbidden memory around every buffer.
 *
 *   guarded MEMORY RESULT
 *
 * `shapes`, `count` and `kernels` are in a generated file, so that this one is compiled once. MEMORY holds the buffers of
 * all kernels, one after the other; RESULT takes every kernel's output from the first placement. What is only read lies
 * in pages that cannot be written. Exit 0; else 1, with the fault on stderr. */
#include "guarded.h"

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, MOST = 64, JUNK = 77 };
/* A buffer may lie at any multiple of its element: at the end of its pages, at their start, and one element further. */
enum { AT_END, AT_START, SHIFTED, PLACEMENTS };
static const char *const names[] = {"at the end of its pages", "at the start", "an element behind the start"};

static struct { uint8_t *pages; size_t room; uint8_t *start; } held[MOST];
static int now, placement;
static size_t first_shape;

static void die(const char *why, int buffer) {
    fprintf(stderr, "%d %d %s, buffer %d %s\n", now, buffer, why, buffer, names[placement]);
    exit(1);
}

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    uint8_t *at = info->si_addr;
    char text[200];
    int length = snprintf(text, sizeof text, "%d -1 stray access\n", now);
    for (int b = 0; b < kernels[now].buffers; b++)
        if (at >= held[b].pages - PAGE && at < held[b].pages + held[b].room + PAGE)
            length = snprintf(text, sizeof text, "%d %d touched byte %td of %zu, buffer %d %s\n", now, b, at - held[b].start,
                              shapes[first_shape + (size_t)b].bytes, b, names[placement]);
    if (write(2, text, (size_t)length) < 0) _exit(2);
    _exit(1);
}

static void place(int b, const uint8_t *content) {
    const struct shape *s = &shapes[first_shape + (size_t)b];
    size_t room = (s->bytes + s->element + PAGE - 1) / PAGE * PAGE;
    uint8_t *all = mmap(NULL, room + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + PAGE, room, PROT_READ | PROT_WRITE)) die("mmap failed", b);
    held[b].pages = all + PAGE, held[b].room = room;
    memset(held[b].pages, JUNK, room);
    held[b].start = held[b].pages + (placement == AT_END ? room - s->bytes : placement == AT_START ? 0 : s->element);
    if (s->kind == READ) memcpy(held[b].start, content, s->bytes);
    if (s->kind == READ && mprotect(held[b].pages, room, PROT_READ)) die("mprotect failed", b);
}

static void check(int b) {
    const struct shape *s = &shapes[first_shape + (size_t)b];
    for (const uint8_t *p = held[b].pages; s->kind != READ && p < held[b].pages + held[b].room; p++)
        if ((p < held[b].start || p >= held[b].start + s->bytes) && *p != JUNK) die("written beside the buffer", b);
}

int main(int argc, char **argv) {
    FILE *in = argc == 3 ? fopen(argv[1], "rb") : NULL, *out = in ? fopen(argv[2], "wb") : NULL;
    if (!out) return 2;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    if (sigaction(SIGSEGV, &action, NULL) || sigaction(SIGBUS, &action, NULL)) return 2;
    for (now = 0; now < count; first_shape += (size_t)kernels[now].buffers, now++) {
        const int buffers = kernels[now].buffers;
        uint8_t *content[MOST], *answer = NULL;
        for (int b = 0; b < buffers; b++) {
            const struct shape *s = &shapes[first_shape + (size_t)b];
            content[b] = malloc(s->bytes + 1);
            if (!content[b] || (s->kind == READ && fread(content[b], 1, s->bytes, in) != s->bytes)) return 2;
        }
        for (placement = AT_END; placement < PLACEMENTS; placement++) {
            void *pointers[MOST];
            for (int b = 0; b < buffers; b++) place(b, content[b]), pointers[b] = held[b].start;
            kernels[now].call(pointers);
            for (int b = 0; b < buffers; b++) {
                const struct shape *s = &shapes[first_shape + (size_t)b];
                check(b);
                if (s->kind == OUTPUT && !answer) {
                    memcpy(answer = content[b], held[b].start, s->bytes);
                    if (fwrite(answer, 1, s->bytes, out) != s->bytes) return 2;
                } else if (s->kind == OUTPUT && memcmp(answer, held[b].start, s->bytes)) {
                    die("another answer than at the end of its pages", b);
                }
                munmap(held[b].pages - PAGE, held[b].room + 2 * PAGE);
            }
        }
        for (int b = 0; b < buffers; b++) free(content[b]);
    }
    return fclose(out) ? 2 : 0;
}
