// GELU, SwiGLU and GEGLU whose inputs are kept for the backward in 8 bits: one scale for 128 neighbours of a row.
//
// Sixteen lanes hold 128 values, eight each, and share their largest. FORM: 0 GELU by erf, 1 GELU by tanh, 2 SwiGLU, 3 GEGLU
// (by erf). One of them is compiled: a run has one.

__device__ __forceinline__ float group_max(float x) {
#pragma unroll
    for (int step = 8; step; step >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL, x, step));
    return x;
}

__device__ __forceinline__ void keep8(const float (&v)[8], u8* codes, float* scale, int at, int cols) {
    float largest = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(v[i]));
    largest = group_max(largest);
    float up = largest > 0.f ? 127.f / largest : 0.f;
    store_codes(codes, at, cols, to_int8(v, up));
    if ((threadIdx.x & 15) == 0 && at < cols) *scale = largest / 127.f;
}

__device__ __forceinline__ void kept8(const u8* codes, float scale, int at, int cols, float (&v)[8]) {
    from_int8(load_codes(codes, at, cols), v);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] *= scale;
}

// What x is multiplied by: x of which, by erf the normal distribution's integral, by tanh 0.5 (1 + tanh(u)) = sigmoid(2 u).
__device__ __forceinline__ float share(float x) {
#if FORM == 1
    x *= 1.5957691216057308f * (1.f + 0.044715f * x * x);
#endif
#if FORM == 0 || FORM == 3
    return 0.5f * (1.f + erff(x * 0.7071067811865476f));
#else
    return __fdividef(1.f, 1.f + __expf(-x));
#endif
}
// d(x share)/dx
__device__ __forceinline__ float slope(float x, float s) {
#if FORM == 1
    return s + s * (1.f - s) * x * 1.5957691216057308f * (1.f + 0.134145f * x * x);
#elif FORM == 2
    return s + s * (1.f - s) * x;
#else
    return s + x * 0.3989422804014327f * __expf(-0.5f * x * x);
#endif
}

// Columns of a block are THREADS * 8 neighbours of one row; its groups of 128 never cross a row.
#define PLACE                                                        \
    i64 row = blockIdx.x;                                            \
    int at = (blockIdx.y * THREADS + threadIdx.x) * 8;               \
    i64 group = row * scales_row + at / 128;

#if FORM < 2
KERNEL gelu8(const T* x, i64 x_row, T* y, u8* codes, float* scales, int cols, int scales_row) {
    PLACE
    float v[8];
    load8(x + row * x_row, at, cols, v);
    keep8(v, codes + row * cols, scales + group, at, cols);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] *= share(v[i]);
    store8(y + row * cols, at, cols, v);
}

KERNEL gelu8_backward(const T* dy, i64 dy_row, const u8* codes, const float* scales, T* dx, int cols, int scales_row) {
    PLACE
    if (at >= cols) return;
    float g[8], v[8];
    load8(dy + row * dy_row, at, cols, g);
    kept8(codes + row * cols, scales[group], at, cols, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) g[i] *= slope(v[i], share(v[i]));
    store8(dx + row * cols, at, cols, g);
}
#else
#if FORM == 2
#define GATED swiglu8
#define GATED_BACKWARD swiglu8_backward
#else
#define GATED geglu8
#define GATED_BACKWARD geglu8_backward
#endif

// y = a share(a) b; a and b may be halves of one matrix, as may their codes and their gradients.
KERNEL GATED(const T* a, i64 a_row, const T* b, i64 b_row, T* y, u8* a_codes, float* a_scales, u8* b_codes, float* b_scales, int cols,
             i64 codes_row, int scales_row) {
    PLACE
    float v[8], w[8];
    load8(a + row * a_row, at, cols, v);
    load8(b + row * b_row, at, cols, w);
    keep8(v, a_codes + row * codes_row, a_scales + group, at, cols);
    keep8(w, b_codes + row * codes_row, b_scales + group, at, cols);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = v[i] * share(v[i]) * w[i];
    store8(y + row * cols, at, cols, v);
}

KERNEL GATED_BACKWARD(const T* dy, i64 dy_row, const u8* a_codes, const float* a_scales, const u8* b_codes, const float* b_scales, T* da,
                      i64 da_row, T* db, i64 db_row, int cols, i64 codes_row, int scales_row) {
    PLACE
    if (at >= cols) return;
    float g[8], v[8], w[8];
    load8(dy + row * dy_row, at, cols, g);
    kept8(a_codes + row * codes_row, a_scales[group], at, cols, v);
    kept8(b_codes + row * codes_row, b_scales[group], at, cols, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        float s = share(v[i]);
        w[i] *= g[i] * slope(v[i], s);
        g[i] *= v[i] * s;
    }
    store8(da + row * da_row, at, cols, w);
    store8(db + row * db_row, at, cols, g);
}
#endif
