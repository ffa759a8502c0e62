// A matrix of bytes on its side: the second operand of the 8-bit dX, whose contraction runs along the rows.
//
// A block turns 64 x 64 bytes through shared memory with 256 threads. VECTOR: both sides are multiples of four.

KERNEL transpose_bytes(const u8* x, u8* y, i64 rows, i64 cols) {
    __shared__ u8 tile[64][68];
    i64 top = (i64)blockIdx.y * 64, left = (i64)blockIdx.x * 64;
    int across = threadIdx.x % 16 * 4, down = threadIdx.x / 16;
#pragma unroll
    for (int step = 0; step < 64; step += 16) {
        i64 r = top + down + step, c = left + across;
        u32 word = 0;
#if VECTOR
        if (r < rows && c < cols) word = *reinterpret_cast<const u32*>(x + r * cols + c);
#else
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (r < rows && c + i < cols) word |= (u32)x[r * cols + c + i] << (8 * i);
#endif
        *reinterpret_cast<u32*>(&tile[down + step][across]) = word;
    }
    __syncthreads();
#pragma unroll
    for (int step = 0; step < 64; step += 16) {
        i64 r = left + down + step, c = top + across;  // of y
        u32 word = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) word |= (u32)tile[across + i][down + step] << (8 * i);
#if VECTOR
        if (r < cols && c < rows) *reinterpret_cast<u32*>(y + r * rows + c) = word;
#else
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (r < cols && c + i < rows) y[r * rows + c + i] = (u8)(word >> (8 * i));
#endif
    }
}
