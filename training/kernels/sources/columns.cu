// Sums over the tokens of a batch, column by column: the gradients of shift, scale and gate.
//
// A block sums `span` tokens for THREADS columns; the parts are added up afterwards in a fixed order, so that a repeated
// pass gives the same bits. With statistics, `b` is normalised (and its affine part applied) before it is multiplied.

KERNEL column_sums(const T* a, i64 a_batch, i64 a_token, const T* b, i64 b_batch, i64 b_token, const float* mean, const float* rstd,
                   const M* weight, const M* bias, float* sums, float* products, int tokens, int span, int parts, int cols) {
    int column = blockIdx.y * THREADS + threadIdx.x;
    if (column >= cols) return;
    int batch = blockIdx.x / parts, part = blockIdx.x % parts;
    int first = part * span, last = min(first + span, tokens);
    float w = weight ? widen(weight[column]) : 1.f, shift = bias ? widen(bias[column]) : 0.f;
    float sum = 0.f, product = 0.f;
    a += batch * a_batch + column;
    if (b) b += batch * b_batch + column;
    for (int token = first; token < last; ++token) {
        float value = widen(a[token * a_token]);
        sum += value;
        if (b) {
            float other = widen(b[token * b_token]);
            if (rstd) other = (other - mean[batch * tokens + token]) * rstd[batch * tokens + token] * w + shift;
            product += value * other;
        }
    }
    i64 at = (i64)blockIdx.x * cols + column;
    if (sums) sums[at] = sum;
    if (products) products[at] = product;
}
