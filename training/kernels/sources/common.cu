// What every kernel shares: element types, rounding, reductions and rows of eight. No header is needed.
//
// DTYPE: 0 float32, 1 bfloat16, 2 float16 (the activations); MDTYPE: the same for weights and modulation.
// VECTOR: 1 where rows begin at 16 bytes and their length is a multiple of eight. THREADS: a block.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define FULL 0xffffffffu
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

struct f32 { float v; };
struct bf16 { u16 v; };
struct f16 { u16 v; };

__device__ __forceinline__ float widen(f32 x) { return x.v; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((u32)x.v << 16); }
__device__ __forceinline__ float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.v));
    return y;
}

__device__ __forceinline__ void narrow(float x, f32& y) { y.v = x; }
__device__ __forceinline__ void narrow(float x, f16& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.v) : "f"(x)); }
__device__ __forceinline__ void narrow(float x, bf16& y) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.v) : "f"(x));
#else
    u32 bits = __float_as_uint(x);
    u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    y.v = (u16)(x != x ? 0x7fffu : rounded);
#endif
}

template <int> struct Element;
template <> struct Element<0> { typedef f32 type; };
template <> struct Element<1> { typedef bf16 type; };
template <> struct Element<2> { typedef f16 type; };
#ifdef DTYPE
typedef Element<DTYPE>::type T;
#endif
#ifdef MDTYPE
typedef Element<MDTYPE>::type M;
#endif

// Eight neighbours of a row from column `at`; beyond `cols` zeros are read and nothing is written.
template <typename E>
__device__ __forceinline__ void load8(const E* row, i64 at, i64 cols, float (&v)[8]) {
#if VECTOR
    if (at < cols) {
        constexpr int WORDS = sizeof(E) * 8 / 16;
        uint4 raw[WORDS];
#pragma unroll
        for (int w = 0; w < WORDS; ++w) raw[w] = reinterpret_cast<const uint4*>(row + at)[w];
        const E* parts = reinterpret_cast<const E*>(raw);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = widen(parts[i]);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = 0.f;
#else
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = at + i < cols ? widen(row[at + i]) : 0.f;
#endif
}

template <typename E>
__device__ __forceinline__ void store8(E* row, i64 at, i64 cols, const float (&v)[8]) {
#if VECTOR
    if (at < cols) {
        constexpr int WORDS = sizeof(E) * 8 / 16;
        union { uint4 words[WORDS]; E parts[8]; } raw;
#pragma unroll
        for (int i = 0; i < 8; ++i) narrow(v[i], raw.parts[i]);
#pragma unroll
        for (int w = 0; w < WORDS; ++w) reinterpret_cast<uint4*>(row + at)[w] = raw.words[w];
    }
#else
#pragma unroll
    for (int i = 0; i < 8; ++i)
        if (at + i < cols) narrow(v[i], row[at + i]);
#endif
}

// Eight codes of a byte each.
__device__ __forceinline__ void load_codes(const u8* row, i64 at, i64 cols, u8 (&c)[8]) {
#if VECTOR
    if (at < cols) {
        uint2 raw = *reinterpret_cast<const uint2*>(row + at);
#pragma unroll
        for (int i = 0; i < 4; ++i) { c[i] = (u8)(raw.x >> (8 * i)); c[4 + i] = (u8)(raw.y >> (8 * i)); }
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i] = 0;
#else
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i] = at + i < cols ? row[at + i] : 0;
#endif
}

__device__ __forceinline__ void store_codes(u8* row, i64 at, i64 cols, const u8 (&c)[8]) {
#if VECTOR
    if (at < cols) {
        uint2 raw;
        raw.x = c[0] | (u32)c[1] << 8 | (u32)c[2] << 16 | (u32)c[3] << 24;
        raw.y = c[4] | (u32)c[5] << 8 | (u32)c[6] << 16 | (u32)c[7] << 24;
        *reinterpret_cast<uint2*>(row + at) = raw;
    }
#else
#pragma unroll
    for (int i = 0; i < 8; ++i)
        if (at + i < cols) row[at + i] = c[i];
#endif
}

__device__ __forceinline__ u8 to_int8(float x) {
    int rounded = __float2int_rn(fminf(fmaxf(x, -127.f), 127.f));
    return (u8)(signed char)rounded;
}
__device__ __forceinline__ float from_int8(u8 code) { return (float)(signed char)code; }

// Finite e4m3: largest 448, no infinity. Rounds to nearest, ties to even, and saturates.
__device__ __forceinline__ u8 to_e4m3(float x) {
#if __CUDA_ARCH__ >= 890
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.f), "f"(x));
    return (u8)pair;
#else
    u32 sign = (__float_as_uint(x) >> 24) & 0x80u;
    if (x != x) return (u8)0x7f;
    float size = fminf(fabsf(x), 448.f);
    u32 bits = __float_as_uint(size), code;
    if (bits < (121u << 23)) {
        // Below 2^-6 the grid is even, 2^-9 apart: the spacing of floats at 2^14.
        code = __float_as_uint(size + 16384.f) - __float_as_uint(16384.f);
    } else {
        code = (bits + 0x7ffffu + ((bits >> 20) & 1u) - (120u << 23)) >> 20;
    }
    return (u8)(sign | code);
#endif
}

__device__ __forceinline__ float from_e4m3(u8 code) {
    u32 magnitude = code & 0x7fu;
    // The exponent's bias is 7 where a float's is 127; subnormals come right by the multiplication.
    float value = __uint_as_float(magnitude << 20) * 1.329227995784916e36f;
    if (magnitude == 0x7fu) value = __uint_as_float(0x7fc00000u);
    return code & 0x80u ? -value : value;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(FULL, x, step);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step; step >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL, x, step));
    return x;
}

// Every thread of the block gets the result. One buffer a call site: no barrier is needed behind the last read.
template <bool MAXIMUM>
__device__ __forceinline__ float block_reduce(float x, float* buffer) {
    x = MAXIMUM ? warp_max(x) : warp_sum(x);
    if (THREADS == 32) return x;
    if ((threadIdx.x & 31) == 0) buffer[threadIdx.x >> 5] = x;
    __syncthreads();
    float all = buffer[0];
#pragma unroll
    for (int w = 1; w < THREADS / 32; ++w) all = MAXIMUM ? fmaxf(all, buffer[w]) : all + buffer[w];
    return all;
}

// The regular Hadamard rotation of groups of 4^ROTATE values: the Kronecker product of matrices R4, each half of
// [1 1 1 -1; 1 1 -1 1; 1 -1 1 1; -1 1 1 1]. Lane l of a warp holds values 8 l to 8 l + 7. R4 gives half the sum of four less
// the opposite one. Its own inverse.
#if defined(ROTATE) && ROTATE
__device__ __forceinline__ void rotate(float (&v)[8]) {
    float w[8];
#pragma unroll
    for (int i = 0; i < 8; i += 4) {  // digit 0: bits 0 and 1
        float half = 0.5f * (v[i] + v[i + 1] + v[i + 2] + v[i + 3]);
        w[i] = half - v[i + 3]; w[i + 1] = half - v[i + 2]; w[i + 2] = half - v[i + 1]; w[i + 3] = half - v[i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // digit 1: bit 2 and the lane's bit 0
        float pair = w[i] + w[i + 4];
        float half = 0.5f * (pair + __shfl_xor_sync(FULL, pair, 1));
        float low = __shfl_xor_sync(FULL, w[i], 1), high = __shfl_xor_sync(FULL, w[i + 4], 1);
        v[i] = half - high; v[i + 4] = half - low;
    }
#pragma unroll
    for (int digit = 2; digit < ROTATE; ++digit) {  // two bits of the lane each
        int bit = digit == 2 ? 2 : 8;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float pair = v[i] + __shfl_xor_sync(FULL, v[i], bit);
            float half = 0.5f * (pair + __shfl_xor_sync(FULL, pair, 2 * bit));
            v[i] = half - __shfl_xor_sync(FULL, v[i], 3 * bit);
        }
    }
}
#endif

// A row that the block holds (eight values a thread from 8 (c THREADS + thread), zeros beyond it) to 8 bits: its largest value
// becomes the format's. FORMAT: 0 int8, 1 e4m3. ROTATE: before that, in groups of 4^ROTATE; 0 for none.
#if defined(CHUNKS) && defined(FORMAT)
#define LARGEST (FORMAT ? 448.f : 127.f)
__device__ __forceinline__ void row_to_codes(float (&v)[CHUNKS][8], float* buffer, u8* codes, float* scale_of_row, i64 cols) {
    float largest = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
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
        store_codes(codes, (i64)(c * THREADS + threadIdx.x) * 8, cols, code);
    }
    if (threadIdx.x == 0) *scale_of_row = up > 0.f ? scale : 0.f;
}
#endif
