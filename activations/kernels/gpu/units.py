"""The pointwise units in Triton: for each its function and the terms of its derivatives, by the name of the C++ kernel.

``NAME(x, p)`` returns y, and ``NAME_backward(x, g, p)`` returns g dy/dx and a tuple of g dy/dp, one for each of the first
numbers in ``p``; those that it leaves out are not learned. ``p`` is a tuple of float32 numbers that broadcast with x, in
the order of ``signatures.ROWS``. The formulas are those of csrc/pointwise.cpp, smooth.cpp and expansions.cpp, where they are
explained; formulas and sources in the file of each activation. Kinks have the slope of the reference.

A maximum is written as a comparison, as the hardware's own returns the number instead of a NaN.
"""

import triton
import triton.language as tl

# ---- Elementary functions, in float32. NaN stays NaN.


@triton.jit
def no_sums(count: tl.constexpr, height: tl.constexpr, width: tl.constexpr):
    """Return ``count`` sums of a tile's elements, each of them 0."""
    sums = ()
    for _ in tl.static_range(count):
        sums = sums + (tl.zeros((height, width), tl.float32),)
    return sums


@triton.jit
def added(sums, terms, mask, count: tl.constexpr):
    """Return ``sums`` with ``terms`` of the elements that there are."""
    grown = ()
    for k in tl.static_range(count):
        grown = grown + (sums[k] + tl.where(mask, terms[k], 0.0),)
    return grown


@triton.jit
def sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def relu(x):
    return tl.where(x < 0, 0.0, x)


@triton.jit
def within(x, most):
    """Return ``x`` held within -most and most."""
    x = tl.where(x > most, most, x)
    return tl.where(x < -most, -most, x)


@triton.jit
def expm1(x):
    """Return exp(x) - 1 for x up to 0 and a little beyond; Taylor's series where the difference would lose digits."""
    small = tl.where(tl.abs(x) < 0.5, x, 0.0)
    series = 1.0 / 40320
    series = series * small + 1.0 / 5040
    series = series * small + 1.0 / 720
    series = series * small + 1.0 / 120
    series = series * small + 1.0 / 24
    series = series * small + 1.0 / 6
    series = series * small + 0.5
    return tl.where(tl.abs(x) < 0.5, small + small * small * series, tl.exp(x) - 1.0)


@triton.jit
def log1p_of_unit(u):
    """Return log(1 + u) for u from 0 to 1; the polynomial is that of csrc/special.h."""
    y = 0.004466211601265708 * u - 0.0252240543466626
    y = y * u + 0.06675772506317361
    y = y * u - 0.11561845446366749
    y = y * u + 0.1584756572045947
    y = y * u - 0.1985410623120243
    y = y * u + 0.24986526168187279
    y = y * u - 0.33332841887371345
    y = y * u + 0.4999999698308403
    return u - u * u * y


@triton.jit
def softplus(z):
    """Return log(1 + exp(z)) and its derivative."""
    e = tl.exp(-tl.abs(z))
    return relu(z) + log1p_of_unit(e), tl.where(z < 0, e, 1.0) / (e + 1.0)


@triton.jit
def gauss(x):
    """Return exp(-x^2); what rounding x^2 loses is put back, as exp would enlarge it."""
    square = x * x
    lost = tl.fma(x, x, -square)
    e = tl.exp(-square)
    return tl.where(square > 87.0, 0.0, e - lost * e)


# ---- Units of csrc/pointwise.cpp


@triton.jit
def prelu(x, p):
    return tl.where(x > 0, x, p[0] * x)


@triton.jit
def prelu_backward(x, g, p):
    positive = x > 0
    return tl.where(positive, g, g * p[0]), (tl.where(positive, 0.0, g * x),)


@triton.jit
def swish(x, p):
    return x * sigmoid(p[0] * x)


@triton.jit
def swish_backward(x, g, p):
    s = sigmoid(p[0] * x)
    y = s * x
    slope = y - y * s
    return g * (p[0] * slope + s), (g * x * slope,)


@triton.jit
def acon(x, p):
    z = (p[0] - p[1]) * x
    return z * sigmoid(p[2] * z) + p[1] * x


@triton.jit
def acon_backward(x, g, p):
    d = p[0] - p[1]
    z = d * x
    s = sigmoid(p[2] * z)
    y = s * z
    slope = y - y * s
    dz = g * (p[2] * slope + s)
    gx = g * x
    return dz * d + g * p[1], (dz * x, gx - dz * x, g * z * slope)


@triton.jit
def pelu(x, p):
    e = expm1(tl.where(x < 0, x, 0.0) / p[1])
    return tl.where(x < 0, p[0] * e, tl.where(x >= 0, p[0] / p[1] * x, x))


@triton.jit
def pelu_backward(x, g, p):
    inverse = 1.0 / p[1]
    ratio = p[0] * inverse
    z = x * inverse
    negative = x < 0
    e = expm1(tl.where(negative, z, 0.0))
    slope = tl.where(negative, ratio * (e + 1.0), ratio)
    return g * slope, (g * tl.where(negative, e, z), -g * slope * z)


@triton.jit
def sine_over_a(x, z, sine):
    """Return sin(a x) / a from z = a x and its sine; x at a = 0."""
    zero = z == 0
    return tl.where(zero, x, x * (sine / tl.where(zero, 1.0, z)))


@triton.jit
def snake(x, p):
    z = p[0] * x
    s = tl.sin(z)
    return s * sine_over_a(x, z, s) + x


@triton.jit
def snake_backward(x, g, p):
    z = p[0] * x
    s, c = tl.sin(z), tl.cos(z)
    over = sine_over_a(x, z, s)
    return g * (2.0 * s * c) + g, (g * over * (2.0 * x * c - over),)


@triton.jit
def sine(x, p):
    return tl.sin(p[0] * x)


@triton.jit
def sine_backward(x, g, p):
    slope = g * tl.cos(p[0] * x)
    return slope * p[0], (slope * x,)


@triton.jit
def srelu(x, p):
    left = tl.where(x <= p[0], p[1] * (x - p[0]) + p[0], x)
    return tl.where(x >= p[2], p[3] * (x - p[2]) + p[2], left)


@triton.jit
def srelu_backward(x, g, p):
    right = x >= p[2]
    left = (x <= p[0]) & (x < p[2])
    on_left, on_right = tl.where(left, g, 0.0), tl.where(right, g, 0.0)
    terms = (
        on_left * (1.0 - p[1]),
        tl.where(left, g * (x - p[0]), 0.0),
        on_right * (1.0 - p[3]),
        tl.where(right, g * (x - p[2]), 0.0),
    )
    return g * tl.where(right, p[3], tl.where(left, p[1], 1.0)), terms


@triton.jit
def apl(x, p):
    half: tl.constexpr = len(p) // 2
    y = relu(x)
    for s in tl.static_range(half):
        y += p[s] * relu(p[half + s] - x)
    return y


@triton.jit
def apl_backward(x, g, p):
    half: tl.constexpr = len(p) // 2
    slope = tl.where(x > 0, 1.0, 0.0)
    heights = ()
    knots = ()
    for s in tl.static_range(half):
        hinge = p[half + s] - x
        on = hinge > 0
        a = tl.where(on, p[s], 0.0)
        heights = heights + (tl.where(on, g * hinge, 0.0),)
        knots = knots + (g * a,)
        slope -= a
    return g * slope, heights + knots


@triton.jit
def npwlu(x, p):
    knots: tl.constexpr = (len(p) - 1) // 3
    anchor, value, slope = p[0], p[knots], p[2 * knots]
    for k in tl.static_range(knots):
        beyond = x >= p[k]
        anchor = tl.where(beyond, p[k], anchor)
        value = tl.where(beyond, p[knots + k], value)
        slope = tl.where(beyond, p[2 * knots + k + 1], slope)
    return slope * (x - anchor) + value


@triton.jit
def npwlu_backward(x, g, p):
    """Return the sums over every piece instead of the terms of the knots; ``finish`` makes gradients of them."""
    knots: tl.constexpr = (len(p) - 1) // 3
    behind = x >= p[0]
    here = tl.where(behind, 0.0, g)
    total = here * p[2 * knots]
    left = (here,)
    heights = ()
    slopes = (here * (x - p[0]),)
    for k in tl.static_range(knots):
        # the piece on the right of knot k
        if k + 1 < knots:
            following = x >= p[k + 1]
            here = tl.where(behind, tl.where(following, 0.0, g), 0.0)
            behind = following
        else:
            here = tl.where(behind, g, 0.0)
        heights = heights + (here,)
        slopes = slopes + (here * (x - p[k]),)
        total += here * p[2 * knots + k + 1]
    return total, left + heights + slopes


@triton.jit
def _rational(x, g, p, at_zero: tl.constexpr):
    top = p[5]
    dtop = p[5]
    for k in tl.static_range(4, 0, -1):
        top = top * x + p[k]
        dtop = dtop * x + top
    top = top * x + p[0]
    bottom = p[9]
    dbottom = p[9]
    for k in tl.static_range(8, 5, -1):
        bottom = bottom * x + p[k]
        dbottom = dbottom * x + bottom
    bottom = bottom * x
    inverse = 1.0 / (tl.abs(bottom) + 1.0)
    u = g * inverse
    sign = tl.where(bottom < 0, -1.0, tl.where(bottom > 0, 1.0, at_zero))
    w = -u * (top * inverse) * sign
    up = (u,)
    down = ()
    power = x
    for k in tl.static_range(1, 6):
        up = up + (u * power,)
        if k < 5:
            down = down + (w * power,)
        power = power * x
    return u * dtop + w * dbottom, up + down


@triton.jit
def pau(x, p):
    top = ((((p[5] * x + p[4]) * x + p[3]) * x + p[2]) * x + p[1]) * x + p[0]
    bottom = (((p[9] * x + p[8]) * x + p[7]) * x + p[6]) * x
    return top / (tl.abs(bottom) + 1.0)


@triton.jit
def pau_backward(x, g, p):
    return _rational(x, g, p, 0.0)


@triton.jit
def group_rational(x, p):
    return pau(x, p)


@triton.jit
def group_rational_backward(x, g, p):
    return _rational(x, g, p, 1.0)


@triton.jit
def _tanh_of_exp(x):
    """Return exp(x), exp(2 exp(x)) - 1 and 1 / (that + 2), for x up to 3, where tanh(exp(x)) is 1."""
    e = tl.exp(tl.where(x > 3.0, 3.0, x))
    m = expm1(2.0 * e)
    return e, m, 1.0 / (m + 2.0)


@triton.jit
def tanh_exp(x, p):
    _, m, r = _tanh_of_exp(x)
    return x * (m * r)


@triton.jit
def tanh_exp_backward(x, g, p):
    e, m, r = _tanh_of_exp(x)
    slope = x * e * (4.0 * (m + 1.0) * r * r) + m * r
    return g * tl.where(x > 20.0, 1.0, slope), ()


# ---- Units of csrc/smooth.cpp


@triton.jit
def golu(x, p):
    z = tl.where(x < -7.0, -7.0, x)
    return z * tl.exp(-tl.exp(-z))


@triton.jit
def golu_backward(x, g, p):
    z = within(x, 700.0)
    e = tl.exp(-tl.where(z < -7.0, -7.0, z))
    gate = tl.exp(-e)
    return g * (z * e * gate + gate), ()


@triton.jit
def serf(x, p):
    value, _ = softplus(x)
    return x * tl.erf(value)


@triton.jit
def serf_backward(x, g, p):
    value, slope = softplus(x)
    return g * (within(x, 700.0) * 1.1283791670955126 * gauss(value) * slope + tl.erf(value)), ()


@triton.jit
def logish(x, p):
    return x * log1p_of_unit(sigmoid(x))


@triton.jit
def logish_backward(x, g, p):
    z = within(x, 700.0)
    s = sigmoid(z)
    return g * (log1p_of_unit(s) + z * (s * (1.0 - s)) / (s + 1.0)), ()


@triton.jit
def gaussian(x, p):
    return tl.where(x == x, gauss(p[0] * x), x)


@triton.jit
def gaussian_backward(x, g, p):
    z = p[0] * x
    return g * (-2.0 * p[0] * within(z, 40.0)) * gauss(z), ()


@triton.jit
def smu(x, p):
    z = (1.0 - p[1]) * x
    return 0.5 * (z * tl.erf(p[0] * z) + (1.0 + p[1]) * x)


@triton.jit
def smu_backward(x, g, p):
    rest = 1.0 - p[1]
    z = rest * x
    steep = z * gauss(p[0] * z) * 0.5641895835477563
    slope = steep * p[0] * rest + 0.5 * (rest * tl.erf(p[0] * z) + (1.0 + p[1]))
    return g * slope, (g * z * steep,)


@triton.jit
def xielu(x, p):
    right = x > 0
    e = expm1(tl.where(right, 0.0, x))
    return 0.5 * x + tl.where(right, p[0] * x * x, p[1] * (e - x))


@triton.jit
def xielu_backward(x, g, p):
    right = x > 0
    e = expm1(tl.where(right, 0.0, x))
    terms = tl.where(right, g * x * x, 0.0), tl.where(right, 0.0, g * (e - x))
    return g * tl.where(right, 2.0 * p[0] * x, p[1] * e) + 0.5 * g, terms


# ---- Units of csrc/expansions.cpp


@triton.jit
def relu_squared(x, p):
    r = relu(x)
    return r * r


@triton.jit
def relu_squared_backward(x, g, p):
    return g * (2.0 * relu(x)), ()


@triton.jit
def leaky_relu_squared(x, p):
    z = tl.where(x < 0, p[0] * x, x)
    return z * z


@triton.jit
def leaky_relu_squared_backward(x, g, p):
    negative = x < 0
    return g * (2.0 * tl.where(negative, p[0] * x, x) * tl.where(negative, p[0], 1.0)), ()


@triton.jit
def star_relu(x, p):
    r = relu(x)
    return p[0] * (r * r) + p[1]


@triton.jit
def star_relu_backward(x, g, p):
    r = relu(x)
    return 2.0 * p[0] * (g * r), (g * r * r, g)


@triton.jit
def poly_relu(x, p):
    r = relu(x)
    return ((p[2] * r + p[1]) * r + p[0]) * r + p[3]


@triton.jit
def poly_relu_backward(x, g, p):
    r = relu(x)
    first = g * r
    second = first * r
    slope = (3.0 * p[2] * r + 2.0 * p[1]) * r + p[0]
    return tl.where(x <= 0, 0.0, g * slope), (first, second, second * r, g)


@triton.jit
def hermite(x, p):
    # a degree of 0 must not hide a NaN
    y = p[0] + (x - x)
    before = 0.0
    h = 1.0
    for k in tl.static_range(1, len(p)):
        following = (x * h - before) * (1.0 / k)
        before = h
        h = following
        y += p[k] * h
    return y


@triton.jit
def hermite_backward(x, g, p):
    slope = 0.0
    before = 0.0
    h = 1.0
    terms = (g,)
    for k in tl.static_range(1, len(p)):
        slope += p[k] * h
        following = (x * h - before) * (1.0 / k)
        before = h
        h = following
        terms = terms + (g * h,)
    return g * slope, terms


@triton.jit
def _sinusoids(x, p, count: tl.constexpr):
    y = 0.0
    for k in tl.static_range(count):
        y += p[2 * count + k] * tl.sin(p[k] * x + p[count + k])
    return y


@triton.jit
def _sinusoids_backward(x, g, p, count: tl.constexpr):
    slope = 0.0
    frequencies = ()
    phases = ()
    amplitudes = ()
    for k in tl.static_range(count):
        at = p[k] * x + p[count + k]
        down = g * p[2 * count + k] * tl.cos(at)
        frequencies = frequencies + (down * x,)
        phases = phases + (down,)
        amplitudes = amplitudes + (g * tl.sin(at),)
        slope += down * p[k]
    return slope, frequencies + phases + amplitudes


@triton.jit
def staf(x, p):
    return _sinusoids(x, p, len(p) // 3)


@triton.jit
def staf_backward(x, g, p):
    return _sinusoids_backward(x, g, p, len(p) // 3)


@triton.jit
def fourier(x, p):
    return p[len(p) - 1] + _sinusoids(x, p, len(p) // 3)


@triton.jit
def fourier_backward(x, g, p):
    dx, terms = _sinusoids_backward(x, g, p, len(p) // 3)
    return dx, terms + (g,)


@triton.jit
def finer(x, p):
    return tl.sin(p[0] * ((tl.abs(x) + 1.0) * x))


@triton.jit
def finer_backward(x, g, p):
    return g * (p[0] * (p[1] * tl.abs(x) + 1.0)) * tl.cos(p[0] * ((tl.abs(x) + 1.0) * x)), ()


# ---- PWLU, csrc/table.cpp. ``p`` is the address of the heights, left and right end, whether the right one is free, the
# slopes of the tails and, for a curve with a phase in which it rests, whether that is now: what ``load_curve`` returns. The
# functions also take the number of pieces between the ends.


@triton.jit
def load_curve(parameters, numbers: tl.constexpr, units, unit, mask):
    pieces: tl.constexpr = numbers[0]
    # what is looked up later is looked up for all lanes
    row = parameters[0] + tl.where(mask, unit, 0) * (pieces + 5)
    left = tl.load(row, mask, other=0.0).to(tl.float32)
    right = tl.load(row + 1, mask, other=1.0).to(tl.float32)
    size = tl.abs(left)
    least = left + numbers[1] * tl.where(size < 1.0, 1.0, size)
    free = right >= least
    right = tl.where(right < least, least, right)
    slope_left = tl.load(row + pieces + 3, mask, other=0.0).to(tl.float32)
    slope_right = tl.load(row + pieces + 4, mask, other=0.0).to(tl.float32)
    p = row + 2, left, right, free, slope_left, slope_right
    if len(parameters) > 1:
        p = p + (tl.load(parameters[1]).to(tl.float32) > 0.5,)
    return p


@triton.jit
def _piece(x, p, pieces: tl.constexpr):
    """Return the width of a piece, how many of them x is from the left end, and the piece, of x held in the interval."""
    width = tl.div_rn(p[2] - p[1], pieces * 1.0)
    far = tl.div_rn(x - p[1], width)
    piece = tl.floor(far)
    piece = tl.where(piece > pieces - 1.0, pieces - 1.0, piece)
    piece = tl.where(piece > 0.0, piece, 0.0)  # NaN as well
    return width, far, piece


@triton.jit
def pwlu(x, p, pieces: tl.constexpr):
    width, _, piece = _piece(x, p, pieces)
    low = tl.load(p[0] + piece.to(tl.int32)).to(tl.float32)
    high = tl.load(p[0] + piece.to(tl.int32) + 1).to(tl.float32)
    before, behind = x < p[1], x >= p[2]
    anchor = tl.where(before, p[1], tl.where(behind, p[2], p[1] + width * piece))
    slope = tl.where(before, p[4], tl.where(behind, p[5], (high - low) / width))
    y = tl.where(behind, high, low) + slope * (x - anchor)
    if len(p) > 6:
        y = tl.where(p[6], relu(x), y)
    return y


@triton.jit
def pwlu_backward(x, g, p, pieces: tl.constexpr):
    of_relu = tl.where(x <= 0, 0.0, g)
    if len(p) > 6:
        g, x = tl.where(p[6], 0.0, g), tl.where(p[6], p[1], x)  # 0 times infinity would be no 0
    width, far, piece = _piece(x, p, pieces)
    low = tl.load(p[0] + piece.to(tl.int32)).to(tl.float32)
    high = tl.load(p[0] + piece.to(tl.int32) + 1).to(tl.float32)
    before, behind = x < p[1], x >= p[2]
    slope = tl.where(before, p[4], tl.where(behind, p[5], (high - low) / width))
    dx = g * slope
    # of the height on the right; a unit's height on the left gets the rest
    share = tl.where(before, 0.0, tl.where(behind, 1.0, far - piece))
    right = g * share
    left = g - right
    # an end that moves takes the pieces with it
    to_right = tl.where(before, 0.0, tl.where(behind, -dx, -dx * (far / pieces)))
    to_left = tl.where(before, -dx, tl.where(behind, 0.0, -dx * (1.0 - far / pieces)))
    to_left += tl.where(p[3], 0.0, to_right)
    terms = to_left, tl.where(p[3], to_right, 0.0)
    here = piece == 0.0
    terms = terms + (tl.where(here, left, 0.0),)
    for k in tl.static_range(1, pieces):
        following = piece == k
        terms = terms + (tl.where(here, right, tl.where(following, left, 0.0)),)
        here = following
    terms = terms + (tl.where(here, right, 0.0),)
    tails = tl.where(before, g * (x - p[1]), 0.0), tl.where(behind, g * (x - p[2]), 0.0)
    if len(p) > 6:
        dx = tl.where(p[6], of_relu, dx)
    return dx, terms + tails
