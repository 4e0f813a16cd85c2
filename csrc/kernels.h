// The functions that every instruction set provides, as a table of pointers. Arguments are plain pointers and sizes.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lf {

struct Workers;
struct HashSpec;
struct GridShape;
struct AdamArgs;
struct TraceArgs;
struct SurfaceMarchArgs;
template <class T> struct FieldArgs;
template <class T> struct RayArgs;
template <class T> struct PictureOut;
template <class T> struct TrainArgs;
template <class T> struct SurfaceArgs;

template <class T>
struct Kernels {
  // x [n,3] in [0,1] -> out [n, levels*features]
  void (*hash_encode)(const Workers&, const HashSpec&, const T* table, const T* x, int64_t n, T* out);
  // d_out [n, levels*features] -> d_table (accumulated, may be null), d_x [n,3] (may be null)
  void (*hash_encode_backward)(const Workers&, const HashSpec&, const T* table, const T* x, int64_t n, const T* d_out,
                               T* d_table, T* d_x);
  // Derivatives of sum(v * d_x), v [n,3]: d_d_out [n, levels*features], d_table (accumulated), d_x; each may be null
  void (*hash_encode_second)(const Workers&, const HashSpec&, const T* table, const T* x, int64_t n, const T* d_out, const T* v,
                             T* d_d_out, T* d_table, T* d_x);
  // x [n, in] -> out [n, out]; widths holds layers + 1 numbers; weights are [out][in]; half: with pairs of bfloat16
  void (*mlp)(const Workers&, int layers, const int* widths, const T* const* weights, int half, const T* x, int64_t n, T* out);
  // d_weights are accumulated; d_x may be null
  void (*mlp_backward)(const Workers&, int layers, const int* widths, const T* const* weights, int half, const T* x, int64_t n,
                       const T* d_out, T* const* d_weights, T* d_x);
  void (*spherical_harmonics)(const T* direction, int64_t n, T* out);
  void (*composite)(const Workers&, const T* sigma, const T* rgb, const T* t0, const T* t1, const int64_t* offset, int64_t rays,
                    T* weight, T* colour, T* opacity, T* depth);
  void (*composite_backward)(const Workers&, const T* sigma, const T* rgb, const T* t0, const T* t1, const int64_t* offset,
                             int64_t rays, const T* weight, const T* opacity, const T* d_weight, const T* d_colour,
                             const T* d_opacity, const T* d_depth, T* d_sigma, T* d_rgb);
  // t_out, dt_out [rays, most]; count [rays]
  void (*march)(const Workers&, const GridShape&, const uint64_t* bits, const RayArgs<T>&, double step, double cone, int most,
                T* t_out, T* dt_out, int32_t* count);
  void (*adam)(const Workers&, const AdamArgs&, T* value, T* gradient, T* first, T* second, int64_t n, uint8_t* touched);
  // d_table += factor * the gradient that a training trace left in its trail
  void (*scatter_trail)(const Workers&, const HashSpec&, const T* trail, size_t trail_stride, const int32_t* trail_count,
                        int tasks, T factor, T* d_table, uint8_t* touched);
  void (*trace)(const Workers&, const FieldArgs<T>&, const RayArgs<T>&, const TraceArgs&, const PictureOut<T>&,
                const TrainArgs<T>*, T* const* d_density, T* const* d_colour);
  // density at points of the scene [n,3], all of a field's positions before contraction
  void (*density)(const Workers&, const FieldArgs<T>&, const T* points, int64_t n, T* out);
  int64_t (*trace_gradient_size)(const FieldArgs<T>&);
  // points [n,3] of the cube [-1,1]^3 -> out [n, outputs], gradient [n,3] of out[0] (may be null); the trail, of
  // surface_trail_size values, is filled for the backward pass (may be null)
  void (*surface)(const Workers&, const SurfaceArgs<T>&, const T* points, int64_t n, T* out, T* gradient, T* trail);
  // d_table, d_first and d_last are accumulated; d_gradient may be null
  void (*surface_backward)(const Workers&, const SurfaceArgs<T>&, const T* points, int64_t n, const T* trail, const T* d_out,
                           const T* d_gradient, T* d_table, T* d_first, T* d_last);
  int64_t (*surface_trail_size)(const SurfaceArgs<T>&, int64_t n);
  // Steps of rays through a field of one output whose weight counts: t_out [rays, most], kept and evaluated [rays]
  void (*surface_march)(const Workers&, const SurfaceArgs<T>&, const RayArgs<T>&, const SurfaceMarchArgs&, T* t_out, int32_t* kept,
                        int32_t* evaluated);
};

struct KernelSet {
  const char* name;
  double (*multiply_adds)(int64_t rounds);  // in registers, one thread; returns the operations done
  double (*pair_multiply_adds)(int64_t rounds);  // the same of pairs of bfloat16
  void (*grid_decay)(const Workers&, const GridShape&, float* peak, uint64_t* bits, float decay, const float* threshold);
  void (*grid_raise)(const GridShape&, float* peak, uint64_t* bits, const float* points, const float* density, int64_t n,
                     const float* threshold, const uint64_t* allowed);
  Kernels<float> f32;
  Kernels<double> f64;
};

const KernelSet& kernels_portable();
#if defined(LF_HAVE_AVX2)
const KernelSet& kernels_avx2();
#endif
#if defined(LF_HAVE_AVX512)
const KernelSet& kernels_avx512();
const KernelSet& kernels_avx512bf16();
#endif

}  // namespace lf
