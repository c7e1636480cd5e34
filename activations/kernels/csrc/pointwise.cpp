// The units themselves; formulas and sources stand in the files of the activations.
#include "pointwise.h"

UNIT(PReLU, 1)  // a
FORWARD { return x > V(0) ? x : p[0] * x; }
BACKWARD {
    auto positive = x > V(0);  // at 0 the slope is a, as in torch
    dp[0] += positive ? V(0) : g * x;
    return positive ? g : g * p[0];
}
};

UNIT(Swish, 1)  // beta
FORWARD { return x * sigmoid<T>(p[0] * x); }
BACKWARD {
    V s = sigmoid<T>(p[0] * x), y = s * x, slope = fma(-y, s, y);
    dp[0] = fma(g * x, slope, dp[0]);
    return g * fma(p[0], slope, s);
}
};

UNIT(Acon, 3)  // p1, p2, beta
FORWARD {
    V z = (p[0] - p[1]) * x;
    return fma(z, sigmoid<T>(p[2] * z), p[1] * x);
}
BACKWARD {
    V d = p[0] - p[1], z = d * x, s = sigmoid<T>(p[2] * z), y = s * z, slope = fma(-y, s, y);
    V dz = g * fma(p[2], slope, s);
    dp[0] = fma(dz, x, dp[0]);
    dp[1] = fma(g - dz, x, dp[1]);
    dp[2] = fma(g * z, slope, dp[2]);
    return fma(dz, d, g * p[1]);
}
};

UNIT(Pelu, 2)  // a, b
FORWARD {
    V e = expm1<T>((x < V(0) ? x : V(0)) / p[1]);
    return x < V(0) ? p[0] * e : (x >= V(0) ? p[0] / p[1] * x : x);
}
BACKWARD {
    V inverse = T(1) / p[1], ratio = p[0] * inverse, z = x * inverse;
    auto negative = x < V(0);
    V e = expm1<T>(negative ? z : V(0)), grow = e + T(1);
    // above 0: y = (a / b) x, below: y = a (exp(x / b) - 1)
    V slope = negative ? ratio * grow : ratio;
    dp[0] += g * (negative ? e : z);
    dp[1] -= g * slope * z;
    return g * slope;
}
};

UNIT(Snake, 1)  // a
// sin(a x) / a, which is x at a = 0: no difference of two large numbers, and no square that underflows
template <class T, class V = Vec<T>>
INLINE V sine_over_a(V x, V z, V sine) {
    auto zero = z == V(0);
    return zero ? x : x * (sine / (zero ? V(1) : z));
}
FORWARD {
    V z = p[0] * x, s = sincos<T>(z).sin;
    return fma(s, sine_over_a<T>(x, z, s), x);
}
BACKWARD {
    V z = p[0] * x;
    auto t = sincos<T>(z);
    V over = sine_over_a<T>(x, z, t.sin);
    dp[0] += g * over * ((x + x) * t.cos - over);
    return fma(g, (t.sin + t.sin) * t.cos, g);
}
};

UNIT(Sine, 1)  // omega
FORWARD { return sincos<T>(p[0] * x).sin; }
BACKWARD {
    V slope = g * sincos<T>(p[0] * x).cos;
    dp[0] = fma(slope, x, dp[0]);
    return slope * p[0];
}
};

UNIT(SRelu, 4)  // t_left, a_left, t_right, a_right
FORWARD {
    V left = x <= p[0] ? fma(p[1], x - p[0], p[0]) : x;
    return x >= p[2] ? fma(p[3], x - p[2], p[2]) : left;
}
BACKWARD {
    auto right = x >= p[2], left = (x <= p[0]) & ~right;
    V on_left = left ? g : V(0), on_right = right ? g : V(0);
    dp[0] += on_left * (T(1) - p[1]);
    dp[1] += left ? g * (x - p[0]) : V(0);
    dp[2] += on_right * (T(1) - p[3]);
    dp[3] += right ? g * (x - p[2]) : V(0);
    return g * (right ? p[3] : (left ? p[1] : V(1)));
}
};

struct Apl : Unit {  // a_1 ... a_S, b_1 ... b_S
    static constexpr int params = 2;
    static constexpr bool many = true;
    FORWARD {
        V y = relu(x);
        for (int s = 0, S = n / 2; s < S; s++) y = fma(p[s], relu(p[S + s] - x), y);
        return y;
    }
    BACKWARD {
        V slope = x > V(0) ? V(1) : V(0);
        for (int s = 0, S = n / 2; s < S; s++) {
            V hinge = p[S + s] - x;
            auto on = hinge > V(0);
            V a = on ? p[s] : V(0);
            dp[s] += on ? g * hinge : V(0);
            dp[S + s] = fma(g, a, dp[S + s]);
            slope -= a;
        }
        return g * slope;
    }
};

struct NPwlu : Unit {  // B_0 ... B_N, Y_0 ... Y_N, S_0 ... S_N+1
    static constexpr int params = 4, usual = 16;
    static constexpr bool many = true;
    FORWARD {
        const int knots = (n - 1) / 3;
        V y = fma(p[2 * knots], x - p[0], p[knots]);
        for (int k = 0; k < knots; k++) {
            V next = fma(p[2 * knots + k + 1], x - p[k], p[knots + k]);
            y = x >= p[k] ? next : y;
        }
        return y;
    }
    // dp gathers the sums of g and of g (x - anchor) over every piece; the knots' follow from them
    BACKWARD {
        const int knots = (n - 1) / 3;
        auto behind = x >= p[0];
        V here = behind ? V(0) : g, total = here * p[2 * knots];
        dp[0] += here;
        dp[2 * knots] = fma(here, x - p[0], dp[2 * knots]);
        for (int k = 0; k < knots; k++) {  // the piece on the right of knot k
            auto next = x >= p[k + 1 < knots ? k + 1 : k];
            here = behind & (k + 1 < knots ? ~next : behind) ? g : V(0);
            dp[knots + k] += here;
            dp[2 * knots + k + 1] = fma(here, x - p[k], dp[2 * knots + k + 1]);
            total = fma(here, p[2 * knots + k + 1], total);
            behind = next;
        }
        return total;
    }
    static void finish(double* dp, const double* p, int n) {
        const int knots = (n - 1) / 3;
        const double left = dp[0];
        for (int k = 0; k < knots; k++) dp[k] = -p[2 * knots + k + 1] * dp[knots + k];
        dp[0] -= p[2 * knots] * left, dp[knots] += left;
    }
};

// ``at_zero``: the slope of |x| there
template <int at_zero>
UNIT(Rational, 10)  // p_0 ... p_5, q_1 ... q_4
FORWARD {
    V top = fma(fma(fma(fma(fma(p[5], x, p[4]), x, p[3]), x, p[2]), x, p[1]), x, p[0]);
    V bottom = fma(fma(fma(p[9], x, p[8]), x, p[7]), x, p[6]) * x;
    return top / (abs(bottom) + T(1));
}
BACKWARD {
    V top = p[5], dtop = p[5];
    for (int k = 4; k > 0; k--) top = fma(top, x, p[k]), dtop = fma(dtop, x, top);
    top = fma(top, x, p[0]);
    V bottom = p[9], dbottom = p[9];
    for (int k = 8; k > 5; k--) bottom = fma(bottom, x, p[k]), dbottom = fma(dbottom, x, bottom);
    bottom *= x;
    V inverse = T(1) / (abs(bottom) + T(1)), y = top * inverse;
    V u = g * inverse, sign = bottom < V(0) ? V(-1) : (bottom > V(0) ? V(1) : V(at_zero)), w = -u * y * sign;
    V power = V(1);
    for (int k = 0; k < 6; k++) {
        dp[k] = fma(u, power, dp[k]);
        power *= x;
        if (k < 4) dp[6 + k] = fma(w, power, dp[6 + k]);
    }
    return fma(u, dtop, w * dbottom);
}
};

UNIT(TanhExp, 0)
// tanh(e) = (exp(2 e) - 1) / (exp(2 e) + 1) with e = exp(x)
template <class T, class V = Vec<T>>
INLINE V clamped(V x) {
    constexpr T saturated = sizeof(T) == 4 ? T(3) : T(4);  // where tanh(exp(x)) is 1
    return x > V(saturated) ? V(saturated) : x;
}
FORWARD {
    V e = exp_below<T>(clamped<T>(x)), m = expm1_of_few<T>(e, T(2));
    return x * (m * reciprocal<T>(m + T(2)));
}
BACKWARD {
    V z = clamped<T>(x), e = exp_below<T>(z), m = expm1_of_few<T>(e, T(2)), r = reciprocal<T>(m + T(2)), t = m * r;
    // 1 - tanh^2 = 4 (m + 1) / (m + 2)^2, without the difference of what is nearly equal; where z is not x, it is 0
    return g * fma(z * e, fma(V(T(4)), m, V(T(4))) * r * r, t);
}
};

EXPORT(prelu, PReLU)
EXPORT(swish, Swish)
EXPORT(acon, Acon)
EXPORT(pelu, Pelu)
EXPORT(snake, Snake)
EXPORT(sine, Sine)
EXPORT(srelu, SRelu)
EXPORT(apl, Apl)
EXPORT(npwlu, NPwlu)
EXPORT(pau, Rational<0>)
EXPORT(group_rational, Rational<1>)
EXPORT(tanh_exp, TanhExp)
