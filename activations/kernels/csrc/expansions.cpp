// Units made of powers and sinusoids; formulas and sources stand in the files of the activations.
#include "pointwise.h"

UNIT(ReluSquared, 0)
FORWARD {
    V r = relu(x);
    return r * r;
}
BACKWARD { return g * (T(2) * relu(x)); }
};

UNIT(LeakyReluSquared, 1)  // negative slope, which is not learned
FORWARD {
    V z = x < V(0) ? p[0] * x : x;
    return z * z;
}
BACKWARD {
    auto negative = x < V(0);
    return g * (T(2) * (negative ? p[0] * x : x) * (negative ? p[0] : V(T(1))));
}
};

UNIT(StarRelu, 2)  // scale, bias
FORWARD {
    V r = relu(x);
    return fma(p[0], r * r, p[1]);
}
BACKWARD {
    V r = relu(x), gr = g * r;
    dp[0] = fma(gr, r, dp[0]);
    dp[1] += g;
    return T(2) * p[0] * gr;
}
};

UNIT(PolyRelu, 4)  // the coefficients of the powers 1 to 3, bias
FORWARD {
    V r = relu(x);
    return fma(fma(fma(p[2], r, p[1]), r, p[0]), r, p[3]);
}
BACKWARD {
    V r = relu(x), power = g;
    for (int k = 0; k < 3; k++) power *= r, dp[k] += power;
    dp[3] += g;
    return x > V(0) ? g * fma(fma(T(3) * p[2], r, T(2) * p[1]), r, p[0]) : V(0);
}
};

struct Hermite : Unit {  // the coefficients of He_k / k!, k from 0 on
    static constexpr int params = 1;
    static constexpr bool many = true;
    // h_k+1 = (x h_k - h_k-1) / (k + 1), and the derivative of h_k is h_k-1
    FORWARD {
        V before = V(0), h = V(T(1)), y = p[0];
        for (int k = 1; k < n; k++) {
            V next = fma(x, h, -before) * V(T(1) / T(k));
            before = h, h = next, y = fma(p[k], h, y);
        }
        return y + (x - x);  // a degree of 0 must not hide a NaN
    }
    BACKWARD {
        V before = V(0), h = V(T(1)), slope = V(0);
        dp[0] += g;
        for (int k = 1; k < n; k++) {
            V next = fma(x, h, -before) * V(T(1) / T(k));
            slope = fma(p[k], h, slope);
            before = h, h = next, dp[k] = fma(g, h, dp[k]);
        }
        return g * slope;
    }
};

template <int constant>
struct Sinusoids : Unit {  // frequencies, phases, amplitudes, and the constant if there is one
    static constexpr int params = 3;
    static constexpr bool many = true;
    FORWARD {
        const int count = n / 3;
        V y = constant ? p[3 * count] : V(0);
        for (int k = 0; k < count; k++) y = fma(p[2 * count + k], sincos<T>(fma(p[k], x, p[count + k])).sin, y);
        return y;
    }
    BACKWARD {
        const int count = n / 3;
        V slope = V(0);
        for (int k = 0; k < count; k++) {
            auto at = sincos<T>(fma(p[k], x, p[count + k]));
            V down = g * p[2 * count + k] * at.cos;
            dp[k] = fma(down, x, dp[k]);
            dp[count + k] += down;
            dp[2 * count + k] = fma(g, at.sin, dp[2 * count + k]);
            slope = fma(down, p[k], slope);
        }
        if (constant) dp[3 * count] += g;
        return slope;
    }
};

UNIT(Finer, 2)  // omega, and 2 for the whole derivative or 1 for that with the factor held; neither is learned
FORWARD { return sincos<T>(p[0] * ((abs(x) + T(1)) * x)).sin; }
BACKWARD {
    return g * (p[0] * fma(p[1], abs(x), V(T(1)))) * sincos<T>(p[0] * ((abs(x) + T(1)) * x)).cos;
}
};

EXPORT(relu_squared, ReluSquared)
EXPORT(leaky_relu_squared, LeakyReluSquared)
EXPORT(star_relu, StarRelu)
EXPORT(poly_relu, PolyRelu)
EXPORT(hermite, Hermite)
EXPORT(staf, Sinusoids<0>)
EXPORT(fourier, Sinusoids<1>)
EXPORT(finer, Finer)
