/* What the CPU says of itself, and whether it is real: `remote info`, one JSON object.
 *
 * On ARM the features come from the kernel's bits, not from /proc/cpuinfo: under QEMU's user mode that file describes
 * the machine QEMU runs on. */
#include <gnu/libc-version.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#if defined(__aarch64__)
#define ARCH "aarch64"
#define OWN_LINE "CPU implementer"
static const char *const hwcap[] = {
    "fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid",
    "asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4", "asimddp", "sha512", "sve", "asimdfhm",
    "dit", "uscat", "ilrcpc", "flagm", "ssbs", "sb", "paca", "pacg"};
static const char *const hwcap2[] = {
    "dcpodp", "sve2", "sveaes", "svepmull", "svebitperm", "svesha3", "svesm4", "flagm2", "frint", "svei8mm",
    "svef32mm", "svef64mm", "svebf16", "i8mm", "bf16"};
#else
#define ARCH "x86_64"
#define OWN_LINE "vendor_id"
#endif

/* Whether /proc/cpuinfo describes a CPU of this kind; 1 if there is no such file. */
static int cpuinfo_fits(void) {
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[4096];
    int fits = !file;
    while (file && !fits && fgets(line, sizeof line, file)) fits = !strncmp(line, OWN_LINE, strlen(OWN_LINE));
    if (file) fclose(file);
    return fits;
}

static int describe_cpu(void) {
    printf("{\"arch\":\"" ARCH "\",\"glibc\":\"%s\",\"page\":%ld,\"cores\":%ld,\"emulated\":%s", gnu_get_libc_version(),
           sysconf(_SC_PAGESIZE), sysconf(_SC_NPROCESSORS_ONLN),
           getenv("QEMU_CPU") || !cpuinfo_fits() ? "true" : "false");
#if defined(__aarch64__)
    unsigned long bits = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2);
    if (bits >> 11 & 1) { /* "cpuid": the kernel lets us read the CPU's name */
        unsigned long midr;
        __asm__("mrs %0, midr_el1" : "=r"(midr));
        printf(",\"implementer\":%lu,\"part\":%lu", midr >> 24 & 0xff, midr >> 4 & 0xfff);
    }
    const char *comma = "";
    printf(",\"features\":[");
    for (size_t i = 0; i < sizeof hwcap / sizeof *hwcap; i++)
        if (bits >> i & 1) printf("%s\"%s\"", comma, hwcap[i]), comma = ",";
    for (size_t i = 0; i < sizeof hwcap2 / sizeof *hwcap2; i++)
        if (more >> i & 1) printf("%s\"%s\"", comma, hwcap2[i]), comma = ",";
    printf("]");
#endif
    printf("}\n");
    return 0;
}
