// Error function, its complement and the logarithm near 1, on all lanes at once.
//
// The polynomials interpolate at Chebyshev's points, computed with 40 digits; they are off by 3e-8 in float and 1e-17 in
// double, relative to the function. NaN stays NaN where a function's comment does not say otherwise.
#pragma once

#include "vec.h"

// exp(a^2) erfc(a) (1 + 2 a) in t = (a - k) / (a + k), where k is 2 in float and 3 in double
constexpr double ERFC_SINGLE[] = {
    1.2769783772382342, -0.09276395615163709, -0.16603042661674952, 0.16405505998931041, -0.0542140763830808,
    -0.008061450416373732, 0.00866313715949238, 0.0013282917414349008, -0.0012623772030692952,
    -0.00042332225749326576};
constexpr double ERFC_DOUBLE[] = {
    1.2530080582697296, -0.13562110612458111, -0.04756229435345298, 0.1296451587027522, -0.11927366341517182,
    0.0683080273443395, -0.023770514921896548, 0.0025293918089402587, 0.0018886903981200887,
    -0.0007798321944132776, -0.00010516006532306329, 0.00012509883812562118, 4.950579895102521e-06,
    -2.009839539864609e-05, -7.342837183121861e-07, 3.4664301311355173e-06, 3.6096691982397547e-07,
    -6.059505714902209e-07, -1.445315320719879e-07, 8.990555265033643e-08, 4.1467315996801595e-08,
    -5.724240772301112e-09, -6.5762413015991515e-09, -1.1059914922261528e-09};
// erf(z) / z in z^2, for |z| up to 1/2
constexpr double ERF_SINGLE[] = {
    1.1283791656017914, -0.37612609007469805, 0.11282831428465862, -0.026757732735015517, 0.004719082567218814};
constexpr double ERF_DOUBLE[] = {
    1.1283791670955126, -0.37612638903183476, 0.11283791670925353, -0.026866170632887928, 0.00522397737302147,
    -0.0008548297753674966, 0.00012053335124353741, -1.4845849259707869e-05, 1.4725865480556744e-06};
// (artanh(s) / s - 1) / s^2 in s^2, for |s| up to 1/3
constexpr double ARTANH_SINGLE[] = {
    0.3333333366026371, 0.1999985316596486, 0.14296178997151418, 0.10853287900440187, 0.11612164612011674};
constexpr double ARTANH_DOUBLE[] = {
    0.3333333333333333, 0.19999999999999762, 0.1428571428580005, 0.11111111099118386, 0.09090909948981357,
    0.07692271982430275, 0.06667589315724629, 0.05867139530651599, 0.05422589197440007, 0.03746071897775383,
    0.07815288900461426};

// the polynomial of these coefficients, the constant first
template <class T, int count>
INLINE Vec<T> polynomial(const double (&coefficients)[count], Vec<T> x) {
    Vec<T> y = Vec<T>((T)coefficients[count - 1]);
#pragma unroll
    for (int k = count - 2; k >= 0; k--) y = fma(y, x, Vec<T>((T)coefficients[k]));
    return y;
}
#define BY_PRECISION(name, x) (sizeof(T) == 4 ? polynomial<T>(name##_SINGLE, x) : polynomial<T>(name##_DOUBLE, x))

// ``x`` within -most and most; NaN stays
template <class T>
INLINE Vec<T> within(Vec<T> x, T most) {
    x = x > Vec<T>(most) ? Vec<T>(most) : x;
    return x < Vec<T>(-most) ? Vec<T>(-most) : x;
}
// ``y``, or the NaN that it was computed from, which the integer arithmetic of exp may lose
template <class T>
INLINE Vec<T> nan_of(Vec<T> x, Vec<T> y) {
    return x == x ? y : x;
}
// exp(-scale x^2), ``scale`` a power of two: what rounding x^2 loses is put back, as exp would enlarge it
template <class T>
INLINE Vec<T> gauss(Vec<T> x, T scale) {
    x = within<T>(x, T(40));
    const Vec<T> square = x * x, lost = fma(x, x, -square), e = exp<T>(-scale * square);
    return fma(-scale * lost, e, e);
}
// exp(a^2) erfc(a) for a from 0 on
template <class T>
INLINE Vec<T> scaled_erfc(Vec<T> a) {
    constexpr T k = sizeof(T) == 4 ? T(2) : T(3);
    a = a > Vec<T>(T(40)) ? Vec<T>(T(40)) : a;
    const Vec<T> above = a + k, outer = fma(a, Vec<T>(T(2)), Vec<T>(T(1))), inverse = reciprocal<T>(above * outer);
    const Vec<T> t = (a - k) * outer * inverse;
    return BY_PRECISION(ERFC, t) * (above * inverse);
}
template <class T>
struct Erf {
    Vec<T> erf, gauss;  // erf(z), exp(-z^2)
};
template <class T>
INLINE Erf<T> erf(Vec<T> z) {
    const Vec<T> e = gauss<T>(z, T(1)), far = T(1) - e * scaled_erfc<T>(abs(z)), square = z * z;
    const Vec<T> near = z * BY_PRECISION(ERF, square);
    return {abs(z) < Vec<T>(T(0.5)) ? near : (z < Vec<T>(0) ? -far : far), e};
}
// the distribution function of the normal distribution, and its density without the factor
template <class T>
struct Normal {
    Vec<T> below, gauss;  // (1 + erf(x / sqrt(2))) / 2, exp(-x^2 / 2)
};
template <class T>
INLINE Normal<T> normal(Vec<T> x) {
    const Vec<T> e = gauss<T>(x, T(0.5)), tail = T(0.5) * e * scaled_erfc<T>(abs(x) * T(0.70710678118654752440));
    return {x < Vec<T>(0) ? tail : T(1) - tail, e};
}
// log(1 + u) for u from 0 to 1, which is 2 artanh(u / (2 + u))
template <class T>
INLINE Vec<T> log1p_of_unit(Vec<T> u) {
    const Vec<T> s = u / (u + T(2)), square = s * s, twice = s + s;
    return fma(twice * square, BY_PRECISION(ARTANH, square), twice);
}
template <class T>
struct Softplus {
    Vec<T> value, slope;  // log(1 + exp(z)), 1 / (1 + exp(-z))
};
template <class T>
INLINE Softplus<T> softplus(Vec<T> z) {
    const Vec<T> e = exp<T>(-abs(z)), inverse = reciprocal<T>(e + T(1));
    return {relu(z) + log1p_of_unit<T>(e), z < Vec<T>(0) ? e * inverse : inverse};
}
