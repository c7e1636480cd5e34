// The networks of the units in gate.cpp, from statistics to coefficients, and their gradients. They are small: torch's
// operations take longer to call than these to compute, in one thread.
#include <math.h>

#include "abi.h"
#include "parallel.h"

namespace {

// to[m, :] = start + sum over k of a[m, k] b[k, :]; b and ``to`` have rows of N numbers, a any steps
template <int rows, class T>
INLINE void some_rows(int64_t N, int64_t K, const T* a, int64_t a_row, int64_t a_column, const T* b, T* to, const T* start) {
    for (int64_t n = 0; n < N; n += WIDTH<T>) {
        const int width = N - n < WIDTH<T> ? (int)(N - n) : WIDTH<T>;
        Vec<T> sum[rows];
        for (int r = 0; r < rows; r++) sum[r] = start ? load(start + n, width) : Vec<T>(0);
        for (int64_t k = 0; k < K; k++) {
            const Vec<T> row = load(b + k * N + n, width);
            for (int r = 0; r < rows; r++) sum[r] = fma(Vec<T>(a[r * a_row + k * a_column]), row, sum[r]);
        }
        for (int r = 0; r < rows; r++) store(to + r * N + n, sum[r], width);
    }
}
template <class T>
void multiply(int64_t M, int64_t N, int64_t K, const T* a, int64_t a_row, int64_t a_column, const T* b, T* to,
              const T* start = nullptr) {
    int64_t m = 0;
    for (; m + 4 <= M; m += 4) some_rows<4>(N, K, a + m * a_row, a_row, a_column, b, to + m * N, start);
    for (; m < M; m++) some_rows<1>(N, K, a + m * a_row, a_row, a_column, b, to + m * N, start);
}

template <class T, class Work>
INLINE void vectors(int64_t size, Work work) {
    for (int64_t i = 0; i < size; i += WIDTH<T>) work(i, size - i < WIDTH<T> ? (int)(size - i) : WIDTH<T>);
}

// hidden = W1 mean + b1, rectified or not; gate = sigmoid(W2 hidden + b2); y = initial + scale (gate - 1/2)
template <class T>
struct Squeeze {
    using V = Vec<T>;
    int64_t samples, channels, hiddens, outputs, rectified;
    const T *mean, *weight1, *bias1, *weight2, *bias2, *initial, *scale;  // the last two may be missing: y is the gate
    T *hidden, *gate;                                                     // (samples, hiddens), (samples, outputs)

    void forward(T* y) const {
        Scratch scratch(hiddens * (channels > outputs ? channels : outputs) * sizeof(T), false);
        T* turned = scratch.as<T>();
        turn(weight1, channels, hiddens, channels, turned, hiddens);
        multiply(samples, hiddens, channels, mean, channels, 1, turned, hidden, bias1);
        if (rectified)
            vectors<T>(samples * hiddens, [&](int64_t i, int n) { store(hidden + i, relu(load(hidden + i, n)), n); });
        turn(weight2, hiddens, outputs, hiddens, turned, outputs);
        multiply(samples, outputs, hiddens, hidden, hiddens, 1, turned, gate, bias2);
        vectors<T>(samples * outputs, [&](int64_t i, int n) { store(gate + i, sigmoid<T>(load(gate + i, n)), n); });
        for (int64_t s = 0; s < samples && scale; s++)
            vectors<T>(outputs, [&](int64_t o, int n) {
                V half = load(gate + s * outputs + o, n) - T(0.5);
                store(y + s * outputs + o, fma(load(scale + o, n), half, load(initial + o, n)), n);
            });
    }
    // from dy, which is written over
    void backward(T* dy, T* dmean, T* dweight1, T* dbias1, T* dweight2, T* dbias2) const {
        Scratch scratch((samples * hiddens + samples) * sizeof(T), false);
        T *dhidden = scratch.as<T>(), *ones = dhidden + samples * hiddens;
        for (int64_t s = 0; s < samples; s++) {
            ones[s] = 1;
            vectors<T>(outputs, [&](int64_t o, int n) {
                T* at = dy + s * outputs + o;
                V on = load(gate + s * outputs + o, n), d = load(at, n) * (on - on * on);
                store(at, scale ? d * load(scale + o, n) : d, n);
            });
        }
        multiply(outputs, hiddens, samples, dy, 1, outputs, hidden, dweight2);
        multiply(1, outputs, samples, ones, 0, 1, dy, dbias2);
        multiply(samples, hiddens, outputs, dy, outputs, 1, weight2, dhidden);
        if (rectified)
            vectors<T>(samples * hiddens, [&](int64_t i, int n) {
                store(dhidden + i, load(hidden + i, n) <= V(0) ? V(0) : load(dhidden + i, n), n);
            });
        multiply(hiddens, channels, samples, dhidden, 1, hiddens, mean, dweight1);
        multiply(1, hiddens, samples, ones, 0, 1, dhidden, dbias1);
        multiply(samples, channels, hiddens, dhidden, hiddens, 1, weight1, dmean);
    }
};

// GCT: s = alpha root, root = sqrt(norm + eps) if ``squared``, else the norm; size = sqrt(mean s^2 + eps), else mean |s| +
// eps; normal = s / size; y = 1 + turn, turn = tanh(beta + gamma normal)
template <class T>
struct NormGate {
    using V = Vec<T>;
    int64_t samples, channels, squared;
    T eps;
    const T *norm, *alpha, *gamma, *beta;  // (samples, channels), the others (channels,)
    T *root, *normal, *turn, *size;        // (samples, channels), but size (samples,)

    void forward(T* y) const {
        for (int64_t n = 0, at = 0; n < samples; n++, at += channels) {
            double total = 0;
            vectors<T>(channels, [&](int64_t c, int width) {
                V r = load(norm + at + c, width), a = load(alpha + c, width);
                if (squared) r = __builtin_elementwise_sqrt(r + eps);
                V s = a * r;
                store(root + at + c, r, width), store(normal + at + c, s, width);
                total += sum(squared ? s * s : abs(s));  // lanes beyond have alpha 0
            });
            const T mean = (T)(total / (double)channels), whole = squared ? (T)::sqrt((double)(mean + eps)) : mean + eps;
            size[n] = whole;
            vectors<T>(channels, [&](int64_t c, int width) {
                V s = load(normal + at + c, width) / whole, z = fma(load(gamma + c, width), s, load(beta + c, width));
                V m = expm1<T>(z + z), t = m / (m + T(2));
                store(normal + at + c, s, width), store(turn + at + c, t, width), store(y + at + c, t + T(1), width);
            });
        }
    }
    void backward(const T* dy, T* dnorm, T* dalpha, T* dgamma, T* dbeta) const {
        Scratch scratch(3 * channels * sizeof(double));
        double* sums = scratch.as<double>();
        for (int64_t n = 0, at = 0; n < samples; n++, at += channels) {
            const T whole = size[n];
            double total = 0;
            vectors<T>(channels, [&](int64_t c, int width) {
                V t = load(turn + at + c, width), s = load(normal + at + c, width), d = load(dy + at + c, width) * (T(1) - t * t);
                V straight = d * load(gamma + c, width) / whole;
                store(dnorm + at + c, straight, width);
                add_lanes(sums + channels + c, d * s, width), add_lanes(sums + 2 * channels + c, d, width);
                total += sum(straight * s);
            });
            const T shared = (T)(-total / (double)channels);  // s moves the size too, along normal or its sign
            vectors<T>(channels, [&](int64_t c, int width) {
                V s = load(normal + at + c, width), r = load(root + at + c, width);
                V along = squared ? s : s > V(0) ? V(1) : s < V(0) ? V(-1) : s;
                V d = fma(along, V(shared), load(dnorm + at + c, width));
                V down = d * load(alpha + c, width);
                store(dnorm + at + c, squared ? down / r * T(0.5) : down, width);
                add_lanes(sums + c, d * r, width);
            });
        }
        for (int64_t c = 0; c < channels; c++)
            dalpha[c] = (T)sums[c], dgamma[c] = (T)sums[channels + c], dbeta[c] = (T)sums[2 * channels + c];
    }
};

}  // namespace

#define SQUEEZE(suffix, T)                                                                                               \
    extern "C" void squeeze_##suffix##_forward(int64_t samples, int64_t channels, int64_t hiddens, int64_t outputs,     \
                                               int64_t rectified, const T* mean, const T* weight1, const T* bias1,      \
                                               const T* weight2, const T* bias2, const T* initial, const T* scale,      \
                                               T* hidden, T* gate, T* y) {                                              \
        Squeeze<T>{samples, channels, hiddens, outputs, rectified, mean, weight1, bias1, weight2, bias2, initial, scale, \
                   hidden, gate}                                                                                        \
            .forward(y);                                                                                                \
    }                                                                                                                   \
    extern "C" void squeeze_##suffix##_backward(                                                                        \
        int64_t samples, int64_t channels, int64_t hiddens, int64_t outputs, int64_t rectified, const T* mean,          \
        const T* weight1, const T* bias1, const T* weight2, const T* bias2, const T* initial, const T* scale, T* hidden, \
        T* gate, T* dy, T* dmean, T* dweight1, T* dbias1, T* dweight2, T* dbias2) {                                     \
        Squeeze<T>{samples, channels, hiddens, outputs, rectified, mean, weight1, bias1, weight2, bias2, initial, scale, \
                   hidden, gate}                                                                                        \
            .backward(dy, dmean, dweight1, dbias1, dweight2, dbias2);                                                   \
    } \
    SIGNATURE(squeeze_##suffix##_forward) \
    SIGNATURE(squeeze_##suffix##_backward)
SQUEEZE(f32, float)
SQUEEZE(f64, double)

#define NORM_GATE(suffix, T)                                                                                            \
    extern "C" void norm_gate_##suffix##_forward(int64_t samples, int64_t channels, int64_t squared, double eps,       \
                                                 const T* norm, const T* alpha, const T* gamma, const T* beta, T* root, \
                                                 T* normal, T* turn, T* size, T* y) {                                   \
        NormGate<T>{samples, channels, squared, (T)eps, norm, alpha, gamma, beta, root, normal, turn, size}.forward(y); \
    }                                                                                                                   \
    extern "C" void norm_gate_##suffix##_backward(int64_t samples, int64_t channels, int64_t squared, double eps,      \
                                                  const T* norm, const T* alpha, const T* gamma, const T* beta,         \
                                                  T* root, T* normal, T* turn, T* size, const T* dy, T* dnorm,          \
                                                  T* dalpha, T* dgamma, T* dbeta) {                                     \
        NormGate<T>{samples, channels, squared, (T)eps, norm, alpha, gamma, beta, root, normal, turn, size}             \
            .backward(dy, dnorm, dalpha, dgamma, dbeta);                                                                \
    } \
    SIGNATURE(norm_gate_##suffix##_forward) \
    SIGNATURE(norm_gate_##suffix##_backward)
NORM_GATE(f32, float)
NORM_GATE(f64, double)
