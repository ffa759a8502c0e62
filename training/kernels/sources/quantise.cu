// Rows to 8 bits: one end of an 8-bit product.
//
// FORMAT: 0 int8, 1 e4m3. ROTATE: digits of the rotation (groups of 16, 64 or 256 for 2, 3, 4), before quantising; 0 for
// none. A row's largest value becomes the format's largest. CHUNKS: groups of eight a thread holds of a row.

#define LARGEST (FORMAT ? 448.f : 127.f)

// x may first be multiplied by a factor for each column: the weight's scales, folded into dy.
KERNEL quantise_rows(const T* x, i64 x_row, const float* fold, u8* codes, float* scales, i64 cols) {
    __shared__ float buffer[THREADS / 32];
    i64 row = blockIdx.x;
    float v[CHUNKS][8], largest = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        i64 at = (i64)(c * THREADS + threadIdx.x) * 8;
        load8(x + row * x_row, at, cols, v[c]);
        if (fold) {
            float f[8];
            load8(reinterpret_cast<const f32*>(fold), at, cols, f);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[c][i] *= f[i];
        }
#if ROTATE
        rotate(v[c]);
#endif
#pragma unroll
        for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(v[c][i]));
    }
    largest = block_reduce<true>(largest, buffer);
    float scale = largest / LARGEST;
    // A row of subnormal numbers has no finite inverse: it is zero to the format.
    float up = scale > 1.1754944e-38f ? 1.f / scale : 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        u8 code[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) code[i] = FORMAT ? to_e4m3(v[c][i] * up) : to_int8(v[c][i] * up);
        store_codes(codes + row * cols, (i64)(c * THREADS + threadIdx.x) * 8, cols, code);
    }
    if (threadIdx.x == 0) scales[row] = up > 0.f ? scale : 0.f;
}
