// AdamW over one flat buffer in one launch: with float32 moments, or (CODES) with 8-bit moments and Kahan compensation.
//
// `knobs` lies on the card, so that a captured graph follows the schedule: learning rate, beta1, beta2, eps, weight decay,
// 1 - beta1^step, 1 - beta2^step. `clip` is one factor for the gradient, or null.

#define KNOBS                                                                                                    \
    float lr = knobs[0], beta1 = knobs[1], beta2 = knobs[2], eps = knobs[3], decay = knobs[4], correct1 = knobs[5], correct2 = knobs[6]; \
    float factor = clip ? *clip : 1.f;

// To two units in the last place, as the card's own instruction is; zero for zero.
__device__ __forceinline__ float root(float x) {
    float y;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if !CODES
KERNEL adamw(float* p, const float* g, float* m, float* v, const float* knobs, const float* clip, i64 count) {
    KNOBS
    i64 at = ((i64)blockIdx.x * THREADS + threadIdx.x) * 8;
    if (at >= count) return;
    float weight[8], gradient[8], mean[8], square[8];
    load8((const f32*)p, at, count, weight);
    load8((const f32*)g, at, count, gradient);
    load8((const f32*)m, at, count, mean);
    load8((const f32*)v, at, count, square);
    float rate = lr / correct1, per2 = 1.f / correct2;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        float d = gradient[i] * factor;
        mean[i] += (d - mean[i]) * (1.f - beta1);
        square[i] = square[i] * beta2 + d * d * (1.f - beta2);
        weight[i] = weight[i] * (1.f - lr * decay) - rate * __fdividef(mean[i], root(square[i] * per2) + eps);
    }
    store8((f32*)p, at, count, weight);
    store8((f32*)m, at, count, mean);
    store8((f32*)v, at, count, square);
}

#else
__device__ __forceinline__ float chance(u32 index, u32 key) {
    u32 h = index ^ key;
    h ^= h >> 16; h *= 0x7feb352du;
    h ^= h >> 15; h *= 0x846ca68bu;
    h ^= h >> 16;
    return (h >> 8) * 5.9604644775390625e-8f;  // 24 bits: [0, 1)
}

// To codes of 256 neighbours, a warp's eight each, rounded up or down at random in proportion.
__device__ __forceinline__ void encode(const float (&x)[8], const float* grid, u8* codes, float* scale, i64 at, u32 key, bool positive) {
    float largest = 0.f, unit[8];
    int below[8];
    u32 code[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(x[i]));
    largest = warp_max(largest);
    float up = 1.f / fmaxf(largest, 1.1754944e-38f);
#pragma unroll
    for (int i = 0; i < 8; ++i) unit[i] = x[i] * up, below[i] = 0;
    // The last code whose value is not above, for all eight side by side.
#pragma unroll 1
    for (int step = 128; step; step >>= 1)
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (grid[below[i] + step] <= unit[i]) below[i] += step;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int low = min(below[i], 254);  // of the last two the first
        float gap = fmaxf(grid[low + 1] - grid[low], 1.1754944e-38f);
        int chosen = low + (unit[i] - grid[low] > chance((u32)(at + i), key) * gap ? 1 : 0);
        // A second moment of zero would make a step of any size.
        code[i] = positive && unit[i] > 0.f && chosen < 1 ? 1 : chosen;
    }
    uint2 raw = make_uint2(pack4(code[0], code[1], code[2], code[3]), pack4(code[4], code[5], code[6], code[7]));
    *reinterpret_cast<uint2*>(codes + at) = raw;
    if ((threadIdx.x & 31) == 0) *scale = largest;
}

__device__ __forceinline__ void decode(const u8* codes, const float* grid, float scale, i64 at, float (&x)[8]) {
    uint2 raw = *reinterpret_cast<const uint2*>(codes + at);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[i] = grid[(raw.x >> (8 * i)) & 255u] * scale;
        x[4 + i] = grid[(raw.y >> (8 * i)) & 255u] * scale;
    }
}

// Codes are padded to whole groups of 256; weights, gradient and compensation are not.
extern "C" __global__ void __launch_bounds__(THREADS) adamw8(float* p, const float* g, u8* m, float* m_scale, u8* v, float* v_scale, bf16* compensation, const float* m_grid,
              const float* v_grid, const float* knobs, const float* clip, const u32* keys, i64 count) {
    __shared__ float grids[2][256];
    for (int i = threadIdx.x; i < 256; i += THREADS) {
        grids[0][i] = m_grid[i];
        grids[1][i] = v_grid[i];
    }
    __syncthreads();
    KNOBS
    i64 at = ((i64)blockIdx.x * THREADS + threadIdx.x) * 8, group = at / 256;
    if (group * 256 >= count) return;  // whole warps
    float weight[8], gradient[8], mean[8], square[8], lost[8], per1 = 1.f / correct1, per2 = 1.f / correct2;
    load8((const f32*)p, at, count, weight);
    load8((const f32*)g, at, count, gradient);
    load8(compensation, at, count, lost);
    decode(m, grids[0], m_scale[group], at, mean);
    decode(v, grids[1], v_scale[group], at, square);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        float d = gradient[i] * factor;
        mean[i] += (d - mean[i]) * (1.f - beta1);
        square[i] = square[i] * beta2 + d * d * (1.f - beta2);
        float update = __fdividef(mean[i] * per1, root(square[i] * per2) + eps);
        float delta = lost[i] - weight[i] * lr * decay - lr * update;
        float after = weight[i] + delta;
        lost[i] = delta - (after - weight[i]);
        weight[i] = after;
    }
    store8((f32*)p, at, count, weight);
    store8(compensation, at, count, lost);
    // One after the other through the same instructions.
#pragma unroll 1
    for (int which = 0; which < 2; ++which) {
        encode(mean, grids[which], which ? v : m, (which ? v_scale : m_scale) + group, at, keys[which], which);
#pragma unroll
        for (int i = 0; i < 8; ++i) mean[i] = square[i];
    }
}
#endif
