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

// Gradient with respect to the positions: the derivative of the trilinear weights, summed over levels.
template <class T>
void position_gradient(const HashSpec& spec, const T* table, const T* x, const T* y, const T* z, int n, const T* d_rows,
                       size_t stride, T* dx, T* dy, T* dz) {
  const int F = spec.features;
  for (int s = 0; s < n; s += kEncodeTile) {
    const int c = min(kEncodeTile, n - s);
    for (int i = 0; i < c; ++i) dx[s + i] = dy[s + i] = dz[s + i] = T(0);
    for (int l = 0; l < spec.levels; ++l) {
      const T scale = T(spec.scale[l]);
      Cells<T, 8> cell;
      if (spec.kind == kLine) {
        Cells<T, 4> line;
        cells_line(spec, l, x + s, y + s, z + s, c, line);
        for (int i = 0; i < c; ++i) {
          cell.fx[i] = line.fx[i], cell.fy[i] = line.fy[i], cell.fz[i] = line.fz[i];
          for (int k = 0; k < 8; ++k) cell.row[k][i] = line.row[k >> 1][i] + (k & 1);
        }
      } else {
        cells_xor(spec, l, x + s, y + s, z + s, c, cell);
      }
      for (int i = 0; i < c; ++i) {
        T corner[8];
        for (int k = 0; k < 8; ++k) {
          corner[k] = T(0);
          for (int f = 0; f < F; ++f)
            corner[k] += table[size_t(cell.row[k][i]) * F + f] * d_rows[(size_t(l) * F + f) * stride + s + i];
        }
        const T fx = cell.fx[i], fy = cell.fy[i], fz = cell.fz[i], ex = T(1) - fx, ey = T(1) - fy, ez = T(1) - fz;
        dx[s + i] += scale * ((corner[1] - corner[0]) * ey * ez + (corner[3] - corner[2]) * fy * ez +
                              (corner[5] - corner[4]) * ey * fz + (corner[7] - corner[6]) * fy * fz);
        dy[s + i] += scale * ((corner[2] - corner[0]) * ex * ez + (corner[3] - corner[1]) * fx * ez +
                              (corner[6] - corner[4]) * ex * fz + (corner[7] - corner[5]) * fx * fz);
        dz[s + i] += scale * ((corner[4] - corner[0]) * ex * ey + (corner[5] - corner[1]) * fx * ey +
                              (corner[6] - corner[2]) * ex * fy + (corner[7] - corner[3]) * fx * fy);
      }
    }
  }
}

}  // namespace LF_ISA
}  // namespace lf
