// Multi-resolution hash encoding (Mueller et al. 2022, section 3), after the layout decisions in docs/write-a-kernel.md.
//
// Level l has scale s_l; a position x in [0,1]^3 falls into the cell floor(x s_l + 1/2), and the features of its eight
// corners are blended trilinearly. Two ways to find a corner's row in the table:
//   kXor   tiny-cuda-nn's: dense x + R(y + R z) while R^3 fits, else x ^ (y 2654435761) ^ (z 805459861), both mod rows.
//   kLine  the two corners along x are always neighbours in memory: x + h(y, z), where h hashes (or, dense, strides)
//          only y and z. Four loads of two corners replace eight of one. One spare row per level catches the last x.
// Work goes level by level over a tile of samples, so that one level's table stays in cache while it is read.
#pragma once
#include "simd.h"

namespace lf {

constexpr int kMaxLevels = 32;
enum HashKind : int { kXor = 0, kLine = 1 };

struct HashSpec {
  int levels, features, kind;
  int dense[kMaxLevels];
  uint32_t resolution[kMaxLevels];  // vertices per axis
  uint32_t rows[kMaxLevels];        // modulus of the index: a power of two where hashed
  int64_t first_row[kMaxLevels];
  double scale[kMaxLevels];
};

namespace LF_ISA {

constexpr int kEncodeTile = 128;
constexpr int kPrefetch = 16;  // samples between sending for a row of a table and using it

// Rows and trilinear fractions of a tile. `row` holds, per sample, the four (kLine) or eight (kXor) rows.
template <class T, int kCorners>
struct Cells {
  uint32_t row[kCorners][kEncodeTile + 16];
  T fx[kEncodeTile + 16], fy[kEncodeTile + 16], fz[kEncodeTile + 16];
};

template <class T>
LF_INLINE void cells_line(const HashSpec& spec, int l, const T* x, const T* y, const T* z, int n, Cells<T, 4>& out) {
  const T scale = T(spec.scale[l]);
  const uint32_t first = uint32_t(spec.first_row[l]);
  const uint32_t stride = spec.resolution[l] + 1;
  const uint32_t py = spec.dense[l] ? stride : 2654435761u, pz = spec.dense[l] ? stride * stride : 805459861u;
  const uint32_t mask = spec.dense[l] ? 0xFFFFFFFFu : spec.rows[l] - 1;
  for (int i = 0; i < n; ++i) {
    T a = x[i] * scale + T(0.5), b = y[i] * scale + T(0.5), c = z[i] * scale + T(0.5);
    int32_t ia = int32_t(a), ib = int32_t(b), ic = int32_t(c);  // positions are not negative: this is floor
    out.fx[i] = a - T(ia);
    out.fy[i] = b - T(ib);
    out.fz[i] = c - T(ic);
    uint32_t h0 = uint32_t(ib) * py, h1 = h0 + py, g0 = uint32_t(ic) * pz, g1 = g0 + pz;
    out.row[0][i] = first + ((uint32_t(ia) + h0 + g0) & mask);
    out.row[1][i] = first + ((uint32_t(ia) + h1 + g0) & mask);
    out.row[2][i] = first + ((uint32_t(ia) + h0 + g1) & mask);
    out.row[3][i] = first + ((uint32_t(ia) + h1 + g1) & mask);
  }
}

template <class T>
LF_INLINE void cells_xor(const HashSpec& spec, int l, const T* x, const T* y, const T* z, int n, Cells<T, 8>& out) {
  const T scale = T(spec.scale[l]);
  const uint32_t first = uint32_t(spec.first_row[l]), rows = spec.rows[l], res = spec.resolution[l];
  const bool dense = spec.dense[l];
  for (int i = 0; i < n; ++i) {
    T a = x[i] * scale + T(0.5), b = y[i] * scale + T(0.5), c = z[i] * scale + T(0.5);
    int32_t ia = int32_t(a), ib = int32_t(b), ic = int32_t(c);
    out.fx[i] = a - T(ia);
    out.fy[i] = b - T(ib);
    out.fz[i] = c - T(ic);
    for (int k = 0; k < 8; ++k) {
      uint32_t u = uint32_t(ia) + (k & 1), v = uint32_t(ib) + (k >> 1 & 1), w = uint32_t(ic) + (k >> 2);
      uint32_t index = dense ? u + res * (v + res * w) : u ^ (v * 2654435761u) ^ (w * 805459861u);
      out.row[k][i] = first + (dense ? index % rows : index & (rows - 1));
    }
  }
}

// Positions index tables, so what is not a number must not get that far: it becomes 0.
template <class T>
LF_INLINE T to_unit_interval(T x) {
  return x > T(0) ? (x < T(1) ? x : T(1)) : T(0);
}

template <class T, int F>
struct Group {  // the features of one row, or of two neighbouring rows
  typedef T one __attribute__((vector_size(F * sizeof(T))));
  typedef T two __attribute__((vector_size(2 * F * sizeof(T))));
};

// Features of level l for n samples, sample-major [n][F].
template <class T, int F>
LF_INLINE void gather_level(const HashSpec& spec, int l, const T* table, const T* x, const T* y, const T* z, int n, T* out) {
  if (spec.kind == kLine) {
    typedef typename Group<T, F>::two Pair;
    Cells<T, 4> cell;
    cells_line(spec, l, x, y, z, n, cell);
    for (int i = 0; i < n; ++i) {
      if (i + kPrefetch < n)
        for (int k = 0; k < 4; ++k) __builtin_prefetch(table + size_t(cell.row[k][i + kPrefetch]) * F);
      const T fy = cell.fy[i], fz = cell.fz[i], fx = cell.fx[i];
      const T w11 = fy * fz, w01 = fz - w11, w10 = fy - w11, w00 = T(1) - fy - w01;
      Pair a, b, c, d;
      __builtin_memcpy(&a, table + size_t(cell.row[0][i]) * F, sizeof a);
      __builtin_memcpy(&b, table + size_t(cell.row[1][i]) * F, sizeof b);
      __builtin_memcpy(&c, table + size_t(cell.row[2][i]) * F, sizeof c);
      __builtin_memcpy(&d, table + size_t(cell.row[3][i]) * F, sizeof d);
      Pair sum = (a * w00 + b * w10) + (c * w01 + d * w11);
      for (int f = 0; f < F; ++f) out[i * F + f] = sum[f] + fx * (sum[F + f] - sum[f]);
    }
  } else {
    Cells<T, 8> cell;
    cells_xor(spec, l, x, y, z, n, cell);
    for (int i = 0; i < n; ++i) {
      T sum[F] = {};
      for (int k = 0; k < 8; ++k) {
        const T w = (k & 1 ? cell.fx[i] : T(1) - cell.fx[i]) * (k & 2 ? cell.fy[i] : T(1) - cell.fy[i]) *
                    (k & 4 ? cell.fz[i] : T(1) - cell.fz[i]);
        const T* row = table + size_t(cell.row[k][i]) * F;
        for (int f = 0; f < F; ++f) sum[f] += w * row[f];
      }
      for (int f = 0; f < F; ++f) out[i * F + f] = sum[f];
    }
  }
}

// All levels into feature-major rows: row (l F + f) of `out` holds that feature of n samples (n <= any; tiled inside).
// Whole vectors are written, so the rows need room up to the next multiple of the lanes.
template <class T, int F>
void encode_rows_f(const HashSpec& spec, const T* table, const T* x, const T* y, const T* z, int n, T* out, size_t stride) {
  alignas(64) T block[(kEncodeTile + 16) * F];
  for (int s = 0; s < n; s += kEncodeTile) {
    const int c = min(kEncodeTile, n - s);
    for (int l = 0; l < spec.levels; ++l) {
      gather_level<T, F>(spec, l, table, x + s, y + s, z + s, c, block);
      T* row = out + size_t(l) * F * stride + s;
      for (int f = 0; f < F; ++f)
        for (int i = 0; i < c; ++i) row[f * stride + i] = block[i * F + f];
    }
  }
}

template <class T>
void encode_rows(const HashSpec& spec, const T* table, const T* x, const T* y, const T* z, int n, T* out, size_t stride) {
  switch (spec.features) {
    case 1: return encode_rows_f<T, 1>(spec, table, x, y, z, n, out, stride);
    case 2: return encode_rows_f<T, 2>(spec, table, x, y, z, n, out, stride);
    case 4: return encode_rows_f<T, 4>(spec, table, x, y, z, n, out, stride);
    case 8: return encode_rows_f<T, 8>(spec, table, x, y, z, n, out, stride);
  }
}

// Table gradient of one level, added up in sample order. Whoever calls owns the level, so there is nothing to lock.
// `touched` (may be null) gets a 1 for every line of 16 values that was written: Adam visits only those.
template <class T, int F>
LF_INLINE void scatter_level_f(const HashSpec& spec, int l, const T* x, const T* y, const T* z, int n, const T* d_rows,
                               size_t stride, T factor, T* gradient, uint8_t* touched) {
  alignas(64) T block[kEncodeTile * F];
  d_rows += size_t(l) * F * stride;
  for (int s = 0; s < n; s += kEncodeTile) {
    const int c = min(kEncodeTile, n - s);
    for (int f = 0; f < F; ++f)
      for (int i = 0; i < c; ++i) block[i * F + f] = factor * d_rows[f * stride + s + i];
    if (spec.kind == kLine) {
      typedef typename Group<T, F>::two Pair;
      Cells<T, 4> cell;
      cells_line(spec, l, x + s, y + s, z + s, c, cell);
      for (int i = 0; i < c; ++i) {
        if (i + kPrefetch < c)
          for (int k = 0; k < 4; ++k) __builtin_prefetch(gradient + size_t(cell.row[k][i + kPrefetch]) * F, 1);
        Pair g;
        for (int f = 0; f < F; ++f) {
          g[F + f] = cell.fx[i] * block[i * F + f];
          g[f] = block[i * F + f] - g[F + f];
        }
        const T fy = cell.fy[i], fz = cell.fz[i];
        const T w11 = fy * fz, w01 = fz - w11, w10 = fy - w11, w00 = T(1) - fy - w01;
        const T weight[4] = {w00, w10, w01, w11};
        for (int k = 0; k < 4; ++k) {
          const size_t at = size_t(cell.row[k][i]) * F;
          Pair value;
          __builtin_memcpy(&value, gradient + at, sizeof value);
          value += g * weight[k];
          __builtin_memcpy(gradient + at, &value, sizeof value);
          if (touched) touched[at / 16] = 1, touched[(at + 2 * F - 1) / 16] = 1;
        }
      }
    } else {
      Cells<T, 8> cell;
      cells_xor(spec, l, x + s, y + s, z + s, c, cell);
      for (int i = 0; i < c; ++i)
        for (int k = 0; k < 8; ++k) {
          const T w = (k & 1 ? cell.fx[i] : T(1) - cell.fx[i]) * (k & 2 ? cell.fy[i] : T(1) - cell.fy[i]) *
                      (k & 4 ? cell.fz[i] : T(1) - cell.fz[i]);
          const size_t at = size_t(cell.row[k][i]) * F;
          for (int f = 0; f < F; ++f) gradient[at + f] += w * block[i * F + f];
          if (touched) touched[at / 16] = 1;
        }
    }
  }
}

template <class T>
void scatter_level(const HashSpec& spec, int l, const T* x, const T* y, const T* z, int n, const T* d_rows, size_t stride,
                   T factor, T* gradient, uint8_t* touched) {
  switch (spec.features) {
    case 1: return scatter_level_f<T, 1>(spec, l, x, y, z, n, d_rows, stride, factor, gradient, touched);
    case 2: return scatter_level_f<T, 2>(spec, l, x, y, z, n, d_rows, stride, factor, gradient, touched);
    case 4: return scatter_level_f<T, 4>(spec, l, x, y, z, n, d_rows, stride, factor, gradient, touched);
    case 8: return scatter_level_f<T, 8>(spec, l, x, y, z, n, d_rows, stride, factor, gradient, touched);
  }
}

// What follows differentiates by the positions. A cell of either layout is seen as four pairs of corners, neighbours along
// x; the pairs are blended by y and z, the two halves of the result by x.
template <class T, int F, bool kIsLine>
struct Pairs {
  typedef typename Group<T, F>::one One;
  typedef typename Group<T, F>::two Two;
  Cells<T, kIsLine ? 4 : 8> cell;

  LF_INLINE void find(const HashSpec& spec, int l, const T* x, const T* y, const T* z, int n) {
    if constexpr (kIsLine)
      cells_line(spec, l, x, y, z, n, cell);
    else
      cells_xor(spec, l, x, y, z, n, cell);
  }
  LF_INLINE void load(const T* table, int pair, int i, One& low, One& high) const {
    const T* at = table + size_t(cell.row[kIsLine ? pair : 2 * pair][i]) * F;
    __builtin_memcpy(&low, at, sizeof low);
    __builtin_memcpy(&high, kIsLine ? at + F : table + size_t(cell.row[kIsLine ? 0 : 2 * pair + 1][i]) * F, sizeof high);
  }
  LF_INLINE void add(T* table, int pair, int i, One low, One high) const {
    add_row(table + size_t(cell.row[kIsLine ? pair : 2 * pair][i]) * F, low);
    add_row(kIsLine ? table + size_t(cell.row[pair][i] + 1) * F : table + size_t(cell.row[kIsLine ? 0 : 2 * pair + 1][i]) * F, high);
  }
  static LF_INLINE void add_row(T* at, One value) {
    One sum;
    __builtin_memcpy(&sum, at, sizeof sum);
    sum += value;
    __builtin_memcpy(at, &sum, sizeof sum);
  }
};

// Weights of the four pairs, in the order of their rows, and the derivatives of the weights by fy and by fz.
template <class T>
struct PairWeights {
  T value[4], by_y[4], by_z[4];
  LF_INLINE PairWeights(T fy, T fz) {
    const T ey = T(1) - fy, ez = T(1) - fz;
    value[0] = ey * ez, value[1] = fy * ez, value[2] = ey * fz, value[3] = fy * fz;
    by_y[0] = -ez, by_y[1] = ez, by_y[2] = -fz, by_y[3] = fz;
    by_z[0] = -ey, by_z[1] = -fy, by_z[2] = ey, by_z[3] = fy;
  }
};

// Samples [n][F] of one level from its feature-major rows.
template <class T, int F>
LF_INLINE void level_block(const T* rows, size_t stride, int n, T* block) {
  for (int f = 0; f < F; ++f)
    for (int i = 0; i < n; ++i) block[i * F + f] = rows[f * stride + i];
}

template <class T, int F>
LF_INLINE T dot(typename Group<T, F>::one a, typename Group<T, F>::one b) {
  a *= b;
  T sum = a[0];
  for (int f = 1; f < F; ++f) sum += a[f];
  return sum;
}

// First derivative: the gradient with respect to the positions of sum(d_rows * features), over all levels.
template <class T, int F, bool kIsLine>
LF_INLINE void position_gradient_f(const HashSpec& spec, const T* table, const T* x, const T* y, const T* z, int n,
                                   const T* d_rows, size_t stride, T* dx, T* dy, T* dz) {
  typedef Pairs<T, F, kIsLine> P;
  typedef typename P::One One;
  alignas(64) T block[(kEncodeTile + 16) * F];
  P pairs;
  for (int s = 0; s < n; s += kEncodeTile) {
    const int c = min(kEncodeTile, n - s);
    for (int i = 0; i < c; ++i) dx[s + i] = dy[s + i] = dz[s + i] = T(0);
    for (int l = 0; l < spec.levels; ++l) {
      const T scale = T(spec.scale[l]);
      pairs.find(spec, l, x + s, y + s, z + s, c);
      level_block<T, F>(d_rows + size_t(l) * F * stride + s, stride, c, block);
      for (int i = 0; i < c; ++i) {
        const T fx = pairs.cell.fx[i];
        const PairWeights<T> weight(pairs.cell.fy[i], pairs.cell.fz[i]);
        One by_x{}, by_y{}, by_z{};
        for (int k = 0; k < 4; ++k) {
          One low, high;
          pairs.load(table, k, i, low, high);
          const One step = high - low, middle = low + step * fx;
          by_x += step * weight.value[k];
          by_y += middle * weight.by_y[k];
          by_z += middle * weight.by_z[k];
        }
        One d;
        __builtin_memcpy(&d, block + i * F, sizeof d);
        dx[s + i] += scale * dot<T, F>(by_x, d);
        dy[s + i] += scale * dot<T, F>(by_y, d);
        dz[s + i] += scale * dot<T, F>(by_z, d);
      }
    }
  }
}

// Second derivatives. With g = the gradient above and a direction v per sample, all three are of v . g:
//   by d_rows     the derivative of the features along v                           (tangent_rows_f)
//   by the table  the trilinear weights' derivative along v, times d_rows          (scatter_tangent_f)
//   by x          the mixed second derivatives of the blend; the pure ones are 0   (position_curvature_f)
template <class T, int F, bool kIsLine>
LF_INLINE void tangent_rows_f(const HashSpec& spec, const T* table, const T* x, const T* y, const T* z, int n, const T* vx,
                              const T* vy, const T* vz, T* out, size_t stride) {
  typedef Pairs<T, F, kIsLine> P;
  typedef typename P::One One;
  alignas(64) T block[(kEncodeTile + 16) * F];
  P pairs;
  for (int s = 0; s < n; s += kEncodeTile) {
    const int c = min(kEncodeTile, n - s);
    for (int l = 0; l < spec.levels; ++l) {
      const T scale = T(spec.scale[l]);
      pairs.find(spec, l, x + s, y + s, z + s, c);
      for (int i = 0; i < c; ++i) {
        const T fx = pairs.cell.fx[i], a = scale * vx[s + i], b = scale * vy[s + i], d = scale * vz[s + i];
        const PairWeights<T> weight(pairs.cell.fy[i], pairs.cell.fz[i]);
        One sum{};
        for (int k = 0; k < 4; ++k) {
          One low, high;
          pairs.load(table, k, i, low, high);
          const One step = high - low;
          sum += step * (a * weight.value[k]) + (low + step * fx) * (b * weight.by_y[k] + d * weight.by_z[k]);
        }
        __builtin_memcpy(block + i * F, &sum, sizeof sum);
      }
      T* row = out + size_t(l) * F * stride + s;
      for (int f = 0; f < F; ++f)
        for (int i = 0; i < c; ++i) row[f * stride + i] = block[i * F + f];
    }
  }
}

// One level; whoever calls owns it, as in scatter_level.
template <class T, int F, bool kIsLine>
LF_INLINE void scatter_tangent_f(const HashSpec& spec, int l, const T* x, const T* y, const T* z, int n, const T* vx,
                                 const T* vy, const T* vz, const T* d_rows, size_t stride, T* gradient) {
  typedef Pairs<T, F, kIsLine> P;
  typedef typename P::One One;
  alignas(64) T block[(kEncodeTile + 16) * F];
  P pairs;
  const T scale = T(spec.scale[l]);
  for (int s = 0; s < n; s += kEncodeTile) {
    const int c = min(kEncodeTile, n - s);
    pairs.find(spec, l, x + s, y + s, z + s, c);
    level_block<T, F>(d_rows + size_t(l) * F * stride + s, stride, c, block);
    for (int i = 0; i < c; ++i) {
      const T fx = pairs.cell.fx[i], a = scale * vx[s + i], b = scale * vy[s + i], e = scale * vz[s + i];
      const PairWeights<T> weight(pairs.cell.fy[i], pairs.cell.fz[i]);
      One d;
      __builtin_memcpy(&d, block + i * F, sizeof d);
      for (int k = 0; k < 4; ++k) {
        const T along_x = a * weight.value[k], across = b * weight.by_y[k] + e * weight.by_z[k];
        pairs.add(gradient, k, i, d * (across * (T(1) - fx) - along_x), d * (across * fx + along_x));
      }
    }
  }
}

template <class T, int F, bool kIsLine>
LF_INLINE void position_curvature_f(const HashSpec& spec, const T* table, const T* x, const T* y, const T* z, int n,
                                    const T* vx, const T* vy, const T* vz, const T* d_rows, size_t stride, T* dx, T* dy, T* dz) {
  typedef Pairs<T, F, kIsLine> P;
  typedef typename P::One One;
  alignas(64) T block[(kEncodeTile + 16) * F];
  P pairs;
  for (int s = 0; s < n; s += kEncodeTile) {
    const int c = min(kEncodeTile, n - s);
    for (int i = 0; i < c; ++i) dx[s + i] = dy[s + i] = dz[s + i] = T(0);
    for (int l = 0; l < spec.levels; ++l) {
      const T square = T(spec.scale[l]) * T(spec.scale[l]);
      pairs.find(spec, l, x + s, y + s, z + s, c);
      level_block<T, F>(d_rows + size_t(l) * F * stride + s, stride, c, block);
      for (int i = 0; i < c; ++i) {
        const PairWeights<T> weight(pairs.cell.fy[i], pairs.cell.fz[i]);
        One d;
        __builtin_memcpy(&d, block + i * F, sizeof d);
        T low[4], step[4];
        for (int k = 0; k < 4; ++k) {
          One lows, highs;
          pairs.load(table, k, i, lows, highs);
          low[k] = dot<T, F>(lows, d), step[k] = dot<T, F>(highs, d) - low[k];
        }
        T xy = T(0), xz = T(0);
        for (int k = 0; k < 4; ++k) xy += step[k] * weight.by_y[k], xz += step[k] * weight.by_z[k];
        const T fx = pairs.cell.fx[i];
        const T yz = (low[0] - low[1] - low[2] + low[3]) + fx * (step[0] - step[1] - step[2] + step[3]);
        dx[s + i] += square * (vy[s + i] * xy + vz[s + i] * xz);
        dy[s + i] += square * (vx[s + i] * xy + vz[s + i] * yz);
        dz[s + i] += square * (vx[s + i] * xz + vy[s + i] * yz);
      }
    }
  }
}

// Chooses the instance of a function template above for a grid's features and layout.
#define LF_FOR_GRID(function, ...)                                                                              \
  switch (spec.features) {                                                                                      \
    case 1: return spec.kind == kLine ? function<T, 1, true>(__VA_ARGS__) : function<T, 1, false>(__VA_ARGS__); \
    case 2: return spec.kind == kLine ? function<T, 2, true>(__VA_ARGS__) : function<T, 2, false>(__VA_ARGS__); \
    case 4: return spec.kind == kLine ? function<T, 4, true>(__VA_ARGS__) : function<T, 4, false>(__VA_ARGS__); \
    case 8: return spec.kind == kLine ? function<T, 8, true>(__VA_ARGS__) : function<T, 8, false>(__VA_ARGS__); \
  }

template <class T>
void position_gradient(const HashSpec& spec, const T* table, const T* x, const T* y, const T* z, int n, const T* d_rows,
                       size_t stride, T* dx, T* dy, T* dz) {
  LF_FOR_GRID(position_gradient_f, spec, table, x, y, z, n, d_rows, stride, dx, dy, dz)
}
template <class T>
void tangent_rows(const HashSpec& spec, const T* table, const T* x, const T* y, const T* z, int n, const T* vx, const T* vy,
                  const T* vz, T* out, size_t stride) {
  LF_FOR_GRID(tangent_rows_f, spec, table, x, y, z, n, vx, vy, vz, out, stride)
}
template <class T>
void scatter_tangent(const HashSpec& spec, int l, const T* x, const T* y, const T* z, int n, const T* vx, const T* vy,
                     const T* vz, const T* d_rows, size_t stride, T* gradient) {
  LF_FOR_GRID(scatter_tangent_f, spec, l, x, y, z, n, vx, vy, vz, d_rows, stride, gradient)
}
template <class T>
void position_curvature(const HashSpec& spec, const T* table, const T* x, const T* y, const T* z, int n, const T* vx,
                        const T* vy, const T* vz, const T* d_rows, size_t stride, T* dx, T* dy, T* dz) {
  LF_FOR_GRID(position_curvature_f, spec, table, x, y, z, n, vx, vy, vz, d_rows, stride, dx, dy, dz)
}

#undef LF_FOR_GRID

}  // namespace LF_ISA
}  // namespace lf
