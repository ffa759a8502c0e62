// LayerNorm or RMSNorm of a row, its affine part and the block's modulation in one pass, and the backward of both.
//
// y = (n w + b) (1 + scale) + shift with n = (x - mean) rstd. CHUNKS: groups of eight a thread holds of a row.
// CENTRED: 1 LayerNorm, 0 RMSNorm. A row is (batch, token); vectors of modulation have strides for both. With FORMAT and ROTATE
// (row_to_codes) the result is written as codes too, of its rounded values.

#ifdef FORMAT
#define NORM_MODULATE norm_modulate_codes
#define AND_CODES , u8* codes, float* code_scales
#else
#define NORM_MODULATE norm_modulate
#define AND_CODES
#endif

KERNEL NORM_MODULATE(const T* x, i64 x_batch, i64 x_token, const M* weight, const M* bias, const M* shift, i64 shift_batch, i64 shift_token,
                     const M* scale, i64 scale_batch, i64 scale_token, T* y, float* mean, float* rstd, int tokens, i64 cols, float eps AND_CODES) {
    __shared__ float buffers[2][THREADS / 32];
    int row = blockIdx.x, batch = row / tokens, token = row % tokens;
    const T* from = x + batch * x_batch + token * x_token;
    T* to = y + row * cols;
    float v[CHUNKS][8], centre = 0.f, sum = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) load8(from, (i64)(c * THREADS + threadIdx.x) * 8, cols, v[c]);
#if CENTRED
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += v[c][i];
    centre = block_reduce<false>(sum, buffers[0]) / cols;
    sum = 0.f;
#endif
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float d = (c * THREADS + (int)threadIdx.x) * 8 + i < cols ? v[c][i] - centre : 0.f;
            sum += d * d;
        }
    }
    float inverse = rsqrtf(block_reduce<false>(sum, buffers[1]) / cols + eps);
    const M* shifts = shift ? shift + batch * shift_batch + token * shift_token : nullptr;
    const M* scales = scale ? scale + batch * scale_batch + token * scale_token : nullptr;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        i64 at = (i64)(c * THREADS + threadIdx.x) * 8;
        float m[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) v[c][i] = (v[c][i] - centre) * inverse;
        if (weight) {
            load8(weight, at, cols, m);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[c][i] *= m[i];
        }
        if (bias) {
            load8(bias, at, cols, m);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[c][i] += m[i];
        }
        if (scales) {
            load8(scales, at, cols, m);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[c][i] *= 1.f + m[i];
        }
        if (shifts) {
            load8(shifts, at, cols, m);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[c][i] += m[i];
        }
        store8(to, at, cols, v[c]);
#ifdef FORMAT
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            T rounded;
            narrow(v[c][i], rounded);
            v[c][i] = at + i < cols ? widen(rounded) : 0.f;
        }
#endif
    }
#ifdef FORMAT
    __shared__ float largest[THREADS / 32];
    row_to_codes(v, largest, codes + row * cols, code_scales + row, cols);
#endif
    if (threadIdx.x == 0) {
        mean[row] = centre;
        rstd[row] = inverse;
    }
}

#ifndef FORMAT
// dx = rstd (g - mean(g) - n mean(g n)) with g = dy w (1 + scale); without the first mean for RMSNorm.
KERNEL norm_modulate_backward(const T* dy, i64 dy_batch, i64 dy_token, const T* x, i64 x_batch, i64 x_token, const float* mean,
                              const float* rstd, const M* weight, const M* scale, i64 scale_batch, i64 scale_token, T* dx, int tokens, i64 cols) {
    __shared__ float buffers[2][THREADS / 32];
    int row = blockIdx.x, batch = row / tokens, token = row % tokens;
    const T* gradients = dy + batch * dy_batch + token * dy_token;
    const T* from = x + batch * x_batch + token * x_token;
    const M* scales = scale ? scale + batch * scale_batch + token * scale_token : nullptr;
    float centre = mean[row], inverse = rstd[row], g[CHUNKS][8], n[CHUNKS][8], total = 0.f, along = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        i64 at = (i64)(c * THREADS + threadIdx.x) * 8;
        float m[8];
        load8(gradients, at, cols, g[c]);
        load8(from, at, cols, n[c]);
        if (weight) {
            load8(weight, at, cols, m);
#pragma unroll
            for (int i = 0; i < 8; ++i) g[c][i] *= m[i];
        }
        if (scales) {
            load8(scales, at, cols, m);
#pragma unroll
            for (int i = 0; i < 8; ++i) g[c][i] *= 1.f + m[i];
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            n[c][i] = (n[c][i] - centre) * inverse;
            total += g[c][i];
            along += g[c][i] * n[c][i];  // beyond the row g is zero
        }
    }
    total = CENTRED ? block_reduce<false>(total, buffers[0]) / cols : 0.f;
    along = block_reduce<false>(along, buffers[1]) / cols;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int i = 0; i < 8; ++i) g[c][i] = inverse * (g[c][i] - total - n[c][i] * along);
        store8(dx + row * cols, (i64)(c * THREADS + threadIdx.x) * 8, cols, g[c]);
    }
}
#endif
