// GELU and SwiGLU whose inputs are kept for the backward in 8 bits: one scale for 128 neighbours of a row.
//
// Sixteen lanes hold 128 values, eight each, and share their largest. FORM: 0 GELU by erf, 1 by tanh.

__device__ __forceinline__ float group_max(float x) {
#pragma unroll
    for (int step = 8; step; step >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL, x, step));
    return x;
}

__device__ __forceinline__ void keep8(const float (&v)[8], u8* codes, float* scale, i64 at, i64 cols) {
    float largest = 0.f;
    u8 c[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(v[i]));
    largest = group_max(largest);
    float up = largest > 0.f ? 127.f / largest : 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i] = to_int8(v[i] * up);
    store_codes(codes, at, cols, c);
    if ((threadIdx.x & 15) == 0 && at < cols) *scale = largest / 127.f;
}

__device__ __forceinline__ void kept8(const u8* codes, float scale, i64 at, i64 cols, float (&v)[8]) {
    u8 c[8];
    load_codes(codes, at, cols, c);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = from_int8(c[i]) * scale;
}

__device__ __forceinline__ float gelu(float x) {
#if FORM
    return 0.5f * x * (1.f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
#else
    return 0.5f * x * (1.f + erff(x * 0.7071067811865476f));
#endif
}
__device__ __forceinline__ float gelu_slope(float x) {
#if FORM
    float t = tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x));
    return 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * 0.7978845608028654f * (1.f + 0.134145f * x * x);
#else
    return 0.5f * (1.f + erff(x * 0.7071067811865476f)) + x * 0.3989422804014327f * __expf(-0.5f * x * x);
#endif
}
__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + __expf(-x)); }

// Columns of a block are THREADS * 8 neighbours of one row; its groups of 128 never cross a row.
#define PLACE                                                        \
    i64 row = blockIdx.x, at = ((i64)blockIdx.y * THREADS + threadIdx.x) * 8, group = row * groups + at / 128;

KERNEL gelu8(const T* x, i64 x_row, T* y, u8* codes, float* scales, i64 cols, i64 groups) {
    PLACE
    float v[8];
    load8(x + row * x_row, at, cols, v);
    keep8(v, codes + row * cols, scales + group, at, cols);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = gelu(v[i]);
    store8(y + row * cols, at, cols, v);
}

KERNEL gelu8_backward(const T* dy, i64 dy_row, const u8* codes, const float* scales, T* dx, i64 cols, i64 groups) {
    PLACE
    if (at >= cols) return;
    float g[8], v[8];
    load8(dy + row * dy_row, at, cols, g);
    kept8(codes + row * cols, scales[group], at, cols, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) g[i] *= gelu_slope(v[i]);
    store8(dx + row * cols, at, cols, g);
}

// y = silu(a) b
KERNEL swiglu8(const T* a, i64 a_row, const T* b, i64 b_row, T* y, u8* a_codes, float* a_scales, u8* b_codes, float* b_scales, i64 cols,
               i64 groups) {
    PLACE
    float v[8], w[8];
    load8(a + row * a_row, at, cols, v);
    load8(b + row * b_row, at, cols, w);
    keep8(v, a_codes + row * cols, a_scales + group, at, cols);
    keep8(w, b_codes + row * cols, b_scales + group, at, cols);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = v[i] * sigmoid(v[i]) * w[i];
    store8(y + row * cols, at, cols, v);
}

KERNEL swiglu8_backward(const T* dy, i64 dy_row, const u8* a_codes, const float* a_scales, const u8* b_codes, const float* b_scales, T* da,
                        T* db, i64 cols, i64 groups) {
    PLACE
    if (at >= cols) return;
    float g[8], v[8], w[8];
    load8(dy + row * dy_row, at, cols, g);
    kept8(a_codes + row * cols, a_scales[group], at, cols, v);
    kept8(b_codes + row * cols, b_scales[group], at, cols, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        float s = sigmoid(v[i]), slope = s * (1.f + v[i] * (1.f - s));
        w[i] *= g[i] * slope;
        g[i] *= v[i] * s;
    }
    store8(da + row * cols, at, cols, w);
    store8(db + row * cols, at, cols, g);
}
