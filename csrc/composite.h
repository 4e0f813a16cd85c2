// Volume rendering of packed samples (Max 1995; Mildenhall et al. 2020, equation 3) and its gradient.
//
//   alpha_i = 1 - exp(-sigma_i dt_i),  T_i = prod_{j<i} (1 - alpha_j),  w_i = T_i alpha_i
//   colour = sum w_i c_i,  opacity = sum w_i,  depth = sum w_i t_i
// Samples of ray r are [offset[r], offset[r+1]); t_i is the middle of its interval.
#pragma once
#include "simd.h"

namespace lf {
namespace LF_ISA {

template <class T>
LF_INLINE T scalar_exp(T x) {
  return vexp(splat(x))[0];
}

template <class T>
void composite_ray(const T* sigma, const T* rgb, const T* t0, const T* t1, int64_t begin, int64_t end, T* weight, T* colour,
                   T* opacity, T* depth) {
  T transmittance = T(1), r = 0, g = 0, b = 0, d = 0;
  for (int64_t i = begin; i < end; ++i) {
    const T keep = scalar_exp(-sigma[i] * (t1[i] - t0[i]));
    const T w = transmittance * (T(1) - keep);
    transmittance *= keep;
    weight[i] = w;
    r += w * rgb[3 * i], g += w * rgb[3 * i + 1], b += w * rgb[3 * i + 2];
    d += w * T(0.5) * (t0[i] + t1[i]);
  }
  colour[0] = r, colour[1] = g, colour[2] = b;
  *opacity = T(1) - transmittance;
  *depth = d;
}

// With G_i = dL/dw_i collected from colour, depth and weight, and opacity = 1 - T_end:
//   dL/dsigma_i = dt_i ( T_{i+1} G_i - sum_{j>i} w_j G_j + T_end dL/dopacity ).
template <class T>
void composite_ray_backward(const T* sigma, const T* rgb, const T* t0, const T* t1, int64_t begin, int64_t end,
                            const T* weight, T opacity, const T* d_weight, const T* d_colour, T d_opacity, T d_depth,
                            T* d_sigma, T* d_rgb) {
  T after = T(1) - opacity;  // transmittance behind sample i, walking backwards
  T suffix = -after * d_opacity;
  for (int64_t i = end - 1; i >= begin; --i) {
    const T dt = t1[i] - t0[i], w = weight[i];
    const T gain = (d_weight ? d_weight[i] : T(0)) + rgb[3 * i] * d_colour[0] + rgb[3 * i + 1] * d_colour[1] +
                   rgb[3 * i + 2] * d_colour[2] + T(0.5) * (t0[i] + t1[i]) * d_depth;
    d_sigma[i] = dt * (after * gain - suffix);
    suffix += w * gain;
    for (int c = 0; c < 3; ++c) d_rgb[3 * i + c] = w * d_colour[c];
    after += w;  // T_i = T_{i+1} + w_i
  }
}

// Real spherical harmonics of bands 0 to 3 for a unit direction: 16 values, tiny-cuda-nn's order and signs.
template <class T>
LF_INLINE void spherical_harmonics(T x, T y, T z, T* out) {
  const T xy = x * y, yz = y * z, xz = x * z, x2 = x * x, y2 = y * y, z2 = z * z;
  out[0] = T(0.28209479177387814);
  out[1] = T(-0.48860251190291987) * y;
  out[2] = T(0.48860251190291987) * z;
  out[3] = T(-0.48860251190291987) * x;
  out[4] = T(1.0925484305920792) * xy;
  out[5] = T(-1.0925484305920792) * yz;
  out[6] = T(0.94617469575755997) * z2 - T(0.31539156525251999);
  out[7] = T(-1.0925484305920792) * xz;
  out[8] = T(0.54627421529603959) * (x2 - y2);
  out[9] = T(0.59004358992664352) * y * (-T(3) * x2 + y2);
  out[10] = T(2.8906114426405538) * xy * z;
  out[11] = T(0.45704579946446572) * y * (T(1) - T(5) * z2);
  out[12] = T(0.3731763325901154) * z * (T(5) * z2 - T(3));
  out[13] = T(0.45704579946446572) * x * (T(1) - T(5) * z2);
  out[14] = T(1.4453057213202769) * z * (x2 - y2);
  out[15] = T(0.59004358992664352) * x * (-x2 + T(3) * y2);
}

}  // namespace LF_ISA
}  // namespace lf
