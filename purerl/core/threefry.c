/* JAX's threefry2x32 stream and XLA's elementary functions for a CPU, for random.py.
 *
 * The same formulas stand in random.py in numpy, which serves where there is no C compiler. Compile
 * with -ffp-contract=off: fused multiply-adds stand exactly where XLA has them. Loops are written
 * without branches, so that the compiler vectorises them.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t rotate(uint32_t x, int r) { return (x << r) | (x >> (32 - r)); }

#define ROUND(r) do { x0 += x1; x1 = rotate(x1, r) ^ x0; } while (0)
#define FOUR(a, b, c, d) do { ROUND(a); ROUND(b); ROUND(c); ROUND(d); } while (0)

static inline void threefry(uint32_t k0, uint32_t k1, uint32_t c0, uint32_t c1,
                            uint32_t *y0, uint32_t *y1) {
    const uint32_t k2 = k0 ^ k1 ^ 0x1BD11BDAu;
    uint32_t x0 = c0 + k0, x1 = c1 + k1;
    FOUR(13, 15, 26, 6);  x0 += k1; x1 += k2 + 1u;
    FOUR(17, 29, 16, 24); x0 += k2; x1 += k0 + 2u;
    FOUR(13, 15, 26, 6);  x0 += k0; x1 += k1 + 3u;
    FOUR(17, 29, 16, 24); x0 += k1; x1 += k2 + 4u;
    FOUR(13, 15, 26, 6);  x0 += k2; x1 += k0 + 5u;
    *y0 = x0;
    *y1 = x1;
}

static inline float as_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t as_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

static inline float unit_float(uint32_t word) { return as_float(word >> 9 | 0x3F800000u) - 1.0f; }

/* Cephes logf, for finite numbers that are not subnormal. */
static inline float xla_log(float x) {
    const uint32_t bits = as_bits(x);
    float mantissa = as_float((bits & 0x007FFFFFu) | 0x3F000000u);      /* in [0.5, 1) */
    float exponent = (float)((int32_t)(bits >> 23) - 126);
    const int below = mantissa < 0.707106781186547524f;
    exponent -= below ? 1.0f : 0.0f;
    const float m = below ? (mantissa - 1.0f) + mantissa : mantissa - 1.0f;
    const float square = m * m, cube = square * m;
    const float high = fmaf(fmaf(m, 7.0376836292e-2f, -1.1514610310e-1f), m, 1.1676998740e-1f);
    const float middle = fmaf(fmaf(m, -1.2420140846e-1f, 1.4249322787e-1f), m, -1.6668057665e-1f);
    const float low = fmaf(fmaf(m, 2.0000714765e-1f, -2.4999993993e-1f), m, 3.3333331174e-1f);
    float tail = fmaf(fmaf(high, cube, middle), cube, low);
    tail = fmaf(tail, cube, -2.12194440e-4f * exponent);
    const float result = fmaf(exponent, 0.693359375f, fmaf(square, -0.5f, m) + tail);
    return x > 0.0f ? result : x == 0.0f ? -INFINITY : NAN;
}

/* Cephes log1p. */
static inline float xla_log1p(float x) {
    const float square = x * x;
    float p = 4.5270000862445199635215e-5f;
    p = fmaf(p, x, 4.9854102823193375972212e-1f);
    p = fmaf(p, x, 6.5787325942061044846969f);
    p = fmaf(p, x, 2.9911919328553073277375e1f);
    p = fmaf(p, x, 6.0949667980987787057556e1f);
    p = fmaf(p, x, 5.7112963590585538103336e1f);
    p = fmaf(p, x, 2.0039553499201281259648e1f);
    float q = 1.0f;
    q = fmaf(q, x, 1.5062909083469192043167e1f);
    q = fmaf(q, x, 8.3047565967967209469434e1f);
    q = fmaf(q, x, 2.2176239823732856465394e2f);
    q = fmaf(q, x, 3.0909872225312059774938e2f);
    q = fmaf(q, x, 2.1642788614495947685003e2f);
    q = fmaf(q, x, 6.0118660497603843919306e1f);
    const float near = x + fmaf(square, -0.5f, x * square * (p / q));
    return fabsf(x) < 0.41421356237309504880f ? near : xla_log(1.0f + x);
}

/* Giles, "Approximating the erfinv function" (GPU Computing Gems, 2011). */
static inline float xla_erfinv(float x) {
    const float w = -xla_log1p(-x * x);
    const float a = w - 2.5f, b = sqrtf(w) - 3.0f;
    float p = 2.81022636e-08f, q = -0.000200214257f;
    p = fmaf(p, a, 3.43273939e-07f);  q = fmaf(q, b, 0.000100950558f);
    p = fmaf(p, a, -3.5233877e-06f);  q = fmaf(q, b, 0.00134934322f);
    p = fmaf(p, a, -4.39150654e-06f); q = fmaf(q, b, -0.00367342844f);
    p = fmaf(p, a, 0.00021858087f);   q = fmaf(q, b, 0.00573950773f);
    p = fmaf(p, a, -0.00125372503f);  q = fmaf(q, b, -0.0076224613f);
    p = fmaf(p, a, -0.00417768164f);  q = fmaf(q, b, 0.00943887047f);
    p = fmaf(p, a, 0.246640727f);     q = fmaf(q, b, 1.00167406f);
    p = fmaf(p, a, 1.50140941f);      q = fmaf(q, b, 2.83297682f);
    const float result = (w < 5.0f ? p : q) * x;
    return fabsf(x) == 1.0f ? x * INFINITY : result;
}

static inline float normal(uint32_t word) {
    const float lowest = -0.99999994f;                                  /* nextafter(-1, 0) */
    const float u = fmaf(unit_float(word), 1.0f - lowest, lowest);
    return xla_erfinv(u < lowest ? lowest : u) * 1.41421356237309504880f;
}

/* Element j of key i is the cipher of the counter j (in pairs_at: of counts[j]). */
#define FOR_EACH_BLOCK(counter)                                                                 \
    for (int64_t i = 0; i < num_keys; ++i) {                                                    \
        const uint32_t k0 = (uint32_t)keys[2 * i], k1 = (uint32_t)keys[2 * i + 1];              \
        for (int64_t j = 0; j < n; ++j) {                                                       \
            uint32_t y0, y1;                                                                    \
            threefry(k0, k1, 0u, (uint32_t)(counter), &y0, &y1);

#define END_BLOCK }}

void pairs(const int64_t *keys, int64_t num_keys, int64_t n, int64_t *out) {
    FOR_EACH_BLOCK(j)
    out[2 * (i * n + j)] = y0;
    out[2 * (i * n + j) + 1] = y1;
    END_BLOCK
}

/* With one row of n counts for all keys (stride 0) or for each (stride n). */
void pairs_at(const int64_t *keys, int64_t num_keys, int64_t n, const int64_t *counts,
              int64_t stride, int64_t *out) {
    FOR_EACH_BLOCK(counts[i * stride + j])
    out[2 * (i * n + j)] = y0;
    out[2 * (i * n + j) + 1] = y1;
    END_BLOCK
}

void bits(const int64_t *keys, int64_t num_keys, int64_t n, int64_t *out) {
    FOR_EACH_BLOCK(j)
    out[i * n + j] = y0 ^ y1;
    END_BLOCK
}

void uniforms(const int64_t *keys, int64_t num_keys, int64_t n, float *out) {
    FOR_EACH_BLOCK(j)
    out[i * n + j] = unit_float(y0 ^ y1);
    END_BLOCK
}

void normals(const int64_t *keys, int64_t num_keys, int64_t n, float *out) {
    FOR_EACH_BLOCK(j)
    out[i * n + j] = normal(y0 ^ y1);
    END_BLOCK
}

void log_map(const float *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; ++i) out[i] = xla_log(x[i]);
}

void log1p_map(const float *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; ++i) out[i] = xla_log1p(x[i]);
}

void erfinv_map(const float *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; ++i) out[i] = xla_erfinv(x[i]);
}
