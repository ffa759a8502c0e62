// RMSNorm and rotary embedding of queries or keys in place, and a backward from what came out.
//
// A row is what one norm covers: `heads` heads of `width` values, one head where each has its own norm. Pairs are neighbours;
// a token's table holds width / 2 matrices [cos, -sin; sin, cos]. The inverse rotation gives the normalised values back:
// nothing but them and rstd is kept. WARPS warps a row, ROWS rows a block, CHUNKS groups of eight a thread.

__device__ __forceinline__ float row_sum(float x, float* buffer) {
    x = warp_sum(x);
    if (WARPS == 1) return x;
    if ((threadIdx.x & 31) == 0) buffer[threadIdx.x >> 5] = x;
    __syncthreads();
    float all = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) all += buffer[w];
    return all;
}

// From a row's number: token of the table, offset of its first head, thread within the row. Rows are (batch, token, group).
#define ROW                                                                                                      \
    i64 row = (i64)blockIdx.x * ROWS + (WARPS == 1 ? threadIdx.x / 32 : 0);                                      \
    int lane = threadIdx.x % (WARPS * 32), group = row % groups;                                                 \
    i64 token = row / groups % tokens, batch = row / groups / tokens, cols = (i64)heads * width;                 \
    bool inside = row < rows;                                                                                    \
    const float* table = freqs + batch * f_batch + token * f_token;

#define HEAD(at) ((i64)(group * heads + (int)((at) / width)))

__device__ __forceinline__ void turn(const float* table, int at, float direction, float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        float4 f = *reinterpret_cast<const float4*>(table + (at + i) * 2);  // cos, -sin, sin, cos
        float low = v[i], high = v[i + 1], sine = direction * f.z;
        v[i] = f.x * low - sine * high;
        v[i + 1] = sine * low + f.x * high;
    }
}

KERNEL rms_rope(T* x, i64 x_batch, i64 x_token, i64 x_head, const M* weight, const float* freqs, i64 f_batch, i64 f_token, float* rstd,
                i64 rows, int tokens, int groups, int heads, int width, float eps) {
    __shared__ float buffer[WARPS];
    ROW
    T* from = x + batch * x_batch + token * x_token;
    float v[CHUNKS][8], sum = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        i64 at = (i64)(c * WARPS * 32 + lane) * 8;
        load8(from + HEAD(at) * x_head, at % width, inside && at < cols ? width : 0, v[c]);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += v[c][i] * v[c][i];
    }
    float inverse = rsqrtf(row_sum(sum, buffer) / cols + eps);
    if (!inside) return;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        i64 at = (i64)(c * WARPS * 32 + lane) * 8;
        if (at >= cols) break;
        float w[8];
        load8(weight, at, cols, w);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[c][i] *= inverse * w[i];
        turn(table, at % width, 1.f, v[c]);
        store8(from + HEAD(at) * x_head, at % width, width, v[c]);
    }
    if (lane == 0) rstd[row] = inverse;
}

// z: what the forward left. n = R'z / w, g = w R'dz, dx = rstd (g - n mean(g n)).
KERNEL rms_rope_backward(const T* dz, i64 d_batch, i64 d_token, i64 d_head, const T* z, i64 z_batch, i64 z_token, i64 z_head, const M* weight,
                         const float* freqs, i64 f_batch, i64 f_token, const float* rstd, T* dx, i64 x_batch, i64 x_token, i64 x_head,
                         i64 rows, int tokens, int groups, int heads, int width) {
    __shared__ float buffer[WARPS];
    ROW
    float g[CHUNKS][8], n[CHUNKS][8], along = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        i64 at = (i64)(c * WARPS * 32 + lane) * 8, limit = inside && at < cols ? width : 0;
        load8(dz + batch * d_batch + token * d_token + HEAD(at) * d_head, at % width, limit, g[c]);
        load8(z + batch * z_batch + token * z_token + HEAD(at) * z_head, at % width, limit, n[c]);
        if (limit) {
            float w[8];
            load8(weight, at, cols, w);
            turn(table, at % width, -1.f, g[c]);
            turn(table, at % width, -1.f, n[c]);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                g[c][i] *= w[i];
                n[c][i] /= w[i];
                along += g[c][i] * n[c][i];
            }
        }
    }
    along = row_sum(along, buffer) / cols;
    if (!inside) return;
    float inverse = rstd[row];
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        i64 at = (i64)(c * WARPS * 32 + lane) * 8;
        if (at >= cols) break;
#pragma unroll
        for (int i = 0; i < 8; ++i) g[c][i] = inverse * (g[c][i] - n[c][i] * along);
        store8(dx + batch * x_batch + token * x_token + HEAD(at) * x_head, at % width, width, g[c]);
    }
}
