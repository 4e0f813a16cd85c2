// The whole way of a ray in one pass: march, encode, density, weights, colour, picture; and, for training, the loss and
// its gradient, while everything is still in the second-level cache.
//
// A task takes a group of rays. Density is evaluated in rounds along the rays, front to back, so that a ray stops as
// soon as it is opaque. Only samples whose weight counts go on to the colour network and to the backward pass; their
// columns are copied together ("kept") as soon as the round has told their weight.
#pragma once
#include "composite.h"
#include "encode.h"
#include "march.h"
#include "mlp.h"

namespace lf {

constexpr int kGroup = 32;       // rays of a task
constexpr int kRound = 512;      // samples of a round
constexpr int kHarmonics = 16;

template <class T>
struct FieldArgs {
  HashSpec spec;
  const T* table;
  int unbounded;                 // positions are contracted (mip-NeRF 360, eq. 10, with the max norm)
  T density_shift;               // density = exp(raw + shift)
  int density_layers, colour_layers;
  int density_width[9], colour_width[9];
  const T* density_weight[8];    // [out][in], row-major
  const T* colour_weight[8];
  int half;                      // networks compute with pairs of bfloat16 (half.h); for single precision
};

template <class T>
struct RayArgs {
  int64_t count;
  const T* origin;     // [R, 3]
  const T* direction;  // [R, 3] unit
  const T* near;       // [R]
  const T* far;        // [R]
  const T* background; // [R, 3]
  uint64_t seed;       // jitter of the first step; 0 for none
};

struct TraceArgs {
  GridShape grid;
  Occupancy occupancy;
  float* peak;         // densest value seen per cell, fed by the samples; null when nobody listens
  double step, cone;
  int most;            // samples per ray
  double stop;         // transmittance at which a ray ends
  double keep;         // weight from which a sample gets colour and gradient
};

template <class T>
struct PictureOut {
  T* colour;   // [R, 3], background included
  T* opacity;  // [R]
  T* depth;    // [R] sum of w t
  T* median;   // [R] where half of what is kept of a ray is passed, 0 where nothing is; null when nobody asks
  int64_t* evaluated;  // [tasks] samples whose density was evaluated
  int64_t* kept;       // [tasks]
};

template <class T>
struct TrainArgs {
  const T* target;     // [R, 3], already over the same background
  int loss;            // 0 squared error, 1 Huber
  T huber;             // where the Huber loss turns linear
  T distortion;        // weight of the distortion loss
  // Out. `trail` remembers, per task, the kept positions and their feature gradients, for the scatter into the table.
  T* trail;            // [tasks][3 + levels * features][trail_stride]
  size_t trail_stride;
  int32_t* trail_count;  // [tasks]
  T* gradient;         // [tasks][size of both networks' padded gradients]
  double* loss_sum;    // [tasks][3]: loss, squared error, distortion, each a sum over rays and channels
};

namespace LF_ISA {

template <class T>
LF_INLINE void contract_to_unit(T& x, T& y, T& z, bool unbounded) {
  T factor = T(0.5);
  if (unbounded) {
    const T m = max(max(abs(x), abs(y)), max(abs(z), T(1)));
    const T inverse = T(1) / m;
    factor = T(0.25) * (T(2) - inverse) * inverse;  // 1/4 inside the cube, where m is held at 1
  }
  x = to_unit_interval(x * factor + T(0.5));
  y = to_unit_interval(y * factor + T(0.5));
  z = to_unit_interval(z * factor + T(0.5));
}

// Bytes handed out from one block, each aligned to a cache line.
struct Arena {
  char* at;
  template <class T>
  T* take(size_t count) {
    T* p = reinterpret_cast<T*>(at);
    at += (count * sizeof(T) + 63) / 64 * 64;
    return p;
  }
};

// Row stride for `count` columns: whole vectors, one to spare for overrunning copies, and never a power of two of
// cache lines, which would put all rows into one set of the first-level cache.
template <class T>
LF_INLINE size_t row_stride(size_t count) {
  constexpr size_t line = 64 / sizeof(T);
  size_t lines = (count + line - 1) / line + 1;
  return (lines | 1) * line;
}

// X: the cells of the networks' activations (half.h).
template <class X>
struct Tracer {
  typedef NumberOf<X> T;
  const FieldArgs<T>& field;
  const RayArgs<T>& rays;
  const TraceArgs& trace;
  const PictureOut<T>& out;
  const TrainArgs<T>* train;
  const Network<X>& density;
  const Network<X>& colour;

  int features() const { return field.spec.levels * field.spec.features; }
  int geometry() const { return density.shape.width[density.shape.layers]; }
  int input_rows(const Shape& s) const {  // of all layers, in cells
    int rows = 0;
    for (int l = 0; l < s.layers; ++l) rows += cells<X>(s.width[l]);
    return rows;
  }

  size_t scratch_bytes() const {
    const size_t most = size_t(kGroup) * trace.most;
    const size_t stride = row_stride<T>(most + kLanes<T>), round = row_stride<T>(kRound + kLanes<T>);
    const size_t rows_kept = size_t(3 + input_rows(density.shape) + input_rows(colour.shape)) + 3 /* colour */ + 3 +
                             geometry() + kHarmonics + 16;
    const size_t rows_round = size_t(3 + features() + input_rows(density.shape) + 2 * geometry() + 8);
    return sizeof(T) * (rows_kept * stride + rows_round * round +
                        2 * Network<X>::backward_scratch(density.shape) + 2 * Network<X>::backward_scratch(colour.shape)) +
           most * 16 + (1 << 16);
  }

  void group(int task, Arena arena) const {
    const int64_t first = int64_t(task) * kGroup;
    const int count = int(min(int64_t(kGroup), rays.count - first));
    const int most = trace.most;
    const int F = features(), G = geometry();

    // ---- Rays ------------------------------------------------------------------------------------------------------
    Walk<T> walks[kGroup];
    int walked[kGroup];  // samples evaluated; `most` where the ray has ended
    T transmittance[kGroup];
    X harmonics[kGroup][kHarmonics];
    const Stepping stepping{trace.step, trace.cone};
    for (int r = 0; r < count; ++r) {
      const int64_t ray = first + r;
      const T jitter = rays.seed ? T(random_unit(rays.seed, uint64_t(ray))) : T(0.5);
      const T* d = rays.direction + 3 * ray;
      walks[r] = start_walk(trace.grid, stepping, rays.origin + 3 * ray, d, rays.near[ray], rays.far[ray], jitter);
      walked[r] = walks[r].t < walks[r].far ? 0 : most;
      transmittance[r] = T(1);
      T plain[kHarmonics];
      spherical_harmonics(d[0], d[1], d[2], plain);
      for (int k = 0; k < kHarmonics; k += kPer<X>) harmonics[r][k / kPer<X>] = cell_of<X>(plain[k], plain[k + kPer<X> - 1]);
    }

    // ---- Buffers: a round, and what is kept of all rounds -------------------------------------------------------
    const size_t rs = row_stride<T>(kRound + kLanes<T>);
    T* round_x = arena.take<T>(3 * rs);
    T* round_features = arena.take<T>(rs * F);
    T* round_geometry = arena.take<T>(rs * G);
    X* round_rows[kMaxLayers];
    for (int l = 0; l < density.shape.layers; ++l) round_rows[l] = arena.take<X>(rs * cells<X>(density.shape.width[l]));
    X* geometry_cells = arena.take<X>(rs * cells<X>(G));
    T* sigma = arena.take<T>(rs);
    T* alpha = arena.take<T>(rs);
    T* round_t = arena.take<T>(rs);
    T* round_dt = arena.take<T>(rs);

    const size_t ks = row_stride<T>(size_t(kGroup) * most + kLanes<T>);
    T* kept_x = arena.take<T>(3 * ks);
    X* kept_rows[kMaxLayers];
    for (int l = 0; l < density.shape.layers; ++l) kept_rows[l] = arena.take<X>(ks * cells<X>(density.shape.width[l]));
    X* colour_rows[kMaxLayers];  // of the input: geometry features, then harmonics
    for (int l = 0; l < colour.shape.layers; ++l) colour_rows[l] = arena.take<X>(ks * cells<X>(colour.shape.width[l]));
    T* rgb = arena.take<T>(3 * ks);
    T* kept_sigma = arena.take<T>(ks);
    T* kept_weight = arena.take<T>(ks);
    T* kept_after = arena.take<T>(ks);  // transmittance behind the sample
    T* kept_t = arena.take<T>(ks);
    T* kept_dt = arena.take<T>(ks);
    int32_t* kept_column = arena.take<int32_t>(size_t(kGroup) * most);  // of a ray's i-th kept sample
    int kept_of[kGroup] = {};
    int kept = 0;
    int64_t evaluated = 0;

    // ---- Density, front to back ----------------------------------------------------------------------------------
    struct Run {
      int ray, begin, length;
    };
    Run runs[kGroup], copies[kRound];
    for (;;) {
      int active = 0;
      for (int r = 0; r < count; ++r) active += walked[r] < most;
      if (!active) break;
      // Rounds are short: a ray that ends in one has no need of what it has marched behind the place where it ends.
      const int quota = min(8, kRound / active);
      int n = 0, run_count = 0;
      for (int r = 0; r < count; ++r) {
        if (walked[r] >= most) continue;
        const T* o = rays.origin + 3 * (first + r);
        const T* d = rays.direction + 3 * (first + r);
        const int room = min(quota, most - walked[r]);
        const int took = walk(trace.grid, trace.occupancy, stepping, o, d, walks[r], room, round_t + n, round_dt + n);
        walked[r] = took < room ? most : walked[r] + took;
        if (took == 0) continue;
        for (int i = n; i < n + took; ++i) {
          const T mid = round_t[i] + T(0.5) * round_dt[i];
          T x = o[0] + mid * d[0], y = o[1] + mid * d[1], z = o[2] + mid * d[2];
          contract_to_unit(x, y, z, field.unbounded);
          round_x[i] = x, round_x[rs + i] = y, round_x[2 * rs + i] = z;
          round_t[i] = mid;
        }
        runs[run_count++] = Run{r, n, took};
        n += took;
      }
      if (n == 0) break;
      evaluated += n;
      encode_rows(field.spec, field.table, round_x, round_x + rs, round_x + 2 * rs, n, round_features, rs);
      round_rows[0] = cells_of(round_features, rs, F, n, round_rows[0]);
      density.run(round_rows, round_geometry, rs, n);
      const T* raw = round_geometry;
      for (int i = 0; i < n; i += kLanes<T>) {
        const Vec<T> s = vexp(load(raw + i) + field.density_shift);
        store(sigma + i, s);
        store(alpha + i, T(1) - vexp(-s * load(round_dt + i)));
      }
      if (trace.peak) feed_peak(runs, run_count, first, round_t, sigma);

      int copy_count = 0;
      const int kept_before = kept;
      for (int q = 0; q < run_count; ++q) {
        const int r = runs[q].ray;
        T T_i = transmittance[r];
        for (int i = runs[q].begin, end = i + runs[q].length; i < end; ++i) {
          const T w = T_i * alpha[i];
          T_i -= w;
          if (w > T(trace.keep)) {
            kept_column[size_t(r) * most + kept_of[r]++] = kept;
            kept_sigma[kept] = sigma[i], kept_weight[kept] = w, kept_after[kept] = T_i;
            kept_t[kept] = round_t[i], kept_dt[kept] = round_dt[i];
            ++kept;
            if (copy_count && copies[copy_count - 1].begin + copies[copy_count - 1].length == i)
              ++copies[copy_count - 1].length;
            else
              copies[copy_count++] = Run{r, i, 1};
          }
          if (T_i < T(trace.stop)) {
            walked[r] = most;
            break;
          }
        }
        transmittance[r] = T_i;
      }
      if (kept > kept_before) {
        auto gather = [&](const auto* from, auto* to, int rows) {
          for (int k = 0; k < rows; ++k) {
            auto* at = to + k * ks + kept_before;
            const auto* row = from + k * rs;
            for (int c = 0; c < copy_count; ++c) {
              for (int i = 0; i < copies[c].length; i += kLanes<T>) store(at + i, load(row + copies[c].begin + i));
              at += copies[c].length;
            }
          }
        };
        if (train) {
          gather(round_x, kept_x, 3);
          for (int l = 0; l < density.shape.layers; ++l) gather(round_rows[l], kept_rows[l], cells<X>(density.shape.width[l]));
        }
        gather(cells_of(round_geometry, rs, G, n, geometry_cells), colour_rows[0], cells<X>(G));
      }
    }

    // ---- Colour --------------------------------------------------------------------------------------------------
    for (int r = 0; r < count; ++r)
      for (int i = 0; i < kept_of[r]; ++i) {
        const int s = kept_column[size_t(r) * most + i];
        for (int k = 0; k < cells<X>(kHarmonics); ++k) colour_rows[0][(cells<X>(G) + k) * ks + s] = harmonics[r][k];
      }
    colour.run(colour_rows, rgb, ks, kept);
    for (int k = 0; k < 3; ++k)
      for (int i = 0; i < kept; i += kLanes<T>) {
        T* p = rgb + k * ks + i;
        store(p, T(1) / (T(1) + vexp(-load(p))));
      }

    for (int r = 0; r < count; ++r) {
      const int64_t ray = first + r;
      T c[3] = {}, depth = 0, shown = 0;
      for (int i = 0; i < kept_of[r]; ++i) {
        const int s = kept_column[size_t(r) * most + i];
        const T w = kept_weight[s];
        for (int k = 0; k < 3; ++k) c[k] += w * rgb[k * ks + s];
        depth += w * kept_t[s];
        shown += w;
      }
      if (out.median) {
        T median = 0, passed = 0;
        for (int i = 0; i < kept_of[r]; ++i) {
          const int s = kept_column[size_t(r) * most + i];
          const T w = kept_weight[s];
          if (passed + w >= T(0.5) * shown) {
            median = kept_t[s] + kept_dt[s] * ((T(0.5) * shown - passed) / w - T(0.5));
            break;
          }
          passed += w;
        }
        out.median[ray] = median;
      }
      for (int k = 0; k < 3; ++k) out.colour[3 * ray + k] = c[k] + transmittance[r] * rays.background[3 * ray + k];
      out.opacity[ray] = T(1) - transmittance[r];
      out.depth[ray] = depth;
    }
    out.evaluated[task] = evaluated;
    out.kept[task] = kept;
    if (train) backward(task, first, count, arena, ks, kept, kept_of, kept_column, kept_x, kept_rows, colour_rows, rgb, kept_sigma,
                        kept_weight, kept_after, kept_t, kept_dt, transmittance);
  }

 private:
  template <class Run>
  void feed_peak(const Run* runs, int run_count, int64_t first, const T* t, const T* sigma) const {
    for (int q = 0; q < run_count; ++q) {
      const T* o = rays.origin + 3 * (first + runs[q].ray);
      const T* d = rays.direction + 3 * (first + runs[q].ray);
      for (int i = runs[q].begin, end = i + runs[q].length; i < end; ++i) {
        const int64_t cell = cell_at(trace.grid, float(o[0] + t[i] * d[0]), float(o[1] + t[i] * d[1]), float(o[2] + t[i] * d[2]));
        // A maximum does not care about order, so the result is the same however threads interleave. Densities are
        // positive floats, whose bits order as integers do.
        int32_t value, seen;
        const float density = float(sigma[i]);
        __builtin_memcpy(&value, &density, 4);
        int32_t* slot = reinterpret_cast<int32_t*>(trace.peak) + cell;
        seen = __atomic_load_n(slot, __ATOMIC_RELAXED);
        while (seen < value && !__atomic_compare_exchange_n(slot, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
      }
    }
  }

  void backward(int task, int64_t first, int count, Arena arena, size_t ks, int kept, const int* kept_of,
                const int32_t* kept_column, const T* kept_x, const X* const* density_rows, const X* const* colour_rows, const T* rgb,
                const T* sigma, const T* weight, const T* after, const T* t, const T* dt, const T* transmittance) const {
    const int F = features(), G = geometry(), most = trace.most;
    T* d_colour = arena.take<T>(3 * ks);
    T* d_geometry = arena.take<T>(ks * (G + kHarmonics));
    T* d_raw = arena.take<T>(ks);
    T* scratch = arena.take<T>(max(Network<X>::backward_scratch(density.shape), Network<X>::backward_scratch(colour.shape)));
    T* gradient = train->gradient + size_t(task) * (Network<X>::gradient_size(density.shape) + Network<X>::gradient_size(colour.shape));
    const size_t gradient_count = Network<X>::gradient_size(density.shape) + Network<X>::gradient_size(colour.shape);
    for (size_t i = 0; i < gradient_count; ++i) gradient[i] = T(0);

    const T scale = T(1) / T(3 * rays.count);
    double loss_sum = 0, square_sum = 0, distortion_sum = 0;
    for (int r = 0; r < count; ++r) {
      const int64_t ray = first + r;
      T g[3], background = 0;
      for (int k = 0; k < 3; ++k) {
        const T diff = out.colour[3 * ray + k] - train->target[3 * ray + k];
        square_sum += double(diff) * double(diff);
        if (train->loss == 0 || abs(diff) <= train->huber) {
          g[k] = T(2) * diff * scale;
          loss_sum += double(diff) * double(diff);
        } else {  // continues the parabola with its slope
          g[k] = T(2) * train->huber * (diff > 0 ? T(1) : T(-1)) * scale;
          loss_sum += double(T(2) * train->huber * abs(diff) - train->huber * train->huber);
        }
        background += g[k] * rays.background[3 * ray + k];
      }
      const int32_t* column = kept_column + size_t(r) * most;
      const int n = kept_of[r];
      // Distortion (mip-NeRF 360, eq. 15) on s = t / (1 + t): sum_ij w_i w_j |s_i - s_j| + 1/3 sum w_i^2 ds_i.
      // Its derivative needs, for every sample, weights and first moments on either side of it.
      T weight_sum = 0, moment_sum = 0, weight_left = 0, moment_left = 0;
      if (train->distortion > T(0))
        for (int i = 0; i < n; ++i) weight_sum += weight[column[i]], moment_sum += weight[column[i]] * squash(t[column[i]]);
      T suffix = transmittance[r] * background;
      T right_weight = 0, right_moment = 0;
      for (int i = n - 1; i >= 0; --i) {
        const int s = column[i];
        const T w = weight[s];
        T gain = 0;
        for (int k = 0; k < 3; ++k) {
          const T c = rgb[k * ks + s];
          gain += c * g[k];
          d_colour[k * ks + s] = w * g[k] * c * (T(1) - c);
        }
        if (train->distortion > T(0)) {
          const T m = squash(t[s]), ds = squash(t[s] + T(0.5) * dt[s]) - squash(t[s] - T(0.5) * dt[s]);
          weight_left = weight_sum - right_weight - w;
          moment_left = moment_sum - right_moment - w * m;
          const T apart = m * weight_left - moment_left + right_moment - m * right_weight;
          const T factor = train->distortion / T(rays.count);
          gain += factor * (T(2) * apart + T(2.0 / 3.0) * w * ds);
          distortion_sum += double(w) * double(apart) + double(w) * double(w) * double(ds) / 3.0;
          right_weight += w;
          right_moment += w * m;
        }
        // The exponential's own derivative is density; beyond exp(15) it is held there, as trunc_exp does.
        d_raw[s] = dt[s] * (after[s] * gain - suffix) * min(sigma[s], T(3269017.37));
        suffix += w * gain;
      }
    }
    train->loss_sum[3 * task] = loss_sum;
    train->loss_sum[3 * task + 1] = square_sum;
    train->loss_sum[3 * task + 2] = distortion_sum;
    train->trail_count[task] = kept;
    if (kept == 0) return;

    const int whole = (kept + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    for (int i = kept; i < whole; ++i) {
      for (int k = 0; k < 3; ++k) d_colour[k * ks + i] = T(0);
      d_raw[i] = T(0);
    }
    colour.run_backward(colour_rows, ks, kept, d_colour, ks, d_geometry, ks, G, gradient + Network<X>::gradient_size(density.shape),
                        scratch);
    for (int i = 0; i < whole; i += kLanes<T>) store(d_geometry + i, load(d_geometry + i) + load(d_raw + i));
    T* trail = train->trail + size_t(task) * (3 + F) * train->trail_stride;
    density.run_backward(density_rows, ks, kept, d_geometry, ks, trail + 3 * train->trail_stride, train->trail_stride, F,
                         gradient, scratch);
    for (int k = 0; k < 3; ++k)
      for (int i = 0; i < kept; i += kLanes<T>) store(trail + k * train->trail_stride + i, load(kept_x + k * ks + i));
  }

  static LF_INLINE T squash(T t) { return t / (T(1) + t); }
};

// Both networks, packed once per call. `storage` must hold the packed sizes of both.
template <class X>
struct FieldNetworks {
  Network<X> density, colour;
  static Shape shape_of(int layers, const int* width) {
    Shape s;
    s.layers = layers;
    for (int i = 0; i <= layers; ++i) s.width[i] = width[i];
    return s;
  }
  FieldNetworks(const FieldArgs<NumberOf<X>>& field, X* storage) {
    Shape d = shape_of(field.density_layers, field.density_width), c = shape_of(field.colour_layers, field.colour_width);
    density.build(d, field.density_weight, storage);
    colour.build(c, field.colour_weight, storage + Network<X>::packed_size(d));
  }
};

}  // namespace LF_ISA
}  // namespace lf
