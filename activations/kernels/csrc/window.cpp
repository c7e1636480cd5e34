// FReLU and its control: y = max(x, T) or max(0, T) with T = BN(depthwise 3 x 3) or, light, BN(1 x 3) + BN(3 x 1).
//
// T is nowhere stored. Each pass convolves anew, which costs less than memory does: one for the batch statistics and
// one for y; backward, one for the sums that batch norm's gradient needs and one for the gradients. Images one plane
// after another (contiguous) are worked on a channel at a time, whose planes stay in the cache between the passes;
// images with channels side by side (channels_last) have one channel in each lane.
#include "abi.h"
#include "parallel.h"

#define ALWAYS __attribute__((always_inline))  // a call would pass vectors through memory

constexpr int64_t BLOCK = 64;  // vectors added up in the input's own precision before their sum goes to a double

// whether all lanes of a vector count, for lambdas
struct Whole {
    static constexpr bool value = true;
};
struct Part {
    static constexpr bool value = false;
};

template <class T>
struct Call {
    int64_t samples, channels, height, width, threads;
    bool last, against, train;         // channels side by side; max(x, T), not max(0, T); batch statistics
    const T* const* p;                 // of each branch: weight, bias or none, gamma, beta, running mean and variance
    const double* settings;            // of each branch: eps, momentum
    double* stats;                     // (2, branches, channels): mean of the convolution without bias, 1 / std
    const T *x, *g;
    T* out;                            // y or dx
    T* const* updated;                 // of each branch: running mean and variance
    T* const* dp;                      // of each branch: gradients of weight, bias or none, gamma, beta
    int64_t plane() const { return height * width; }
    int64_t size() const { return samples * channels * plane(); }
    double count() const { return double(samples * plane()); }
};

template <class T, bool light>
struct Window {
    using V = Vec<T>;
    using I = IVec<T>;
    static constexpr int L = WIDTH<T>, BRANCHES = light ? 2 : 1, TAPS = light ? 6 : 9, EACH = TAPS / BRANCHES;
    static constexpr int CENTRE = light ? 1 : 4;
    static constexpr int SUMS = 1 + BRANCHES;  // of dT and, for each branch, dT (z - mean)

    // a table (ROWS, channels) of what the passes need to know of a channel
    static constexpr int WEIGHT = 0, TURNED = TAPS, SCALE = 2 * TAPS, MEAN = SCALE + BRANCHES, SLOPE = MEAN + BRANCHES,
                         SLOPE_REST = SLOPE + BRANCHES, LEVEL = SLOPE_REST + BRANCHES, LEVEL_REST = LEVEL + BRANCHES,
                         OFFSET = LEVEL_REST + BRANCHES, ROWS = OFFSET + 1;

    const Call<T>& t;
    const int64_t C, H, W;
    const I keep;  // all bits where the maximum is with x, none where it is with 0
    const V half;  // what a tie gives to either side: maximum's gradient and relu's differ there
    explicit Window(const Call<T>& t)
        : t(t),
          C(t.channels),
          H(t.height),
          W(t.width),
          keep(t.against ? I(-1) : I(0)),
          half(t.against ? T(0.5) : T(0)) {}

    // ---- one channel's numbers

    const T* given(int b, int what) const { return t.p[6 * b + what]; }
    double& mean(int b, int64_t c) const { return t.stats[b * C + c]; }
    double& inverse(int b, int64_t c) const { return t.stats[(BRANCHES + b) * C + c]; }

    void fill_weights(T* table, int64_t c) const {
        for (int b = 0; b < BRANCHES; b++)
            for (int k = 0; k < EACH; k++) table[(WEIGHT + b * EACH + k) * C + c] = given(b, 0)[c * EACH + k];
    }
    // the mean, but for a small part of the deviation: a number of few digits, so that z minus it is mostly exact. The
    // rounding of z - mean is the same for many z and would add up
    T near_mean(int b, int64_t c) const {
        double deviation = 1 / inverse(b, c), grid;
        uint64_t digits;
        memcpy(&digits, &deviation, sizeof digits);
        digits &= ~((uint64_t(1) << 52) - 1);
        memcpy(&grid, &digits, sizeof grid);
        grid /= 4096;
        return (T)(grid > 0 ? __builtin_rint(mean(b, c) / grid) * grid : mean(b, c));
    }
    void fill_norm(T* table, int64_t c) const {
        double offset = 0;
        for (int b = 0; b < BRANCHES; b++) {
            double scale = given(b, 2)[c] * inverse(b, c);
            offset += given(b, 3)[c] - scale * mean(b, c);
            table[(SCALE + b) * C + c] = (T)scale;
            table[(MEAN + b) * C + c] = near_mean(b, c);
            for (int k = 0; k < EACH; k++)
                table[(TURNED + b * EACH + EACH - 1 - k) * C + c] = (T)(scale * given(b, 0)[c * EACH + k]);
        }
        table[OFFSET * C + c] = (T)offset;
    }
    void from_running(int64_t c) const {
        for (int b = 0; b < BRANCHES; b++) {
            mean(b, c) = given(b, 4)[c] - (given(b, 1) ? given(b, 1)[c] : 0.0);
            inverse(b, c) = 1 / __builtin_sqrt(given(b, 5)[c] + t.settings[2 * b]);
        }
    }
    // sums: for each branch those of d = z - shift and of d^2. True where the shift was too far from the mean for the
    // variance to be accurate; the shift is then the mean
    bool from_batch(const double* sums, int64_t step, T* table, int64_t c) const {
        bool again = false;
        for (int b = 0; b < BRANCHES; b++) {
            T& shift = table[(MEAN + b) * C + c];
            double d = sums[2 * b * step] / t.count(), variance = sums[(2 * b + 1) * step] / t.count() - d * d;
            variance = variance < 0 ? 0 : variance;
            again |= d * d > 16 * variance;
            mean(b, c) = shift + d;
            inverse(b, c) = 1 / __builtin_sqrt(variance + t.settings[2 * b]);
            double m = t.settings[2 * b + 1], unbiased = variance * t.count() / (t.count() - 1);
            update(b, 0, c, m, mean(b, c) + (given(b, 1) ? given(b, 1)[c] : 0.0));
            update(b, 1, c, m, unbiased);
            shift = near_mean(b, c);
        }
        return again;
    }
    // a batch whose statistics are not finite does not enter
    void update(int b, int what, int64_t c, double momentum, double value) const {
        T before = given(b, 4 + what)[c], after = (T)(momentum * value + (1 - momentum) * before);
        t.updated[2 * b + what][c] = __builtin_isfinite(after) ? after : before;
    }
    // from the sums of dT and dT (z - mean): gradients of the norms, and what backward subtracts from dT:
    // slope (z - mean) + level. Both in two parts, as their rounding is the same at every position and would add up
    void fill_slopes(const double* sums, int64_t step, T* table, int64_t c) const {
        for (int b = 0; b < BRANCHES; b++) {
            T used = table[(MEAN + b) * C + c];
            double dgamma = inverse(b, c) * (sums[(1 + b) * step] - (mean(b, c) - used) * sums[0]);
            double scale = given(b, 2)[c] * inverse(b, c);
            double slope = inverse(b, c) * dgamma / t.count();
            double level = sums[0] / t.count() + slope * (used - mean(b, c));
            put(table, SLOPE + b, SLOPE_REST + b, c, slope);
            put(table, LEVEL + b, LEVEL_REST + b, c, level);
            t.dp[4 * b + 2][c] = (T)dgamma;
            t.dp[4 * b + 3][c] = (T)sums[0];
            if (t.dp[4 * b + 1]) t.dp[4 * b + 1][c] = t.train ? T(0) : (T)(scale * sums[0]);
        }
    }
    void put(T* table, int row, int rest, int64_t c, double value) const {
        table[row * C + c] = (T)value;
        table[rest * C + c] = (T)(value - (T)value);
    }
    void finish_weights(const double* sums, int64_t step, int64_t c) const {
        for (int b = 0; b < BRANCHES; b++)
            for (int k = 0; k < EACH; k++)
                t.dp[4 * b][c * EACH + k] = (T)(given(b, 2)[c] * inverse(b, c) * sums[(b * EACH + k) * step]);
    }

    // ---- one vector

    // the window's taps times weights, for each branch
    INLINE void convolve(const V* v, const V* w, V* z) {
        for (int b = 0; b < BRANCHES; b++) {
            z[b] = v[b * EACH] * w[b * EACH];
            for (int k = 1; k < EACH; k++) z[b] = fma(v[b * EACH + k], w[b * EACH + k], z[b]);
        }
    }
    INLINE V transposed(const V* v, const V* w) {
        V z[BRANCHES];
        convolve(v, w, z);
        return light ? z[0] + z[BRANCHES - 1] : z[0];
    }
    INLINE V norm(const V* z, const V* scale, V offset) {
        for (int b = 0; b < BRANCHES; b++) offset = fma(scale[b], z[b], offset);
        return offset;
    }
    INLINE V only(V v, I mask) { return from_bits<T>(bits<T>(v) & mask); }

    // what the vectors of a pass share, from the table; ``get`` makes a vector of a row
    struct Statistics {
        V w[TAPS], shift[BRANCHES], sum[BRANCHES] = {}, square[BRANCHES] = {};
        template <class Get>
        INLINE Statistics make(Get get) {
            Statistics s;
            for (int k = 0; k < TAPS; k++) s.w[k] = get(WEIGHT + k);
            for (int b = 0; b < BRANCHES; b++) s.shift[b] = get(MEAN + b);
            return s;
        }
        template <bool whole>
        ALWAYS void step(const V* v, I on) {
            V z[BRANCHES];
            convolve(v, w, z);
            for (int b = 0; b < BRANCHES; b++) {
                V d = z[b] - shift[b];
                if (!whole) d = only(d, on);
                sum[b] += d;
                square[b] = fma(d, d, square[b]);
            }
        }
        template <class Add>
        ALWAYS void flush(Add add) {
            for (int b = 0; b < BRANCHES; b++) {
                add(2 * b, sum[b]), add(2 * b + 1, square[b]);
                sum[b] = square[b] = V(0);
            }
        }
    };
    struct Norm {
        V w[TAPS], scale[BRANCHES], offset;
        template <class Get>
        INLINE Norm make(Get get) {
            Norm s;
            for (int k = 0; k < TAPS; k++) s.w[k] = get(WEIGHT + k);
            for (int b = 0; b < BRANCHES; b++) s.scale[b] = get(SCALE + b);
            s.offset = get(OFFSET);
            return s;
        }
        ALWAYS V step(const V* v, I keep) const {
            V z[BRANCHES];
            convolve(v, w, z);
            V top = norm(z, scale, offset), other = only(v[CENTRE], keep);
            return other > top ? other : top;
        }
    };
    // dT by the rules of maximum's and relu's gradients, where a NaN passes the gradient to both sides
    struct Sums {
        Norm forward;
        V mean[BRANCHES], sum[SUMS] = {};
        template <class Get>
        INLINE Sums make(Get get) {
            Sums s;
            s.forward = Norm::make(get);
            for (int b = 0; b < BRANCHES; b++) s.mean[b] = get(MEAN + b);
            return s;
        }
        template <bool whole>
        ALWAYS void step(const V* v, V g, I on, I keep, V half) {
            V z[BRANCHES];
            convolve(v, forward.w, z);
            V top = norm(z, forward.scale, forward.offset), other = only(v[CENTRE], keep);
            V shared = other == top ? g * half : g, dtop = other > top ? V(0) : shared;
            if (!whole) dtop = only(dtop, on);
            sum[0] += dtop;
            for (int b = 0; b < BRANCHES; b++) {
                V d = z[b] - mean[b];
                if (!whole) d = only(d, on);
                sum[1 + b] = fma(dtop, d, sum[1 + b]);
            }
        }
        template <class Add>
        ALWAYS void flush(Add add) {
            for (int i = 0; i < SUMS; i++) add(i, sum[i]), sum[i] = V(0);
        }
    };
    template <bool train>
    struct Gradients {
        Norm forward;
        V mean[BRANCHES], slope[BRANCHES], slope_rest[BRANCHES], level[BRANCHES], level_rest[BRANCHES];
        V sum[TAPS] = {};
        template <class Get>
        INLINE Gradients make(Get get) {
            Gradients s;
            s.forward = Norm::make(get);
            for (int b = 0; b < BRANCHES; b++) {
                s.mean[b] = get(MEAN + b);
                s.slope[b] = get(SLOPE + b), s.slope_rest[b] = get(SLOPE_REST + b);
                s.level[b] = get(LEVEL + b), s.level_rest[b] = get(LEVEL_REST + b);
            }
            return s;
        }
        // dz: the gradients of the convolutions but for their scale; returns what of g goes to x itself
        template <bool whole>
        ALWAYS V step(const V* v, V g, I on, I keep, V half, V* dz) {
            V z[BRANCHES];
            convolve(v, forward.w, z);
            V top = norm(z, forward.scale, forward.offset), other = only(v[CENTRE], keep);
            V shared = other == top ? g * half : g, dtop = other > top ? V(0) : shared;
            for (int b = 0; b < BRANCHES; b++) {
                dz[b] = dtop;
                if constexpr (train) {
                    V d = z[b] - mean[b];  // level last: on a sum of few digits the rests would be lost
                    dz[b] = dtop - (level[b] + fma(slope[b], d, fma(slope_rest[b], d, level_rest[b])));
                }
                if (!whole) dz[b] = only(dz[b], on);
                for (int k = b * EACH; k < (b + 1) * EACH; k++) {
                    V s = fma(dz[b], v[k], sum[k]);
                    sum[k] = whole ? s : (on ? s : sum[k]);
                }
            }
            return only(other < top ? V(0) : shared, keep);
        }
        template <class Add>
        ALWAYS void flush(Add add) {
            for (int k = 0; k < TAPS; k++) add(k, sum[k]), sum[k] = V(0);
        }
    };
    struct Turned {
        V w[TAPS];
        template <class Get>
        INLINE Turned make(Get get) {
            Turned s;
            for (int k = 0; k < TAPS; k++) s.w[k] = get(TURNED + k);
            return s;
        }
    };

    // ---- contiguous: one plane after another

    // Planes with a border of zeros, so that no tap leaves them. One zero stands between two rows and one row of zeros
    // between two planes. Wide rows are worked on one by one, several narrow ones at once: then a vector holds some of
    // the border, which a mask leaves out, and g and the result lie in planes of the same kind.
    struct Planes {
        const Window& u;
        const bool wide;
        const int64_t pitch, rows, group, lead, size;
        I tail;
        typename Lanes<T>::Int* mask;
        T *x, *g, *out, *dz[2];
        int64_t masked = 0;

        static int64_t up(int64_t n) { return (n + L - 1) / L * L; }
        explicit Planes(const Window& u)
            : u(u),
              wide(4 * up(u.W) <= 5 * (u.W + 1)),
              pitch(wide ? up(u.W + 1) : u.W + 1),
              rows(u.H + 1),
              group(wide ? 1 : choose(8192 / (int64_t)sizeof(T) / (pitch * rows), u.t.samples)),
              lead(up(pitch + 1)),
              size(up(lead + group * rows * pitch + pitch + 1) + 2 * L) {
            for (int l = 0; l < L; l++) tail[l] = l < u.W % L ? -1 : 0;
        }
        static int64_t choose(int64_t n, int64_t samples) { return n < 1 ? 1 : n > samples ? samples : n; }
        size_t bytes() const { return 6 * size * sizeof(T); }
        void place(char* memory) {
            T* first = (T*)memory;
            x = first + lead, g = x + size, out = g + size, dz[0] = out + size, dz[1] = dz[0] + size;
            mask = (typename Lanes<T>::Int*)(first + 5 * size);
        }
        int64_t count(int64_t n) const { return u.t.samples - n < group ? u.t.samples - n : group; }

        // planes of samples n, n + 1, ... between the tensor and the bordered form
        template <bool in>
        void copy(const T* from, T* to, int64_t n, int64_t c) const {
            for (int64_t s = 0; s < count(n); s++)
                for (int64_t r = 0; r < u.H; r++) {
                    int64_t theirs = (((n + s) * u.C + c) * u.H + r) * u.W, ours = (s * rows + r) * pitch, i = 0;
                    const T* a = from + (in ? theirs : ours);
                    T* b = to + (in ? ours : theirs);
                    for (; i + L <= u.W; i += L) store(b + i, load(a + i));
#ifdef __AVX512F__
                    if (i < u.W) store(b + i, load(a + i, (int)(u.W - i)), (int)(u.W - i));
#else
                    for (; i < u.W; i++) b[i] = a[i];
#endif
                }
        }
        void fill_mask(int64_t count) {
            if (wide || masked == count) return;
            masked = count;
            memset(mask, 0, up(count * rows * pitch) * sizeof *mask);
            for (int64_t r = 0; r < count * rows; r++)
                for (int64_t i = 0; i < u.W && r % rows < u.H; i++) mask[r * pitch + i] = -1;
        }
        // where of sample n the tensor's own memory is used, or the bordered form
        template <class P>
        P* at(P* tensor, P* bordered, int64_t n, int64_t c) const {
            return wide ? tensor + (n * u.C + c) * u.H * u.W : bordered;
        }
        // body(whole vector, taps, index in the bordered form, index where g and the result are, lanes, mask) for all
        // vectors; the taps are those of ``a`` and, for the light form's second window, of ``b``
        template <class Body, class Flush>
        ALWAYS void each(int64_t count, const T* a, const T* b, Body body, Flush flush) const {
            if (!wide) {
                const int64_t all = count * rows * pitch;
                for (int64_t top = 0; top < all; top += BLOCK * L) {
                    int64_t end = top + BLOCK * L < all ? top + BLOCK * L : all;
                    auto on = [&](int64_t i) ALWAYS { return *(const I*)(mask + i); };
                    down<false>(Part(), a, b, top, top, end, L, L, L, on, body);
                    flush();
                }
                return;
            }
            const int64_t W = u.W, H = u.H, whole = W / L * L;
            const int64_t high = W < BLOCK * L ? BLOCK * L / up(W) : 1;  // W above BLOCK * L: longer sums in T
            auto on = [&](int64_t) ALWAYS { return tail; };
            for (int64_t r = 0; r < H; r += high) {
                int64_t end = (r + high < H ? r + high : H) * pitch;
                for (int64_t i = 0; i < whole; i += L)
                    down<true>(Whole(), a, b, r * pitch + i, r * W + i, end, pitch, W, L, on, body);
                if (whole < W)
                    down<true>(Part(), a, b, r * pitch + whole, r * W + whole, end, pitch, W, (int)(W - whole), on,
                               body);
                flush();
            }
        }
        // vectors one below the other, as most taps of one are those of the next
        template <bool slide, class Lanes, class On, class Body>
        ALWAYS void down(Lanes lanes, const T* a, const T* b, int64_t i, int64_t j, int64_t end, int64_t step,
                         int64_t step_j, int n, On on, Body body) const {
            V v[TAPS];
            // of the taps from ``first`` on, those of one row are the next step's of the row above
            constexpr int first = light ? 3 : 0, row = light ? 1 : 3;
            if constexpr (slide) {
#pragma clang loop unroll(full)
                for (int k = first; k < first + 2 * row; k++) v[k + row] = tap(b + i, k);
            }
            for (; i < end; i += step, j += step_j) {
#pragma clang loop unroll(full)
                for (int k = first; k < TAPS; k++) v[k] = slide && k < first + 2 * row ? v[k + row] : tap(b + i, k);
#pragma clang loop unroll(full)
                for (int k = 0; k < first; k++) v[k] = tap(a + i, k);
                body(lanes, v, i, j, n, on(i));
            }
        }
        ALWAYS V tap(const T* p, int k) const {
            if constexpr (light)
                return load(k < 3 ? p + k - 1 : p + (k - 4) * pitch);
            else
                return load(p + (k / 3 - 1) * pitch + k % 3 - 1);
        }
    };

    void planes_forward(T* table, Planes& planes, int64_t c) const {
        auto get = [&](int row) ALWAYS { return V(table[row * C + c]); };
        fill_weights(table, c);
        for (int64_t again = t.train ? 2 : 0; again > 0; again--) {
            double sums[2 * BRANCHES] = {};
            auto s = Statistics::make(get);
            for (int64_t n = 0; n < t.samples; n += planes.group) {
                planes.fill_mask(planes.count(n));
                planes.template copy<true>(t.x, planes.x, n, c);
                planes.each(
                    planes.count(n), planes.x, planes.x,
                    [&](auto whole, const V* v, int64_t, int64_t, int, I on) ALWAYS {
                        s.template step<decltype(whole)::value>(v, on);
                    },
                    [&]() ALWAYS { s.flush([&](int k, V v) ALWAYS { sums[k] += sum(v); }); });
            }
            if (!from_batch(sums, 1, table, c)) break;
        }
        if (!t.train) from_running(c);
        fill_norm(table, c);
        const auto s = Norm::make(get);
        for (int64_t n = 0; n < t.samples; n += planes.group) {
            planes.template copy<true>(t.x, planes.x, n, c);
            planes.fill_mask(planes.count(n));
            T* y = planes.at(t.out, planes.out, n, c);
            planes.each(
                planes.count(n), planes.x, planes.x,
                [&](auto, const V* v, int64_t, int64_t j, int lanes, I) ALWAYS {
                    store(y + j, s.step(v, keep), lanes);
                },
                []() {});
            if (!planes.wide) planes.template copy<false>(planes.out, t.out, n, c);
        }
    }

    template <bool train>
    void planes_backward(T* table, Planes& planes, int64_t c) const {
        auto get = [&](int row) ALWAYS { return V(table[row * C + c]); };
        fill_weights(table, c);
        fill_norm(table, c);
        double sums[SUMS] = {}, dweight[TAPS] = {};
        auto a = Sums::make(get);
        for (int64_t n = 0; n < t.samples; n += planes.group) {
            planes.fill_mask(planes.count(n));
            planes.template copy<true>(t.x, planes.x, n, c);
            if (!planes.wide) planes.template copy<true>(t.g, planes.g, n, c);
            const T* g = planes.at(t.g, (const T*)planes.g, n, c);
            planes.each(
                planes.count(n), planes.x, planes.x,
                [&](auto whole, const V* v, int64_t i, int64_t j, int lanes, I on) ALWAYS {
                    a.template step<decltype(whole)::value>(v, load(g + j, lanes), on, keep, half);
                },
                [&]() ALWAYS { a.flush([&](int k, V v) ALWAYS { sums[k] += sum(v); }); });
        }
        fill_slopes(sums, 1, table, c);
        auto b = Gradients<train>::make(get);
        const auto turned = Turned::make(get);
        for (int64_t n = 0; n < t.samples; n += planes.group) {
            planes.fill_mask(planes.count(n));
            planes.template copy<true>(t.x, planes.x, n, c);
            if (!planes.wide) planes.template copy<true>(t.g, planes.g, n, c);
            const T* g = planes.at(t.g, (const T*)planes.g, n, c);
            T* dx = planes.at(t.out, planes.out, n, c);
            planes.each(
                planes.count(n), planes.x, planes.x,
                [&](auto whole, const V* v, int64_t i, int64_t j, int lanes, I on) ALWAYS {
                    V dz[BRANCHES];
                    V rest =
                        b.template step<decltype(whole)::value>(v, load(g + j, lanes), on, keep, half, dz);
                    store(dx + j, rest, lanes);
                    for (int k = 0; k < BRANCHES; k++) store(planes.dz[k] + i, dz[k], lanes);
                },
                [&]() ALWAYS { b.flush([&](int k, V v) ALWAYS { dweight[k] += sum(v); }); });
            planes.each(
                planes.count(n), planes.dz[0], planes.dz[BRANCHES - 1],
                [&](auto, const V* v, int64_t, int64_t j, int lanes, I) ALWAYS {
                    store(dx + j, load(dx + j, lanes) + transposed(v, turned.w), lanes);
                },
                []() {});
            if (!planes.wide) planes.template copy<false>(planes.out, t.out, n, c);
        }
        finish_weights(dweight, 1, c);
    }

    template <bool back>
    void by_planes() const {
        const int64_t parts = count_parts(t.threads, C, t.size());
        const size_t each = Planes(*this).bytes();
        Scratch tables(ROWS * C * sizeof(T)), scratch(parts * each);
        for_parts(parts, C, [&](int64_t part, int64_t first, int64_t last) {
            Planes planes(*this);
            planes.place(scratch.as<char>() + part * each);
            for (int64_t c = first; c < last; c++) {
                if (!back)
                    planes_forward(tables.as<T>(), planes, c);
                else if (t.train)
                    planes_backward<true>(tables.as<T>(), planes, c);
                else
                    planes_backward<false>(tables.as<T>(), planes, c);
            }
        });
    }

    // ---- channels_last: a row is W pixels of C channels

    // body(pixel, index in the row, taps) for a run of pixels of one row, channels from c on; the rows above, at and
    // below it are ``a`` and, for the light form's second window, ``b``
    template <bool whole, class Body>
    INLINE void along(const T* const* a, const T* const* b, int64_t C, int64_t W, int64_t c, int lanes, int64_t first,
                      int64_t last, Body body) {
        auto at = [&](const T* row, int64_t w) ALWAYS {
            const T* p = row + w * C + c;
            return whole ? load(p) : load(p, lanes);
        };
        constexpr int top = light ? 1 : 0, bottom = light ? 2 : 3;
        V left[3] = {}, middle[3] = {}, right[3] = {};
        for (int r = top; r < bottom; r++) {
            if (first > 0) left[r] = at(a[r], first - 1);
            middle[r] = at(a[r], first);
        }
        for (int64_t w = first; w < last; w++) {
            for (int r = top; r < bottom; r++) right[r] = w + 1 < W ? at(a[r], w + 1) : V(0);
            if constexpr (light) {
                V v[TAPS] = {left[1], middle[1], right[1], at(b[0], w), at(b[1], w), at(b[2], w)};
                body(w, w * C + c, v);
            } else {
                V v[TAPS] = {left[0],   middle[0], right[0], left[1], middle[1],
                             right[1], left[2],   middle[2], right[2]};
                body(w, w * C + c, v);
            }
            for (int r = top; r < bottom; r++) left[r] = middle[r], middle[r] = right[r];
        }
    }
    // body(whole vectors, first channel, lanes) for the channels in vectors
    template <class Body>
    void blocks(Body body) const {
        for (int64_t c = 0; c < C; c += L) {
            if (c + L <= C)
                body(Whole(), c, L);
            else
                body(Part(), c, (int)(C - c));
        }
    }
    // run(begin, end) for groups of rows: small enough to stay in the cache while one vector of channels after the
    // other is worked on, all rows of the group for each
    template <class Run>
    void groups(int64_t first, int64_t last, Run run) const {
        int64_t high = (128 << 10) / (W * C * (int64_t)sizeof(T));
        high = high < 1 ? 1 : high;
        for (; first < last; first += high) run(first, first + high < last ? first + high : last);
    }
    struct Row {
        const T* p[3];
    };
    // the rows of x above, at and below
    Row around(int64_t piece, const T* zeros) const {
        const T* row = t.x + piece * W * C;
        int64_t r = piece % H;
        return {{r > 0 ? row - W * C : zeros, row, r + 1 < H ? row + W * C : zeros}};
    }
    // a row in runs of at most BLOCK pixels; flush() before more than that have been added up
    template <class Step, class Flush>
    ALWAYS void runs(int64_t& pending, Step step, Flush flush) const {
        for (int64_t from = 0; from < W; from += BLOCK) {
            int64_t to = from + BLOCK < W ? from + BLOCK : W;
            if (pending + to - from > BLOCK) flush(), pending = 0;
            step(from, to);
            pending += to - from;
        }
    }
    // adds the parts' sums to those of the first
    void reduce(double* sums, int64_t parts, int64_t count) const {
        for (int64_t part = 1; part < parts; part++)
            for (int64_t i = 0; i < count; i++) sums[i] += sums[part * count + i];
    }

    void rows_forward() const {
        const int64_t pieces = t.samples * H, parts = count_parts(t.threads, pieces, t.size());
        const int64_t count = 2 * BRANCHES * C;
        Scratch tables(ROWS * C * sizeof(T)), empty(W * (C + L) * sizeof(T)), scratch(parts * count * sizeof(double));
        T *table = tables.as<T>(), *zeros = empty.as<T>();
        double* all = scratch.as<double>();
        for (int64_t c = 0; c < C; c++) fill_weights(table, c);
        for (bool again = t.train, first_time = true; again; first_time = false) {
            memset(all, 0, parts * count * sizeof(double));
            for_parts(parts, pieces, [&](int64_t part, int64_t first, int64_t last) {
                groups(first, last, [&](int64_t begin, int64_t end) {
                    blocks([&](auto whole, int64_t c, int lanes) {
                        statistics_of<decltype(whole)::value>(begin, end, zeros, c, lanes, table, all + part * count);
                    });
                });
            });
            reduce(all, parts, count);
            again = false;
            for (int64_t c = 0; c < C; c++) again |= from_batch(all + c, C, table, c);
            again &= first_time;
        }
        for (int64_t c = 0; c < C; c++) {
            if (!t.train) from_running(c);
            fill_norm(table, c);
        }
        for_parts(parts, pieces, [&](int64_t, int64_t first, int64_t last) {
            groups(first, last, [&](int64_t begin, int64_t end) {
                blocks([&](auto whole, int64_t c, int lanes) {
                    output_of<decltype(whole)::value>(begin, end, zeros, c, lanes, table);
                });
            });
        });
    }
    template <bool whole>
    void statistics_of(int64_t begin, int64_t end, const T* zeros, int64_t c, int lanes, const T* table,
                       double* sums) const {
        auto s = Statistics::make([&](int row) ALWAYS { return load(table + row * C + c, lanes); });
        auto flush = [&]() ALWAYS { s.flush([&](int k, V v) ALWAYS { add_lanes(sums + k * C + c, v, lanes); }); };
        int64_t pending = 0;
        for (; begin < end; begin++) {
            const Row x = around(begin, zeros);
            auto step = [&](int64_t, int64_t, const V* v) ALWAYS { s.template step<true>(v, I(0)); };
            runs(
                pending,
                [&](int64_t from, int64_t to) ALWAYS { along<whole>(x.p, x.p, C, W, c, lanes, from, to, step); },
                flush);
        }
        flush();
    }
    template <bool whole>
    void output_of(int64_t begin, int64_t end, const T* zeros, int64_t c, int lanes, const T* table) const {
        const auto s = Norm::make([&](int row) ALWAYS { return load(table + row * C + c, lanes); });
        const int n = whole ? L : lanes;
        for (; begin < end; begin++) {
            const Row x = around(begin, zeros);
            T* y = t.out + begin * W * C;
            along<whole>(x.p, x.p, C, W, c, lanes, 0, W,
                         [&](int64_t w, int64_t i, const V* v) ALWAYS { store(y + i, s.step(v, keep), n); });
        }
    }

    template <bool train>
    void rows_backward() const {
        const int64_t pieces = t.samples * H, parts = count_parts(t.threads, pieces, t.size());
        const int64_t count = TAPS * C, ring = 3 * BRANCHES * W * ((C + L - 1) / L * L);
        Scratch tables(ROWS * C * sizeof(T)), empty(W * (C + L) * sizeof(T)), scratch(parts * count * sizeof(double));
        Scratch rings(parts * ring * sizeof(T));
        T *table = tables.as<T>(), *zeros = empty.as<T>();
        double* all = scratch.as<double>();
        for (int64_t c = 0; c < C; c++) fill_weights(table, c), fill_norm(table, c);
        for_parts(parts, pieces, [&](int64_t part, int64_t first, int64_t last) {
            groups(first, last, [&](int64_t begin, int64_t end) {
                blocks([&](auto whole, int64_t c, int lanes) {
                    sums_of<decltype(whole)::value>(begin, end, zeros, c, lanes, table, all + part * SUMS * C);
                });
            });
        });
        reduce(all, parts, SUMS * C);
        for (int64_t c = 0; c < C; c++) fill_slopes(all + c, C, table, c);
        memset(all, 0, parts * count * sizeof(double));
        for_parts(parts, pieces, [&](int64_t part, int64_t first, int64_t last) {
            groups(first, last, [&](int64_t begin, int64_t end) {
                blocks([&](auto whole, int64_t c, int lanes) {
                    T* own = rings.as<T>() + part * ring + 3 * BRANCHES * W * c;
                    gradients_of<train, decltype(whole)::value>(first, last, begin, end, zeros, own, c, lanes, table,
                                                                all + part * count);
                });
            });
        });
        reduce(all, parts, count);
        for (int64_t c = 0; c < C; c++) finish_weights(all + c, C, c);
    }
    template <bool whole>
    void sums_of(int64_t begin, int64_t end, const T* zeros, int64_t c, int lanes, const T* table,
                 double* sums) const {
        auto s = Sums::make([&](int row) ALWAYS { return load(table + row * C + c, lanes); });
        auto flush = [&]() ALWAYS { s.flush([&](int k, V v) ALWAYS { add_lanes(sums + k * C + c, v, lanes); }); };
        const int n = whole ? L : lanes;
        int64_t pending = 0;
        for (; begin < end; begin++) {
            const Row x = around(begin, zeros);
            const T* g = t.g + begin * W * C;
            auto step = [&](int64_t w, int64_t i, const V* v)
                            ALWAYS { s.template step<true>(v, load(g + i, n), I(0), keep, half); };
            runs(
                pending,
                [&](int64_t from, int64_t to) ALWAYS { along<whole>(x.p, x.p, C, W, c, lanes, from, to, step); },
                flush);
        }
        flush();
    }
    // the rows begin ... end - 1 of the part first ... last - 1; dz of the last three rows stays in ``ring``, from one
    // group to the next
    template <bool train, bool whole>
    void gradients_of(int64_t first, int64_t last, int64_t begin, int64_t end, const T* zeros, T* ring, int64_t c,
                      int lanes, const T* table, double* sums) const {
        auto get = [&](int row) ALWAYS { return load(table + row * C + c, lanes); };
        const auto fresh = Gradients<train>::make(get);
        const auto turned = Turned::make(get);
        const int n = whole ? L : lanes;
        auto slot = [&](int b, int64_t r) { return ring + (b * 3 + r % 3) * W * L; };
        // dz of a row, and if it is this part's own, what of g goes to x and the weights' gradients
        auto convolutions = [&](int64_t piece, bool own) {
            const Row x = around(piece, zeros);
            const T* g = t.g + piece * W * C;
            T *rest = t.out + piece * W * C, *dz[2] = {slot(0, piece % H), slot(BRANCHES - 1, piece % H)};
            auto s = fresh;
            auto flush = [&]() ALWAYS {
                s.flush([&](int k, V v) ALWAYS {
                    if (own) add_lanes(sums + k * C + c, v, lanes);
                });
            };
            auto step = [&](int64_t w, int64_t i, const V* v) ALWAYS {
                V z[BRANCHES], r = s.template step<true>(v, load(g + i, n), I(0), keep, half, z);
                if (own) store(rest + i, r, n);
                for (int b = 0; b < BRANCHES; b++) store(dz[b] + w * L, z[b]);
            };
            int64_t pending = 0;
            runs(
                pending,
                [&](int64_t from, int64_t to) ALWAYS { along<whole>(x.p, x.p, C, W, c, lanes, from, to, step); },
                flush);
            flush();
        };
        auto input = [&](int64_t piece) {
            const int64_t r = piece % H;
            T* dx = t.out + piece * W * C + c;
            Row rows[BRANCHES];
            for (int b = 0; b < BRANCHES; b++)
                rows[b] = {{r > 0 ? slot(b, r - 1) : zeros, slot(b, r), r + 1 < H ? slot(b, r + 1) : zeros}};
            auto step = [&](int64_t w, int64_t, const V* v) ALWAYS {
                T* to = dx + w * C;
                store(to, load(to, n) + transposed(v, turned.w), n);
            };
            along<true>(rows[0].p, rows[BRANCHES - 1].p, L, W, 0, L, 0, W, step);
        };
        for (int64_t piece = begin; piece < end; piece++) {
            const int64_t r = piece % H;
            if (r > 0 && piece == first) convolutions(piece - 1, false);  // its dz is needed, and another part's
            if (r == 0 || piece == first) convolutions(piece, true);
            if (r + 1 < H) convolutions(piece + 1, piece + 1 < last);
            input(piece);
        }
    }

    void forward() const { t.last ? rows_forward() : by_planes<false>(); }
    void backward() const {
        if (!t.last)
            by_planes<true>();
        else if (t.train)
            rows_backward<true>();
        else
            rows_backward<false>();
    }
};

#define EXPORT_AS(T, symbol, light)                                                                                    \
    extern "C" void symbol##_forward(const int64_t* shape, int64_t last, int64_t against, int64_t train,               \
                                     int64_t threads, const T* const* p, const double* settings, double* stats,        \
                                     const T* x, T* y, T* const* updated) {                                            \
        Call<T> call{shape[0],      shape[1], shape[2], shape[3], threads, last != 0, against != 0, train != 0,        \
                     p,             settings, stats,    x,        x,       y,         updated,      nullptr};          \
        Window<T, light>(call).forward();                                                                              \
    }                                                                                                                  \
    extern "C" void symbol##_backward(const int64_t* shape, int64_t last, int64_t against, int64_t train,              \
                                      int64_t threads, const T* const* p, const double* settings, double* stats,       \
                                      const T* x, T* dx, const T* g, T* const* dp) {                                   \
        Call<T> call{shape[0],      shape[1], shape[2], shape[3], threads, last != 0, against != 0, train != 0,        \
                     p,             settings, stats,    x,        g,       dx,        nullptr,      dp};               \
        Window<T, light>(call).backward();                                                                             \
    }                                                                                                                  \
    SIGNATURE(symbol##_forward)                                                                                        \
    SIGNATURE(symbol##_backward)

EXPORT_AS(float, window_f32, false)
EXPORT_AS(double, window_f64, false)
EXPORT_AS(float, window_light_f32, true)
EXPORT_AS(double, window_light_f64, true)
