// LayerNorm or RMSNorm of a row, its affine part and the block's modulation in one pass, and the backward of both.
//
// y = (n w + b) (plus + scale) + shift with n = (x - mean) rstd; `plus` is 1, or 0 where the scale holds that 1 already. CHUNKS:
// groups of eight a thread holds of a row. `centred`: LayerNorm, else RMSNorm. A row is (batch, token); vectors of modulation
// have strides for both. With FORMAT (row_to_codes) the result is written as codes too, of its rounded values.

#ifdef FORMAT
#define NORM_MODULATE norm_modulate_codes
#define AND_CODES , u8* codes, float* code_scales, int digits
#else
#define NORM_MODULATE norm_modulate
#define AND_CODES
#endif

// `x` for value i from column `at`, where that is one of the row's; else zero.
__device__ __forceinline__ float of_row(float x, int at, int i, int cols) { return (VECTOR ? at : at + i) < cols ? x : 0.f; }

KERNEL NORM_MODULATE(const T* x, i64 x_batch, i64 x_token, const M* weight, const M* bias, const M* shift, i64 shift_batch, i64 shift_token,
                     const M* scale, i64 scale_batch, i64 scale_token, T* y, float* mean, float* rstd, int tokens, int cols, float eps,
                     int centred, float plus AND_CODES) {
    __shared__ float buffers[2][THREADS / 32];
    int row = blockIdx.x, batch = row / tokens, token = row % tokens;
    const T* from = x + batch * x_batch + token * x_token;
    T* to = y + (i64)row * cols;
    float v[CHUNKS][8], centre = 0.f, sum = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) load8(from, (c * THREADS + (int)threadIdx.x) * 8, cols, v[c]);
    if (centred) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
            for (int i = 0; i < 8; ++i) sum += v[c][i];
        centre = __fdividef(block_sum(sum, buffers[0]), cols);
        sum = 0.f;
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            v[c][i] -= of_row(centre, (c * THREADS + (int)threadIdx.x) * 8, i, cols);  // beyond the row all stays zero
            sum += v[c][i] * v[c][i];
        }
    }
    float inverse = rsqrtf(__fdividef(block_sum(sum, buffers[1]), cols) + eps);
    const M *shifts = shift + batch * shift_batch + token * shift_token, *scales = scale + batch * scale_batch + token * scale_token;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        int at = (c * THREADS + (int)threadIdx.x) * 8;
        float m[8], a[8];
        load8<true>(weight, at, weight ? cols : 0, m);
        load8(bias, at, bias ? cols : 0, a);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[c][i] = v[c][i] * inverse * m[i] + a[i];
        load8(scales, at, scale ? cols : 0, m);
        load8(shifts, at, shift ? cols : 0, a);
        float more = scale ? plus : 1.f;
#pragma unroll
        for (int i = 0; i < 8; ++i) v[c][i] = v[c][i] * (more + m[i]) + a[i];
        store8(to, at, cols, v[c]);
#ifdef FORMAT
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            T rounded;
            narrow(v[c][i], rounded);
            v[c][i] = of_row(widen(rounded), at, i, cols);
        }
#endif
    }
#ifdef FORMAT
    __shared__ float largest[THREADS / 32];
    row_to_codes(v, largest, codes + (i64)row * cols, code_scales + row, cols, digits);
#endif
    if (threadIdx.x == 0) {
        mean[row] = centre;
        rstd[row] = inverse;
    }
}

#ifndef FORMAT
// dx = rstd (g - mean(g) - n mean(g n)) with g = dy w (plus + scale); without the first mean for RMSNorm.
KERNEL norm_modulate_backward(const T* dy, i64 dy_batch, i64 dy_token, const T* x, i64 x_batch, i64 x_token, const float* mean,
                              const float* rstd, const M* weight, const M* scale, i64 scale_batch, i64 scale_token, T* dx, int tokens, int cols,
                              int centred, float plus) {
    __shared__ float buffers[2][THREADS / 32];
    int row = blockIdx.x, batch = row / tokens, token = row % tokens;
    const T* gradients = dy + batch * dy_batch + token * dy_token;
    const T* from = x + batch * x_batch + token * x_token;
    const M* scales = scale + batch * scale_batch + token * scale_token;
    float centre = mean[row], inverse = rstd[row], more = scale ? plus : 1.f, g[CHUNKS][8], n[CHUNKS][8], total = 0.f, along = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        int at = (c * THREADS + (int)threadIdx.x) * 8;
        float w[8], m[8];
        load8(gradients, at, cols, g[c]);
        load8(from, at, cols, n[c]);
        load8<true>(weight, at, weight ? cols : 0, w);
        load8(scales, at, scale ? cols : 0, m);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            g[c][i] *= w[i] * (more + m[i]);
            n[c][i] = (n[c][i] - centre) * inverse;
            total += g[c][i];
            along += g[c][i] * n[c][i];  // beyond the row g is zero
        }
    }
    total = centred ? __fdividef(block_sum(total, buffers[0]), cols) : 0.f;
    along = __fdividef(block_sum(along, buffers[1]), cols);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int i = 0; i < 8; ++i) g[c][i] = inverse * (g[c][i] - total - n[c][i] * along);
        store8(dx + (i64)row * cols, (c * THREADS + (int)threadIdx.x) * 8, cols, g[c]);
    }
}
#endif
