// Sums, or stored codes, back to numbers: the other end of an 8-bit product, and a weight's dequantisation.
//
// SOURCE: 0 int32 sums, 1 int8, 2 e4m3. `digits`: of the rotation, after scaling; 0 for none.

// out = rotate(values row_scale col_scale) + bias. Any of the vectors may be missing.
KERNEL rescale_rows(const void* values, const float* row_scale, const float* col_scale, const float* bias, T* out, int cols, int digits) {
    i64 row = blockIdx.x;
    int at = (blockIdx.y * THREADS + threadIdx.x) * 8;
    float v[8], f[8], scale = row_scale ? row_scale[row] : 1.f;
#if SOURCE == 0
    const int* sums = (const int*)values + row * cols;
#if VECTOR
    int4 low = make_int4(0, 0, 0, 0), high = low;
    if (at < cols) low = reinterpret_cast<const int4*>(sums + at)[0], high = reinterpret_cast<const int4*>(sums + at)[1];
    v[0] = low.x; v[1] = low.y; v[2] = low.z; v[3] = low.w; v[4] = high.x; v[5] = high.y; v[6] = high.z; v[7] = high.w;
#else
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = at + i < cols ? (float)sums[at + i] : 0.f;
#endif
#else
    uint2 codes = load_codes((const u8*)values + row * cols, at, cols);
#if SOURCE == 1
    from_int8(codes, v);
#else
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = from_e4m3((i < 4 ? codes.x : codes.y) >> (8 * (i & 3)) & 255u);
#endif
#endif
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] *= scale;
    if (col_scale) {
        load8(reinterpret_cast<const f32*>(col_scale), at, cols, f);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] *= f[i];
    }
    if (digits) rotate(v, digits);
    if (bias) {
        load8(reinterpret_cast<const f32*>(bias), at, cols, f);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] += f[i];
    }
    store8(out + row * cols, at, cols, v);
}
