// The extension module lightfold._core: chooses an instruction set at import and passes raw addresses to its kernels.
// Shapes and types are checked by the Python functions in lightfold/ops; nothing here is meant to be called elsewhere.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#define LF_ISA portable
#define LF_BYTES 16
#define LF_REGISTERS 16
#include "adam.h"
#include "field.h"
#include "kernels.h"
#include "parallel.h"
#include "surface.h"
#include "surface_march.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace nb = nanobind;
using namespace lf;

namespace {

// What every kernel call holds. The pool has one scratch memory for callers, so of Python threads that call together (a
// viewer, a video in the background) one waits for the other; the interpreter's lock is let go meanwhile, and taken again
// only after the kernels', so neither can wait for the other in a circle.
struct Exclusive {
  nb::gil_scoped_release release;
  std::lock_guard<std::mutex> lock{mutex()};
  static std::mutex& mutex() {
    static std::mutex* one = new std::mutex();
    return *one;
  }
};

typedef uintptr_t Address;
typedef std::vector<Address> Addresses;

std::vector<const KernelSet*> available() {
  std::vector<const KernelSet*> sets;
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
#endif
#if defined(LF_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
    if (__builtin_cpu_supports("avx512bf16")) sets.push_back(&kernels_avx512bf16());
    sets.push_back(&kernels_avx512());
  }
#endif
#if defined(LF_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&kernels_avx2());
#endif
  sets.push_back(&kernels_portable());
  return sets;
}

const KernelSet*& chosen() {
  static const KernelSet* set = [] {
    auto sets = available();
    if (const char* wanted = std::getenv("LIGHTFOLD_ISA"))
      for (auto* s : sets)
        if (std::string(s->name) == wanted) return s;
    return sets.front();
  }();
  return set;
}

template <class T>
const Kernels<T>& kernels();
template <>
const Kernels<float>& kernels<float>() { return chosen()->f32; }
template <>
const Kernels<double>& kernels<double>() { return chosen()->f64; }

Workers workers() { return Pool::instance().workers(); }

template <class T>
T* at(Address address) { return reinterpret_cast<T*>(address); }

template <class T>
std::vector<T*> all(const Addresses& addresses) {
  std::vector<T*> out;
  for (Address a : addresses) out.push_back(at<T>(a));
  return out;
}

template <class T>
FieldArgs<T> field_args(const HashSpec& spec, Address table, bool unbounded, double shift, bool half,
                        const std::vector<int>& density_width, const Addresses& density, const std::vector<int>& colour_width,
                        const Addresses& colour) {
  FieldArgs<T> f{};
  f.half = half;
  f.spec = spec;
  f.table = at<const T>(table);
  f.unbounded = unbounded;
  f.density_shift = T(shift);
  f.density_layers = int(density.size());
  f.colour_layers = int(colour.size());
  for (size_t i = 0; i < density_width.size(); ++i) f.density_width[i] = density_width[i];
  for (size_t i = 0; i < colour_width.size(); ++i) f.colour_width[i] = colour_width[i];
  for (size_t i = 0; i < density.size(); ++i) f.density_weight[i] = at<const T>(density[i]);
  for (size_t i = 0; i < colour.size(); ++i) f.colour_weight[i] = at<const T>(colour[i]);
  return f;
}

template <class T>
SurfaceArgs<T> surface_args(const HashSpec& spec, int levels, Address table, Address first, Address last, int hidden, int outputs,
                            double beta) {
  SurfaceArgs<T> s{spec, at<const T>(table), at<const T>(first), at<const T>(last), hidden, outputs, T(beta)};
  s.spec.levels = levels;
  return s;
}

template <class T>
void bind(nb::module_& m, const char* suffix) {
  auto name = [&](const char* base) { return std::string(base) + suffix; };
  m.def(name("hash_encode").c_str(), [](const HashSpec& spec, Address table, Address x, int64_t n, Address out) {
    Exclusive exclusive;
    kernels<T>().hash_encode(workers(), spec, at<T>(table), at<T>(x), n, at<T>(out));
  });
  m.def(name("hash_encode_backward").c_str(),
        [](const HashSpec& spec, Address table, Address x, int64_t n, Address d_out, Address d_table, Address d_x) {
          Exclusive exclusive;
          kernels<T>().hash_encode_backward(workers(), spec, at<T>(table), at<T>(x), n, at<T>(d_out), at<T>(d_table), at<T>(d_x));
        });
  m.def(name("hash_encode_second").c_str(), [](const HashSpec& spec, Address table, Address x, int64_t n, Address d_out, Address v,
                                               Address d_d_out, Address d_table, Address d_x) {
    Exclusive exclusive;
    kernels<T>().hash_encode_second(workers(), spec, at<T>(table), at<T>(x), n, at<T>(d_out), at<T>(v), at<T>(d_d_out),
                                    at<T>(d_table), at<T>(d_x));
  });
  m.def(name("mlp").c_str(), [](const std::vector<int>& widths, const Addresses& weights, bool half, Address x, int64_t n,
                                Address out) {
    Exclusive exclusive;
    auto w = all<const T>(weights);
    kernels<T>().mlp(workers(), int(w.size()), widths.data(), w.data(), half, at<T>(x), n, at<T>(out));
  });
  m.def(name("mlp_backward").c_str(), [](const std::vector<int>& widths, const Addresses& weights, bool half, Address x, int64_t n,
                                         Address d_out, const Addresses& d_weights, Address d_x) {
    Exclusive exclusive;
    auto w = all<const T>(weights);
    auto dw = all<T>(d_weights);
    kernels<T>().mlp_backward(workers(), int(w.size()), widths.data(), w.data(), half, at<T>(x), n, at<T>(d_out), dw.data(),
                              at<T>(d_x));
  });
  m.def(name("spherical_harmonics").c_str(), [](Address direction, int64_t n, Address out) {
    Exclusive exclusive;
    kernels<T>().spherical_harmonics(at<T>(direction), n, at<T>(out));
  });
  m.def(name("composite").c_str(), [](Address sigma, Address rgb, Address t0, Address t1, Address offset, int64_t rays,
                                      Address weight, Address colour, Address opacity, Address depth) {
    Exclusive exclusive;
    kernels<T>().composite(workers(), at<T>(sigma), at<T>(rgb), at<T>(t0), at<T>(t1), at<int64_t>(offset), rays, at<T>(weight),
                           at<T>(colour), at<T>(opacity), at<T>(depth));
  });
  m.def(name("composite_backward").c_str(),
        [](Address sigma, Address rgb, Address t0, Address t1, Address offset, int64_t rays, Address weight, Address opacity,
           Address d_weight, Address d_colour, Address d_opacity, Address d_depth, Address d_sigma, Address d_rgb) {
          Exclusive exclusive;
          kernels<T>().composite_backward(workers(), at<T>(sigma), at<T>(rgb), at<T>(t0), at<T>(t1), at<int64_t>(offset), rays,
                                          at<T>(weight), at<T>(opacity), at<T>(d_weight), at<T>(d_colour), at<T>(d_opacity),
                                          at<T>(d_depth), at<T>(d_sigma), at<T>(d_rgb));
        });
  m.def(name("march").c_str(),
        [](int cascades, int size, Address bits, int64_t rays, Address origin, Address direction, Address near, Address far,
           uint64_t seed, double step, double cone, int most, Address t, Address dt, Address count) {
          Exclusive exclusive;
          RayArgs<T> r{rays, at<T>(origin), at<T>(direction), at<T>(near), at<T>(far), nullptr, seed};
          kernels<T>().march(workers(), GridShape{cascades, size}, at<uint64_t>(bits), r, step, cone, most, at<T>(t), at<T>(dt),
                             at<int32_t>(count));
        });
  m.def(name("adam").c_str(), [](Address value, Address gradient, Address first, Address second, int64_t n, int64_t step, double lr,
                                 double beta1, double beta2, double eps, double weight_decay, bool sparse, Address touched) {
    Exclusive exclusive;
    AdamArgs args{lr, beta1, beta2, eps, weight_decay, step, sparse};
    kernels<T>().adam(workers(), args, at<T>(value), at<T>(gradient), at<T>(first), at<T>(second), n, at<uint8_t>(touched));
  });
  m.def(name("scatter_trail").c_str(), [](const HashSpec& spec, Address trail, size_t stride, Address trail_count, int tasks,
                                          double factor, Address d_table, Address touched) {
    Exclusive exclusive;
    kernels<T>().scatter_trail(workers(), spec, at<T>(trail), stride, at<int32_t>(trail_count), tasks, T(factor), at<T>(d_table),
                               at<uint8_t>(touched));
  });
  m.def(name("density").c_str(),
        [](const HashSpec& spec, Address table, bool unbounded, double shift, bool half, const std::vector<int>& widths,
           const Addresses& weights, Address points, int64_t n, Address out) {
          Exclusive exclusive;
          auto field = field_args<T>(spec, table, unbounded, shift, half, widths, weights, {}, {});
          kernels<T>().density(workers(), field, at<T>(points), n, at<T>(out));
        });
  // With d_density and d_colour empty this renders; otherwise it also takes the loss and its gradient.
  m.def(name("trace").c_str(),
        [](const HashSpec& spec, Address table, bool unbounded, double shift, bool half, const std::vector<int>& density_width,
           const Addresses& density, const std::vector<int>& colour_width, const Addresses& colour, int64_t rays, Address origin,
           Address direction, Address near, Address far, Address background, uint64_t seed, int cascades, int size, Address bits,
           Address peak, double step, double cone, int most, double stop, double keep, Address out_colour, Address out_opacity,
           Address out_depth, Address out_median, Address evaluated, Address kept, Address target, int loss, double huber,
           double distortion, Address trail, size_t trail_stride, Address trail_count, Address gradient, Address loss_sum, const Addresses& d_density,
           const Addresses& d_colour) {
          Exclusive exclusive;
          auto field = field_args<T>(spec, table, unbounded, shift, half, density_width, density, colour_width, colour);
          RayArgs<T> r{rays, at<T>(origin), at<T>(direction), at<T>(near), at<T>(far), at<T>(background), seed};
          TraceArgs t{GridShape{cascades, size}, Occupancy{at<uint64_t>(bits), nullptr}, at<float>(peak), step, cone, most, stop, keep};
          PictureOut<T> out{at<T>(out_colour), at<T>(out_opacity), at<T>(out_depth), at<T>(out_median), at<int64_t>(evaluated),
                              at<int64_t>(kept)};
          auto dd = all<T>(d_density), dc = all<T>(d_colour);
          TrainArgs<T> train{at<T>(target), loss,  T(huber), T(distortion), at<T>(trail), trail_stride, at<int32_t>(trail_count),
                             at<T>(gradient), at<double>(loss_sum)};
          kernels<T>().trace(workers(), field, r, t, out, dd.empty() ? nullptr : &train, dd.data(), dc.data());
        });
  m.def(name("trace_gradient_size").c_str(), [](bool half, const std::vector<int>& density_width, const std::vector<int>& colour_width) {
    FieldArgs<T> f{};
    f.half = half;
    f.density_layers = int(density_width.size()) - 1;
    f.colour_layers = int(colour_width.size()) - 1;
    for (size_t i = 0; i < density_width.size(); ++i) f.density_width[i] = density_width[i];
    for (size_t i = 0; i < colour_width.size(); ++i) f.colour_width[i] = colour_width[i];
    return kernels<T>().trace_gradient_size(f);
  });
  m.def(name("surface_trail_size").c_str(), [](const HashSpec& spec, int levels, int hidden, int64_t n) {
    return kernels<T>().surface_trail_size(surface_args<T>(spec, levels, 0, 0, 0, hidden, 0, 0), n);
  });
  m.def(name("surface").c_str(), [](const HashSpec& spec, int levels, Address table, Address first, Address last, int hidden,
                                    int outputs, double beta, Address points, int64_t n, Address out, Address gradient,
                                    Address trail) {
    Exclusive exclusive;
    kernels<T>().surface(workers(), surface_args<T>(spec, levels, table, first, last, hidden, outputs, beta), at<T>(points), n,
                         at<T>(out), at<T>(gradient), at<T>(trail));
  });
  m.def(name("surface_backward").c_str(), [](const HashSpec& spec, int levels, Address table, Address first, Address last, int hidden,
                                             int outputs, double beta, Address points, int64_t n, Address trail, Address d_out,
                                             Address d_gradient, Address d_table, Address d_first, Address d_last) {
    Exclusive exclusive;
    kernels<T>().surface_backward(workers(), surface_args<T>(spec, levels, table, first, last, hidden, outputs, beta), at<T>(points),
                                  n, at<T>(trail), at<T>(d_out), at<T>(d_gradient), at<T>(d_table), at<T>(d_first), at<T>(d_last));
  });
  m.def(name("surface_march").c_str(), [](const HashSpec& spec, int levels, Address table, Address first, Address last, int hidden,
                                          int outputs, double beta, int size, Address bits, int64_t rays, Address origin,
                                          Address direction, Address near, Address far, uint64_t seed, double step, int most,
                                          double inv_s, double keep, Address t, Address kept, Address evaluated) {
    Exclusive exclusive;
    const RayArgs<T> r{rays, at<const T>(origin), at<const T>(direction), at<const T>(near), at<const T>(far), nullptr, seed};
    const SurfaceMarchArgs steps{GridShape{1, size}, Occupancy{at<uint64_t>(bits), nullptr}, step, most, inv_s, keep};
    kernels<T>().surface_march(workers(), surface_args<T>(spec, levels, table, first, last, hidden, outputs, beta), r, steps, at<T>(t),
                               at<int32_t>(kept), at<int32_t>(evaluated));
  });
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "Native kernels of Lightfold. Use them through lightfold.ops.";
  m.attr("GROUP") = kGroup;
  nb::class_<HashSpec>(m, "HashSpec")
      .def("__init__", [](HashSpec* self, int features, int kind, const std::vector<int>& dense,
                          const std::vector<uint32_t>& resolution, const std::vector<uint32_t>& rows,
                          const std::vector<int64_t>& first_row, const std::vector<double>& scale) {
        if (scale.size() > size_t(kMaxLevels)) throw std::invalid_argument("more levels than the kernels hold (32)");
        new (self) HashSpec{};
        self->levels = int(scale.size());
        self->features = features;
        self->kind = kind;
        for (size_t l = 0; l < scale.size(); ++l) {
          self->dense[l] = dense[l];
          self->resolution[l] = resolution[l];
          self->rows[l] = rows[l];
          self->first_row[l] = first_row[l];
          self->scale[l] = scale[l];
        }
      });
  bind<float>(m, "_f32");
  bind<double>(m, "_f64");
  m.def("grid_decay", [](int cascades, int size, Address peak, Address bits, float decay, Address threshold) {
    Exclusive exclusive;
    chosen()->grid_decay(workers(), GridShape{cascades, size}, at<float>(peak), at<uint64_t>(bits), decay, at<float>(threshold));
  });
  m.def("grid_raise", [](int cascades, int size, Address peak, Address bits, Address points, Address density, int64_t n,
                         Address threshold, Address allowed) {
    Exclusive exclusive;
    chosen()->grid_raise(GridShape{cascades, size}, at<float>(peak), at<uint64_t>(bits), at<float>(points), at<float>(density), n,
                         at<float>(threshold), at<uint64_t>(allowed));
  });
  m.def("isa", [] { return std::string(chosen()->name); });
  m.def("isas", [] {
    std::vector<std::string> names;
    for (auto* s : available()) names.push_back(s->name);
    return names;
  });
  m.def("set_isa", [](const std::string& name) {
    for (auto* s : available())
      if (name == s->name) {
        chosen() = s;
        return;
      }
    throw std::invalid_argument("this machine has no kernels called '" + name + "'");
  });
  m.def("set_threads", [](int count) {
    Exclusive exclusive;
    Pool::instance().set_count(count);
  });
  m.def("threads", [] { return Pool::instance().count(); });
  m.def("measure_gflops", [](double seconds, bool pairs) {
    Exclusive exclusive;
    typedef std::chrono::steady_clock Clock;
    double best = 0;
    for (auto begin = Clock::now(); std::chrono::duration<double>(Clock::now() - begin).count() < seconds;) {
      auto start = Clock::now();
      double operations = (pairs ? chosen()->pair_multiply_adds : chosen()->multiply_adds)(20000);
      double rate = operations / std::chrono::duration<double>(Clock::now() - start).count() / 1e9;
      if (rate > best) best = rate;
    }
    return best;
  }, nb::arg("seconds"), nb::arg("pairs") = false, "Best rate of multiply-adds of one thread, in GFLOP/s; of pairs of bfloat16 if asked.");
#if !defined(_WIN32)
  pthread_atfork(nullptr, nullptr, [] { Pool::instance().after_fork(); });
#endif
}
