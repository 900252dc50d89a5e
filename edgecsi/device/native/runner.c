/* Runs a bundle's library on a machine, real or emulated, that has no C library of its own for it.
 *
 * A static program cannot dlopen, and an emulated CPU comes without a root file system. So this program brings a
 * small ELF loader: it maps the very bytes that ship, and resolves the few functions of libc and libm they need
 * from the static C library it was linked with.
 *
 *   runner LIBRARY SYMBOL MODE SAMPLES REPEATS FLUSH IN OUT IN_SIZES OUT_SIZES
 *
 * IN holds, for each input in turn, SAMPLES times as many float32 as IN_SIZES says (comma separated). MODE `run`
 * goes REPEATS times over all samples and writes the outputs to OUT in the same layout; MODE `time` makes REPEATS
 * calls, reading FLUSH bytes of memory before each, and writes the nanoseconds of each as float64.
 * Exit: 0, 1 (message on stderr), or 3: the library returned the code that stderr ends with. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calls.h"

#if defined(__x86_64__)
enum { MACHINE = EM_X86_64, REL_ABS = R_X86_64_64, REL_DATA = R_X86_64_GLOB_DAT, REL_CALL = R_X86_64_JUMP_SLOT,
       REL_BASE = R_X86_64_RELATIVE };
#elif defined(__aarch64__)
enum { MACHINE = EM_AARCH64, REL_ABS = R_AARCH64_ABS64, REL_DATA = R_AARCH64_GLOB_DAT,
       REL_CALL = R_AARCH64_JUMP_SLOT, REL_BASE = R_AARCH64_RELATIVE };
#else
#error "the runner knows x86-64 and AArch64"
#endif

static _Noreturn void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static void *allocate(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1)) die("out of memory (%zu bytes)", bytes);
    return memory;
}

/* ---- what a library may import -------------------------------------------------------------------------- */

#define FUNCTION(name) {#name, (void *)(uintptr_t)(name)}
#define BOTH(name) FUNCTION(name), FUNCTION(name##f)
static const struct {
    const char *name;
    void *address;
} provided[] = {
    FUNCTION(memcpy), FUNCTION(memmove), FUNCTION(memset), FUNCTION(memcmp), FUNCTION(strlen), FUNCTION(strcmp),
    FUNCTION(strncmp), FUNCTION(strstr), FUNCTION(malloc), FUNCTION(calloc), FUNCTION(realloc), FUNCTION(free),
    FUNCTION(posix_memalign), FUNCTION(aligned_alloc), FUNCTION(abort), FUNCTION(getauxval),
    FUNCTION(clock_gettime), FUNCTION(snprintf),
    BOTH(exp), BOTH(exp2), BOTH(expm1), BOTH(log), BOTH(log2), BOTH(log10), BOTH(log1p), BOTH(pow), BOTH(sqrt),
    BOTH(cbrt), BOTH(sin), BOTH(cos), BOTH(tan), BOTH(asin), BOTH(acos), BOTH(atan), BOTH(atan2), BOTH(sinh),
    BOTH(cosh), BOTH(tanh), BOTH(asinh), BOTH(acosh), BOTH(atanh), BOTH(erf), BOTH(erfc), BOTH(floor), BOTH(ceil),
    BOTH(round), BOTH(trunc), BOTH(rint), BOTH(nearbyint), BOTH(fabs), BOTH(fmin), BOTH(fmax), BOTH(fmod),
    BOTH(fma), BOTH(hypot), BOTH(ldexp), BOTH(copysign),
};

static void *resolve(const char *name) {
    for (size_t i = 0; i < sizeof provided / sizeof *provided; i++)
        if (!strcmp(provided[i].name, name)) return provided[i].address;
    return NULL;
}

/* ---- the loader ----------------------------------------------------------------------------------------- */

struct library {
    uint8_t *base; /* where its address 0 was mapped */
    const Elf64_Sym *symbols;
    const char *strings;
    size_t symbol_count;
};

static uint8_t *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    struct stat status;
    if (!file || fstat(fileno(file), &status)) die("%s: %s", path, strerror(errno));
    uint8_t *bytes = allocate(*size = (size_t)status.st_size);
    if (fread(bytes, 1, *size, file) != *size) die("%s: cannot be read", path);
    fclose(file);
    return bytes;
}

static uintptr_t symbol_address(const struct library *library, const Elf64_Sym *symbol) {
    const char *name = library->strings + symbol->st_name;
    if (ELF64_ST_TYPE(symbol->st_info) == STT_GNU_IFUNC || ELF64_ST_TYPE(symbol->st_info) == STT_TLS)
        die("the library's symbol %s is of a kind the runner does not support", name);
    if (symbol->st_shndx != SHN_UNDEF) return (uintptr_t)library->base + symbol->st_value;
    uintptr_t address = (uintptr_t)resolve(name);
    if (!address && ELF64_ST_BIND(symbol->st_info) != STB_WEAK) die("the library needs %s, which the runner lacks", name);
    return address;
}

static void relocate(const struct library *library, const Elf64_Rela *relocations, size_t bytes) {
    for (size_t i = 0; i < bytes / sizeof *relocations; i++) {
        const Elf64_Rela *r = &relocations[i];
        uintptr_t value;
        switch (ELF64_R_TYPE(r->r_info)) {
        case 0: /* R_*_NONE */
            continue;
        case REL_BASE:
            value = (uintptr_t)library->base;
            break;
        case REL_ABS:
        case REL_DATA:
        case REL_CALL:
            value = symbol_address(library, &library->symbols[ELF64_R_SYM(r->r_info)]);
            break;
        default:
            die("the library has a relocation of type %u, which the runner does not support",
                (unsigned)ELF64_R_TYPE(r->r_info));
        }
        value += (uintptr_t)r->r_addend;
        memcpy(library->base + r->r_offset, &value, sizeof value);
    }
}

static struct library load(const char *path) {
    size_t size;
    const uint8_t *file = read_file(path, &size);
    const Elf64_Ehdr *header = (const void *)file;
    if (size < sizeof *header || memcmp(file, ELFMAG, SELFMAG) || header->e_machine != MACHINE)
        die("%s: not a library for this CPU", path);
    const Elf64_Phdr *segments = (const void *)(file + header->e_phoff);
    if (header->e_phoff + header->e_phnum * sizeof *segments > size) die("%s: truncated", path);

    size_t span = 0;
    const Elf64_Dyn *dynamic = NULL;
    for (int i = 0; i < header->e_phnum; i++) {
        if (segments[i].p_type != PT_LOAD) continue;
        if (segments[i].p_offset + segments[i].p_filesz > size) die("%s: truncated", path);
        if (segments[i].p_vaddr + segments[i].p_memsz > span) span = segments[i].p_vaddr + segments[i].p_memsz;
    }
    struct library library = {0};
    library.base = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (library.base == MAP_FAILED) die("%s: %s", path, strerror(errno));
    for (int i = 0; i < header->e_phnum; i++) {
        if (segments[i].p_type == PT_LOAD)
            memcpy(library.base + segments[i].p_vaddr, file + segments[i].p_offset, segments[i].p_filesz);
        if (segments[i].p_type == PT_DYNAMIC) dynamic = (const void *)(library.base + segments[i].p_vaddr);
    }
    if (!dynamic) die("%s: not a shared library", path);

    uintptr_t tags[DT_NUM] = {0};
    for (const Elf64_Dyn *d = dynamic; d->d_tag != DT_NULL; d++) {
        if (d->d_tag >= 0 && d->d_tag < DT_NUM) tags[d->d_tag] = d->d_un.d_val;
        if (d->d_tag == 36 /* DT_RELR */) die("%s: packed relocations are not supported", path);
    }
    if (!tags[DT_HASH]) die("%s: linked without --hash-style=both", path);
    library.symbols = (const void *)(library.base + tags[DT_SYMTAB]);
    library.strings = (const void *)(library.base + tags[DT_STRTAB]);
    library.symbol_count = ((const Elf64_Word *)(const void *)(library.base + tags[DT_HASH]))[1];
    relocate(&library, (const void *)(library.base + tags[DT_RELA]), tags[DT_RELASZ]);
    relocate(&library, (const void *)(library.base + tags[DT_JMPREL]), tags[DT_PLTRELSZ]);

    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < header->e_phnum; i++) {
        if (segments[i].p_type != PT_LOAD) continue;
        uintptr_t start = (uintptr_t)(library.base + segments[i].p_vaddr) & ~(page - 1);
        uintptr_t end = (uintptr_t)(library.base + segments[i].p_vaddr + segments[i].p_memsz);
        int access = (segments[i].p_flags & PF_R ? PROT_READ : 0) | (segments[i].p_flags & PF_W ? PROT_WRITE : 0) |
                     (segments[i].p_flags & PF_X ? PROT_EXEC : 0);
        __builtin___clear_cache((char *)start, (char *)end);
        if (mprotect((void *)start, end - start, access)) die("%s: %s", path, strerror(errno));
    }
    void (**start)(void) = (void *)(library.base + tags[DT_INIT_ARRAY]);
    for (size_t i = 0; i < tags[DT_INIT_ARRAYSZ] / sizeof *start; i++) start[i]();
    return library;
}

static void *find(const struct library *library, const char *name) {
    for (size_t i = 0; i < library->symbol_count; i++)
        if (library->symbols[i].st_shndx != SHN_UNDEF && !strcmp(library->strings + library->symbols[i].st_name, name))
            return library->base + library->symbols[i].st_value;
    die("the library has no function %s", name);
}

/* ---- the program ---------------------------------------------------------------------------------------- */

static int parse_sizes(const char *text, size_t sizes[]) {
    int count = 0;
    for (char *end; *text && count < MAX_TENSORS / 2; text = *end ? end + 1 : end)
        sizes[count++] = strtoul(text, &end, 10);
    return count;
}

int main(int argc, char **argv) {
    if (argc != 11) die("the runner was called with %d arguments", argc - 1);
    struct library library = load(argv[1]);
    entry_function function = (entry_function)(uintptr_t)find(&library, argv[2]);
    int timed = !strcmp(argv[3], "time");
    long samples = atol(argv[4]), repeats = atol(argv[5]);
    size_t flush_bytes = strtoul(argv[6], NULL, 10), sizes[MAX_TENSORS];
    int inputs = parse_sizes(argv[9], sizes), tensors = inputs + parse_sizes(argv[10], sizes + inputs);

    size_t in_bytes, offset = 0, out_bytes = 0;
    uint8_t *in = read_file(argv[7], &in_bytes);
    for (int t = inputs; t < tensors; t++) out_bytes += sizes[t] * (size_t)samples * sizeof(float);
    uint8_t *out = allocate(out_bytes);
    void **pointers = allocate((size_t)samples * MAX_TENSORS * sizeof *pointers);
    memset(pointers, 0, (size_t)samples * MAX_TENSORS * sizeof *pointers);
    for (int t = 0; t < tensors; t++) {
        if (t == inputs) {
            if (offset != in_bytes) die("%s: %zu bytes instead of %zu", argv[7], in_bytes, offset);
            offset = 0;
        }
        for (long s = 0; s < samples; s++, offset += sizes[t] * sizeof(float))
            pointers[s * MAX_TENSORS + t] = (t < inputs ? in : out) + offset;
    }

    int code = 0;
    double *ns = NULL;
    if (timed) {
        uint8_t *flush = allocate(flush_bytes);
        memset(flush, 1, flush_bytes);
        ns = allocate((size_t)repeats * sizeof *ns);
        code = time_calls(function, pointers, samples, repeats, flush, flush_bytes, ns);
    } else {
        for (long r = 0; r < repeats && !code; r++)
            for (long s = 0; s < samples && !code; s++) code = call_entry(function, pointers + s * MAX_TENSORS);
    }
    if (code) {
        fprintf(stderr, "%d\n", code);
        return 3;
    }
    FILE *result = fopen(argv[8], "wb");
    size_t bytes = timed ? (size_t)repeats * sizeof *ns : out_bytes;
    if (!result || fwrite(timed ? (void *)ns : out, 1, bytes, result) != bytes || fclose(result))
        die("%s: %s", argv[8], strerror(errno));
    return 0;
}
