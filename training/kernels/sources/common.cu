// What every kernel shares: element types, rounding, reductions and rows of eight. No header is needed.
//
// DTYPE: 0 float32, 1 bfloat16, 2 float16 (the activations); MDTYPE: the same for weights and modulation.
// VECTOR: 1 where rows begin at 16 bytes and their length is a multiple of eight. THREADS: a block's, or MOST_THREADS, where the
// launch says how many.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifdef MOST_THREADS
#define THREADS MOST_THREADS
#endif
#define FULL 0xffffffffu
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

struct f32 { float v; static constexpr u32 ONE = 0; };
struct bf16 { u16 v; static constexpr u32 ONE = 0x3f80u; };
struct f16 { u16 v; static constexpr u32 ONE = 0x3c00u; };

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

// Two neighbours in a word, the first in its lower half.
__device__ __forceinline__ void widen2(u32 pair, float& low, float& high, bf16) {
    low = __uint_as_float(pair << 16);
    high = __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ void widen2(u32 pair, float& low, float& high, f16) {
    f16 one = {(u16)pair}, other = {(u16)(pair >> 16)};
    low = widen(one);
    high = widen(other);
}
template <typename E>
__device__ __forceinline__ u32 narrow2(float low, float high) {
    E one, other;
    narrow(low, one);
    narrow(high, other);
    return one.v | (u32)other.v << 16;
}
#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ u32 narrow2<bf16>(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
#endif

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

// Sixteen bytes, or four words `other`: by a predicate, since a branch around each load would take the compiler's time, and
// hold back the loads behind it.
__device__ __forceinline__ uint4 read16(const void* from, bool wanted, u32 other) {
    uint4 raw = make_uint4(other, other, other, other);
    asm volatile("{\n\t.reg .pred %%p_wanted;\n\tsetp.ne.b32 %%p_wanted, %5, 0;\n\t@%%p_wanted ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "+r"(raw.x), "+r"(raw.y), "+r"(raw.z), "+r"(raw.w) : "l"(__cvta_generic_to_global(from)), "r"((int)wanted));
    return raw;
}

// Eight neighbours of a row from column `at`; beyond `cols` zeros are read (or ones), and nothing is written.
template <bool ONES = false, typename E, typename I>
__device__ __forceinline__ void load8(const E* row, I at, I cols, float (&v)[8]) {
#if VECTOR
    constexpr u32 OTHER = !ONES ? 0u : sizeof(E) == 4 ? 0x3f800000u : E::ONE * 0x10001u;
    uint4 raw = read16(row + at, at < cols, OTHER);
    if constexpr (sizeof(E) == 4) {
        uint4 more = read16(row + at + 4, at < cols, OTHER);
        v[0] = __uint_as_float(raw.x); v[1] = __uint_as_float(raw.y); v[2] = __uint_as_float(raw.z); v[3] = __uint_as_float(raw.w);
        v[4] = __uint_as_float(more.x); v[5] = __uint_as_float(more.y); v[6] = __uint_as_float(more.z); v[7] = __uint_as_float(more.w);
    } else {
        widen2(raw.x, v[0], v[1], E{}); widen2(raw.y, v[2], v[3], E{}); widen2(raw.z, v[4], v[5], E{}); widen2(raw.w, v[6], v[7], E{});
    }
#else
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = at + i < cols ? widen(row[at + i]) : ONES ? 1.f : 0.f;
#endif
}

__device__ __forceinline__ void write16(void* to, bool wanted, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("{\n\t.reg .pred %%p_wanted;\n\tsetp.ne.b32 %%p_wanted, %5, 0;\n\t@%%p_wanted st.global.v4.b32 [%4], {%0, %1, %2, %3};\n\t}"
                 ::"r"(a), "r"(b), "r"(c), "r"(d), "l"(__cvta_generic_to_global(to)), "r"((int)wanted) : "memory");
}

template <typename E, typename I>
__device__ __forceinline__ void store8(E* row, I at, I cols, const float (&v)[8]) {
#if VECTOR
    if constexpr (sizeof(E) == 4) {
        write16(row + at, at < cols, __float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
        write16(row + at + 4, at < cols, __float_as_uint(v[4]), __float_as_uint(v[5]), __float_as_uint(v[6]), __float_as_uint(v[7]));
    } else {
        write16(row + at, at < cols, narrow2<E>(v[0], v[1]), narrow2<E>(v[2], v[3]), narrow2<E>(v[4], v[5]), narrow2<E>(v[6], v[7]));
    }
#else
#pragma unroll
    for (int i = 0; i < 8; ++i)
        if (at + i < cols) narrow(v[i], row[at + i]);
#endif
}

// Eight codes of a byte each, the first lowest.
__device__ __forceinline__ uint2 load_codes(const u8* row, int at, int cols) {
    uint2 codes = make_uint2(0, 0);
#if VECTOR
    if (at < cols) codes = *reinterpret_cast<const uint2*>(row + at);
#else
#pragma unroll
    for (int i = 0; i < 8; ++i)
        if (at + i < cols) (i < 4 ? codes.x : codes.y) |= (u32)row[at + i] << (8 * (i & 3));
#endif
    return codes;
}

__device__ __forceinline__ void store_codes(u8* row, int at, int cols, uint2 codes) {
#if VECTOR
    if (at < cols) *reinterpret_cast<uint2*>(row + at) = codes;
#else
#pragma unroll
    for (int i = 0; i < 8; ++i)
        if (at + i < cols) row[at + i] = (u8)((i < 4 ? codes.x : codes.y) >> (8 * (i & 3)));
#endif
}

// The lowest byte of each.
__device__ __forceinline__ u32 pack4(u32 a, u32 b, u32 c, u32 d) { return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410); }

// x times `up`, which is between -127 and 127, as int8 in the lowest byte: at 1.5 2^23 the spacing of floats is one.
__device__ __forceinline__ u32 to_int8(float x, float up) { return __float_as_uint(__fmaf_rn(x, up, 12582912.f)); }

__device__ __forceinline__ uint2 to_int8(const float (&x)[8], float up) {
    return make_uint2(pack4(to_int8(x[0], up), to_int8(x[1], up), to_int8(x[2], up), to_int8(x[3], up)),
                      pack4(to_int8(x[4], up), to_int8(x[5], up), to_int8(x[6], up), to_int8(x[7], up)));
}

// 2^23 + 128 + the code, as a float's bits, less what is too much.
__device__ __forceinline__ void from_int8(uint2 codes, float (&v)[8]) {
    u32 low = codes.x ^ 0x80808080u, high = codes.y ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = __uint_as_float(__byte_perm(i < 4 ? low : high, 0x4b000000u, 0x7650 + (i & 3))) - 8388736.f;
}

// Finite e4m3: largest 448, no infinity. Rounds to nearest, ties to even, and saturates.
#if __CUDA_ARCH__ >= 890
__device__ __forceinline__ u32 to_e4m3(float low, float high) {  // two of them
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}
#else
__device__ __forceinline__ u32 to_e4m3(float x) {
    u32 sign = (__float_as_uint(x) >> 24) & 0x80u;
    if (x != x) return 0x7fu;
    float size = fminf(fabsf(x), 448.f);
    u32 bits = __float_as_uint(size), code;
    if (bits < (121u << 23)) {
        // Below 2^-6 the grid is even, 2^-9 apart: the spacing of floats at 2^14.
        code = __float_as_uint(size + 16384.f) - __float_as_uint(16384.f);
    } else {
        code = (bits + 0x7ffffu + ((bits >> 20) & 1u) - (120u << 23)) >> 20;
    }
    return sign | code;
}
__device__ __forceinline__ u32 to_e4m3(float low, float high) { return to_e4m3(low) | to_e4m3(high) << 8; }
#endif

__device__ __forceinline__ uint2 to_e4m3(const float (&x)[8], float up) {
    return make_uint2(to_e4m3(x[0] * up, x[1] * up) | to_e4m3(x[2] * up, x[3] * up) << 16, to_e4m3(x[4] * up, x[5] * up) | to_e4m3(x[6] * up, x[7] * up) << 16);
}

__device__ __forceinline__ float from_e4m3(u32 code) {
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
// Of sizes: their bits are in the same order, and NaN, which fmaxf drops, is beyond infinity.
__device__ __forceinline__ float larger(float x, float y) { return __uint_as_float(max(__float_as_uint(x), __float_as_uint(y))); }
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step; step >>= 1) x = larger(x, __shfl_xor_sync(FULL, x, step));
    return x;
}

// Every thread of the block gets the result. One buffer a call site, a value a warp: no barrier is needed behind the last read.
__device__ __forceinline__ float block_sum(float x, float* buffer) {
    x = warp_sum(x);
    if (THREADS == 32) return x;
    if ((threadIdx.x & 31) == 0) buffer[threadIdx.x >> 5] = x;
    __syncthreads();
    float all = buffer[0];
#pragma unroll
    for (int w = 1; w < THREADS / 32; ++w) all += buffer[w];
    return all;
}
// Of sizes, by however many warps there are.
__device__ __forceinline__ float block_max(float x, float* buffer) {
    x = warp_max(x);
    if (THREADS == 32) return x;
    int lane = threadIdx.x & 31;
    if (lane == 0) buffer[threadIdx.x >> 5] = x;
    __syncthreads();
    return warp_max(lane < (int)(blockDim.x >> 5) ? buffer[lane] : 0.f);
}

// The regular Hadamard rotation of groups of 4^digits values (digits 2 to 4): the Kronecker product of matrices R4, each half of
// [1 1 1 -1; 1 1 -1 1; 1 -1 1 1; -1 1 1 1]. Lane l of a warp holds values 8 l to 8 l + 7. R4 gives half the sum of four less
// the opposite one. Its own inverse.
__device__ __forceinline__ void rotate(float (&v)[8], int digits) {
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
#pragma unroll 1
    for (int digit = 2, bit = 2; digit < digits; ++digit, bit = 8) {  // two bits of the lane each
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float pair = v[i] + __shfl_xor_sync(FULL, v[i], bit);
            float half = 0.5f * (pair + __shfl_xor_sync(FULL, pair, 2 * bit));
            v[i] = half - __shfl_xor_sync(FULL, v[i], 3 * bit);
        }
    }
}

// A row that the block holds (eight values a thread from 8 (c threads + thread), zeros beyond it) to 8 bits: its largest value
// becomes the format's. FORMAT: 0 int8, 1 e4m3. `digits`: of the rotation before that, 0 for none.
#if defined(CHUNKS) && defined(FORMAT)
#define LARGEST (FORMAT ? 448.f : 127.f)
__device__ __forceinline__ void row_to_codes(float (&v)[CHUNKS][8], float* buffer, u8* codes, float* scale_of_row, int cols, int digits) {
    float largest = 0.f;
    if (digits)
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) rotate(v[c], digits);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
        for (int i = 0; i < 8; ++i) largest = larger(largest, fabsf(v[c][i]));
    largest = block_max(largest, buffer);
    float scale = largest / LARGEST;
    // A row of subnormal numbers has no finite inverse: it is zero to the format. One that is not finite stays so by its scale.
    float up = scale > 1.1754944e-38f ? 1.f / scale : 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) store_codes(codes, (c * blockDim.x + threadIdx.x) * 8, cols, FORMAT ? to_e4m3(v[c], up) : to_int8(v[c], up));
    if (threadIdx.x == 0) *scale_of_row = up > 0.f || !(scale <= 3.4028235e38f) ? scale : 0.f;
}
#endif
