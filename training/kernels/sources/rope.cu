// RMSNorm and rotary embedding of queries or keys in place, and a backward from what came out.
//
// A row is what one norm covers: `heads` heads of `width` values, one head where each has its own norm. Pairs are neighbours;
// a token's table holds width / 2 matrices [cos, -sin; sin, cos]. The inverse rotation gives the normalised values back:
// nothing but them and rstd is kept. WIDTH values a head, WARPS warps a row, ROWS rows a
// block, CHUNKS groups of eight a thread.

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
    int own = blockIdx.x * ROWS + (WARPS == 1 ? threadIdx.x / 32 : 0), row = min(own, rows - 1);                 \
    int lane = threadIdx.x % (WARPS * 32), group = row % groups, place = row / groups;                           \
    int token = place % tokens, batch = place / tokens, cols = heads * WIDTH;                                    \
    bool inside = own < rows; /* beyond the last row that one is read again */                                   \
    const float* table = freqs + batch * f_batch + token * f_token;

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
                int rows, int tokens, int groups, int heads, float eps) {
    __shared__ float buffer[WARPS];
    ROW
    T* from = x + batch * x_batch + token * x_token;
    float v[CHUNKS][8], sum = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        int at = (c * WARPS * 32 + lane) * 8, head = at / WIDTH;
        load8(from + (group * heads + head) * x_head, at - head * WIDTH, at < cols ? WIDTH : 0, v[c]);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += v[c][i] * v[c][i];
    }
    float inverse = rsqrtf(__fdividef(row_sum(sum, buffer), cols) + eps);
    if (!inside) return;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        int at = (c * WARPS * 32 + lane) * 8, head = at / WIDTH, within = at - head * WIDTH;
        float w[8];
        load8(weight, at, cols, w);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[c][i] *= inverse * w[i];
        turn(table, within, 1.f, v[c]);
        store8(from + (group * heads + head) * x_head, within, at < cols ? WIDTH : 0, v[c]);
    }
    if (lane == 0) rstd[row] = inverse;
}

// z: what the forward left. n = R'z / w, g = w R'dz, dx = rstd (g - n mean(g n)).
KERNEL rms_rope_backward(const T* dz, i64 d_batch, i64 d_token, i64 d_head, const T* z, i64 z_batch, i64 z_token, i64 z_head, const M* weight,
                         const float* freqs, i64 f_batch, i64 f_token, const float* rstd, T* dx, i64 x_batch, i64 x_token, i64 x_head,
                         int rows, int tokens, int groups, int heads) {
    __shared__ float buffer[WARPS];
    ROW
    dz += batch * d_batch + token * d_token;
    z += batch * z_batch + token * z_token;
    dx += batch * x_batch + token * x_token;
    float g[CHUNKS][8], n[CHUNKS][8], along = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        int at = (c * WARPS * 32 + lane) * 8, head = at / WIDTH, within = at - head * WIDTH, limit = at < cols ? WIDTH : 0;
        load8(dz + (group * heads + head) * d_head, within, limit, g[c]);
        load8(z + (group * heads + head) * z_head, within, limit, n[c]);
        float w[8];
        load8<true>(weight, at, cols, w);
        turn(table, within, -1.f, g[c]);
        turn(table, within, -1.f, n[c]);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            g[c][i] *= w[i];
            n[c][i] = __fdividef(n[c][i], w[i]);
            along += g[c][i] * n[c][i];
        }
    }
    along = __fdividef(row_sum(along, buffer), cols);
    if (!inside) return;
    float inverse = rstd[row];
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        int at = (c * WARPS * 32 + lane) * 8, head = at / WIDTH;
#pragma unroll
        for (int i = 0; i < 8; ++i) g[c][i] = inverse * (g[c][i] - n[c][i] * along);
        store8(dx + (group * heads + head) * x_head, at - head * WIDTH, at < cols ? WIDTH : 0, g[c]);
    }
}
