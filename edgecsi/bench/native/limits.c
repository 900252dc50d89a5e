/* What one core can do at best: read bandwidth per working-set size, fp32 multiply-add and int8 dot rates.
   Prints one JSON object. Built for the exact CPU it runs on; see edgecsi/bench/limits.py. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Widest vector of the target the compiler was told about. */
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float vf __attribute__((vector_size(BYTES)));
typedef int32_t vi __attribute__((vector_size(BYTES)));

/* Sixteen independent sums hide the latency; the compiler may not know the values, so it keeps the work. */
#define CHAINS 16
/* The best of many short trials: most of them are shorter than what a scheduler gives another process. */
#define TRIALS 60
/* Empty asm: the compiler must keep a value in a vector register, and cannot know it afterwards. */
#if defined(__x86_64__)
#define OPAQUE(v) __asm__ volatile("" : "+v"(v))
#else
#define OPAQUE(v) __asm__ volatile("" : "+w"(v))
#endif

/* GB/s reading a buffer that fits (or does not fit) a cache: the best of several passes, half of which ask for lines
   ahead of those that they read, since that is faster where the buffer is far away, and slower where it is near. */
static double read_rate(const char *buffer, size_t bytes) {
    double best = 0;
    size_t passes = ((size_t)64 << 20) / bytes + 1;
    for (int trial = 0; trial < TRIALS; trial++) {
        vi sums[8] = {{0}};
        double begin = now();
        for (size_t pass = 0; pass < passes; pass++) {
            for (size_t i = 0; i < bytes; i += 8 * BYTES) {
                if (trial % 2)
                    for (int line = 0; line < 8 * BYTES; line += 64) __builtin_prefetch(buffer + i + 2048 + line);
                for (int k = 0; k < 8; k++) sums[k] += *(const vi *)(buffer + i + (size_t)k * BYTES);
            }
            __asm__ volatile("" : : : "memory");
        }
        double rate = (double)passes * (double)bytes / (now() - begin) * 1e-9;
        for (int k = 0; k < 8; k++) OPAQUE(sums[k]);
        if (rate > best) best = rate;
    }
    return best;
}

/* GFLOP/s of fused multiply-adds on registers; a multiply-add counts as two. */
static double fp32_rate(void) {
    double best = 0;
    const long steps = 200000;
    for (int trial = 0; trial < TRIALS; trial++) {
        vf sums[CHAINS], a, b;
        for (size_t i = 0; i < sizeof a / sizeof(float); i++) a[i] = 0.999f, b[i] = 1e-6f;
        OPAQUE(a);
        OPAQUE(b);
        for (int k = 0; k < CHAINS; k++) sums[k] = b;
        double begin = now();
        for (long step = 0; step < steps; step++)
            for (int k = 0; k < CHAINS; k++) sums[k] = sums[k] * a + b;
        double rate = 2.0 * CHAINS * (double)(sizeof a / sizeof(float)) * (double)steps / (now() - begin) * 1e-9;
        for (int k = 0; k < CHAINS; k++) OPAQUE(sums[k]);
        if (rate > best) best = rate;
    }
    return best;
}

/* GOP/s of the best int8 dot instruction of this CPU; a multiply-add counts as two. */
#if defined(__AVX512VNNI__)
#include <immintrin.h>
#define DOT "avx512_vnni"
typedef __m512i vd;
static inline vd dot(vd s, vd a, vd b) { return _mm512_dpbusd_epi32(s, a, b); }
#elif defined(__AVXVNNI__)
#include <immintrin.h>
#define DOT "avx_vnni"
typedef __m256i vd;
static inline vd dot(vd s, vd a, vd b) { return _mm256_dpbusd_avx_epi32(s, a, b); }
#elif defined(__AVX2__)
#include <immintrin.h>
#define DOT "avx2"
typedef __m256i vd;
static inline vd dot(vd s, vd a, vd b) {
    return _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define DOT "sdot"
typedef int32x4_t vd;
static inline vd dot(vd s, vd a, vd b) {
    return vdotq_s32(s, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
#elif defined(__aarch64__)
#include <arm_neon.h>
#define DOT "neon"
typedef int32x4_t vd;
static inline vd dot(vd s, vd a, vd b) {
    int8x16_t x = vreinterpretq_s8_s32(a), y = vreinterpretq_s8_s32(b);
    s = vpadalq_s16(s, vmull_s8(vget_low_s8(x), vget_low_s8(y)));
    return vpadalq_s16(s, vmull_high_s8(x, y));
}
#endif

#if defined(DOT)
static double int8_rate(void) {
    double best = 0;
    const long steps = 200000;
    for (int trial = 0; trial < TRIALS; trial++) {
        vd sums[CHAINS], a, b;
        for (size_t i = 0; i < sizeof a; i++) ((char *)&a)[i] = 1, ((char *)&b)[i] = (char)(i % 3);
        OPAQUE(a);
        OPAQUE(b);
        for (int k = 0; k < CHAINS; k++) sums[k] = a;
        double begin = now();
        for (long step = 0; step < steps; step++) {
            for (int k = 0; k < CHAINS; k++) sums[k] = dot(sums[k], a, b);
            /* A sum of a constant is a multiplication: hide the operands from that thought. */
            OPAQUE(a);
        }
        double rate = 2.0 * CHAINS * (double)sizeof a * (double)steps / (now() - begin) * 1e-9;
        for (int k = 0; k < CHAINS; k++) OPAQUE(sums[k]);
        if (rate > best) best = rate;
    }
    return best;
}
#else
#define DOT ""
static double int8_rate(void) { return 0; }
#endif

int main(void) {
    const size_t largest = (size_t)32 << 20;
    char *buffer = aligned_alloc(64, largest);
    if (!buffer) return 1;
    for (size_t i = 0; i < largest; i++) buffer[i] = (char)i;
    printf("{\"read_gbps\": {");
    for (size_t bytes = 32 << 10; bytes <= largest; bytes *= 2)
        printf("%s\"%zu\": %.2f", bytes == 32 << 10 ? "" : ", ", bytes, read_rate(buffer, bytes));
    printf("}, \"fp32_gflops\": %.1f, \"int8_gops\": %.1f, \"int8_instruction\": \"%s\", \"vector_bytes\": %d}\n",
           fp32_rate(), int8_rate(), DOT, BYTES);
    free(buffer);
    return 0;
}
