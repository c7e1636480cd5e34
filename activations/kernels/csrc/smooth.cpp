// Units made of exponentials, logarithms and error functions; formulas and sources stand in the files of the activations.
#include "pointwise.h"
#include "special.h"

constexpr double TWO_OVER_ROOT_PI = 1.12837916709551257390;

UNIT(GoLU, 0)
// exp(-exp(7)) is 0, and exp(-x) of less would overflow
FORWARD {
    V z = x < V(T(-7)) ? V(T(-7)) : x;
    return z * exp<T>(-exp<T>(-z));
}
BACKWARD {
    V z = within<T>(x, T(700)), e = exp<T>(-(z < V(T(-7)) ? V(T(-7)) : z)), gate = exp<T>(-e);
    return g * fma(z * e, gate, gate);
}
};

UNIT(Serf, 0)
FORWARD { return x * erf<T>(softplus<T>(x).value).erf; }
BACKWARD {
    auto s = softplus<T>(x);
    auto e = erf<T>(s.value);
    return g * fma(within<T>(x, T(700)) * T(TWO_OVER_ROOT_PI) * e.gauss, s.slope, e.erf);
}
};

UNIT(Logish, 0)
FORWARD { return x * log1p_of_unit<T>(sigmoid<T>(x)); }
BACKWARD {
    V z = within<T>(x, T(700)), s = sigmoid<T>(z), slope = z * (s * (T(1) - s)) * reciprocal<T>(s + T(1));
    return g * (log1p_of_unit<T>(s) + slope);
}
};

UNIT(Gaussian, 1)  // scale, which is not learned
FORWARD {
    V z = p[0] * x;
    return nan_of<T>(x, gauss<T>(z));
}
BACKWARD {
    V z = p[0] * x;
    return g * (T(-2) * p[0] * within<T>(z, T(40))) * gauss<T>(z);
}
};

UNIT(Smu, 2)  // m, alpha, of which the second is not learned
FORWARD {
    V z = (T(1) - p[1]) * x;
    return T(0.5) * fma(z, erf<T>(p[0] * z).erf, (T(1) + p[1]) * x);
}
BACKWARD {
    V rest = T(1) - p[1], z = rest * x;
    auto e = erf<T>(p[0] * z);
    V steep = z * e.gauss * T(TWO_OVER_ROOT_PI / 2);  // d y / d (m z)
    dp[0] = fma(g * z, steep, dp[0]);
    return g * fma(steep * p[0], rest, T(0.5) * fma(rest, e.erf, T(1) + p[1]));
}
};

UNIT(Xielu, 2)  // the curvatures on the right and on the left
FORWARD {
    V e = expm1<T>(x > V(0) ? V(0) : x);
    return fma(V(T(0.5)), x, x > V(0) ? p[0] * x * x : p[1] * (e - x));
}
BACKWARD {
    auto right = x > V(0);
    V e = expm1<T>(right ? V(0) : x);
    dp[0] += right ? g * x * x : V(0);
    dp[1] += right ? V(0) : g * (e - x);
    return g * (right ? T(2) * p[0] * x : p[1] * e) + T(0.5) * g;
}
};

// ---- units of torch.nn, whose numbers are never learned

UNIT(Elu, 3)  // slope on the right, height on the left, and what x is multiplied by there
FORWARD { return x > V(0) ? p[0] * x : nan_of<T>(x, p[1] * expm1<T>(p[2] * (x > V(0) ? V(0) : x))); }
BACKWARD { return g * (x > V(0) ? p[0] : p[1] * p[2] * exp<T>(p[2] * (x > V(0) ? V(0) : x))); }
};

UNIT(GeluTanh, 0)
// (1 + tanh(u)) / 2 is sigmoid(2 u)
static constexpr double TWO_U = 1.59576912160573071176, CUBIC = 0.044715;
FORWARD {
    V square = x * x;
    return x * sigmoid<T>(T(TWO_U) * x * fma(square, V(T(CUBIC)), V(T(1))));
}
BACKWARD {
    V z = within<T>(x, T(40)), square = z * z;
    V s = sigmoid<T>(T(TWO_U) * z * fma(square, V(T(CUBIC)), V(T(1))));
    V slope = T(TWO_U) * fma(square, V(T(3 * CUBIC)), V(T(1)));
    return g * fma(z * slope, s * (T(1) - s), s);
}
};

UNIT(Mish, 0)
// tanh(log(1 + e)) = w / (w + 2) with e = exp(x) and w = e (e + 2), which is 1 from 20 on
FORWARD {
    V e = exp_below<T>(x > V(T(20)) ? V(T(20)) : x), w = fma(e, e, e + e);
    return x * (w / (w + T(2)));
}
BACKWARD {
    V low = x < V(T(-700)) ? V(T(-700)) : x, z = low > V(T(20)) ? V(T(20)) : low;
    V e = exp_below<T>(z), w = fma(e, e, e + e), inverse = reciprocal<T>(w + T(2));
    return g * (inverse * fma(z * e * fma(V(T(4)), e, V(T(4))), inverse, w));
}
};

UNIT(SoftplusUnit, 3)  // beta, 1 / beta, threshold
FORWARD {
    V z = p[0] * x;
    return z > p[2] ? x : softplus<T>(z).value * p[1];
}
BACKWARD {
    V z = p[0] * x;
    return z > p[2] ? g : g * sigmoid<T>(z);
}
};

UNIT(Tanh, 0)
// (1 - e) / (1 + e) with e = exp(-2 abs(x)), near 0 by its series, which also keeps NaN
template <class T, class V = Vec<T>>
INLINE V decay(V x) {
    const V a = abs(x);
    return exp_within<T>(a > V(T(40)) ? V(T(40)) : a, T(-2));
}
FORWARD {
    V square = x * x, near = fma(x * square, BY_PRECISION(TANH, square), x);
    V e = decay<T>(x), t = (T(1) - e) / (T(1) + e);
    return square >= V(T(0.3)) ? (x < V(0) ? -t : t) : near;
}
BACKWARD {  // 4 e / (1 + e)^2
    V e = decay<T>(x), half = fma(V(T(0.5)), e, V(T(0.5)));
    return g * (e / (half * half));
}
};

EXPORT(golu, GoLU)
EXPORT(serf, Serf)
EXPORT(logish, Logish)
EXPORT(gaussian, Gaussian)
EXPORT(smu, Smu)
EXPORT(xielu, Xielu)
EXPORT(elu, Elu)
EXPORT(gelu_tanh, GeluTanh)
EXPORT(mish, Mish)
EXPORT(softplus, SoftplusUnit)
EXPORT(tanh, Tanh)
