/* Products and additions a second of one core: independent sums in registers, nothing loaded; the best of many trials. */
#include <immintrin.h>
#include <stdio.h>
#include <time.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
#define BEST(name, macs, sum, value) do { double best = 1e18; \
    for (int r = 0; r < 400; r++) { double t = now(); \
        for (int k = 0; k < 20000; k++) { _Pragma("GCC unroll 24") for (int i = 0; i < 24; i++) { sum[i] = value; __asm__ volatile("" : "+v"(sum[i])); } } \
        t = now() - t; best = t < best ? t : best; } \
    printf("%s: %.1f GMAC/s\n", name, 24.0 * macs * 20000 / best); } while (0)
int main(void) {
    __m512 a[24] = {0}, x = _mm512_set1_ps(1), y = _mm512_set1_ps(0.5f);
    __m512i c[24] = {0}, u = _mm512_set1_epi16(3), v = _mm512_set1_epi16(-2);
    BEST("fp32, vfmadd231ps", 16, a, _mm512_fmadd_ps(x, y, a[i]));
    BEST("bf16, vdpbf16ps", 32, a, _mm512_dpbf16_ps(a[i], (__m512bh)x, (__m512bh)y));
    BEST("int16, vpdpwssd", 32, c, _mm512_dpwssd_epi32(c[i], u, v));
    volatile float keep = _mm512_reduce_add_ps(a[0]) + _mm512_reduce_add_epi32(c[3]);
    return keep == 7;
}
