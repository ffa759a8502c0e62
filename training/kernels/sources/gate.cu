// out = x + y gate, and without x the backward's dy = dout gate. A thread does eight neighbours of a row.

KERNEL gated_residual(const T* x, i64 x_batch, i64 x_token, const T* y, i64 y_batch, i64 y_token, const M* gate, i64 gate_batch,
                      i64 gate_token, T* out, int tokens, int cols) {
    int row = blockIdx.x, batch = row / tokens, token = row % tokens;
    int at = (blockIdx.y * THREADS + threadIdx.x) * 8;
    if (at >= cols) return;
    float base[8], v[8], g[8];
    load8(y + batch * y_batch + token * y_token, at, cols, v);
    load8(gate + batch * gate_batch + token * gate_token, at, cols, g);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] *= g[i];
    if (x) {
        load8(x + batch * x_batch + token * x_token, at, cols, base);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] += base[i];
    }
    store8(out + (i64)row * cols, at, cols, v);
}
