// Error function, its complement and the logarithm near 1, on all lanes at once.
//
// The polynomials interpolate at Chebyshev's points, computed with 40 digits; they are off by less than 6e-8 in float and
// 2e-17 in double, relative to the function. NaN stays NaN where a function's comment does not say otherwise.
#pragma once

#include "vec.h"

// exp(a^2) erfc(a) in t = (a - 3) / (a + 3)
constexpr double ERFC_SINGLE[] = {
    0.17900115110727963, -0.3262335662080898, 0.2456038144817432, -0.1501157093178213, 0.07166561657274248,
    -0.024394930742532673, 0.0042698970851529575, 0.0007185777270719396, -0.0005952161188003093,
    2.472232834986889e-05, 5.383138972991302e-05};
constexpr double ERFC_DOUBLE[] = {
    0.17900115118138996, -0.3262335600430372, 0.24560380171233084, -0.1501159365007765, 0.07166583719798066,
    -0.024392499318697258, 0.004269136332759165, 0.0007077464393503551, -0.0005970619471895316,
    4.525529450350111e-05, 6.405654257943319e-05, -1.2860473649866335e-05, -7.978057897757271e-06,
    2.1199118560097168e-06, 1.2522283122214594e-06, -2.936365098128371e-07, -2.3401195090622194e-07,
    2.783037712732383e-08, 4.5875845517008966e-08, 1.956942090085064e-09, -7.842534969340521e-09,
    -1.835236845383012e-09, 7.504768840954381e-10, 3.7577621760528295e-10, 3.8796247242187435e-11};
// erf(z) / z in z^2, for abs(z) up to 1/2
constexpr double ERF_SINGLE[] = {
    1.1283791656017914, -0.37612609007469805, 0.11282831428465862, -0.026757732735015517, 0.004719082567218814};
constexpr double ERF_DOUBLE[] = {
    1.1283791670955126, -0.37612638903183476, 0.11283791670925353, -0.026866170632887928, 0.00522397737302147,
    -0.0008548297753674966, 0.00012053335124353741, -1.4845849259707869e-05, 1.4725865480556744e-06};
// (u - log(1 + u)) / u^2 in u, for u from 0 to 1
constexpr double LOG1P_SINGLE[] = {
    0.4999999698308403, -0.33332841887371345, 0.24986526168187279, -0.1985410623120243, 0.1584756572045947,
    -0.11561845446366749, 0.06675772506317361, -0.0252240543466626, 0.004466211601265708};
constexpr double LOG1P_DOUBLE[] = {
    0.5, -0.33333333333332466, 0.2499999999987205, -0.1999999999247163, 0.1666666643097834, -0.14285709745445543,
    0.12499941281507687, -0.11110571142855806, 0.09996324347550137, -0.09071835292534261, 0.0825618541627825,
    -0.07444817019942226, 0.06504010366036855, -0.053223522460321214, 0.03912505115233944, -0.024682950191684934,
    0.012732150528247672, -0.005081090478548994, 0.0014569248473329174, -0.000265295970542531,
    2.2938856818471438e-05};
// (tanh(x) / x - 1) / x^2 in x^2, for x^2 up to 0.3
constexpr double TANH_SINGLE[] = {
    -0.3333333205888964, 0.13333120409538626, -0.05391074907888985, 0.021317524563137947, -0.006625597296158376};
constexpr double TANH_DOUBLE[] = {
    -0.3333333333333333, 0.1333333333333276, -0.053968253967489145, 0.021869488496195088, -0.00886323445636975,
    0.0035921111540182776, -0.0014556680542120901, 0.0005889668638907071, -0.00023472661897624728,
    8.52643792388099e-05, -2.0708300493391477e-05};

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
// exp(-x^2): what rounding x^2 loses is put back, as exp would enlarge it; 0 instead of subnormal numbers, which are slow
template <class T>
INLINE Vec<T> gauss(Vec<T> x) {
    const Vec<T> square = x * x, lost = fma(x, x, -square);
    const auto far = square > Vec<T>(LIMIT<T>);
    const Vec<T> e = exp<T>(far ? Vec<T>(0) : -square);
    return far ? Vec<T>(0) : fma(-lost, e, e);
}
// exp(a^2) erfc(a) for a from 0 on; beyond 10 in float, where erfc is 0, any number
template <class T>
INLINE Vec<T> scaled_erfc(Vec<T> a) {
    a = a > Vec<T>(T(40)) ? Vec<T>(T(40)) : a;
    const Vec<T> t = (a - T(3)) / (a + T(3));
    return BY_PRECISION(ERFC, t);
}
template <class T>
struct Erf {
    Vec<T> erf, gauss;  // erf(z), exp(-z^2)
};
template <class T>
INLINE Erf<T> erf(Vec<T> z) {
    const Vec<T> e = gauss<T>(z), far = T(1) - e * scaled_erfc<T>(abs(z)), square = z * z;
    const Vec<T> near = z * BY_PRECISION(ERF, square);
    return {abs(z) < Vec<T>(T(0.5)) ? near : (z < Vec<T>(0) ? -far : far), e};
}
// log(1 + u) for u from 0 to 1
template <class T>
INLINE Vec<T> log1p_of_unit(Vec<T> u) {
    return fma(-u * u, BY_PRECISION(LOG1P, u), u);
}
template <class T>
struct Softplus {
    Vec<T> value, slope;  // log(1 + exp(z)), 1 / (1 + exp(-z))
};
template <class T>
INLINE Softplus<T> softplus(Vec<T> z) {
    const Vec<T> e = exp_below<T>(-abs(z));
    return {relu(z) + log1p_of_unit<T>(e), (z < Vec<T>(0) ? e : Vec<T>(T(1))) / (e + T(1))};
}
