// The kernels of one instruction set. CMake compiles this file once per set, with LF_ISA, LF_BYTES and LF_REGISTERS.
#include <vector>

#include "kernels.h"

#include "adam.h"
#include "field.h"
#include "parallel.h"
#include "surface.h"
#include "surface_march.h"

namespace lf {
namespace LF_ISA {
namespace {

constexpr int kBlock = 192;  // samples of a task in the unfused ops; divides into whole tiles

// to[c][r] = from[r][c], in square blocks of registers.
template <class T>
void flip(const T* from, size_t from_stride, int rows, int columns, T* to, size_t to_stride) {
  constexpr int n = kLanes<T>;
  int r = 0;
  for (; r + n <= rows; r += n) {
    int c = 0;
    for (; c + n <= columns; c += n) {
      Vec<T> block[n];
      for (int i = 0; i < n; ++i) block[i] = load(from + (r + i) * from_stride + c);
      transpose<T>(block);
      for (int i = 0; i < n; ++i) store(to + (c + i) * to_stride + r, block[i]);
    }
    for (; c < columns; ++c)
      for (int i = 0; i < n; ++i) to[c * to_stride + r + i] = from[(r + i) * from_stride + c];
  }
  for (; r < rows; ++r)
    for (int c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
}

// [n, width] sample-major <-> rows of a tile.
template <class T>
void to_rows(const T* x, int n, int width, T* rows, size_t stride) {
  flip(x, size_t(width), n, width, rows, stride);
}
// Positions, which index tables.
template <class T>
void positions_to_rows(const T* x, int n, T* rows, size_t stride) {
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < 3; ++k) rows[k * stride + i] = to_unit_interval(x[3 * i + k]);
}
template <class T>
void from_rows(const T* rows, size_t stride, int n, int width, T* x) {
  flip(rows, stride, width, n, x, size_t(width));
}
inline int tasks_for(int64_t n, int64_t per_task) { return int((n + per_task - 1) / per_task); }

template <class T>
void hash_encode(const Workers& workers, const HashSpec& spec, const T* table, const T* x, int64_t n, T* out) {
  const int F = spec.levels * spec.features;
  workers.each(tasks_for(n, 1024), [&](int task, int worker) {
    const size_t stride = row_stride<T>(kEncodeTile + 16);
    T* rows = static_cast<T*>(workers.scratch(workers.pool, worker, sizeof(T) * stride * (3 + F)));
    for (int64_t s = int64_t(task) * 1024, end = min(n, s + 1024); s < end; s += kEncodeTile) {
      const int c = int(min(int64_t(kEncodeTile), end - s));
      positions_to_rows(x + 3 * s, c, rows, stride);
      encode_rows(spec, table, rows, rows + stride, rows + 2 * stride, c, rows + 3 * stride, stride);
      from_rows(rows + 3 * stride, stride, c, F, out + s * F);
    }
  });
}

template <class T>
void hash_encode_backward(const Workers& workers, const HashSpec& spec, const T* table, const T* x, int64_t n, const T* d_out,
                          T* d_table, T* d_x) {
  const int F = spec.levels * spec.features;
  // Two passes over slices of the samples: first everyone turns the slice into level-major rows, then each level is
  // scattered by one owner. Reading level-wise from [n, levels * features] would fetch every line once per level.
  constexpr int64_t kSlice = 1 << 14;
  if (d_table) {
    const size_t stride = row_stride<T>(size_t(min(n, kSlice)));
    T* rows = static_cast<T*>(workers.scratch(workers.pool, workers.count, sizeof(T) * stride * (3 + F)));
    for (int64_t s = 0; s < n; s += kSlice) {
      const int c = int(min(kSlice, n - s));
      workers.each(tasks_for(c, 1024), [&](int task, int) {
        const int begin = task * 1024, m = min(1024, c - begin);
        positions_to_rows(x + 3 * (s + begin), m, rows + begin, stride);
        to_rows(d_out + (s + begin) * F, m, F, rows + 3 * stride + begin, stride);
      });
      workers.each(spec.levels, [&](int i, int) {
        const int level = spec.levels - 1 - i;  // finest first: they take longest
        scatter_level(spec, level, rows, rows + stride, rows + 2 * stride, c, rows + 3 * stride, stride, T(1), d_table,
                      static_cast<uint8_t*>(nullptr));
      });
    }
  }
  if (d_x)
    workers.each(tasks_for(n, 1024), [&](int task, int worker) {
      const size_t stride = row_stride<T>(kEncodeTile);
      T* rows = static_cast<T*>(workers.scratch(workers.pool, worker, sizeof(T) * stride * (6 + F)));
      for (int64_t s = int64_t(task) * 1024, end = min(n, s + 1024); s < end; s += kEncodeTile) {
        const int c = int(min(int64_t(kEncodeTile), end - s));
        T* d = rows + 3 * stride;
        positions_to_rows(x + 3 * s, c, rows, stride);
        to_rows(d_out + s * F, c, F, rows + 6 * stride, stride);
        position_gradient(spec, table, rows, rows + stride, rows + 2 * stride, c, rows + 6 * stride, stride, d, d + stride,
                          d + 2 * stride);
        from_rows(d, stride, c, 3, d_x + 3 * s);
      }
    });
}

// The derivative of v . d_x, d_x as above, by whatever of the three is wanted; see encode.h.
template <class T>
void hash_encode_second(const Workers& workers, const HashSpec& spec, const T* table, const T* x, int64_t n, const T* d_out,
                        const T* v, T* d_d_out, T* d_table, T* d_x) {
  const int F = spec.levels * spec.features;
  if (d_table) {  // In slices, and level by level, for the reasons given above.
    constexpr int64_t kSlice = 1 << 14;
    const size_t stride = row_stride<T>(size_t(min(n, kSlice)));
    T* rows = static_cast<T*>(workers.scratch(workers.pool, workers.count, sizeof(T) * stride * (6 + F)));
    const T *along = rows + 3 * stride, *d_rows = rows + 6 * stride;
    for (int64_t s = 0; s < n; s += kSlice) {
      const int c = int(min(kSlice, n - s));
      workers.each(tasks_for(c, 1024), [&](int task, int) {
        const int begin = task * 1024, m = min(1024, c - begin);
        positions_to_rows(x + 3 * (s + begin), m, rows + begin, stride);
        to_rows(v + 3 * (s + begin), m, 3, rows + 3 * stride + begin, stride);
        to_rows(d_out + (s + begin) * F, m, F, rows + 6 * stride + begin, stride);
      });
      workers.each(spec.levels, [&](int i, int) {
        const int level = spec.levels - 1 - i;
        scatter_tangent(spec, level, rows, rows + stride, rows + 2 * stride, c, along, along + stride, along + 2 * stride,
                        d_rows, stride, d_table);
      });
    }
  }
  if (!d_d_out && !d_x) return;
  workers.each(tasks_for(n, 1024), [&](int task, int worker) {
    const size_t stride = row_stride<T>(kEncodeTile + 16);
    T* rows = static_cast<T*>(workers.scratch(workers.pool, worker, sizeof(T) * stride * (9 + F)));
    T *y = rows + stride, *z = y + stride, *vx = z + stride, *vy = vx + stride, *vz = vy + stride, *d = vz + stride;
    T* features = d + 3 * stride;
    for (int64_t s = int64_t(task) * 1024, end = min(n, s + 1024); s < end; s += kEncodeTile) {
      const int c = int(min(int64_t(kEncodeTile), end - s));
      positions_to_rows(x + 3 * s, c, rows, stride);
      to_rows(v + 3 * s, c, 3, vx, stride);
      if (d_x) {
        to_rows(d_out + s * F, c, F, features, stride);
        position_curvature(spec, table, rows, y, z, c, vx, vy, vz, features, stride, d, d + stride, d + 2 * stride);
        from_rows(d, stride, c, 3, d_x + 3 * s);
      }
      if (d_d_out) {
        tangent_rows(spec, table, rows, y, z, c, vx, vy, vz, features, stride);
        from_rows(features, stride, c, F, d_d_out + s * F);
      }
    }
  });
}

template <class T>
Shape shape_of(int layers, const int* widths) {
  Shape shape;
  shape.layers = layers;
  for (int i = 0; i <= layers; ++i) shape.width[i] = widths[i];
  return shape;
}

// Calls `run` with the cells that networks compute with as a type; only single precision knows pairs.
template <class T, class F>
void with_cells(int half, F&& run) {
  if constexpr (sizeof(T) == sizeof(Pair))
    if (half) return run(Pair{});
  run(T{});
}

template <class X>
X* packed_weights(const Workers& workers, const Shape& shape, size_t extra) {
  // Worker 0's scratch would be reused by the tasks, so packed weights live in the slot after the last worker's.
  return static_cast<X*>(workers.scratch(workers.pool, workers.count, sizeof(X) * (Network<X>::packed_size(shape) + extra)));
}

// Room for what a network makes of a block of samples: its inputs as numbers, its layers' inputs as cells, its outputs.
template <class X>
struct Layers {
  typedef NumberOf<X> T;
  T *input, *output;
  X* rows[kMaxLayers];

  static size_t bytes(const Shape& shape, size_t stride) {
    size_t count = size_t(shape.width[0] + shape.width[shape.layers]);
    for (int l = 0; l < shape.layers; ++l) count += cells<X>(shape.width[l]);
    return sizeof(T) * stride * count + 64 * (kMaxLayers + 4);
  }
  Layers(const Shape& shape, size_t stride, Arena& arena) {
    input = arena.take<T>(stride * shape.width[0]);
    output = arena.take<T>(stride * shape.width[shape.layers]);
    for (int l = 0; l < shape.layers; ++l) rows[l] = arena.take<X>(stride * cells<X>(shape.width[l]));
  }
  // From `input` to `output`.
  void run(const Network<X>& network, size_t stride, int count) {
    rows[0] = cells_of(input, stride, network.shape.width[0], count, rows[0]);
    network.run(rows, output, stride, count);
  }
};

template <class T>
void mlp(const Workers& workers, int layers, const int* widths, const T* const* weights, int half, const T* x, int64_t n, T* out) {
  const Shape shape = shape_of<T>(layers, widths);
  with_cells<T>(half, [&](auto cell) {
    typedef decltype(cell) X;
    Network<X> network;
    network.build(shape, weights, packed_weights<X>(workers, shape, 0));
    const size_t stride = row_stride<T>(kBlock);
    workers.each(tasks_for(n, kBlock), [&](int task, int worker) {
      Arena arena{static_cast<char*>(workers.scratch(workers.pool, worker, Layers<X>::bytes(shape, stride)))};
      Layers<X> of(shape, stride, arena);
      const int64_t s = int64_t(task) * kBlock;
      const int c = int(min(int64_t(kBlock), n - s));
      to_rows(x + s * widths[0], c, widths[0], of.input, stride);
      of.run(network, stride, c);
      from_rows(of.output, stride, c, widths[layers], out + s * widths[layers]);
    });
  });
}

template <class T>
void mlp_backward(const Workers& workers, int layers, const int* widths, const T* const* weights, int half, const T* x, int64_t n,
                  const T* d_out, T* const* d_weights, T* d_x) {
  const Shape shape = shape_of<T>(layers, widths);
  with_cells<T>(half, [&](auto cell) {
    typedef decltype(cell) X;
    const size_t gradient_size = Network<X>::gradient_size(shape);
    // Each task owns a slice of the samples and a gradient; gradients are added up in task order, so that the result
    // does not depend on which thread took which task.
    const int blocks = tasks_for(n, kBlock), tasks = min(blocks, 64);
    X* packed = packed_weights<X>(workers, shape, gradient_size * size_t(tasks));
    T* gradients = reinterpret_cast<T*>(packed + Network<X>::packed_size(shape));
    Network<X> network;
    network.build(shape, weights, packed);
    const size_t stride = row_stride<T>(kBlock);
    const size_t bytes = Layers<X>::bytes(shape, stride) +
                         sizeof(T) * (stride * size_t(widths[0] + widths[layers]) + Network<X>::backward_scratch(shape)) + 64 * 4;
    workers.each(tasks, [&](int task, int worker) {
      T* gradient = gradients + gradient_size * size_t(task);
      for (size_t i = 0; i < gradient_size; ++i) gradient[i] = T(0);
      Arena arena{static_cast<char*>(workers.scratch(workers.pool, worker, bytes))};
      Layers<X> of(shape, stride, arena);
      T* dy = arena.take<T>(stride * widths[layers]);
      T* dx = arena.take<T>(stride * widths[0]);
      T* scratch = arena.take<T>(Network<X>::backward_scratch(shape));
      for (int b = int(int64_t(blocks) * task / tasks), last = int(int64_t(blocks) * (task + 1) / tasks); b < last; ++b) {
        const int64_t s = int64_t(b) * kBlock;
        const int c = int(min(int64_t(kBlock), n - s));
        to_rows(x + s * widths[0], c, widths[0], of.input, stride);
        to_rows(d_out + s * widths[layers], c, widths[layers], dy, stride);
        for (int k = 0; k < widths[layers]; ++k)
          for (int i = c; i < (c + kLanes<T> - 1) / kLanes<T> * kLanes<T>; ++i) dy[k * stride + i] = T(0);
        of.run(network, stride, c);
        network.run_backward(of.rows, stride, c, dy, stride, d_x ? dx : nullptr, stride, widths[0], gradient, scratch);
        if (d_x) from_rows(dx, stride, c, widths[0], d_x + s * widths[0]);
      }
    });
    for (int task = 0; task < tasks; ++task)
      network.unpack_gradient(gradients + gradient_size * size_t(task), T(1), d_weights);
  });
}

template <class T>
void spherical_harmonics_all(const T* direction, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i)
    spherical_harmonics(direction[3 * i], direction[3 * i + 1], direction[3 * i + 2], out + 16 * i);
}

template <class T>
void composite(const Workers& workers, const T* sigma, const T* rgb, const T* t0, const T* t1, const int64_t* offset, int64_t rays,
               T* weight, T* colour, T* opacity, T* depth) {
  workers.each(tasks_for(rays, 128), [&](int task, int) {
    for (int64_t r = int64_t(task) * 128, end = min(rays, r + 128); r < end; ++r)
      composite_ray(sigma, rgb, t0, t1, offset[r], offset[r + 1], weight, colour + 3 * r, opacity + r, depth + r);
  });
}

template <class T>
void composite_backward(const Workers& workers, const T* sigma, const T* rgb, const T* t0, const T* t1, const int64_t* offset,
                        int64_t rays, const T* weight, const T* opacity, const T* d_weight, const T* d_colour,
                        const T* d_opacity, const T* d_depth, T* d_sigma, T* d_rgb) {
  workers.each(tasks_for(rays, 128), [&](int task, int) {
    for (int64_t r = int64_t(task) * 128, end = min(rays, r + 128); r < end; ++r)
      composite_ray_backward(sigma, rgb, t0, t1, offset[r], offset[r + 1], weight, opacity[r], d_weight, d_colour + 3 * r,
                             d_opacity[r], d_depth[r], d_sigma, d_rgb);
  });
}

// Bits with their summary, which lives in `storage`: 10 microseconds a step, against several a ray without it.
Occupancy summarised(const GridShape& grid, const uint64_t* bits, std::vector<uint8_t>& storage) {
  const size_t strides = size_t(grid.size / kStride);
  storage.resize(size_t(grid.cascades) * strides * strides * strides);
  return Occupancy{bits, summarise(grid, bits, storage.data()) ? storage.data() : nullptr};
}

template <class T>
void march(const Workers& workers, const GridShape& grid, const uint64_t* bits, const RayArgs<T>& rays, double step, double cone,
           int most, T* t_out, T* dt_out, int32_t* count) {
  const Stepping stepping{step, cone};
  std::vector<uint8_t> storage;
  const Occupancy occupancy = summarised(grid, bits, storage);
  workers.each(tasks_for(rays.count, 64), [&](int task, int) {
    for (int64_t r = int64_t(task) * 64, end = min(rays.count, r + 64); r < end; ++r) {
      const T jitter = rays.seed ? T(random_unit(rays.seed, uint64_t(r))) : T(0.5);
      const T *o = rays.origin + 3 * r, *d = rays.direction + 3 * r;
      Walk<T> at = start_walk(grid, stepping, o, d, rays.near[r], rays.far[r], jitter);
      count[r] = walk(grid, occupancy, stepping, o, d, at, most, t_out + r * most, dt_out + r * most);
    }
  });
}

template <class T>
void adam(const Workers& workers, const AdamArgs& args, T* value, T* gradient, T* first, T* second, int64_t n, uint8_t* touched) {
  const AdamStep<T> step(args);
  if (!touched) {
    constexpr int64_t kPart = 1 << 15;
    workers.each(tasks_for(n, kPart), [&](int task, int) {
      step.range(value, gradient, first, second, task * kPart, min(n, (task + 1) * kPart));
    });
    return;
  }
  constexpr int64_t kPart = 1 << 12;
  const int64_t lines = (n + kLineValues - 1) / kLineValues;
  workers.each(tasks_for(lines, kPart), [&](int task, int) {
    step.lines(value, gradient, first, second, n, touched, task * kPart, min(lines, (task + 1) * kPart));
  });
}

template <class T>
void scatter_trail(const Workers& workers, const HashSpec& spec, const T* trail, size_t stride, const int32_t* trail_count,
                   int tasks, T factor, T* d_table, uint8_t* touched) {
  const size_t per_task = (3 + size_t(spec.levels) * spec.features) * stride;
  workers.each(spec.levels, [&](int i, int) {
    const int level = spec.levels - 1 - i;  // finest first: they take longest
    for (int task = 0; task < tasks; ++task) {
      const T* at = trail + per_task * size_t(task);
      scatter_level(spec, level, at, at + stride, at + 2 * stride, trail_count[task], at + 3 * stride, stride, factor, d_table,
                    touched);
    }
  });
}

template <class T>
int64_t trace_gradient_size(const FieldArgs<T>& field) {
  int64_t size = 0;
  with_cells<T>(field.half, [&](auto cell) {
    typedef Network<decltype(cell)> N;
    size = int64_t(N::gradient_size(shape_of<T>(field.density_layers, field.density_width)) +
                   N::gradient_size(shape_of<T>(field.colour_layers, field.colour_width)));
  });
  return size;
}

template <class X, class T = NumberOf<X>>
void trace_with(const Workers& workers, const FieldArgs<T>& field, const RayArgs<T>& rays, const TraceArgs& args,
                const PictureOut<T>& out, const TrainArgs<T>* train, T* const* d_density, T* const* d_colour) {
  const Shape density = shape_of<T>(field.density_layers, field.density_width);
  const Shape colour = shape_of<T>(field.colour_layers, field.colour_width);
  const FieldNetworks<X> networks(field, packed_weights<X>(workers, density, Network<X>::packed_size(colour)));
  std::vector<uint8_t> storage;
  TraceArgs with_summary = args;
  with_summary.occupancy = summarised(args.grid, args.occupancy.bits, storage);
  const Tracer<X> tracer{field, rays, with_summary, out, train, networks.density, networks.colour};
  const int tasks = tasks_for(rays.count, kGroup);
  workers.each(tasks, [&](int task, int worker) {
    tracer.group(task, Arena{static_cast<char*>(workers.scratch(workers.pool, worker, tracer.scratch_bytes()))});
  });
  if (!train) return;
  // Every value is summed in the order of the tasks, so that the sum is the same for any number of threads.
  const int64_t gradient_size = trace_gradient_size(field);
  constexpr int64_t kPart = 1024;
  workers.each(tasks_for(gradient_size, kPart), [&](int part, int) {
    T* sum = train->gradient;
    const int64_t begin = part * kPart, end = min(gradient_size, begin + kPart);
    for (int task = 1; task < tasks; ++task) {
      const T* other = sum + gradient_size * task;
      for (int64_t i = begin; i < end; ++i) sum[i] += other[i];
    }
  });
  if (tasks > 0) {
    networks.density.unpack_gradient(train->gradient, T(1), d_density);
    networks.colour.unpack_gradient(train->gradient + Network<X>::gradient_size(density), T(1), d_colour);
  }
}

template <class T>
void trace(const Workers& workers, const FieldArgs<T>& field, const RayArgs<T>& rays, const TraceArgs& args,
           const PictureOut<T>& out, const TrainArgs<T>* train, T* const* d_density, T* const* d_colour) {
  with_cells<T>(field.half, [&](auto cell) {
    trace_with<decltype(cell)>(workers, field, rays, args, out, train, d_density, d_colour);
  });
}

template <class T>
void density(const Workers& workers, const FieldArgs<T>& field, const T* points, int64_t n, T* out) {
  const Shape shape = shape_of<T>(field.density_layers, field.density_width);
  with_cells<T>(field.half, [&](auto cell) {
    typedef decltype(cell) X;
    Network<X> network;
    network.build(shape, field.density_weight, packed_weights<X>(workers, shape, 0));
    const size_t stride = row_stride<T>(kBlock);
    workers.each(tasks_for(n, kBlock), [&](int task, int worker) {
      Arena arena{static_cast<char*>(workers.scratch(workers.pool, worker, Layers<X>::bytes(shape, stride) + sizeof(T) * 3 * stride))};
      T* x = arena.take<T>(3 * stride);
      Layers<X> of(shape, stride, arena);
      const int64_t s = int64_t(task) * kBlock;
      const int c = int(min(int64_t(kBlock), n - s));
      for (int i = 0; i < c; ++i) {
        T a = points[3 * (s + i)], b = points[3 * (s + i) + 1], d = points[3 * (s + i) + 2];
        contract_to_unit(a, b, d, field.unbounded);
        x[i] = a, x[stride + i] = b, x[2 * stride + i] = d;
      }
      encode_rows(field.spec, field.table, x, x + stride, x + 2 * stride, c, of.input, stride);
      of.run(network, stride, c);
      for (int i = 0; i < c; ++i) out[s + i] = scalar_exp(of.output[i] + field.density_shift);
    });
  });
}

template <class T>
int64_t surface_trail_size(const SurfaceArgs<T>& args, int64_t n) {
  return int64_t(4 + args.spec.levels * args.spec.features + args.hidden) * kTile * tasks_for(n, kTile);
}

template <class T>
void surface(const Workers& workers, const SurfaceArgs<T>& args, const T* points, int64_t n, T* out, T* gradient, T* trail) {
  const Surface<T> field(args, static_cast<T*>(workers.scratch(workers.pool, workers.count,
                                                               sizeof(T) * Surface<T>::packed_size(args))));
  const int64_t per_tile = surface_trail_size(args, 1);
  workers.each(tasks_for(n, kTile), [&](int task, int worker) {
    const int64_t s = int64_t(task) * kTile;
    field.forward(points + 3 * s, int(min(int64_t(kTile), n - s)), out + s * args.outputs, gradient ? gradient + 3 * s : nullptr,
                  trail ? trail + per_tile * task : nullptr,
                  Arena{static_cast<char*>(workers.scratch(workers.pool, worker, field.forward_scratch()))});
  });
}

template <class T>
void surface_backward(const Workers& workers, const SurfaceArgs<T>& args, const T* points, int64_t n, const T* trail,
                      const T* d_out, const T* d_gradient, T* d_table, T* d_first, T* d_last) {
  constexpr int64_t kSlice = 170;  // tiles, of which the scatter remembers what they left; about 16 000 samples
  const int tiles = tasks_for(n, kTile), tasks = min(tiles, 64);
  const int64_t per_tile = surface_trail_size(args, 1);
  const size_t left_size = size_t(6 + 2 * args.spec.levels * args.spec.features) * kTile, remembered = size_t(min(int64_t(tiles), kSlice));
  const size_t packed_size = Surface<T>::packed_size(args);
  const size_t gradient_size = Network<T>::gradient_size(Surface<T>::one_layer(4 + args.spec.levels * args.spec.features, args.hidden)) +
                               Network<T>::gradient_size(Surface<T>::one_layer(args.hidden + 1, args.outputs));
  T* packed = static_cast<T*>(workers.scratch(workers.pool, workers.count,
                                              sizeof(T) * (packed_size + gradient_size * tasks + left_size * remembered)));
  const Surface<T> field(args, packed);
  T *gradients = packed + packed_size, *left = gradients + gradient_size * tasks;
  for (size_t i = 0; i < gradient_size * size_t(tasks); ++i) gradients[i] = T(0);
  for (int64_t slice = 0; slice < tiles; slice += kSlice) {
    const int count = int(min(kSlice, tiles - slice)), parts = min(count, tasks);
    // Each task owns some tiles and a gradient; gradients are added up in task order, for any number of threads.
    workers.each(parts, [&](int task, int worker) {
      for (int64_t b = int64_t(count) * task / parts, last = int64_t(count) * (task + 1) / parts; b < last; ++b) {
        const int64_t tile = slice + b, s = tile * kTile;
        field.backward(points + 3 * s, int(min(int64_t(kTile), n - s)), d_out + s * args.outputs,
                       d_gradient ? d_gradient + 3 * s : nullptr, trail + per_tile * tile, gradients + gradient_size * task,
                       left + left_size * size_t(b),
                       Arena{static_cast<char*>(workers.scratch(workers.pool, worker, field.backward_scratch()))});
      }
    });
    workers.each(args.spec.levels, [&](int i, int) {
      const int level = args.spec.levels - 1 - i;  // finest first: they take longest
      for (int b = 0; b < count; ++b) {
        const int m = int(min(int64_t(kTile), n - (slice + b) * kTile));
        const T *x = left + left_size * size_t(b), *v = x + 3 * kTile, *value = x + 6 * kTile, *slope = value + field.features() * kTile;
        scatter_level(args.spec, level, x, x + kTile, x + 2 * kTile, m, value, size_t(kTile), T(1), d_table, static_cast<uint8_t*>(nullptr));
        if (d_gradient)
          scatter_tangent(args.spec, level, x, x + kTile, x + 2 * kTile, m, v, v + kTile, v + 2 * kTile, slope, size_t(kTile), d_table);
      }
    });
  }
  for (int task = 0; task < tasks; ++task) {
    const T* gradient = gradients + gradient_size * size_t(task);
    field.first.unpack_gradient(gradient, T(1), &d_first);
    field.last.unpack_gradient(gradient + Network<T>::gradient_size(field.first.shape), T(1), &d_last);
  }
}

template <class T>
void surface_march(const Workers& workers, const SurfaceArgs<T>& args, const RayArgs<T>& rays, const SurfaceMarchArgs& steps,
                   T* t_out, int32_t* kept, int32_t* evaluated) {
  const Surface<T> field(args, static_cast<T*>(workers.scratch(workers.pool, workers.count,
                                                               sizeof(T) * Surface<T>::packed_size(args))));
  std::vector<uint8_t> storage;
  SurfaceMarchArgs with_summary = steps;
  with_summary.occupancy = summarised(steps.grid, steps.occupancy.bits, storage);
  const SurfaceMarch<T> march{field, rays, with_summary};
  workers.each(tasks_for(rays.count, kTogether), [&](int task, int worker) {
    const int64_t begin = int64_t(task) * kTogether;
    march.group(begin, int(min(int64_t(kTogether), rays.count - begin)), t_out, kept, evaluated,
                Arena{static_cast<char*>(workers.scratch(workers.pool, worker, march.scratch_bytes()))});
  });
}

// ---- Occupancy grid ------------------------------------------------------------------------------------------------

// Occupied cells lose a little and are struck off below the threshold of their cascade. Empty cells are not visited:
// their value means nothing until grid_raise sets it.
void grid_decay(const Workers& workers, const GridShape& grid, float* peak, uint64_t* bits, float decay, const float* threshold) {
  const int64_t per_cascade = int64_t(grid.size) * grid.size * grid.size / 64, words = per_cascade * grid.cascades;
  constexpr int64_t kPart = 4096;
  workers.each(tasks_for(words, kPart), [&](int task, int) {
    for (int64_t w = task * kPart, end = min(words, w + kPart); w < end; ++w) {
      uint64_t word = bits[w];
      if (!word) continue;
      const float limit = threshold[w / per_cascade];
      uint64_t next = 0;
      float* value = peak + w * 64;
      for (int b = 0; b < 64; ++b) {
        value[b] *= decay;
        next |= uint64_t(value[b] >= limit) << b;
      }
      bits[w] = word & next;
    }
  });
}

void grid_raise(const GridShape& grid, float* peak, uint64_t* bits, const float* points, const float* density, int64_t n,
                const float* threshold, const uint64_t* allowed) {
  const int64_t per_cascade = int64_t(grid.size) * grid.size * grid.size;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t cell = cell_at(grid, points[3 * i], points[3 * i + 1], points[3 * i + 2]);
    const uint64_t bit = uint64_t(1) << (cell & 63);
    if (!(allowed[cell >> 6] & bit)) continue;
    const bool occupied = bits[cell >> 6] & bit;
    peak[cell] = occupied ? max(peak[cell], density[i]) : density[i];
    if (density[i] >= threshold[cell / per_cascade]) bits[cell >> 6] |= bit;
  }
}

// ---- What the machine can do ---------------------------------------------------------------------------------------

// Multiply-adds that stay in registers: twelve independent chains keep all pipes full. Returns the operations done; the
// caller takes the time. The empty asm keeps the compiler from folding the chains.
template <class X>
double multiply_adds(int64_t rounds) {
#if defined(__x86_64__) || defined(_M_X64)
#define LF_KEEP(r) asm volatile("" : "+x"(r))
#else
#define LF_KEEP(r) asm volatile("" : "+w"(r))
#endif
  typedef NumberOf<X> T;
  Vec<T> sum[12] = {};
  Vec<X> x = splat(cell_of<X>(T(0.999), T(0.999))), y = splat(cell_of<X>(T(0.001), T(0.001)));
  for (int64_t i = 0; i < rounds; ++i) {
    _Pragma("GCC unroll 12")
    for (int k = 0; k < 12; ++k) {
      multiply_add(sum[k], x, y);
      LF_KEEP(sum[k]);
    }
  }
  return double(rounds) * 12 * 2 * kPer<X> * kLanes<X>;
}

template <class T>
Kernels<T> table() {
  return Kernels<T>{hash_encode<T>,  hash_encode_backward<T>, hash_encode_second<T>,      mlp<T>,
                    mlp_backward<T>, spherical_harmonics_all<T>, composite<T>,            composite_backward<T>,
                    march<T>,        adam<T>,                 scatter_trail<T>,           trace<T>,
                    density<T>,      trace_gradient_size<T>,  surface<T>,                surface_backward<T>,
                    surface_trail_size<T>, surface_march<T>};
}

}  // namespace
}  // namespace LF_ISA

#define LF_JOIN_(a, b) a##b
#define LF_JOIN(a, b) LF_JOIN_(a, b)
#define LF_NAME_(a) #a
#define LF_NAME(a) LF_NAME_(a)

const KernelSet& LF_JOIN(kernels_, LF_ISA)() {
  static const KernelSet set{LF_NAME(LF_ISA), LF_ISA::multiply_adds<float>, LF_ISA::multiply_adds<Pair>, LF_ISA::grid_decay, LF_ISA::grid_raise,
                             LF_ISA::table<float>(), LF_ISA::table<double>()};
  return set;
}

}  // namespace lf
