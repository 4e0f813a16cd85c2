// Small fully connected networks without biases: ReLU between layers, linear output.
//
// Activations are feature-major: row k holds feature k of all samples of a tile, and vector lanes are samples. So the
// encoding writes rows, activations are elementwise, and a layer is  Y[j][s] = sum_k W[j][k] X[k][s]  with W broadcast.
// The three products of training, per layer:
//   forward   Y  = W X          rows of X streamed, a block of kOut x kWide accumulators in registers
//   input     dX = W^T dY       the same kernel on transposed weights
//   weights   dW = dY X^T       lanes are input features, so X is transposed in tiles; no horizontal sums
//
// All of it works on cells (half.h): a cell is a number, or a pair of bfloat16 that one instruction multiplies and adds.
// Products of pairs run over pairs of features, and over pairs of samples for dW; sums stay in single precision.
#pragma once
#include "half.h"

namespace lf {
namespace LF_ISA {

constexpr int kMaxLayers = 8;
constexpr int kTile = 96;  // samples whose activations stay in L1

struct Shape {
  int layers;                  // number of weight matrices
  int width[kMaxLayers + 1];   // width[0] inputs, width[layers] outputs
};

// ---- Y = W X ----------------------------------------------------------------------------------------------------

// Sums of a block into rows of numbers, or rounded into rows of pairs; of an odd last row the other half is zero.
template <int kOut, int kWide, class T>
LF_INLINE void store_block(const Vec<T> (&sum)[kOut][kWide], T* y, size_t y_stride) {
  _Pragma("GCC unroll 16")
  for (int j = 0; j < kOut; ++j)
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kWide; ++v) store(y + j * y_stride + v * kLanes<T>, sum[j][v]);
}
template <int kOut, int kWide>
LF_INLINE void store_block(const Vec<float> (&sum)[kOut][kWide], Pair* y, size_t y_stride) {
  _Pragma("GCC unroll 16")
  for (int j = 0; j < kOut; j += 2)
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kWide; ++v)
      store(y + j / 2 * y_stride + v * kLanes<Pair>, pair_of(sum[j][v], j + 1 < kOut ? sum[j + 1 < kOut ? j + 1 : j][v] : Vec<float>{}));
}

template <int kOut, int kWide, class X, class Y>
LF_INLINE void product_block(const X* weight, int steps, const X* x, size_t x_stride, Y* y, size_t y_stride, bool relu) {
  typedef NumberOf<X> T;
  constexpr int n = kLanes<X>;
  Vec<T> sum[kOut][kWide];
  _Pragma("GCC unroll 16")
  for (int j = 0; j < kOut; ++j)
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kWide; ++v) sum[j][v] = Vec<T>{};
  for (int k = 0; k < steps; ++k) {
    Vec<X> in[kWide];
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kWide; ++v) in[v] = load(x + k * x_stride + v * n);
    _Pragma("GCC unroll 16")
    for (int j = 0; j < kOut; ++j) {
      Vec<X> w = splat(weight[k * kOut + j]);
      _Pragma("GCC unroll 16")
      for (int v = 0; v < kWide; ++v) multiply_add(sum[j][v], w, in[v]);
    }
  }
  if (relu) {
    const Vec<T> zero{};
    _Pragma("GCC unroll 16")
    for (int j = 0; j < kOut; ++j)
      _Pragma("GCC unroll 16")
      for (int v = 0; v < kWide; ++v) sum[j][v] = sum[j][v] > zero ? sum[j][v] : zero;
  }
  store_block<kOut, kWide>(sum, y, y_stride);
}

constexpr int kOutBlock = kManyRegisters ? 8 : 4;

template <int kWide, class X, class Y>
LF_INLINE void product_columns(const X* packed, int inputs, int outputs, const X* x, size_t x_stride, Y* y, size_t y_stride,
                               bool relu) {
  const int steps = cells<X>(inputs);
  int j = 0;
  auto block = [&](auto rows) {
    constexpr int kOut = decltype(rows)::value;
    product_block<kOut, kWide>(packed, steps, x, x_stride, y + j / kPer<Y> * y_stride, y_stride, relu);
    packed += size_t(kOut) * steps;
    j += kOut;
  };
  while (j + kOutBlock <= outputs) block(std::integral_constant<int, kOutBlock>{});
  if (kOutBlock > 4 && j + 4 <= outputs) block(std::integral_constant<int, 4>{});
  while (j + kPer<Y> <= outputs) block(std::integral_constant<int, kPer<Y>>{});
  while (j < outputs) block(std::integral_constant<int, 1>{});
}

// Columns come in whole vectors: `count` is rounded up, and every buffer has room for that.
template <class X, class Y>
void product(const X* packed, int inputs, int outputs, const X* x, size_t x_stride, Y* y, size_t y_stride, int count, bool relu) {
  constexpr int n = kLanes<X>;
  int s = 0;
  for (; s + 2 * n < count; s += 3 * n)
    product_columns<3>(packed, inputs, outputs, x + s, x_stride, y + s, y_stride, relu);
  if (count - s > n)
    product_columns<2>(packed, inputs, outputs, x + s, x_stride, y + s, y_stride, relu);
  else if (count - s > 0)
    product_columns<1>(packed, inputs, outputs, x + s, x_stride, y + s, y_stride, relu);
}

// Weights [outputs][inputs] in the order in which product() reads them for rows of cells Y: blocks of outputs, input-major
// inside. With `transposed`, the packed matrix is W^T: `outputs` and `inputs` then name the shape of W^T.
template <class Y, class X>
void pack(const NumberOf<X>* weight, int outputs, int inputs, bool transposed, X* packed) {
  auto at = [&](int j, int k) {
    if (k >= inputs) return NumberOf<X>(0);
    return transposed ? weight[size_t(k) * outputs + j] : weight[size_t(j) * inputs + k];
  };
  int j = 0;
  auto block = [&](int rows) {
    for (int k = 0; k < inputs; k += kPer<X>)
      for (int i = 0; i < rows; ++i) *packed++ = cell_of<X>(at(j + i, k), at(j + i, k + 1));
    j += rows;
  };
  while (j + kOutBlock <= outputs) block(kOutBlock);
  if (kOutBlock > 4 && j + 4 <= outputs) block(4);
  while (j + kPer<Y> <= outputs) block(kPer<Y>);
  while (j < outputs) block(1);
}

// ---- dW += dY X^T -----------------------------------------------------------------------------------------------

// A width of inputs as a row of dW holds it: whole vectors.
template <class X>
constexpr int padded(int width) {
  constexpr int n = kPer<X> * kLanes<X>;
  return (width + n - 1) / n * n;
}

// Samples [0, count) of X, transposed to sample-major [count][k_pad], k_pad a whole number of vectors.
template <class T>
void transpose_rows(const T* x, size_t x_stride, int inputs, int count, T* out, int k_pad) {
  constexpr int n = kLanes<T>;
  for (int k = 0; k < k_pad; k += n)
    for (int s = 0; s < count; s += n) {
      Vec<T> row[n];
      for (int i = 0; i < n; ++i) row[i] = k + i < inputs ? load(x + (k + i) * x_stride + s) : Vec<T>{};
      transpose<T>(row);
      for (int i = 0; i < n; ++i) store(out + size_t(s + i) * k_pad + k, row[i]);
    }
}
// Pairs of features become pairs of samples: [(count + 1) / 2][k_pad], in each block of columns first the even features,
// then the odd ones (`column_of`). A last sample without a partner gets zeros for one: whatever lies there may be no number.
inline void transpose_rows(const Pair* x, size_t x_stride, int inputs, int count, Pair* out, int k_pad) {
  constexpr int n = kLanes<Pair>;
  const int pairs = cells<Pair>(inputs);
  for (int p = 0; p < k_pad / 2; p += n)
    for (int s = 0; s < count; s += n) {
      Vec<Pair> row[n];
      for (int i = 0; i < n; ++i) row[i] = p + i < pairs ? load(x + (p + i) * x_stride + s) : Vec<Pair>{};
      transpose<Pair>(row);
      for (int i = 0; i < n && s + i < count; i += 2) {
        const Vec<Pair> a = row[i], b = s + i + 1 < count ? row[i + 1] : Vec<Pair>{};
        Pair* at = out + size_t(s + i) / 2 * k_pad + 2 * p;
        store(at, (a & 0xFFFFu) | (b << 16));
        store(at + n, (a >> 16) | (b & 0xFFFF0000u));
      }
    }
}
// Where a row of dW holds feature k.
template <class X>
constexpr int column_of(int k) {
  constexpr int n = kPer<X> * kLanes<X>;
  return kPer<X> == 1 ? k : k / n * n + k % 2 * kLanes<X> + k % n / 2;
}

template <int kRows, int kVecs, class X>
LF_INLINE void outer_block(const X* dy, size_t dy_stride, const X* xt, int k_pad, int steps, NumberOf<X>* dw) {
  typedef NumberOf<X> T;
  constexpr int n = kLanes<X>;
  Vec<T> sum[kRows][kVecs];
  _Pragma("GCC unroll 16")
  for (int j = 0; j < kRows; ++j)
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kVecs; ++v) sum[j][v] = Vec<T>{};
  for (int s = 0; s < steps; ++s) {
    Vec<X> in[kVecs];
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kVecs; ++v) in[v] = load(xt + size_t(s) * k_pad + v * n);
    _Pragma("GCC unroll 16")
    for (int j = 0; j < kRows; ++j) {
      Vec<X> g = splat(dy[j * dy_stride + s]);
      _Pragma("GCC unroll 16")
      for (int v = 0; v < kVecs; ++v) multiply_add(sum[j][v], g, in[v]);
    }
  }
  _Pragma("GCC unroll 16")
  for (int j = 0; j < kRows; ++j)
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kVecs; ++v) {
      T* p = dw + size_t(j) * k_pad + v * n;
      store(p, load(p) + sum[j][v]);
    }
}

template <int kRows, class X>
LF_INLINE void outer_rows(const X* dy, size_t dy_stride, const X* xt, int k_pad, int steps, NumberOf<X>* dw) {
  constexpr int n = kLanes<X>;
  constexpr int kMost = kManyRegisters ? 4 : 2;
  int k = 0;
  for (; k + kMost * n <= k_pad; k += kMost * n) outer_block<kRows, kMost>(dy, dy_stride, xt + k, k_pad, steps, dw + k);
  if (kMost > 2 && k + 2 * n <= k_pad) {
    outer_block<kRows, 2>(dy, dy_stride, xt + k, k_pad, steps, dw + k);
    k += 2 * n;
  }
  for (; k < k_pad; k += n) outer_block<kRows, 1>(dy, dy_stride, xt + k, k_pad, steps, dw + k);
}

// dw [outputs][k_pad] += sum over samples of dY[j][s] X^T[s][k]; with pairs, dy and xt hold two samples in a cell.
template <class X>
void outer(const X* dy, size_t dy_stride, int outputs, const X* xt, int k_pad, int count, NumberOf<X>* dw) {
  constexpr int kRows = kManyRegisters ? 6 : 4;
  const int steps = cells<X>(count);
  int j = 0;
  auto rows = [&](auto some) {
    constexpr int r = decltype(some)::value;
    outer_rows<r>(dy + j * dy_stride, dy_stride, xt, k_pad, steps, dw + size_t(j) * k_pad);
    j += r;
  };
  while (j + kRows <= outputs) rows(std::integral_constant<int, kRows>{});
  if (kRows > 4 && j + 4 <= outputs) rows(std::integral_constant<int, 4>{});
  while (j + 2 <= outputs) rows(std::integral_constant<int, 2>{});
  while (j < outputs) rows(std::integral_constant<int, 1>{});
}

// ---- Gradients by a layer's outputs ---------------------------------------------------------------------------------

// dY as the two products above read it: rows of cells for dX, and for dW cells along the samples. Numbers serve both as they are.
template <class X>
struct Slope {
  const X* by_feature;
  size_t by_feature_stride;
  const X* by_sample;
  size_t by_sample_stride;
};

template <class X>
LF_INLINE Slope<X> slope_of(const X* rows, size_t stride, int, int, X*, size_t) {
  return Slope<X>{rows, stride, rows, stride};
}
// dX behind a ReLU: the gradient passes where the stored activation is positive.
template <class T>
LF_INLINE Slope<T> masked_slope(T* dx, size_t dx_stride, const T* active, size_t stride, int width, int count, T*, size_t) {
  const Vec<T> zero{};
  for (int k = 0; k < width; ++k)
    for (int i = 0; i < count; i += kLanes<T>) {
      T* at = dx + k * dx_stride + i;
      store(at, load(active + k * stride + i) > zero ? load(at) : zero);
    }
  return Slope<T>{dx, dx_stride, dx, dx_stride};
}

// The same for pairs: `spare` takes both forms, by feature in its first half and by sample in its second.
template <bool kMasked>
LF_INLINE Slope<Pair> rounded_slope(const float* dx, size_t dx_stride, const Pair* active, size_t stride, int width, int count,
                                    Pair* spare, size_t tile_stride) {
  constexpr int n = kLanes<Pair>;
  const size_t row = tile_stride / 2;  // of samples in pairs
  Pair* by_sample = spare + size_t(cells<Pair>(width)) * tile_stride;
  const Vec<float> zero{};
  for (int k = 0; k < width; k += 2)
    for (int i = 0; i < count; i += n) {
      Vec<float> low = load(dx + k * dx_stride + i), high = k + 1 < width ? load(dx + (k + 1) * dx_stride + i) : zero;
      if (kMasked) {
        const Vec<Pair> on = load(active + k / 2 * stride + i);
        low = (on & 0xFFFFu) != 0 ? low : zero;
        high = (on >> 16) != 0 ? high : zero;
      }
      store(spare + k / 2 * tile_stride + i, pair_of(low, high));
      store_rounded(by_sample + k * row + i / 2, low);
      if (k + 1 < width) store_rounded(by_sample + (k + 1) * row + i / 2, high);
    }
  return Slope<Pair>{spare, tile_stride, by_sample, row};
}
template <class X>
LF_INLINE Slope<Pair> slope_of(const float* rows, size_t stride, int width, int count, Pair* spare, size_t tile_stride) {
  return rounded_slope<false>(rows, stride, nullptr, 0, width, count, spare, tile_stride);
}
LF_INLINE Slope<Pair> masked_slope(float* dx, size_t dx_stride, const Pair* active, size_t stride, int width, int count, Pair* spare,
                                   size_t tile_stride) {
  return rounded_slope<true>(dx, dx_stride, active, stride, width, count, spare, tile_stride);
}

// ---- A whole network ------------------------------------------------------------------------------------------------

// Packed weights of a network, forward and transposed, and the layout of its gradient. X: the cells of its inputs and hidden
// layers; its outputs, and all gradients by activations, are numbers.
template <class X>
struct Network {
  typedef NumberOf<X> T;
  Shape shape;
  const X* forward[kMaxLayers];
  const X* backward[kMaxLayers];
  size_t gradient_offset[kMaxLayers + 1];  // into a buffer of [outputs][padded inputs] matrices

  static size_t packed_size(const Shape& shape) {
    size_t total = 0;
    for (int l = 0; l < shape.layers; ++l)
      total += size_t(cells<X>(shape.width[l])) * shape.width[l + 1] + size_t(cells<X>(shape.width[l + 1])) * shape.width[l];
    return total;
  }
  static size_t gradient_size(const Shape& shape) {
    size_t total = 0;
    for (int l = 0; l < shape.layers; ++l) total += size_t(shape.width[l + 1]) * padded<X>(shape.width[l]);
    return total;
  }
  static int widest(const Shape& shape) {
    int most = 0;
    for (int l = 0; l <= shape.layers; ++l) most = max(most, shape.width[l]);
    return most;
  }

  void build(const Shape& s, const T* const* weight, X* storage) {
    shape = s;
    gradient_offset[0] = 0;
    for (int l = 0; l < s.layers; ++l) {
      int in = s.width[l], out = s.width[l + 1];
      if (l + 1 < s.layers)
        pack<X>(weight[l], out, in, false, storage);
      else
        pack<T>(weight[l], out, in, false, storage);
      forward[l] = storage;
      storage += size_t(cells<X>(in)) * out;
      pack<T>(weight[l], in, out, true, storage);
      backward[l] = storage;
      storage += size_t(cells<X>(out)) * in;
      gradient_offset[l + 1] = gradient_offset[l] + size_t(out) * padded<X>(in);
    }
  }

  // rows[l] is the input of layer l, `out` the output of the last; all with the same stride.
  void run(X* const* rows, T* out, size_t stride, int count) const {
    const int last = shape.layers - 1;
    for (int s = 0; s < count; s += kTile) {
      int c = min(kTile, count - s);
      for (int l = 0; l < last; ++l)
        product(forward[l], shape.width[l], shape.width[l + 1], rows[l] + s, stride, rows[l + 1] + s, stride, c, true);
      product(forward[last], shape.width[last], shape.width[last + 1], rows[last] + s, stride, out + s, stride, c, false);
    }
  }

  // In numbers or cells, whichever is larger.
  static size_t backward_scratch(const Shape& shape) {
    return size_t(kTile + kLanes<X>) * (3 * size_t(widest(shape) + 1) + padded<X>(widest(shape)));
  }

  // d_out rows [outputs] with stride, samples beyond `count` up to a whole vector must be zero. Accumulates into
  // gradient (layout above) and, where d_in is given, writes the gradient of the first `d_in_rows` inputs.
  void run_backward(const X* const* rows, size_t stride, int count, const T* d_out, size_t d_out_stride, T* d_in,
                    size_t d_in_stride, int d_in_rows, T* gradient, T* scratch) const {
    constexpr size_t tile_stride = kTile + kLanes<X>;  // the extra vector keeps rows off one cache set
    const size_t block = tile_stride * size_t(widest(shape) + 1);
    T* ping = scratch;
    T* pong = ping + block;
    X* spare = reinterpret_cast<X*>(pong + block);
    X* xt = spare + block;
    for (int s = 0; s < count; s += kTile) {
      int c = min(kTile, count - s);
      int whole = (c + kLanes<X> - 1) / kLanes<X> * kLanes<X>;
      const int outputs = shape.width[shape.layers];
      Slope<X> dy = slope_of<X>(d_out + s, d_out_stride, outputs, whole, spare, tile_stride);
      for (int l = shape.layers - 1; l >= 0; --l) {
        int in = shape.width[l], out = shape.width[l + 1];
        transpose_rows(rows[l] + s, stride, in, kPer<X> == 1 ? whole : c, xt, padded<X>(in));
        outer(dy.by_sample, dy.by_sample_stride, out, xt, padded<X>(in), c, gradient + gradient_offset[l]);
        if (l == 0 && !d_in) break;
        T* dx = l == 0 ? d_in + s : ping;
        size_t dx_stride = l == 0 ? d_in_stride : tile_stride;
        product(backward[l], out, l == 0 ? d_in_rows : in, dy.by_feature, dy.by_feature_stride, dx, dx_stride, c, false);
        if (l > 0) {
          dy = masked_slope(dx, dx_stride, rows[l] + s, stride, in, whole, spare, tile_stride);
          T* swap = ping;
          ping = pong;
          pong = swap;
        }
      }
    }
  }

  // From the padded gradient layout into plain [outputs][inputs] matrices, multiplied by `factor`.
  void unpack_gradient(const T* gradient, T factor, T* const* out) const {
    for (int l = 0; l < shape.layers; ++l) {
      int in = shape.width[l], pad = padded<X>(in);
      for (int j = 0; j < shape.width[l + 1]; ++j)
        for (int k = 0; k < in; ++k)
          out[l][size_t(j) * in + k] += factor * gradient[gradient_offset[l] + size_t(j) * pad + column_of<X>(k)];
    }
  }
};

}  // namespace LF_ISA
}  // namespace lf
