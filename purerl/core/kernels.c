/* CPU kernels: JAX's threefry2x32 stream and XLA's elementary functions, for random.py; products by
 * oneDNN, for products.py.
 *
 * The same formulas stand there in Python, which serves where there is no C compiler. Compile
 * with -ffp-contract=off: fused multiply-adds stand exactly where XLA has them. Loops are written
 * without branches, so that the compiler vectorises them.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
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

static void pairs(const int64_t *keys, int64_t num_keys, int64_t n, int64_t *out) {
    FOR_EACH_BLOCK(j)
    out[2 * (i * n + j)] = y0;
    out[2 * (i * n + j) + 1] = y1;
    END_BLOCK
}

/* With one row of n counts for all keys (stride 0) or for each (stride n). */
static void pairs_at(const int64_t *keys, int64_t num_keys, int64_t n, const int64_t *counts,
                     int64_t stride, int64_t *out) {
    FOR_EACH_BLOCK(counts[i * stride + j])
    out[2 * (i * n + j)] = y0;
    out[2 * (i * n + j) + 1] = y1;
    END_BLOCK
}

static void bits(const int64_t *keys, int64_t num_keys, int64_t n, int64_t *out) {
    FOR_EACH_BLOCK(j)
    out[i * n + j] = y0 ^ y1;
    END_BLOCK
}

static void uniforms(const int64_t *keys, int64_t num_keys, int64_t n, float *out) {
    FOR_EACH_BLOCK(j)
    out[i * n + j] = unit_float(y0 ^ y1);
    END_BLOCK
}

static void normals(const int64_t *keys, int64_t num_keys, int64_t n, float *out) {
    FOR_EACH_BLOCK(j)
    out[i * n + j] = normal(y0 ^ y1);
    END_BLOCK
}

static void log_map(const float *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; ++i) out[i] = xla_log(x[i]);
}

static void log1p_map(const float *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; ++i) out[i] = xla_log1p(x[i]);
}

static void erfinv_map(const float *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; ++i) out[i] = xla_erfinv(x[i]);
}

/* --- PyTorch's operators -------------------------------------------------------------------------
 * Each kernel is named op_ and the name of the operator in Python. PyTorch calls them with a stack
 * of arguments, whose tensors they own, and finds the result there (its torch/csrc/stable/c/shim.h).
 * What they call of PyTorch is handed over by native.py, so that nothing has to be linked.
 */
typedef uint64_t Value;
typedef void *Tensor;
enum { CPU = 0, INT64 = 4, FLOAT32 = 6 };                   /* c10::DeviceType, c10::ScalarType */
enum { MAX_DIM = 64, MAX_TAIL = 2 };

static struct {
    int32_t (*get_dim)(Tensor, int64_t *);
    int32_t (*get_sizes)(Tensor, int64_t **);
    int32_t (*get_strides)(Tensor, int64_t **);
    int32_t (*get_data_ptr)(Tensor, void **);
    int32_t (*empty_strided)(int64_t dim, const int64_t *sizes, const int64_t *strides,
                             int32_t dtype, int32_t device, int32_t index, Tensor *);
    int32_t (*delete_tensor_object)(Tensor);
    void (*check)(bool, const char *function, const char *file, uint32_t line, const char *message);
} torch;

void bind_torch(void *const *functions) { memcpy(&torch, functions, sizeof torch); }

/* Raises a RuntimeError unless it holds. */
#define CHECK(condition, message) torch.check((condition), __func__, "kernels.c", __LINE__, message)

typedef struct {
    Tensor tensor;
    int64_t dim, numel, *sizes;
    const void *data;                                                    /* in order, no gaps */
    void *copy;                                                    /* of it, if there were gaps */
} Input;

static Input take(Value value, size_t width) {
    Input x = {.tensor = (Tensor)(uintptr_t)value, .numel = 1};
    int64_t *strides;
    void *data;
    CHECK(!torch.get_dim(x.tensor, &x.dim) && !torch.get_sizes(x.tensor, &x.sizes)
          && !torch.get_strides(x.tensor, &strides) && !torch.get_data_ptr(x.tensor, &data),
          "the tensor cannot be read");
    bool ordered = true;
    for (int64_t d = x.dim - 1; d >= 0; --d) {
        ordered &= x.sizes[d] == 1 || strides[d] == x.numel;
        x.numel *= x.sizes[d];
    }
    x.data = data;
    if (ordered || x.numel == 0) return x;
    x.data = x.copy = malloc(x.numel * width);
    CHECK(x.copy, "not enough memory");
    for (int64_t i = 0; i < x.numel; ++i) {
        int64_t rest = i, offset = 0;
        for (int64_t d = x.dim - 1; d >= 0; rest /= x.sizes[d--])
            offset += rest % x.sizes[d] * strides[d];
        memcpy((char *)x.copy + i * width, (const char *)data + offset * width, width);
    }
    return x;
}

static void release(Input x) {
    free(x.copy);
    torch.delete_tensor_object(x.tensor);
}

/* Make the result: the first `dim` sizes of `x`, then those of `tail`. */
static void *make(Input x, int64_t dim, int64_t num_tail, const int64_t *tail, int32_t dtype,
                  Value *result) {
    int64_t sizes[MAX_DIM + MAX_TAIL], strides[MAX_DIM + MAX_TAIL], numel = 1;
    CHECK(dim <= MAX_DIM, "the tensor has more than 64 axes");
    memcpy(sizes, x.sizes, dim * sizeof *sizes);
    memcpy(sizes + dim, tail, num_tail * sizeof *sizes);
    for (int64_t d = dim + num_tail - 1; d >= 0; --d) {
        strides[d] = numel;
        numel *= sizes[d] > 1 ? sizes[d] : 1;
    }
    Tensor out;
    void *data;
    CHECK(!torch.empty_strided(dim + num_tail, sizes, strides, dtype, CPU, 0, &out),
          "no result of this size can be made");
    CHECK(!torch.get_data_ptr(out, &data), "the result cannot be written");
    *result = (Value)(uintptr_t)out;
    return data;
}

/* (Tensor key, int n) -> Tensor */
#define DRAW(name, kernel, dtype, num_tail)                                                     \
    void name(Value *stack, uint64_t num_arguments, uint64_t num_results) {                     \
        const Input keys = take(stack[0], sizeof(int64_t));                                     \
        const int64_t n = (int64_t)stack[1], tail[] = {n, 2};                                   \
        kernel(keys.data, keys.numel / 2, n,                                                    \
               make(keys, keys.dim - 1, num_tail, tail, dtype, stack));                         \
        release(keys);                                                                          \
    }

DRAW(op_pairs, pairs, INT64, 2)
DRAW(op_bits, bits, INT64, 1)
DRAW(op_uniform, uniforms, FLOAT32, 1)
DRAW(op_normal, normals, FLOAT32, 1)

/* (Tensor key, Tensor counts) -> Tensor */
void op_block(Value *stack, uint64_t num_arguments, uint64_t num_results) {
    const Input keys = take(stack[0], sizeof(int64_t)), counts = take(stack[1], sizeof(int64_t));
    const int64_t n = counts.sizes[counts.dim - 1], tail[] = {n, 2};
    pairs_at(keys.data, keys.numel / 2, n, counts.data, counts.dim > 1 ? n : 0,
             make(keys, keys.dim - 1, 2, tail, INT64, stack));
    release(counts);
    release(keys);
}

/* (Tensor x) -> Tensor */
#define MAP(name, kernel)                                                                       \
    void name(Value *stack, uint64_t num_arguments, uint64_t num_results) {                     \
        const Input x = take(stack[0], sizeof(float));                                          \
        kernel(x.data, x.numel, make(x, x.dim, 0, NULL, FLOAT32, stack));                       \
        release(x);                                                                             \
    }

MAP(op_log, log_map)
MAP(op_log1p, log1p_map)
MAP(op_erfinv, erfinv_map)

static struct {
    int32_t (*reinterpret_tensor)(Tensor, int64_t dim, const int64_t *sizes, const int64_t *strides,
                                  int64_t further_offset, Tensor *);
    int32_t (*linear)(Tensor x, Tensor weight, Tensor *bias, const char *function,
                      const double **scalars, int64_t num_scalars, const char **algorithm, Tensor *);
} onednn;

void bind_onednn(void *const *functions) { memcpy(&onednn, functions, sizeof onednn); }

/* (Tensor x, Tensor y) -> Tensor, of two matrices */
void op_product(Value *stack, uint64_t num_arguments, uint64_t num_results) {
    Tensor x = (Tensor)(uintptr_t)stack[0], y = (Tensor)(uintptr_t)stack[1], weight, out;
    int64_t *sizes, *strides;
    CHECK(!torch.get_sizes(y, &sizes) && !torch.get_strides(y, &strides),
          "the tensor cannot be read");
    const int64_t swapped[] = {sizes[1], sizes[0]}, steps[] = {strides[1], strides[0]};
    CHECK(!onednn.reinterpret_tensor(y, 2, swapped, steps, 0, &weight),
          "the matrix cannot be transposed");
    CHECK(!onednn.linear(x, weight, NULL, "none", NULL, 0, NULL, &out),
          "oneDNN cannot multiply these matrices");
    torch.delete_tensor_object(weight);
    torch.delete_tensor_object(y);
    torch.delete_tensor_object(x);
    stack[0] = (Value)(uintptr_t)out;
}
