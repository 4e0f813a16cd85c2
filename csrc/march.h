// Occupancy grid and ray marching.
//
// The grid is a pyramid of cascades around the origin of the scene: cascade k covers the cube [-2^k, 2^k]^3 with G^3
// cells, so cells grow with distance as pixels do. Occupancy is one bit per cell, 64 bits to a 4x4x4 block, so that one
// load tests a cell and an all-zero word skips a block. A point belongs to the finest cascade that contains it.
#pragma once
#include "simd.h"

namespace lf {

struct GridShape {
  int cascades;  // 1 for a bounded scene
  int size;      // cells per axis, a multiple of 4
};

// The bits of a pyramid with a summary: a byte per 16x16x16 cells, zero where all of them are empty. Most of a scene is
// air, and a ray crosses it in a few such strides. Null where cells of two cascades would share a stride.
struct Occupancy {
  const uint64_t* bits;
  const uint8_t* summary;
};

constexpr int kStride = 16;  // cells along an edge of what the summary tells of

namespace LF_ISA {

LF_INLINE int cascade_of(float reach, int cascades) {
  // Smallest k with 2^k >= reach, from the exponent bits.
  uint32_t bits;
  __builtin_memcpy(&bits, &reach, 4);
  int k = int((bits + 0x7FFFFF) >> 23) - 127;
  return k < 0 ? 0 : min(k, cascades - 1);
}

LF_INLINE float power_of_two(int k) {
  const uint32_t bits = uint32_t(127 + k) << 23;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

LF_INLINE int64_t cell_index(int k, int ix, int iy, int iz, int size) {  // block-major: word * 64 + bit
  const uint32_t blocks = uint32_t(size) / 4;
  const int64_t word = ((uint32_t(k) * blocks + uint32_t(iz) / 4) * blocks + uint32_t(iy) / 4) * blocks + uint32_t(ix) / 4;
  return word * 64 + ((iz & 3) * 4 + (iy & 3)) * 4 + (ix & 3);
}

// Cell that holds a point; the point must lie inside the outermost cascade (it is clamped to it).
LF_INLINE int64_t cell_at(const GridShape& grid, float x, float y, float z) {
  const int k = cascade_of(max(max(abs(x), abs(y)), abs(z)), grid.cascades);
  const float half = 0.5f * float(grid.size), cells = half * power_of_two(-k);
  const int top = grid.size - 1;
  const int ix = clamp(int(x * cells + half), 0, top), iy = clamp(int(y * cells + half), 0, top),
            iz = clamp(int(z * cells + half), 0, top);
  return cell_index(k, ix, iy, iz, grid.size);
}

struct Stepping {
  double step;         // shortest step, scene units
  double cone;         // a step is at least cone * t: cells and pixels both grow with distance
};

// Where a ray's walk has got to. Walking is done in portions, so that what lies behind a surface is never visited.
template <class T>
struct Walk {
  T t, far;
};

// Distances along the ray at which a box [-half, half]^3 is entered and left; near > far where it is missed.
template <class T>
LF_INLINE void box_range(const T* o, const T* d, T half, T& near, T& far) {
  for (int a = 0; a < 3; ++a) {
    const T inverse = T(1) / (abs(d[a]) < T(1e-12) ? (d[a] < 0 ? T(-1e-12) : T(1e-12)) : d[a]);
    const T t0 = (-half - o[a]) * inverse, t1 = (half - o[a]) * inverse;
    near = max(near, min(t0, t1));
    far = min(far, max(t0, t1));
  }
}

template <class T>
LF_INLINE Walk<T> start_walk(const GridShape& grid, const Stepping& stepping, const T* o, const T* d, T near, T far, T jitter) {
  // A ray that is no line has no samples: pixels beyond the rim of a fisheye's disc, for one.
  const T sum = o[0] + o[1] + o[2] + d[0] + d[1] + d[2], length = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
  if (!(sum - sum == T(0)) || !(length > T(0.5)) || !(near == near) || !(far == far)) return Walk<T>{T(0), T(0)};
  near = max(near, T(0));
  box_range(o, d, T(1 << (grid.cascades - 1)), near, far);
  return Walk<T>{near + jitter * max(T(stepping.step), T(stepping.cone) * near), far};
}

// The next samples in occupied cells, at most `most`: their (t0, dt). Returns how many; fewer than `most` only where the
// ray has ended. Steps keep their places whatever the grid says: skipping moves on by whole steps, so that the grid
// never shifts where a surface is sampled.
template <class T>
LF_INLINE int walk(const GridShape& grid, const Occupancy& occupancy, const Stepping& stepping, const T* o, const T* d,
                   Walk<T>& at, int most, T* t_out, T* dt_out) {
  int found = 0;
  const int size = grid.size, strides = size / kStride;
  const uint8_t* summary = occupancy.summary;
  const float half = 0.5f * float(size);
  const T step = T(stepping.step), cone = T(stepping.cone), far = at.far;
  T inverse_d[3];
  for (int a = 0; a < 3; ++a) inverse_d[a] = T(1) / (abs(d[a]) < T(1e-12) ? (d[a] < 0 ? T(-1e-12) : T(1e-12)) : d[a]);
  const T width = T(1) / T(half);  // of the finest cascade's cells
  const T inverse_step = T(1) / step, turn = step / max(cone, T(1e-30));
  const T grow = T(1) + cone, grow2 = grow * grow, grow4 = grow2 * grow2, grow8 = grow4 * grow4;
  const T grow16 = grow8 * grow8, grow64 = grow16 * grow16 * (grow16 * grow16);
  T t = at.t;
  while (t < far && found < most) {
    const T dt = max(step, cone * t);
    const T mid = t + T(0.5) * dt;
    const float x = float(o[0] + mid * d[0]), y = float(o[1] + mid * d[1]), z = float(o[2] + mid * d[2]);
    const int k = cascade_of(max(max(abs(x), abs(y)), abs(z)), grid.cascades);
    const float cells = half * power_of_two(-k);  // cells per unit length
    const int ix = clamp(int(x * cells + half), 0, size - 1), iy = clamp(int(y * cells + half), 0, size - 1),
              iz = clamp(int(z * cells + half), 0, size - 1);
    const int64_t cell = cell_index(k, ix, iy, iz, size);
    const uint64_t word = occupancy.bits[cell >> 6];
    if (word >> (cell & 63) & 1) {
      t_out[found] = t, dt_out[found] = dt;
      ++found;
      if (!(t + dt > t)) break;
      t += dt;
      continue;
    }
    // Leave the empty cell, or the whole block or stride where all of it is empty, by whole steps.
    int span = word == 0 ? 4 : 1;
    if (span == 4 && summary &&
        !summary[((k * strides + iz / kStride) * strides + iy / kStride) * strides + ix / kStride])
      span = kStride;
    const int align = -span;
    const T cell_width = T(power_of_two(k)) * width;
    const int lo[3] = {ix & align, iy & align, iz & align};
    T leave = far;
    for (int a = 0; a < 3; ++a) {
      if (abs(d[a]) < T(1e-12)) continue;  // never leaves along this axis
      const T edge = (T(lo[a] + (d[a] > 0 ? span : 0)) - T(half)) * cell_width;
      leave = min(leave, (edge - o[a]) * inverse_d[a]);
    }
    const T before = t;
    if (cone * t < step) {  // equal steps, as far as they are equal
      T count = ceil((leave - t) * inverse_step - T(0.5));
      if (cone > T(0)) count = min(count, ceil((turn - t) * inverse_step));
      t += max(count, T(1)) * step;
    } else {
      t *= grow;
    }
    if (cone * t >= step) {  // growing steps: whole powers of 1 + cone
      const T middle = T(1) + T(0.5) * cone;
      while (t * grow64 * middle < leave) t *= grow64;
      while (t * grow8 * middle < leave) t *= grow8;
      while (t * middle < leave) t *= grow;
    }
    if (!(t > before)) break;  // so far away that a step is lost to rounding
  }
  at.t = t;
  return found;
}

// The summary of a pyramid, [cascades * (size / kStride)^3] bytes, or false where it has none: the finer cascade begins
// a quarter of the way into a cube, which must be the edge of a stride.
inline bool summarise(const GridShape& grid, const uint64_t* bits, uint8_t* summary) {
  if (grid.size % (grid.cascades > 1 ? 4 * kStride : kStride)) return false;
  constexpr int kWords = kStride / 4;
  const int strides = grid.size / kStride, blocks = grid.size / 4;
  for (int z = 0; z < grid.cascades * strides; ++z)  // cascades follow each other as further layers of z
    for (int y = 0; y < strides; ++y)
      for (int x = 0; x < strides; ++x) {
        uint64_t any = 0;
        for (int j = 0; j < kWords; ++j)
          for (int i = 0; i < kWords; ++i) {
            const uint64_t* row = bits + (int64_t(z * kWords + j) * blocks + y * kWords + i) * blocks + x * kWords;
            for (int w = 0; w < kWords; ++w) any |= row[w];
          }
        *summary++ = any != 0;
      }
  return true;
}

// Counter-based random number in [0, 1): the same for the same (seed, index), whatever thread asks.
LF_INLINE float random_unit(uint64_t seed, uint64_t index) {
  uint64_t x = seed * 0x9E3779B97F4A7C15ull + index * 0xD1342543DE82EF95ull + 0x2545F4914F6CDD1Dull;
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93ull;
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93ull;
  x ^= x >> 32;
  return float(x >> 40) * (1.0f / 16777216.0f);
}

}  // namespace LF_ISA
}  // namespace lf
