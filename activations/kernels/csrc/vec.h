// Vectors of 64 bytes, and the elementary functions that torch's units lack, on all lanes at once.
//
// Clang lowers a 64-byte vector to one AVX-512, two AVX2 or four NEON operations, so the kernels are written once.
// No C++ library and no exceptions: the compiled file needs nothing but the C library.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
    typedef float V __attribute__((ext_vector_type(16)));
    typedef int32_t I __attribute__((ext_vector_type(16)));
    typedef float VU __attribute__((ext_vector_type(16), aligned(4)));
    typedef uint32_t U __attribute__((ext_vector_type(16)));
    using Int = int32_t;
    using UInt = uint32_t;
    static constexpr int mantissa = 23, bias = 127;
};
template <>
struct Lanes<double> {
    typedef double V __attribute__((ext_vector_type(8)));
    typedef int64_t I __attribute__((ext_vector_type(8)));
    typedef double VU __attribute__((ext_vector_type(8), aligned(8)));
    typedef uint64_t U __attribute__((ext_vector_type(8)));
    using Int = int64_t;
    using UInt = uint64_t;
    static constexpr int mantissa = 52, bias = 1023;
};
template <class T>
using Vec = typename Lanes<T>::V;
template <class T>
using IVec = typename Lanes<T>::I;
template <class T>
using Unsigned = typename Lanes<T>::U;
template <class T>
constexpr int WIDTH = 64 / sizeof(T);

// ---- memory

template <class T>
INLINE Vec<T> load(const T* p) {
    return *(const typename Lanes<T>::VU*)p;
}
template <class T>
INLINE void store(T* p, Vec<T> v) {
    *(typename Lanes<T>::VU*)p = v;
}
// the first n lanes; the others are 0
template <class T>
INLINE Vec<T> load(const T* p, int n) {
    if (n == WIDTH<T>) return load(p);
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4)
        return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
    else
        return _mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#else
    alignas(64) T buffer[WIDTH<T>] = {};
    memcpy(buffer, p, n * sizeof(T));
    return *(Vec<T>*)buffer;
#endif
}
template <class T>
INLINE void store(T* p, Vec<T> v, int n) {
    if (n == WIDTH<T>) return store(p, v);
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4)
        _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
    else
        _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), v);
#else
    memcpy(p, &v, n * sizeof(T));
#endif
}

// 0, 1, 2 ...
template <class T>
INLINE IVec<T> lane_numbers() {
    IVec<T> lanes;
    for (int l = 0; l < WIDTH<T>; l++) lanes[l] = l;
    return lanes;
}

// a number that the compiler knows
template <int k>
struct Number {
    static constexpr int value = k;
    constexpr operator int() const { return k; }
};

// ---- turning: to[c, r] = from[r, c], rows being a step apart

// of every 2 s lanes the first halves of a and b, or the second
template <int s, bool second, class V>
INLINE V halves(V a, V b) {
#define LANE(l) (second ? (l & s ? W + l : l + s) : (l & s ? W + l - s : l))
    constexpr int W = sizeof(V) / sizeof(a[0]);
    if constexpr (W == 16)
        return __builtin_shufflevector(a, b, LANE(0), LANE(1), LANE(2), LANE(3), LANE(4), LANE(5), LANE(6), LANE(7), LANE(8),
                                       LANE(9), LANE(10), LANE(11), LANE(12), LANE(13), LANE(14), LANE(15));
    else
        return __builtin_shufflevector(a, b, LANE(0), LANE(1), LANE(2), LANE(3), LANE(4), LANE(5), LANE(6), LANE(7));
#undef LANE
}
template <class T, int s = WIDTH<T> / 2>
INLINE void turn(Vec<T>* v) {
#pragma unroll
    for (int i = 0; i < WIDTH<T>; i++)
        if (!(i & s)) {
            const Vec<T> a = v[i], b = v[i + s];
            v[i] = halves<s, false>(a, b), v[i + s] = halves<s, true>(a, b);
        }
    if constexpr (s > 1) turn<T, s / 2>(v);
}
template <class T, class Height, class Width>
INLINE void turn_block(const T* from, int64_t from_step, Height height, T* to, int64_t to_step, Width width) {
    Vec<T> v[WIDTH<T>];
#pragma unroll
    for (int k = 0; k < WIDTH<T>; k++) v[k] = k < height ? load(from + k * from_step, width) : Vec<T>(0);
    turn<T>(v);
#pragma unroll
    for (int k = 0; k < WIDTH<T>; k++)
        if (k < width) store(to + k * to_step, v[k], height);
}
template <class T>
void turn(const T* from, int64_t from_step, int64_t rows, int64_t columns, T* to, int64_t to_step) {
    constexpr int W = WIDTH<T>;
    const Number<W> all;
    for (int64_t r = 0; r < rows; r += W)
        for (int64_t c = 0; c < columns; c += W) {
            const T* block = from + r * from_step + c;
            T* turned = to + c * to_step + r;
            const int height = rows - r < W ? (int)(rows - r) : W, width = columns - c < W ? (int)(columns - c) : W;
            if (height == W && width == W)
                turn_block(block, from_step, all, turned, to_step, all);
            else
                turn_block(block, from_step, height, turned, to_step, width);
        }
}

// ---- sums in double

INLINE double sum(Vec<double> v) {
    auto a = v.lo + v.hi;
    auto b = a.lo + a.hi;
    return b.x + b.y;
}
INLINE double sum(Vec<float> v) {
    return sum(__builtin_convertvector(v.lo, Vec<double>) + __builtin_convertvector(v.hi, Vec<double>));
}
// sums[l] += v[l]
INLINE void add_lanes(double* sums, Vec<double> v, int n) {
    store(sums, load(sums, n) + v, n);
}
INLINE void add_lanes(double* sums, Vec<float> v, int n) {
    int low = n < 8 ? n : 8;
    add_lanes(sums, __builtin_convertvector(v.lo, Vec<double>), low);
    if (n > 8) add_lanes(sums + 8, __builtin_convertvector(v.hi, Vec<double>), n - 8);
}

// ---- arithmetic

template <class V>
INLINE V fma(V a, V b, V c) {
    return __builtin_elementwise_fma(a, b, c);
}
template <class V>
INLINE V floor(V a) {
    return __builtin_elementwise_floor(a);
}
template <class V>
INLINE V abs(V a) {
    return __builtin_elementwise_abs(a);
}
// NaN stays NaN
template <class V>
INLINE V relu(V x) {
    return x < V(0) ? V(0) : x;
}
template <class T>
INLINE IVec<T> bits(Vec<T> v) {
    return *(IVec<T>*)&v;
}
template <class T>
INLINE Vec<T> from_bits(IVec<T> v) {
    return *(Vec<T>*)&v;
}
// ---- exp and its relatives: x = n ln 2 + r with |r| <= ln(2) / 2, exp(r) - 1 by its Taylor series

// beyond it the result is taken to be the largest normal number, not infinity, so that no NaN comes of it; or 0
template <class T>
constexpr T LIMIT = sizeof(T) == 4 ? T(87.3) : T(708.3);

template <class T>
struct Exp {
    Vec<T> rest;    // exp(r) - 1
    IVec<T> power;  // n, where a number's exponent stands
};
// ``rough``: with nine digits in double
template <class T, bool rough = false>
INLINE Exp<T> split_exp(Vec<T> x) {
    using V = Vec<T>;
    constexpr bool single = sizeof(T) == 4;
    x = x > V(LIMIT<T>) ? V(LIMIT<T>) : x;
    x = x < V(-LIMIT<T>) ? V(-LIMIT<T>) : x;
    // adding 1.5 * 2^mantissa rounds to whole numbers and leaves n in the lowest bits
    const V round = V(single ? T(12582912) : T(6755399441055744));
    V t = fma(x, V(T(1.4426950408889634074)), round), n = t - round;
    V r = fma(n, V(single ? T(-0.693145751953125) : T(-0.693147180369123816490)), x);
    r = fma(n, V(single ? T(-1.4286068203094172e-06) : T(-1.90821492927058770002e-10)), r);
    V p;
    if constexpr (single) {
        p = V(T(1.0 / 5040));
    } else {
        p = V(0);
        if constexpr (!rough) {
            p = V(T(1.0 / 6227020800));
            p = fma(p, r, V(T(1.0 / 479001600)));
            p = fma(p, r, V(T(1.0 / 39916800)));
            p = fma(p, r, V(T(1.0 / 3628800)));
            p = fma(p, r, V(T(1.0 / 362880)));
        }
        p = fma(p, r, V(T(1.0 / 40320)));
        p = fma(p, r, V(T(1.0 / 5040)));
    }
    p = fma(p, r, V(T(1.0 / 720)));
    p = fma(p, r, V(T(1.0 / 120)));
    p = fma(p, r, V(T(1.0 / 24)));
    p = fma(p, r, V(T(1.0 / 6)));
    p = fma(p, r, V(T(0.5)));
    p = fma(p, r, V(T(1)));
    return {p * r, bits<T>(t) << Lanes<T>::mantissa};
}
template <class T>
INLINE Vec<T> exp(Vec<T> x) {
    auto e = split_exp<T>(x);
    return x < Vec<T>(-LIMIT<T>) ? Vec<T>(0) : from_bits<T>(bits<T>(e.rest + T(1)) + e.power);
}
template <class T>
INLINE Vec<T> expm1(Vec<T> x) {
    auto e = split_exp<T>(x);
    Vec<T> scale = from_bits<T>(bits<T>(Vec<T>(1)) + e.power);
    return fma(scale, e.rest, scale - T(1));
}
// 1 / x for ordinary x
template <class T>
INLINE Vec<T> reciprocal(Vec<T> x) {
    return Vec<T>(1) / x;
}
#ifdef __AVX512F__
// an estimate of 14 bits and one step of Newton's method: four times as fast as a division
template <>
inline __attribute__((always_inline)) Vec<float> reciprocal<float>(Vec<float> x) {
    Vec<float> y = _mm512_rcp14_ps(x);
    return fma(y, fma(-x, y, Vec<float>(1)), y);
}
#endif
template <class T>
INLINE Vec<T> sigmoid(Vec<T> x) {
    const Vec<T> s = reciprocal<T>(exp<T>(-x) + T(1));
    return x < Vec<T>(-LIMIT<T>) ? Vec<T>(0) : s;
}
// exp(factor x) where that is between -LIMIT and LIMIT; elsewhere any number. The factor costs nothing in float.
template <class T>
INLINE Vec<T> exp_within(Vec<T> x, T factor) {
    return exp<T>(factor * x);
}
// exp(x) for x up to LIMIT
template <class T>
INLINE Vec<T> exp_below(Vec<T> x) {
    return exp<T>(x);
}
// exp(factor x) - 1 for factor x between 0 and 80
template <class T>
INLINE Vec<T> expm1_of_few(Vec<T> x, T factor = 1) {
    return expm1<T>(factor * x);
}
// In float with fewer instructions: 2^n 2^f, the latter by a minimax polynomial (2e-9).
struct Exp2 {
    Vec<float> f, factor;  // 2^f = 1 + f * factor
#ifdef __AVX512F__
    Vec<float> n;
    // v 2^n, by an instruction that knows subnormal numbers and infinity
    INLINE Vec<float> scaled(const Exp2& e, Vec<float> v) { return _mm512_scalef_ps(v, e.n); }
#else
    IVec<float> power;  // n, where a number's exponent stands
    INLINE Vec<float> scaled(const Exp2& e, Vec<float> v) { return from_bits<float>(bits<float>(v) + e.power); }
#endif
};
// of 2^(factor x / ln 2)
INLINE Exp2 split_exp2(Vec<float> x, float factor) {
    using V = Vec<float>;
    const V log2e = V(factor * 1.44269504f);
    Exp2 e;
#ifdef __AVX512F__
    const V n = e.n = _mm512_roundscale_ps(x * log2e, 0);
#else
    const V round = V(12582912.0f), t = fma(x, log2e, round), n = t - round;  // as in split_exp
    e.power = bits<float>(t) << Lanes<float>::mantissa;
#endif
    const V f = e.f = fma(x, V(factor * 1.92596303e-8f), fma(x, log2e, -n));
    V p = fma(V(1.535336196e-4f), f, V(1.339887502e-3f));
    p = fma(p, f, V(9.618436918e-3f));
    p = fma(p, f, V(5.550332367e-2f));
    p = fma(p, f, V(2.402264774e-1f));
    e.factor = fma(p, f, V(6.931471825e-1f));
    return e;
}
template <>
inline __attribute__((always_inline)) Vec<float> expm1_of_few<float>(Vec<float> x, float factor) {
    const auto e = split_exp2(x, factor);
    const Vec<float> scale = Exp2::scaled(e, Vec<float>(1));
    return fma(scale * e.f, e.factor, scale - 1);
}
#ifdef __AVX512F__
// within -most and most; NaN stays
INLINE Vec<float> held(Vec<float> x, float most) {
    x = x > Vec<float>(most) ? Vec<float>(most) : x;
    return x < Vec<float>(-most) ? Vec<float>(-most) : x;
}
INLINE Vec<float> exp_held(Vec<float> x, float most, float sign) {
    const auto e = split_exp2(held(x, most), sign);
    return Exp2::scaled(e, fma(e.f, e.factor, Vec<float>(1)));
}
template <>
inline __attribute__((always_inline)) Vec<float> exp<float>(Vec<float> x) {
    return exp_held(x, 104, 1);
}
template <>
inline __attribute__((always_inline)) Vec<float> sigmoid<float>(Vec<float> x) {
    const Vec<float> s = reciprocal<float>(exp_held(x, 88, -1) + 1);
    return x < Vec<float>(-88) ? Vec<float>(0) : s;
}
#else
// 2^n 2^f, or where shuffles have a port of their own 2^n 2^(j / 8) 2^f by a table and a shorter polynomial (3e-8)
template <>
inline __attribute__((always_inline)) Vec<float> exp_within<float>(Vec<float> x, float factor) {
    using V = Vec<float>;
#ifdef __AVX2__
    typedef float Half __attribute__((ext_vector_type(8)));
    // adding 1.5 * 2^20 rounds to eighths and leaves j in the three lowest bits, n in those above
    const V log2e = V(factor * 1.44269504f), round = V(1572864.0f), t = fma(x, log2e, round), n = t - round;
    const V f = fma(x, V(factor * 1.92596303e-8f), fma(x, log2e, -n));
    const IVec<float> at = bits<float>(t), power = (at << (Lanes<float>::mantissa - 3)) & (int32_t)0xff800000;
    const Half eighths = {1, 1.09050773f, 1.18920712f, 1.29683955f, 1.41421356f, 1.54221083f, 1.68179283f, 1.83400809f};
    V root;
    root.lo = _mm256_permutevar8x32_ps(eighths, (__m256i)at.lo), root.hi = _mm256_permutevar8x32_ps(eighths, (__m256i)at.hi);
    const V p = fma(fma(V(5.5496224e-2f), f, V(2.4025763e-1f)), f, V(6.9314721e-1f));
    return from_bits<float>(bits<float>(fma(root * f, p, root)) + power);
#else
    const auto e = split_exp2(x, factor);
    return Exp2::scaled(e, fma(e.f, e.factor, V(1)));
#endif
}
// where more is made of the result than a sum with 1: by the longer polynomial
template <>
inline __attribute__((always_inline)) Vec<float> exp_below<float>(Vec<float> x) {
    const auto e = split_exp2(x, 1);
    return x < Vec<float>(-LIMIT<float>) ? Vec<float>(0) : Exp2::scaled(e, fma(e.f, e.factor, Vec<float>(1)));
}
template <>
inline __attribute__((always_inline)) Vec<float> exp<float>(Vec<float> x) {
    constexpr float most = LIMIT<float>;
    const Vec<float> e = exp_within<float>(x > Vec<float>(most) ? Vec<float>(most) : x, 1);
    return x < Vec<float>(-most) ? Vec<float>(0) : e;
}
// one bound is enough: beyond the other one the result, whatever it is, gives way to 0
template <>
inline __attribute__((always_inline)) Vec<float> sigmoid<float>(Vec<float> x) {
    constexpr float most = LIMIT<float>;
    const Vec<float> e = exp_within<float>(x > Vec<float>(most) ? Vec<float>(most) : x, -1);
    const Vec<float> s = reciprocal<float>(e + 1);
    return x < Vec<float>(-most) ? Vec<float>(0) : s;
}
#endif

// ---- natural logarithm of positive normal numbers: x = 2^n m with m in [sqrt(1/2), sqrt(2)), log m by artanh's series

template <class T, bool rough = false>
INLINE Vec<T> log(Vec<T> x) {
    using V = Vec<T>;
    const T root = T(0.70710678118654752440);
    auto b = bits<T>(x);
    auto n = (b >> Lanes<T>::mantissa) - (Lanes<T>::bias - 1);  // m in [1/2, 1)
    auto one_half = bits<T>(V(T(0.5)));
    auto m = from_bits<T>((b & ((typename Lanes<T>::Int(1) << Lanes<T>::mantissa) - 1)) | one_half);
    auto small = m < V(root);
    m = small ? m + m : m;
    V e = __builtin_convertvector(n, V) - (small ? V(1) : V(0));
    V s = (m - T(1)) / (m + T(1)), u = s * s;
    constexpr int last = rough ? 11 : 21;
    V p = V(T(1.0 / last));
    for (int k = last - 2; k >= 3; k -= 2) p = fma(p, u, V(T(1.0) / T(k)));
    V r = fma(p * u, s + s, s + s);
    return fma(e, V(T(0.69314718055994530942)), r);
}

// ---- sine and cosine: x = k pi / 2 + r

template <class T>
struct SinCos {
    Vec<T> sin, cos;
};
template <class T>
INLINE SinCos<T> sincos(Vec<T> x) {
    using V = Vec<T>;
    constexpr bool single = sizeof(T) == 4;
    V k = floor(fma(x, V(T(0.63661977236758134308)), V(T(0.5))));
    V r;
    if constexpr (single) {
        r = fma(k, V(-1.57079637050628662109375f), x);
        r = fma(k, V(4.37113900018624283e-8f), r);
        r = fma(k, V(-1.7151245e-15f), r);
    } else {
        r = fma(k, V(-1.5707963267948966), x);
        r = fma(k, V(-6.123233995736766e-17), r);
        r = fma(k, V(1.4973849048591833e-33), r);
    }
    V u = r * r, s, c;
    if constexpr (single) {
        s = V(1.0f / 362880);
        c = V(-1.0f / 3628800);
    } else {
        s = V(-1.0 / 1307674368000);
        s = fma(s, u, V(1.0 / 6227020800));
        s = fma(s, u, V(-1.0 / 39916800));
        s = fma(s, u, V(1.0 / 362880));
        c = V(1.0 / 20922789888000);
        c = fma(c, u, V(-1.0 / 87178291200));
        c = fma(c, u, V(1.0 / 479001600));
        c = fma(c, u, V(-1.0 / 3628800));
    }
    s = fma(s, u, V(T(-1.0 / 5040)));
    s = fma(s, u, V(T(1.0 / 120)));
    s = fma(s, u, V(T(-1.0 / 6)));
    s = fma(s * u, r, r);
    c = fma(c, u, V(T(1.0 / 40320)));
    c = fma(c, u, V(T(-1.0 / 720)));
    c = fma(c, u, V(T(1.0 / 24)));
    c = fma(c, u, V(T(-0.5)));
    c = fma(c, u, V(T(1)));
    auto q = __builtin_convertvector(k, IVec<T>);
    auto swap = (q & 1) != 0;
    V sine = swap ? c : s, cosine = swap ? s : c;
    sine = (q & 2) != 0 ? -sine : sine;
    cosine = ((q + 1) & 2) != 0 ? -cosine : cosine;
    // too far out for the reduction: lane by lane, by the C library
    const T far = single ? T(1e6) : T(1e9);
    auto lost = !(abs(x) <= V(far));
    if (__builtin_reduce_or(lost)) {
        for (int l = 0; l < WIDTH<T>; l++)
            if (lost[l]) sine[l] = (T)__builtin_sin(x[l]), cosine[l] = (T)__builtin_cos(x[l]);
    }
    return {sine, cosine};
}
