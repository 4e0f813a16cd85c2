// Adam (Kingma and Ba 2015), reading a gradient and clearing it in the same pass.
#pragma once
#include "simd.h"

namespace lf {

struct AdamArgs {
  double lr, beta1, beta2, eps, weight_decay;
  int64_t step;  // counts from 1
  int sparse;    // values with an exactly zero gradient are left alone
};

namespace LF_ISA {

constexpr int64_t kLineValues = 16;  // values per line of the touched map

LF_INLINE Vec<float> vsqrt(Vec<float> x) {
#if defined(__AVX512F__) && LF_BYTES == 64
  return (Vec<float>)__builtin_ia32_sqrtps512_mask((__attribute__((vector_size(64))) float)x,
                                                   (__attribute__((vector_size(64))) float)x, -1, 4);
#else
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
LF_INLINE Vec<double> vsqrt(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}

template <class T>
struct AdamStep {
  T beta1, beta2, eps, decay, rate, root;  // rate = lr / (1 - beta1^t), root = 1 / (1 - beta2^t)
  bool sparse;

  explicit AdamStep(const AdamArgs& a) {
    double power1 = 1, power2 = 1, base1 = a.beta1, base2 = a.beta2;
    for (int64_t n = a.step; n; n >>= 1, base1 *= base1, base2 *= base2)
      if (n & 1) power1 *= base1, power2 *= base2;
    beta1 = T(a.beta1), beta2 = T(a.beta2), eps = T(a.eps), decay = T(a.weight_decay);
    rate = T(a.lr / (1 - power1));
    root = T(1 / (1 - power2));
    sparse = a.sparse != 0;
  }

  // Without momentum (m is null, beta1 is 0) the first moment is the gradient itself: a quarter of the memory is not moved.
  template <bool kMomentum>
  LF_INLINE void vector(T* p, T* g, T* m, T* v) const {
    const Vec<T> zero{};
    Vec<T> grad = load(g), value = load(p), first = kMomentum ? load(m) : zero, second = load(v);
    const auto live = grad != zero;
    const Vec<T> full = grad + decay * value;
    Vec<T> first_new = kMomentum ? first + (T(1) - beta1) * (full - first) : full;
    Vec<T> second_new = second + (T(1) - beta2) * (full * full - second);
    Vec<T> value_new = value - rate * first_new / (vsqrt(second_new * root) + eps);
    if (sparse) {
      value_new = live ? value_new : value;
      first_new = live ? first_new : first;
      second_new = live ? second_new : second;
    }
    store(p, value_new), store(v, second_new), store(g, zero);
    if (kMomentum) store(m, first_new);
  }
  LF_INLINE void scalar(T* p, T* g, T* m, T* v) const {
    if (sparse && *g == T(0)) return;
    const T full = *g + decay * *p, first = m ? *m + (T(1) - beta1) * (full - *m) : full;
    if (m) *m = first;
    *v += (T(1) - beta2) * (full * full - *v);
    *p -= rate * first / (sqrt(*v * root) + eps);
    *g = T(0);
  }
  void range(T* p, T* g, T* m, T* v, int64_t begin, int64_t end) const {
    int64_t i = begin;
    if (m)
      for (; i + kLanes<T> <= end; i += kLanes<T>) vector<true>(p + i, g + i, m + i, v + i);
    else
      for (; i + kLanes<T> <= end; i += kLanes<T>) vector<false>(p + i, g + i, m, v + i);
    for (; i < end; ++i) scalar(p + i, g + i, m ? m + i : m, v + i);
  }
  // Lines whose byte in `touched` is set; the bytes are cleared.
  void lines(T* p, T* g, T* m, T* v, int64_t count, uint8_t* touched, int64_t first_line, int64_t last_line) const {
    int64_t line = first_line;
    while (line < last_line) {
      if (line + 8 <= last_line) {
        uint64_t eight;
        __builtin_memcpy(&eight, touched + line, 8);
        if (eight == 0) {
          line += 8;
          continue;
        }
      }
      const int64_t stop = min(line + 8, last_line);
      for (; line < stop; ++line) {
        if (!touched[line]) continue;
        touched[line] = 0;
        range(p, g, m, v, line * kLineValues, min((line + 1) * kLineValues, count));
      }
    }
  }
};

}  // namespace LF_ISA
}  // namespace lf
