// An 8-bit matrix product with its scales, a low-rank part, a rotation and a bias in one pass: 32-bit sums never leave the chip.
//
// out = rotate(a b^T row_scale col_scale up + t u^T) alpha + bias; a [rows, shared] and b [cols, shared] are codes, t [rows, rank]
// and u [cols, rank] bfloat16. FORMAT: 0 int8, 1 e4m3; `digits`: of the rotation, 0 for none. A block of 256 threads makes
// 32 MT x 256 results; a warp 16 MT x 64 of them. Operands go through STAGES slots of shared memory, 64 bytes of every row
// each: row r's sixteen bytes c lie at 64 r + 16 (c ^ (r / 2 & 3)), so that eight rows at one c fall into eight different
// sixteenths of a bank line. The low-rank part is the last of these steps, with another instruction. Needs compute capability
// 8.0, and 8.9 for e4m3.

#define NT 8
#define BM (2 * MT * 16)
#define BN 256
#define STEP 64
#define SLOT_BYTES ((BM + BN) * STEP)
#define PITCH (BN + 8)  // floats: rows of the epilogue's tile begin in different banks

extern __shared__ __align__(128) u8 pool[];

__device__ __forceinline__ void copy16(u32 to, const u8* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_for_oldest() { asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory"); }

__device__ __forceinline__ void fragments(u32 from, u32& a, u32& b, u32& c, u32& d) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(from) : "memory");
}

__device__ __forceinline__ void multiply_add(int (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <bool EIGHT_BITS>
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#define OPERANDS "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#define GIVEN : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])
    if (!EIGHT_BITS) asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 " OPERANDS GIVEN);
#if FORMAT == 1
    if (EIGHT_BITS) asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 " OPERANDS GIVEN);
#endif
}

// threadIdx.x, which is asked for again in e4m3: what depends on it would take the registers of a step's end.
__device__ __forceinline__ int own_thread() {
#if FORMAT == 1
    u32 thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
#else
    return threadIdx.x;
#endif
}

// A thread's sixteen bytes of every 64th of ROWS rows from `first`, of the matrix whose rows it is given at `data`. Beyond the
// last row that one is read again: what comes of it is never written.
template <int ROWS>
__device__ __forceinline__ void fill(u32 slot, const u8* data, int row_bytes, int first, int last, int bytes) {
#pragma unroll
    for (int turn = 0; turn < (ROWS + 63) / 64; ++turn) {
        if (ROWS % 64 && threadIdx.x >= ROWS * 4) break;
        copy16(slot + turn * 64 * STEP, data + (i64)min(first + turn * 64, last) * row_bytes, bytes);
    }
}

// One slot's part of the product: both operands have the same bytes to a fragment in either type. `a_at` and `b_at`: of the
// lane's first fragments; the slot's other half is 32 bytes away.
template <bool EIGHT_BITS, typename Sum>
__device__ __forceinline__ void multiply(u32 a_at, u32 b_at, Sum (&sum)[MT][NT][4]) {
    constexpr int AT_ONCE = EIGHT_BITS && FORMAT == 0 ? 2 : 1;  // of two: in e4m3 both would spill, the low-rank part has few
#pragma unroll (AT_ONCE)
    for (int half = 0; half < 2; ++half) {
        u32 a[MT][4], b[NT][2], other = half * 32;
#pragma unroll
        for (int i = 0; i < MT; ++i) fragments((a_at ^ other) + i * 16 * STEP, a[i][0], a[i][1], a[i][2], a[i][3]);
#pragma unroll
        for (int j = 0; j < NT; j += 2) fragments((b_at ^ other) + j * 8 * STEP, b[j][0], b[j][1], b[j + 1][0], b[j + 1][1]);
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int j = 0; j < NT; ++j) {
#if FORMAT == 0
                if constexpr (EIGHT_BITS) multiply_add(sum[i][j], a[i], b[j]);
                else multiply_add<false>(sum[i][j], a[i], b[j]);
#else
                multiply_add<EIGHT_BITS>(sum[i][j], a[i], b[j]);
#endif
            }
    }
}

#if FORMAT == 0
#define PRODUCT_LORA product_lora_int8
#else
#define PRODUCT_LORA product_lora_fp8
#endif

// Left to itself the assembler gives the smallest block 64 registers, and spills.
#if MT == 1
extern "C" __global__ void __launch_bounds__(THREADS, 1)
#else
KERNEL
#endif
PRODUCT_LORA(const u8* a, int a_row, const u8* b, int b_row, const float* row_scale, const float* col_scale, const float* bias,
             const u8* t, int t_row, const u8* u, int u_row, T* out, int rows, int cols, int shared, int rank_bytes, float up, float alpha,
             int digits) {
    int top = blockIdx.x * BM, left = blockIdx.y * BN;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, down = warp & 1, across = warp >> 1;
    int steps = (shared + STEP - 1) / STEP, all = steps + (rank_bytes + STEP - 1) / STEP;
    u32 base = (u32)__cvta_generic_to_shared(pool);
    // Of a slot: where this thread's fragments begin.
    int turned = lane >> 1 & 3;
    u32 a_at = base + (down * MT * 16 + (lane & 15)) * STEP + ((lane >> 4 ^ turned) << 4);
    u32 b_at = base + (BM + across * NT * 8 + (lane & 7) + (lane >> 4) * 8) * STEP + (((lane >> 3 & 1) ^ turned) << 4);

    auto begin = [&](int step) {
        int thread = own_thread(), copied = thread >> 2, chunk = (thread & 3) * 16;
        bool first = step < steps;  // the product; else the low-rank part
        int bytes = first ? shared : rank_bytes, from = (first ? step : step - steps) * STEP + chunk;
        if (step < all) {
            u32 slot = base + step % STAGES * SLOT_BYTES + copied * STEP + (chunk ^ (copied >> 1 & 3) << 4);
            int inside = min(from, (bytes - 1) & ~15), given = max(0, min(16, bytes - from));  // an address inside the row, where nothing is read too
            fill<BM>(slot, (first ? a : t) + inside, first ? a_row : t_row, top + copied, rows - 1, given);
            fill<BN>(slot + BM * STEP, (first ? b : u) + inside, first ? b_row : u_row, left + copied, cols - 1, given);
        }
        close_group();  // an empty one too: their number says which is the oldest
    };
    // What comes next lands in the slot that all have left at the barrier.
    auto turn = [&](int step) {
        wait_for_oldest();
        __syncthreads();
        begin(step + STAGES - 1);
        return (u32)(step % STAGES * SLOT_BYTES);
    };

#pragma unroll 1
    for (int step = 0; step < STAGES - 1; ++step) begin(step);
#if FORMAT == 0
    int sum[MT][NT][4] = {};
    float value[MT][NT][4];
#else
    float sum[MT][NT][4] = {};
    auto& value = sum;
#endif
    int step = 0;
    for (; step < steps; ++step) {
        u32 slot = turn(step);
        multiply<true>(a_at + slot, b_at + slot, sum);
    }

    // Thread: rows lane / 4 and 8 below it, two columns from 2 (lane % 4), of every 16 x 8.
    int own_row = lane >> 2, own_col = (lane & 3) * 2;
#pragma unroll
    for (int i = 0; i < MT; ++i) {
        int row = top + (down * MT + i) * 16 + own_row;
        float high = (row < rows ? row_scale[row] : 0.f) * up, low = (row + 8 < rows ? row_scale[row + 8] : 0.f) * up;
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int k = 0; k < 4; ++k) value[i][j][k] = (float)sum[i][j][k] * (k < 2 ? high : low);
    }
    if (col_scale) {
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                int col = left + (across * NT + j) * 8 + own_col + k;
                float scale = col < cols ? col_scale[col] : 0.f;
#pragma unroll
                for (int i = 0; i < MT; ++i) {
                    value[i][j][k] *= scale;
                    value[i][j][k + 2] *= scale;
                }
            }
    }
    for (; step < all; ++step) {
        u32 slot = turn(step);
        multiply<false>(a_at + slot, b_at + slot, value);
    }

    // 32 rows at a time through shared memory, so that a warp holds a whole row: for the rotation, and for long writes.
    float* tile = reinterpret_cast<float*>(pool);
#pragma unroll 1
    for (int round = 0; round < MT; ++round) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < MT; ++i) {
            if (i != round) continue;  // registers have no index
#pragma unroll
            for (int j = 0; j < NT; ++j)
#pragma unroll
                for (int k = 0; k < 4; k += 2) {
                    float* to = tile + (down * 16 + own_row + k * 4) * PITCH + (across * NT + j) * 8 + own_col;
                    *reinterpret_cast<float2*>(to) = make_float2(value[i][j][k], value[i][j][k + 1]);
                }
        }
        __syncthreads();
#pragma unroll 1
        for (int turn = 0; turn < 4; ++turn) {
            int from = turn * 8 + warp, row = top + ((from >> 4) * MT + round) * 16 + (from & 15);
            if (row >= rows) continue;  // for the whole warp
            float v[8], more[8];
            float4 low = *reinterpret_cast<const float4*>(tile + from * PITCH + lane * 8), high = *reinterpret_cast<const float4*>(tile + from * PITCH + lane * 8 + 4);
            v[0] = low.x; v[1] = low.y; v[2] = low.z; v[3] = low.w; v[4] = high.x; v[5] = high.y; v[6] = high.z; v[7] = high.w;
            if (digits) rotate(v, digits);
#pragma unroll
            for (int c = 0; c < 8; ++c) v[c] *= alpha;
            if (bias) {
                load8(reinterpret_cast<const f32*>(bias), left + lane * 8, cols, more);
#pragma unroll
                for (int c = 0; c < 8; ++c) v[c] += more[c];
            }
            store8(out + (i64)row * cols, left + lane * 8, cols, v);
        }
    }
}
