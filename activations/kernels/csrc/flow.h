// CPAB: the flow T of a continuous piecewise-affine velocity field on N equal cells of [0, 1], at unit time.
//
// Formulas and sources stand in activations/cpab.py. A trajectory never turns: it leaves its cell after some time, crosses
// whole cells in times that are theirs alone, and rests in one for what is left. The gradient is that of the linear
// equation along the trajectory: a disturbance dv of the field moves its end by
//     v(T) integral over t of dv(phi(t)) / v(phi(t)),
// in a cell of slope s, entered at y with speed u for a time t, and followed to its exit:
//     dv(y) t E(s t) + ds u t^2 E'(s t),  E(z) = (exp(z) - 1) / z.
#pragma once

#include "vec.h"

struct Flow {
    using V = Vec<double>;
    using I = IVec<double>;
    int64_t cells;
    double *velocity, *slope, *clock;  // at the knots, of the cells, and when a trajectory passes the knots
    double *times, *knots;             // through the cells, 2 where none passes in unit time; and where they end

    static int64_t doubles(int64_t cells) { return 5 * (cells + 16); }
    Flow(int64_t cells, double* memory) : cells(cells) {
        velocity = memory, slope = velocity + cells + 16, clock = slope + cells + 16, times = clock + cells + 16;
        knots = times + cells + 16;
    }

    // the arrays have room for 16 entries at least
    INLINE V take(const double* from, I at, int64_t cells) {
#ifdef __AVX512F__
        if (cells < 16) return _mm512_permutex2var_pd(load(from), (__m512i)at, load(from + 8));
        return _mm512_i64gather_pd((__m512i)at, from, 8);
#endif
        V v;
        for (int l = 0; l < 8; l++) v[l] = from[at[l]];
        return v;
    }
    // between speeds of one sign, a distance apart: log(end / start) / slope, by artanh's series where both vanish
    INLINE V travel_time(V start, V end, V slope, V distance) {
        V inverse = V(1) / (start + end), w = (end - start) * inverse, u = w * w;
        V series = V(1.0 / 17);
        for (int k = 15; k > 0; k -= 2) series = fma(series, u, V(1.0 / k));
        auto small = abs(w) < V(0.1);
        V near = series * (distance + distance) * inverse;
        if (__builtin_reduce_and(small)) return near;
        return small ? near : log<double>(small ? V(2) : end / start) / (small ? V(1) : slope);
    }
    // E(z) and E'(z)
    INLINE V over(V z) {
        auto zero = z == V(0);
        return zero ? V(1) : expm1<double>(z) / (zero ? V(1) : z);
    }
    INLINE V over_slope(V z, V e) {
        V p = V(15.0 / 20922789888000.0);  // k / (k + 1)!
        double factorial = 20922789888000.0;
        for (int k = 14; k > 0; k--) {
            factorial /= k + 2;
            p = fma(p, z, V(k / factorial));
        }
        auto small = abs(z) < V(0.7);
        return small ? p : (exp<double>(z) - e) / (small ? V(1) : z);
    }

    void prepare() {
        const double n = (double)cells;
        for (int64_t c = 0; c < cells; c++) slope[c] = n * (velocity[c + 1] - velocity[c]);
        for (int64_t k = 0; k <= cells; k++) knots[k] = (double)k / n;
        for (int64_t c = 0; c < cells; c += 8) {
            int width = cells - c < 8 ? (int)(cells - c) : 8;
            V left = load(velocity + c, width), right = load(velocity + c + 1, width);
            V most = abs(left) > abs(right) ? abs(left) : abs(right);
            auto crossed = (left * right > V(0)) & (most * n > V(1));
            V time = travel_time(crossed ? left : V(1), crossed ? right : V(1), load(slope + c, width), V(1 / n));
            time = crossed ? abs(time) : V(2);
            store(times + c, time < V(2) ? time : V(2), width);
        }
        clock[0] = 0;
        for (int64_t c = 0; c < cells; c++) clock[c + 1] = clock[c] + times[c];
    }

    struct Path {
        V x, speed, time;  // where it starts, how fast, and how long it stays in its first cell
        I cell, exit, reached, last;
        I ahead, leaves;
        V start, pace, rest, z, end;  // the last stretch: from where, how fast, how long, slope times rest, to where
    };
    // the paths of eight points
    INLINE Path follow(const Flow& f, V x) {
        const double n = (double)f.cells;
        Path p;
        p.x = x;
        V scaled = floor(x * n);
        scaled = scaled > V(0) ? scaled : V(0);
        scaled = scaled < V(n - 1) ? scaled : V(n - 1);
        p.cell = __builtin_convertvector(scaled, I);
        V after = x - take(f.knots, p.cell, f.cells), before = take(f.knots, p.cell + 1, f.cells) - x, s = take(f.slope, p.cell, f.cells);
        // from the nearer knot: a point on a resting knot must rest
        p.speed = after <= before ? fma(s, after, take(f.velocity, p.cell, f.cells)) : fma(-s, before, take(f.velocity, p.cell + 1, f.cells));
        p.ahead = p.speed > V(0);
        p.exit = p.cell - p.ahead;  // true is -1
        V exit_speed = take(f.velocity, p.exit, f.cells), distance = take(f.knots, p.exit, f.cells) - x;
        V most = abs(p.speed) > abs(exit_speed) ? abs(p.speed) : abs(exit_speed);
        p.leaves = (p.exit > 0) & (p.exit < f.cells) & (most > abs(distance)) & (p.speed * exit_speed > V(0));
        p.time = travel_time(p.leaves ? p.speed : V(1), p.leaves ? exit_speed : V(1), s, distance);
        p.leaves &= p.time < V(1);
        p.time = p.leaves ? p.time : V(1);
        p.exit = p.leaves ? p.exit : I(1);
        V here = take(f.clock, p.exit, f.cells), left = V(1) - p.time;
        p.reached = p.exit;
        for (int64_t k = 1; k < f.cells; k++) {
            V then = V(f.clock[k]);
            auto on = p.ahead & (then > here) & (then <= here + left), back = ~p.ahead & (then < here) & (then >= here - left);
            p.reached += back - on;  // true is -1
        }
        V gone = take(f.clock, p.reached, f.cells) - here;
        p.rest = p.leaves ? left - abs(gone) : V(1);
        p.start = p.leaves ? take(f.knots, p.reached, f.cells) : x;
        p.pace = p.leaves ? take(f.velocity, p.reached, f.cells) : p.speed;
        p.last = p.leaves ? p.reached - 1 - p.ahead : p.cell;
        p.z = take(f.slope, p.last, f.cells) * p.rest;
        p.z = p.z < V(638) ? p.z : V(638);  // an infinity times no speed would be NaN
        p.end = fma(p.pace * p.rest, over(p.z), p.start);
        return p;
    }

    // T at the points i / (n - 1)
    void forward(int64_t n, double* end) const {
        for (int64_t i = 0; i < n; i += 8) {
            int width = n - i < 8 ? (int)(n - i) : 8;
            store(end + i, follow(*this, points(i, n)).end, width);
        }
    }
    INLINE V points(int64_t i, int64_t n) {
        V v;
        for (int l = 0; l < 8; l++) v[l] = (double)(i + l);
        v /= (double)(n - 1);
        return v < V(1) ? v : V(1);
    }

    // what a stretch in ``cell``, entered at ``y`` with speed ``u`` for a time t, times ``weight``, adds to the knots
    INLINE void stretch(const Flow& f, I cell, V y, V u, V t, V z, V weight, double* lanes) {
        const double n = (double)f.cells;
        V e = over(z), share = fma(y, V(n), -__builtin_convertvector(cell, V));
        V value = weight * t * e, turn = weight * u * t * t * over_slope(z, e) * n;
        V left = fma(value, V(1) - share, -turn), right = fma(value, share, turn);
        for (int l = 0; l < 8; l++) {
            lanes[8 * cell[l] + l] += left[l];
            lanes[8 * (cell[l] + 1) + l] += right[l];
        }
    }
    // adds sum_i down[i] dT(x_i) / dvelocity to ``gradient``; ``scratch``: 16 (cells + 1) zeros
    void backward(int64_t n, const double* down, double* scratch, double* gradient) const {
        double *lanes = scratch, *passed = scratch + 8 * (cells + 1);
        for (int64_t i = 0; i < n; i += 8) {
            int width = n - i < 8 ? (int)(n - i) : 8;
            Path p = follow(*this, points(i, n));
            V g = load(down + i, width), s = take(slope, p.cell, cells);
            stretch(*this, p.last, p.start, p.pace, p.rest, p.z, g, lanes);
            if (!__builtin_reduce_or(p.leaves)) continue;
            // v(T), which carries what happened in a cell from its exit to the end
            V carried = p.leaves ? g * p.pace * exp<double>(p.z) : V(0);
            V exit_speed = take(velocity, p.exit, cells);
            V weight = p.leaves ? carried / exit_speed : V(0);
            stretch(*this, p.cell, p.x, p.speed, p.time, s * p.time, weight, lanes);
            for (int64_t c = 1; c + 1 < cells; c++) {
                auto through = (p.ahead & (p.exit <= c) & (p.reached > c)) | (~p.ahead & (p.reached <= c) & (p.exit > c));
                store(passed + 8 * c, load(passed + 8 * c) + (through ? carried : V(0)));
            }
        }
        for (int64_t c = 1; c + 1 < cells; c++) {
            double through = sum(load(passed + 8 * c));
            if (through == 0) continue;
            bool ahead = velocity[c] > 0;
            I cell = I(c), entry = I(ahead ? c : c + 1);
            double time = times[c], exit_speed = velocity[ahead ? c + 1 : c];
            V first = {1, 0, 0, 0, 0, 0, 0, 0};
            stretch(*this, cell, __builtin_convertvector(entry, V) / (double)cells, V(velocity[ahead ? c : c + 1]), V(time),
                    V(slope[c] * time), first * (through / exit_speed), lanes);
        }
        for (int64_t k = 0; k <= cells; k++) gradient[k] += sum(load(lanes + 8 * k));
    }
};
