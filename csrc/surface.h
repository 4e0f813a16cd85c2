// A signed distance field with its slope, and the derivative of both by all weights: what a surface method asks of a point.
//
// With u = (x, y, z, 1, features of the hash grid at the point), z = A u, h = (softplus(z), 1):
//
//   out      = B h                  distance out[0], and whatever else the colours want to know
//   p        = A^T (b_0 s)          derivative of the distance by u; b_0 is B's first row, s = softplus'(z)
//   gradient = p_xyz + J^T p_features           J: derivative of the features by the point
//
// Training differentiates the gradient again (eikonal loss). With cotangents d_out and d_gradient, and q = (d_gradient,
// 0, J d_gradient) the direction in which they move u, everything follows from p . q = b_0 . (s * A q):
//
//   d_z = s * (B^T d_out) + b_0 * softplus''(z) * (A q)
//   dA  = d_z u^T + (b_0 s) q^T                 dB = d_out h^T, its first row moreover += s * (A q)
//   the table receives A^T d_z by the corners' weights, and p by the slopes of those weights along d_gradient
//
// A tile of samples passes through all of it without leaving the second-level cache. What the forward pass leaves behind
// for the backward pass is u and z.
#pragma once
#include "encode.h"
#include "field.h"
#include "mlp.h"

namespace lf {

template <class T>
struct SurfaceArgs {
  HashSpec spec;    // with as many levels as are active
  const T* table;
  const T* first;   // A [hidden][4 + levels * features]
  const T* last;    // B [outputs][hidden + 1]
  int hidden, outputs;
  T beta;           // softplus(z) = log(1 + exp(beta z)) / beta
};

namespace LF_ISA {

// log(1 + y) for y in [0, 1]: 2 artanh(y / (2 + y)), whose argument is at most 1/3; 2 ulp.
LF_INLINE Vec<float> vlog1p(Vec<float> y) {
  const Vec<float> s = y / (y + 2.0f), q = s * s;
  Vec<float> p = q * 0.090909091f + 0.11111111f;
  p = p * q + 0.14285714f;
  p = p * q + 0.2f;
  p = p * q + 0.33333333f;
  return (s + s) * (p * q + 1.0f);
}
LF_INLINE Vec<double> vlog1p(Vec<double> y) {
  for (int i = 0; i < kLanes<double>; ++i) y[i] = __builtin_log1p(y[i]);
  return y;
}

// softplus and its first derivative, which is a sigmoid; neither overflows anywhere.
template <class T>
LF_INLINE void soft(Vec<T> z, T beta, Vec<T>& value, Vec<T>& slope) {
  const Vec<T> zero{}, e = vexp((z > zero ? -z : z) * beta), inverse = T(1) / (e + T(1));
  value = (z > zero ? z : zero) + vlog1p(e) / beta;
  slope = z > zero ? inverse : e * inverse;
}

template <class T>
struct Surface {
  const SurfaceArgs<T>& args;
  Network<T> first, last;  // of one layer each, for their packed weights

  int features() const { return args.spec.levels * args.spec.features; }
  int inputs() const { return 4 + features(); }
  static size_t stride() { return row_stride<T>(kTile); }
  static Shape one_layer(int in, int out) {
    Shape shape;
    shape.layers = 1, shape.width[0] = in, shape.width[1] = out;
    return shape;
  }
  static size_t packed_size(const SurfaceArgs<T>& a) {
    const int in = 4 + a.spec.levels * a.spec.features;
    return Network<T>::packed_size(one_layer(in, a.hidden)) + Network<T>::packed_size(one_layer(a.hidden + 1, a.outputs));
  }
  Surface(const SurfaceArgs<T>& a, T* storage) : args(a) {
    const Shape shape = one_layer(inputs(), a.hidden);
    first.build(shape, &a.first, storage);
    last.build(one_layer(a.hidden + 1, a.outputs), &a.last, storage + Network<T>::packed_size(shape));
  }

  // Points [n, 3] of the cube [-1, 1]^3 -> rows of places in [0, 1]^3, and per axis how a place moves with its point: by
  // a half, or not at all where the cube ends.
  void places(const T* points, int n, T* place, T* moves) const {
    for (int k = 0; k < 3; ++k)
      for (int i = 0; i < n; ++i) {
        const T x = points[3 * i + k];
        place[k * stride() + i] = to_unit_interval(T(0.5) * x + T(0.5));
        moves[k * stride() + i] = x >= T(-1) && x <= T(1) ? T(0.5) : T(0);
      }
  }

  size_t forward_scratch() const {
    return sizeof(T) * stride() * size_t(12 + 2 * inputs() + 3 * args.hidden + 1 + args.outputs) + 64 * 16;
  }

  // n <= kTile points. gradient [n, 3] and trail [inputs + hidden][kTile] may be null.
  void forward(const T* points, int n, T* out, T* gradient, T* trail, Arena arena) const {
    const size_t ld = stride(), kept = trail ? size_t(kTile) : ld;
    const int in = inputs(), hidden = args.hidden;
    T* place = arena.take<T>(3 * ld);
    T* moves = arena.take<T>(3 * ld);
    T* u = trail ? trail : arena.take<T>(in * ld);
    T* z = trail ? trail + in * kept : arena.take<T>(hidden * ld);
    T* h = arena.take<T>((hidden + 1) * ld);
    T* a = arena.take<T>(hidden * ld);
    T* y = arena.take<T>(args.outputs * ld);
    places(points, n, place, moves);
    for (int i = 0; i < n; ++i) {
      for (int k = 0; k < 3; ++k) u[k * kept + i] = points[3 * i + k];
      u[3 * kept + i] = h[hidden * ld + i] = T(1);
    }
    encode_rows(args.spec, args.table, place, place + ld, place + 2 * ld, n, u + 4 * kept, kept);
    product(first.forward[0], in, hidden, u, kept, z, kept, n, false);
    for (int j = 0; j < hidden; ++j) {
      const T weight = args.last[j];
      for (int i = 0; i < n; i += kLanes<T>) {
        Vec<T> value, slope;
        soft(load(z + j * kept + i), args.beta, value, slope);
        store(h + j * ld + i, value);
        store(a + j * ld + i, slope * weight);
      }
    }
    product(last.forward[0], hidden + 1, args.outputs, h, ld, y, ld, n, false);
    for (int k = 0; k < args.outputs; ++k)
      for (int i = 0; i < n; ++i) out[size_t(i) * args.outputs + k] = y[k * ld + i];
    if (!gradient) return;
    T* p = arena.take<T>(in * ld);
    T* d = arena.take<T>(3 * ld);
    product(first.backward[0], hidden, in, a, ld, p, ld, n, false);
    position_gradient(args.spec, args.table, place, place + ld, place + 2 * ld, n, p + 4 * ld, ld, d, d + ld, d + 2 * ld);
    for (int k = 0; k < 3; ++k)
      for (int i = 0; i < n; ++i) gradient[3 * i + k] = p[k * ld + i] + moves[k * ld + i] * d[k * ld + i];
  }

  // Rows that a tile leaves for the scatter into the table: place 3, direction 3, value and slope of the features.
  int left_rows() const { return 6 + 2 * features(); }
  size_t gradient_size() const { return Network<T>::gradient_size(first.shape) + Network<T>::gradient_size(last.shape); }
  size_t backward_scratch() const {
    const size_t widest = padded<T>(max(inputs(), args.hidden + 1));
    return sizeof(T) * (stride() * size_t(6 + 3 * inputs() + 5 * args.hidden + 1 + 2 * args.outputs) + widest * stride()) + 64 * 20;
  }

  // d_out [n, outputs]; d_gradient [n, 3] may be null. Adds to the padded gradient of both layers; fills `left`, rows of
  // kTile.
  void backward(const T* points, int n, const T* d_out, const T* d_gradient, const T* trail, T* gradient, T* left,
                Arena arena) const {
    const size_t ld = stride();
    const int in = inputs(), hidden = args.hidden, outputs = args.outputs, F = features();
    const int whole = (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    const T *u = trail, *z = trail + in * size_t(kTile);
    T* gradient_last = gradient + Network<T>::gradient_size(first.shape);
    T* place = arena.take<T>(3 * ld);
    T* moves = arena.take<T>(3 * ld);
    T* h = arena.take<T>((hidden + 1) * ld);
    T* s = arena.take<T>(hidden * ld);
    T* dy = arena.take<T>(outputs * ld);
    T* dz = arena.take<T>((hidden + 1) * ld);
    T* xt = arena.take<T>(padded<T>(max(in, hidden + 1)) * ld);
    places(points, n, place, moves);
    for (int k = 0; k < 3; ++k)
      for (int i = 0; i < n; ++i) left[k * kTile + i] = place[k * ld + i];

    for (int j = 0; j < hidden; ++j)
      for (int i = 0; i < n; i += kLanes<T>) {
        Vec<T> value, slope;
        soft(load(z + j * kTile + i), args.beta, value, slope);
        store(h + j * ld + i, value);
        store(s + j * ld + i, slope);
      }
    for (int i = 0; i < n; ++i) h[hidden * ld + i] = T(1);
    for (int k = 0; k < outputs; ++k) {
      for (int i = 0; i < n; ++i) dy[k * ld + i] = d_out[size_t(i) * outputs + k];
      for (int i = n; i < whole; ++i) dy[k * ld + i] = T(0);
    }
    transpose_rows(h, ld, hidden + 1, whole, xt, padded<T>(hidden + 1));
    outer(dy, ld, outputs, xt, padded<T>(hidden + 1), n, gradient_last);
    product(last.backward[0], outputs, hidden, dy, ld, dz, ld, n, false);
    for (int j = 0; j < hidden; ++j)
      for (int i = 0; i < n; i += kLanes<T>) store(dz + j * ld + i, load(dz + j * ld + i) * load(s + j * ld + i));

    if (d_gradient) {
      T* q = arena.take<T>(in * ld);
      T* r = arena.take<T>(hidden * ld);
      T* p = arena.take<T>(in * ld);
      T* v = left + 3 * kTile;
      for (int k = 0; k < 3; ++k)
        for (int i = 0; i < n; ++i) {
          q[k * ld + i] = d_gradient[3 * i + k];
          v[k * kTile + i] = moves[k * ld + i] * d_gradient[3 * i + k];
        }
      for (int i = 0; i < n; ++i) q[3 * ld + i] = T(0);
      tangent_rows(args.spec, args.table, place, place + ld, place + 2 * ld, n, v, v + kTile, v + 2 * kTile, q + 4 * ld, ld);
      product(first.forward[0], in, hidden, q, ld, r, ld, n, false);
      for (int j = 0; j < hidden; ++j) {
        const T weight = args.last[j];
        Vec<T> sum{};
        int i = 0;
        for (; i + kLanes<T> <= n; i += kLanes<T>) {
          const Vec<T> slope = load(s + j * ld + i), along = load(r + j * ld + i);
          sum += slope * along;
          store(dz + j * ld + i, load(dz + j * ld + i) + slope * (T(1) - slope) * along * (weight * args.beta));
          store(s + j * ld + i, slope * weight);
        }
        T total = 0;
        for (; i < n; ++i) {
          const T slope = s[j * ld + i], along = r[j * ld + i];
          total += slope * along;
          dz[j * ld + i] += slope * (T(1) - slope) * along * (weight * args.beta);
          s[j * ld + i] = slope * weight;
        }
        for (int lane = 0; lane < kLanes<T>; ++lane) total += sum[lane];
        gradient_last[j] += total;
      }
      product(first.backward[0], hidden, in, s, ld, p, ld, n, false);
      T* kept = left + (6 + F) * size_t(kTile);
      for (int k = 0; k < F; ++k)
        for (int i = 0; i < n; ++i) kept[k * kTile + i] = p[(4 + k) * ld + i];
      transpose_rows(q, ld, in, whole, xt, padded<T>(in));
      outer(s, ld, hidden, xt, padded<T>(in), n, gradient);
    }

    transpose_rows(u, size_t(kTile), in, whole, xt, padded<T>(in));
    outer(dz, ld, hidden, xt, padded<T>(in), n, gradient);
    T* du = arena.take<T>(in * ld);
    product(first.backward[0], hidden, in, dz, ld, du, ld, n, false);
    for (int k = 0; k < F; ++k)
      for (int i = 0; i < n; ++i) left[(6 + k) * kTile + i] = du[(4 + k) * ld + i];
  }
};

}  // namespace LF_ISA
}  // namespace lf
