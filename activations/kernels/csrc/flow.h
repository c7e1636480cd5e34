// CPAB: the flow T of a continuous piecewise-affine velocity field on N equal cells of [0, 1], at unit time.
//
// Formulas and sources stand in activations/cpab.py. A trajectory never turns: it leaves its cell after some time, crosses
// whole cells in times that are theirs alone, and rests in one for what is left. T rises, so the points of a fine grid that
// start in one cell and end in one come in a run, cut off by the knots and by what flows to the knots; all else but the
// time in the first cell is common to a run. The gradient is that of the linear equation along the trajectory: a
// disturbance dv of the field moves its end by
//     v(T) integral over t of dv(phi(t)) / v(phi(t)),
// in a cell of slope s, entered at y with speed u for a time t, and followed to its exit:
//     dv(y) t E(s t) + ds u t^2 E'(s t),  E(z) = (exp(z) - 1) / z.
#pragma once

#include "vec.h"

// Computed in double; ``rough``, for tables in float, with series of nine digits.
template <bool rough>
struct Flow {
    using V = Vec<double>;
    int64_t cells, n;          // of these points, equally spaced from one end to the other
    double first_end, last_end, step;
    double *velocity, *slope;  // at the knots, of the cells
    double *times, *clock;     // through the cells, 2 where none passes in unit time; when a trajectory passes the knots

    static int64_t doubles(int64_t cells) { return 4 * (cells + 16); }
    Flow(int64_t cells, double* memory, int64_t n, double first_end = 0, double last_end = 1)
        : cells(cells), n(n), first_end(first_end), last_end(last_end), step((last_end - first_end) / (double)(n - 1)) {
        velocity = memory, slope = velocity + cells + 16, times = slope + cells + 16, clock = times + cells + 16;
    }
    double knot(int64_t k) const { return (double)k / (double)cells; }

    // between speeds of one sign, a distance apart: log(end / start) / slope, by artanh's series where both are alike
    INLINE V travel_time(V start, V end, V log_end, V per_slope, V distance) {
        V total = start + end, difference = end - start;
        const auto small = abs(difference) < abs(total) * 0.1;
        V near = V(0), far = V(0);
        if (__builtin_reduce_or(small)) {
            V inverse = V(1) / total, w = difference * inverse, u = w * w;
            constexpr int last = rough ? 7 : 17;
            V series = V(1.0 / last);
            for (int k = last - 2; k > 0; k -= 2) series = fma(series, u, V(1.0 / k));
            near = series * (distance + distance) * inverse;
        }
        if (!__builtin_reduce_and(small)) far = (log_end - logarithm(start)) * per_slope;
        return small ? near : far;
    }
    INLINE V logarithm(V speed) { return log<double, rough>(abs(speed)); }
    struct Growth {
        V exp, e;  // exp(z), E(z)
    };
    // exp(z) - 1
    INLINE V grown_by(V z) {
        z = z < V(638) ? z : V(638);  // an infinity times no speed would be NaN
        auto split = split_exp<double, rough>(z);
        V scale = from_bits<double>(bits<double>(V(1)) + split.power);
        return fma(scale, split.rest, scale - V(1));
    }
    INLINE Growth growth(V z) {
        V more = grown_by(z);
        auto zero = z == V(0);
        return {more + V(1), zero ? V(1) : more / (zero ? V(1) : z)};
    }
    // u t^2 E'(s t), from its displacement u t E(s t) and its last speed u exp(s t)
    INLINE V turned(V u, V t, V slope, V per_slope, V displacement, V last) {
        V z = slope * t;
        const auto small = abs(z) < V(0.7);
        V near = V(0);
        if (__builtin_reduce_or(small)) {
            constexpr int terms = rough ? 9 : 14;
            double factorial = 1;
            for (int k = 2; k <= terms + 1; k++) factorial *= k;
            V p = V(terms / factorial);  // k / (k + 1)!
            for (int k = terms - 1; k > 0; k--) {
                factorial /= k + 2;
                p = fma(p, z, V(k / factorial));
            }
            near = u * t * t * p;
        }
        return small ? near : fma(t, last, -displacement) * per_slope;
    }

    void prepare() {
        const double n = (double)cells;
        for (int64_t c = 0; c < cells; c++) slope[c] = n * (velocity[c + 1] - velocity[c]);
        for (int64_t c = 0; c < cells; c += 8) {
            int width = cells - c < 8 ? (int)(cells - c) : 8;
            V left = load(velocity + c, width), right = load(velocity + c + 1, width);
            V most = abs(left) > abs(right) ? abs(left) : abs(right);
            auto crossed = (left * right > V(0)) & (most * n > V(1));
            V per_slope = V(1) / load(slope + c, width);  // not used where the slope is 0
            V start = crossed ? left : V(1), end = crossed ? right : V(1);
            V time = travel_time(start, end, logarithm(end), per_slope, V(1 / n));
            time = crossed ? abs(time) : V(2);
            store(times + c, time < V(2) ? time : V(2), width);
        }
        clock[0] = 0;
        for (int64_t c = 0; c < cells; c++) clock[c + 1] = clock[c] + times[c];
    }

    // A run of points: from which cell, over which knot and after which one they end; the outer knots are none, as the
    // outer cells go on. ``left``: the time from the exit on, without that for whole cells. Those that stay have no exit.
    struct Run {
        int64_t first, last, cell, exit, reached;
        double left;
    };
    // the first point that is not before what flows to knot k within t, held between two indices
    int64_t before(int64_t k, int64_t cell, double t, int64_t low, int64_t high) const {
        return index(knot(k) - velocity[k] * t * growth(V(-slope[cell] * t)).e[0], low, high);
    }
    int64_t index(double place, int64_t low, int64_t high) const {
        double x = (place - first_end) / step;
        x = x > (double)low ? x : (double)low;  // NaN as well
        x = x < (double)high ? x : (double)high;
        return (int64_t)__builtin_ceil(x);
    }
    template <class Work>
    INLINE void each_run(const Flow& f, Work work) {
        for (int64_t c = 0, first = 0, last; c < f.cells; c++, first = last) {
            last = c + 1 < f.cells ? f.index(f.knot(c + 1), first, f.n) : f.n;
            int64_t stay = first, stop = last;
            if (c > 0 && f.velocity[c] < 0) {
                int64_t end = stay = f.before(c, c, 1, first, last);
                for (int64_t k = c; k > 0 && end > first; k--) {
                    double left = 1 - (f.clock[c] - f.clock[k]), next = k > 1 ? left - f.times[k - 1] : 0;
                    int64_t start = next > 0 ? f.before(c, c, next, first, end) : first;
                    if (start < end) work(Run{start, end, c, c, k, left});
                    end = start;
                }
            }
            if (c + 1 < f.cells && f.velocity[c + 1] > 0) stop = f.before(c + 1, c, 1, stay, last);
            if (stay < stop) work(Run{stay, stop, c, -1, c, 1});
            int64_t start = stop;
            for (int64_t k = c + 1; start < last; k++) {
                double left = 1 - (f.clock[k] - f.clock[c + 1]), next = k + 1 < f.cells ? left - f.times[k] : 0;
                int64_t end = next > 0 ? f.before(c + 1, c, next, start, last) : last;
                if (start < end) work(Run{start, end, c, c + 1, k, left});
                start = end;
            }
        }
    }

    // the points of a run: where they start, and how fast
    struct Start {
        V x, speed;
    };
    struct Common {
        double left_knot, right_knot, left_velocity, right_velocity, slope, per_slope;
        double exit_knot, exit_velocity;

        Common(const Flow& f, const Run& r) {
            left_knot = f.knot(r.cell), right_knot = f.knot(r.cell + 1), slope = f.slope[r.cell];
            left_velocity = f.velocity[r.cell], right_velocity = f.velocity[r.cell + 1];
            per_slope = 1 / slope;
            if (r.exit < 0) return;
            exit_knot = f.knot(r.exit), exit_velocity = f.velocity[r.exit];
        }
    };
    INLINE V shares(const Flow& f, int64_t i) {
        V v = {0, 1, 2, 3, 4, 5, 6, 7};
        v = (v + (double)i) * (1 / (double)(f.n - 1));
        return v < V(1) ? v : V(1);
    }
    INLINE Start start_of(const Flow& f, const Common& c, const Run& r, int64_t i) {
        Start s;
        s.x = fma(shares(f, i), V(f.last_end - f.first_end), V(f.first_end));
        V after = s.x - c.left_knot, before = c.right_knot - s.x;
        // from the nearer knot: a point on a resting knot must rest
        s.speed = after <= before ? fma(V(c.slope), after, V(c.left_velocity)) : fma(V(-c.slope), before, V(c.right_velocity));
        if (r.exit < 0) return s;
        // rounding must neither turn nor stop it
        const V least = V(c.exit_velocity > 0 ? 1e-300 : -1e-300);
        s.speed = s.speed * least > V(0) ? s.speed : least;
        return s;
    }
    int64_t last_cell(const Run& r) const { return r.exit < 0 ? r.cell : r.reached - (r.exit == r.cell); }

    // T at the points, and for ``backward`` the time in the first cell and the way in the last one
    void forward(double* end, double* time, double* way) const {
        each_run(*this, [&](const Run& r) {
            const Common c(*this, r);
            const V slope = V(this->slope[last_cell(r)]);
            if (r.exit < 0) {
                const V grown = growth(slope).e;
                for (int64_t i = r.first; i < r.last; i += 8) {
                    Start s = start_of(*this, c, r, i);
                    store(end + i, fma(s.speed, grown, s.x), r.last - i < 8 ? (int)(r.last - i) : 8);
                }
                return;
            }
            const V from = V(knot(r.reached)), pace = V(velocity[r.reached]), exit = V(c.exit_velocity), log_exit = logarithm(exit);
            const bool flat = !(abs(slope)[0] > 1e-100);
            const V reach = flat ? pace : pace / slope;
            for (int64_t i = r.first; i < r.last; i += 8) {
                int width = r.last - i < 8 ? (int)(r.last - i) : 8;
                Start s = start_of(*this, c, r, i);
                V t = travel_time(s.speed, exit, log_exit, V(c.per_slope), V(c.exit_knot) - s.x);
                t = t < V(r.left) ? t : V(r.left);  // rounding must not make it late
                V rest = V(r.left) - t, last = reach * (flat ? rest : grown_by(slope * rest));
                store(time + i, t, width), store(way + i, last, width), store(end + i, from + last, width);
            }
        });
    }

    // what stretches in a cell add to the velocities of its knots
    struct Stretches {
        V left = V(0), right = V(0);

        // entered at a share of the cell: t E(s t) and u t^2 E'(s t), times a weight
        INLINE void add(Stretches& to, V share, V value, V turn, V weight, double cells) {
            value *= weight, turn *= weight * cells;
            to.left += fma(-value, share, value) - turn;
            to.right += fma(value, share, turn);
        }
        INLINE void finish(const Stretches& s, int64_t cell, double* gradient) {
            gradient[cell] += sum(s.left), gradient[cell + 1] += sum(s.right);
        }
    };
    INLINE void move_ends(const Flow& f, int64_t i, V moved, double* dends) {
        const V share = shares(f, i);
        dends[0] += sum(moved * (V(1) - share)), dends[1] += sum(moved * share);
    }
    // adds sum_i down[i] dT(x_i) / dvelocity to ``gradient``; ``passed``: ``cells`` zeros. ``dends``, if they are learnt,
    // what the same sum changes with either end
    void backward(const double* time, const double* way, const double* down, double* passed, double* gradient,
                  double* dends = nullptr) const {
        const double N = (double)cells;
        each_run(*this, [&](const Run& r) {
            const Common c(*this, r);
            const int64_t last = last_cell(r);
            const V slope = V(this->slope[last]), per_slope = V(1) / slope;
            Stretches own, end;
            V all = V(0);
            if (r.exit < 0) {
                const Growth grown = growth(slope);
                const V turn = turned(V(1), V(1), slope, per_slope, grown.e, grown.exp);
                for (int64_t i = r.first; i < r.last; i += 8) {
                    Start s = start_of(*this, c, r, i);
                    V g = load(down + i, r.last - i < 8 ? (int)(r.last - i) : 8);
                    Stretches::add(own, (s.x - c.left_knot) * N, grown.e, s.speed * turn, g, N);
                    if (dends) move_ends(*this, i, g * grown.exp, dends);
                }
                return Stretches::finish(own, r.cell, gradient);
            }
            const bool ahead = r.exit > r.cell;
            const V pace = V(velocity[r.reached]), per_pace = V(1) / pace, share = V(ahead ? 0 : 1);
            const V exit_velocity = V(c.exit_velocity), per_exit = V(1 / c.exit_velocity);
            for (int64_t i = r.first; i < r.last; i += 8) {
                int width = r.last - i < 8 ? (int)(r.last - i) : 8;
                Start s = start_of(*this, c, r, i);
                V g = load(down + i, width), t = load(time + i, width), moved = load(way + i, width);
                V rest = V(r.left) - t, speed = fma(slope, moved, pace);  // v(T)
                Stretches::add(end, share, moved * per_pace, turned(pace, rest, slope, per_slope, moved, speed), g, N);
                // v(T) also carries what happened in a cell from its exit to the end
                V carried = g * speed, distance = V(c.exit_knot) - s.x, value = distance / s.speed;
                all += carried;
                const auto late = t >= V(r.left);  // where rounding was kept from making it late the speed may not fit
                if (__builtin_reduce_or(late)) value = late ? t * growth(V(c.slope) * t).e : value;
                // dT/dx = v(T) / v(x)
                if (dends) move_ends(*this, i, carried * (late ? growth(V(c.slope) * t).exp * per_exit : V(1) / s.speed), dends);
                V turn = turned(s.speed, t, V(c.slope), V(c.per_slope), distance, exit_velocity);
                Stretches::add(own, (s.x - c.left_knot) * N, value, turn, carried * per_exit, N);
            }
            Stretches::finish(own, r.cell, gradient);
            Stretches::finish(end, last, gradient);
            const double carried = sum(all);
            const int64_t step = ahead ? 1 : -1;
            for (int64_t cell = r.cell + step; cell != last; cell += step) passed[cell] += carried;
        });
        for (int64_t c = 1; c + 1 < cells; c++) {
            if (passed[c] == 0) continue;
            const bool ahead = velocity[c] > 0;
            const double enter = velocity[ahead ? c : c + 1], exit = velocity[ahead ? c + 1 : c], t = times[c], way = ahead ? 1 / N : -1 / N;
            Stretches through;
            V turn = turned(V(enter), V(t), V(slope[c]), V(1 / slope[c]), V(way), V(exit)), first = {1, 0, 0, 0, 0, 0, 0, 0};
            Stretches::add(through, V(ahead ? 0 : 1), V(way / enter), turn, first * (passed[c] / exit), N);
            Stretches::finish(through, c, gradient);
        }
    }
};
