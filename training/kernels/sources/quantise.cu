// Rows to 8 bits: one end of an 8-bit product.
//
// As many threads as a row needs, by warps. CHUNKS: groups of eight a thread holds of it; FORMAT and `digits` as in
// row_to_codes.

// x may first be multiplied by a factor for each column: the weight's scales, folded into dy.
KERNEL quantise_rows(const T* x, i64 x_row, const float* fold, u8* codes, float* scales, int cols, int digits) {
    __shared__ float buffer[THREADS / 32];
    i64 row = blockIdx.x;
    float v[CHUNKS][8];
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        int at = (c * blockDim.x + threadIdx.x) * 8;
        float f[8];
        load8(x + row * x_row, at, cols, v[c]);
        load8<true>(reinterpret_cast<const f32*>(fold), at, fold ? cols : 0, f);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[c][i] *= f[i];
    }
    row_to_codes(v, buffer, codes + row * cols, scales + row, cols, digits);
}
