// Small fully connected networks without biases: ReLU between layers, linear output.
//
// Activations are feature-major: row k holds feature k of all samples of a tile, and vector lanes are samples. So the
// encoding writes rows, activations are elementwise, and a layer is  Y[j][s] = sum_k W[j][k] X[k][s]  with W broadcast.
// The three products of training, per layer:
//   forward   Y  = W X          rows of X streamed, a block of kOut x kWide accumulators in registers
//   input     dX = W^T dY       the same kernel on transposed weights
//   weights   dW = dY X^T       lanes are input features, so X is transposed in tiles; no horizontal sums
#pragma once
#include "simd.h"

namespace lf {
namespace LF_ISA {

constexpr int kMaxLayers = 8;
constexpr int kTile = 96;  // samples whose activations stay in L1

struct Shape {
  int layers;                  // number of weight matrices
  int width[kMaxLayers + 1];   // width[0] inputs, width[layers] outputs
};

// ---- Y = W X ----------------------------------------------------------------------------------------------------

template <class T, int kOut, int kWide>
LF_INLINE void product_block(const T* weight, int inputs, const T* x, size_t x_stride, T* y, size_t y_stride, bool relu) {
  constexpr int n = kLanes<T>;
  Vec<T> sum[kOut][kWide];
  _Pragma("GCC unroll 16")
  for (int j = 0; j < kOut; ++j)
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kWide; ++v) sum[j][v] = Vec<T>{};
  for (int k = 0; k < inputs; ++k) {
    Vec<T> in[kWide];
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kWide; ++v) in[v] = load(x + k * x_stride + v * n);
    _Pragma("GCC unroll 16")
    for (int j = 0; j < kOut; ++j) {
      Vec<T> w = splat(weight[k * kOut + j]);
      _Pragma("GCC unroll 16")
      for (int v = 0; v < kWide; ++v) sum[j][v] += w * in[v];
    }
  }
  const Vec<T> zero{};
  _Pragma("GCC unroll 16")
  for (int j = 0; j < kOut; ++j)
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kWide; ++v) store(y + j * y_stride + v * n, relu ? (sum[j][v] > zero ? sum[j][v] : zero) : sum[j][v]);
}

constexpr int kOutBlock = kManyRegisters ? 8 : 4;

template <class T, int kWide>
LF_INLINE void product_columns(const T* packed, int inputs, int outputs, const T* x, size_t x_stride, T* y,
                               size_t y_stride, bool relu) {
  int j = 0;
  for (; j + kOutBlock <= outputs; j += kOutBlock, packed += size_t(kOutBlock) * inputs)
    product_block<T, kOutBlock, kWide>(packed, inputs, x, x_stride, y + j * y_stride, y_stride, relu);
  if (kOutBlock > 4 && j + 4 <= outputs) {
    product_block<T, 4, kWide>(packed, inputs, x, x_stride, y + j * y_stride, y_stride, relu);
    packed += size_t(4) * inputs;
    j += 4;
  }
  for (; j < outputs; ++j, packed += inputs)
    product_block<T, 1, kWide>(packed, inputs, x, x_stride, y + j * y_stride, y_stride, relu);
}

// Columns come in whole vectors: `count` is rounded up, and every buffer has room for that.
template <class T>
void product(const T* packed, int inputs, int outputs, const T* x, size_t x_stride, T* y, size_t y_stride, int count,
             bool relu) {
  constexpr int n = kLanes<T>;
  int s = 0;
  for (; s + 2 * n < count; s += 3 * n)
    product_columns<T, 3>(packed, inputs, outputs, x + s, x_stride, y + s, y_stride, relu);
  if (count - s > n)
    product_columns<T, 2>(packed, inputs, outputs, x + s, x_stride, y + s, y_stride, relu);
  else if (count - s > 0)
    product_columns<T, 1>(packed, inputs, outputs, x + s, x_stride, y + s, y_stride, relu);
}

// Weights [outputs][inputs] in the order in which product() reads them: blocks of outputs, input-major inside.
// With `transposed`, the packed matrix is W^T: `outputs` and `inputs` then name the shape of W^T.
template <class T>
void pack(const T* weight, int outputs, int inputs, bool transposed, T* packed) {
  auto at = [&](int j, int k) { return transposed ? weight[size_t(k) * outputs + j] : weight[size_t(j) * inputs + k]; };
  int j = 0;
  auto block = [&](int rows) {
    for (int k = 0; k < inputs; ++k)
      for (int i = 0; i < rows; ++i) *packed++ = at(j + i, k);
    j += rows;
  };
  while (j + kOutBlock <= outputs) block(kOutBlock);
  if (kOutBlock > 4 && j + 4 <= outputs) block(4);
  while (j < outputs) block(1);
}

// ---- dW += dY X^T -----------------------------------------------------------------------------------------------

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

template <class T, int kRows, int kVecs>
LF_INLINE void outer_block(const T* dy, size_t dy_stride, const T* xt, int k_pad, int count, T* dw, int dw_stride) {
  constexpr int n = kLanes<T>;
  Vec<T> sum[kRows][kVecs];
  _Pragma("GCC unroll 16")
  for (int j = 0; j < kRows; ++j)
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kVecs; ++v) sum[j][v] = Vec<T>{};
  for (int s = 0; s < count; ++s) {
    Vec<T> in[kVecs];
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kVecs; ++v) in[v] = load(xt + size_t(s) * k_pad + v * n);
    _Pragma("GCC unroll 16")
    for (int j = 0; j < kRows; ++j) {
      Vec<T> g = splat(dy[j * dy_stride + s]);
      _Pragma("GCC unroll 16")
      for (int v = 0; v < kVecs; ++v) sum[j][v] += g * in[v];
    }
  }
  _Pragma("GCC unroll 16")
  for (int j = 0; j < kRows; ++j)
    _Pragma("GCC unroll 16")
    for (int v = 0; v < kVecs; ++v) {
      T* p = dw + size_t(j) * dw_stride + v * n;
      store(p, load(p) + sum[j][v]);
    }
}

template <class T, int kRows>
LF_INLINE void outer_rows(const T* dy, size_t dy_stride, const T* xt, int k_pad, int count, T* dw) {
  constexpr int n = kLanes<T>;
  constexpr int kMost = kManyRegisters ? 4 : 2;
  int k = 0;
  for (; k + kMost * n <= k_pad; k += kMost * n)
    outer_block<T, kRows, kMost>(dy, dy_stride, xt + k, k_pad, count, dw + k, k_pad);
  if (kMost > 2 && k + 2 * n <= k_pad) {
    outer_block<T, kRows, 2>(dy, dy_stride, xt + k, k_pad, count, dw + k, k_pad);
    k += 2 * n;
  }
  for (; k < k_pad; k += n) outer_block<T, kRows, 1>(dy, dy_stride, xt + k, k_pad, count, dw + k, k_pad);
}

// dw [outputs][k_pad] += sum over samples of dY[j][s] X^T[s][k].
template <class T>
void outer(const T* dy, size_t dy_stride, int outputs, const T* xt, int k_pad, int count, T* dw) {
  constexpr int kRows = kManyRegisters ? 6 : 4;
  int j = 0;
  for (; j + kRows <= outputs; j += kRows) outer_rows<T, kRows>(dy + j * dy_stride, dy_stride, xt, k_pad, count, dw + size_t(j) * k_pad);
  if (kRows > 4 && j + 4 <= outputs) {
    outer_rows<T, 4>(dy + j * dy_stride, dy_stride, xt, k_pad, count, dw + size_t(j) * k_pad);
    j += 4;
  }
  for (; j + 2 <= outputs; j += 2) outer_rows<T, 2>(dy + j * dy_stride, dy_stride, xt, k_pad, count, dw + size_t(j) * k_pad);
  for (; j < outputs; ++j) outer_rows<T, 1>(dy + j * dy_stride, dy_stride, xt, k_pad, count, dw + size_t(j) * k_pad);
}

// ---- A whole network ------------------------------------------------------------------------------------------------

template <class T>
constexpr int padded(int width) {
  return (width + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// Packed weights of a network, forward and transposed, and the layout of its gradient.
template <class T>
struct Network {
  Shape shape;
  const T* forward[kMaxLayers];
  const T* backward[kMaxLayers];
  size_t gradient_offset[kMaxLayers + 1];  // into a buffer of [outputs][padded inputs] matrices

  static size_t packed_size(const Shape& shape) {
    size_t total = 0;
    for (int l = 0; l < shape.layers; ++l) total += 2 * size_t(shape.width[l]) * shape.width[l + 1];
    return total;
  }
  static size_t gradient_size(const Shape& shape) {
    size_t total = 0;
    for (int l = 0; l < shape.layers; ++l) total += size_t(shape.width[l + 1]) * padded<T>(shape.width[l]);
    return total;
  }
  static int widest(const Shape& shape) {
    int most = 0;
    for (int l = 0; l <= shape.layers; ++l) most = max(most, shape.width[l]);
    return most;
  }

  void build(const Shape& s, const T* const* weight, T* storage) {
    shape = s;
    gradient_offset[0] = 0;
    for (int l = 0; l < s.layers; ++l) {
      int in = s.width[l], out = s.width[l + 1];
      pack(weight[l], out, in, false, storage);
      forward[l] = storage;
      storage += size_t(in) * out;
      pack(weight[l], in, out, true, storage);
      backward[l] = storage;
      storage += size_t(in) * out;
      gradient_offset[l + 1] = gradient_offset[l] + size_t(out) * padded<T>(in);
    }
  }

  // rows[0] is the input, rows[l] the output of layer l; all with the same stride.
  void run(T* const* rows, size_t stride, int count) const {
    for (int s = 0; s < count; s += kTile) {
      int c = min(kTile, count - s);
      for (int l = 0; l < shape.layers; ++l)
        product(forward[l], shape.width[l], shape.width[l + 1], rows[l] + s, stride, rows[l + 1] + s, stride, c,
                l + 1 < shape.layers);
    }
  }

  static size_t backward_scratch(const Shape& shape) {
    return size_t(kTile + kLanes<T>) * (2 * size_t(widest(shape)) + padded<T>(widest(shape)));
  }

  // d_out rows [outputs] with stride, samples beyond `count` up to a whole vector must be zero. Accumulates into
  // gradient (layout above) and, where d_in is given, writes the gradient of the first `d_in_rows` inputs.
  void run_backward(const T* const* rows, size_t stride, int count, const T* d_out, size_t d_out_stride, T* d_in,
                    size_t d_in_stride, int d_in_rows, T* gradient, T* scratch) const {
    constexpr size_t tile_stride = kTile + kLanes<T>;  // the extra vector keeps rows off one cache set
    T* ping = scratch;
    T* pong = ping + tile_stride * widest(shape);
    T* xt = pong + tile_stride * widest(shape);
    for (int s = 0; s < count; s += kTile) {
      int c = min(kTile, count - s);
      int whole = (c + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
      const T* dy = d_out + s;
      size_t dy_stride = d_out_stride;
      for (int l = shape.layers - 1; l >= 0; --l) {
        int in = shape.width[l], out = shape.width[l + 1];
        transpose_rows(rows[l] + s, stride, in, whole, xt, padded<T>(in));
        outer(dy, dy_stride, out, xt, padded<T>(in), c, gradient + gradient_offset[l]);
        if (l == 0 && !d_in) break;
        T* dx = l == 0 ? d_in + s : ping;
        size_t dx_stride = l == 0 ? d_in_stride : tile_stride;
        product(backward[l], out, l == 0 ? d_in_rows : in, dy, dy_stride, dx, dx_stride, c, false);
        if (l > 0) {  // ReLU: the gradient passes where the stored activation is positive
          for (int k = 0; k < in; ++k)
            for (int i = 0; i < whole; i += kLanes<T>) {
              Vec<T> h = load(rows[l] + k * stride + s + i), g = load(dx + k * dx_stride + i);
              store(dx + k * dx_stride + i, h > Vec<T>{} ? g : Vec<T>{});
            }
          T* swap = ping;
          ping = pong;
          pong = swap;
          dy = dx;
          dy_stride = dx_stride;
        }
      }
    }
  }

  // From the padded gradient layout into plain [outputs][inputs] matrices, multiplied by `factor`.
  void unpack_gradient(const T* gradient, T factor, T* const* out) const {
    for (int l = 0; l < shape.layers; ++l) {
      int in = shape.width[l], pad = padded<T>(in);
      for (int j = 0; j < shape.width[l + 1]; ++j)
        for (int k = 0; k < in; ++k) out[l][size_t(j) * in + k] += factor * gradient[gradient_offset[l] + size_t(j) * pad + k];
    }
  }
};

}  // namespace LF_ISA
}  // namespace lf
