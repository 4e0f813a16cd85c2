// Vectors of whatever width the instruction set has, by the vector extensions that GCC and Clang share.
//
// Every kernel header is compiled once per instruction set, inside a namespace of its own (LF_ISA), with LF_BYTES
// the width of a register. Kernel code calls nothing from the standard library that could be emitted as a weak symbol:
// the linker would be free to keep the AVX-512 copy for everyone, and older machines would stop at it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#ifndef LF_ISA
#error "define LF_ISA (a namespace) and LF_BYTES (register width) before including a kernel header"
#endif

#define LF_INLINE inline __attribute__((always_inline))

namespace lf {
namespace LF_ISA {

constexpr int kRegisterBytes = LF_BYTES;
constexpr bool kManyRegisters = LF_REGISTERS >= 32;

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kRegisterBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = kRegisterBytes / int(sizeof(T));

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  typedef int32_t type;
};
template <>
struct IntOf<double> {
  typedef int64_t type;
};

template <class T>
LF_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
LF_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <class T>
LF_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}
template <class T>
LF_INLINE T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
LF_INLINE T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
LF_INLINE T clamp(T x, T lo, T hi) {
  return min(max(x, lo), hi);
}
template <class T>
LF_INLINE T abs(T x) {
  return x < 0 ? -x : x;
}
LF_INLINE float sqrt(float x) { return __builtin_sqrtf(x); }
LF_INLINE double sqrt(double x) { return __builtin_sqrt(x); }
LF_INLINE float ceil(float x) { return __builtin_ceilf(x); }
LF_INLINE double ceil(double x) { return __builtin_ceil(x); }

// exp, elementwise. Float: Cody-Waite reduction and a degree-6 polynomial, 2 ulp over [-87, 88], clamped beyond.
// Double goes through the C library: it serves gradient checks, not speed.
LF_INLINE Vec<float> vexp(Vec<float> x) {
  typedef Vec<int32_t> I;
  x = x > 88.0f ? splat(88.0f) : x;
  x = x < -87.0f ? splat(-87.0f) : x;
  const Vec<float> magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec<float> n = x * 1.44269504088896341f + magic;
  I exponent;
  __builtin_memcpy(&exponent, &n, sizeof n);
  n -= magic;
  Vec<float> r = x - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  Vec<float> p = splat(1.3888889e-3f);
  p = p * r + 8.3333338e-3f;
  p = p * r + 4.1666668e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  I scale = ((exponent - 0x4B400000) + 127) << 23;
  Vec<float> s;
  __builtin_memcpy(&s, &scale, sizeof s);
  return p * s;
}
LF_INLINE Vec<double> vexp(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(clamp(x[i], -700.0, 700.0));
  return x;
}

// Rows of a square block of kLanes x kLanes values become its columns: log2(lanes) rounds of butterflies.
template <class T, int kHalf, int... kIndex>
LF_INLINE void butterfly(Vec<T>* row, std::integer_sequence<int, kIndex...>) {
  constexpr int n = kLanes<T>;
  _Pragma("GCC unroll 16")
  for (int i = 0; i < n; ++i) {
    if (i & kHalf) continue;
    Vec<T> a = row[i], b = row[i | kHalf];
    row[i] = __builtin_shufflevector(a, b, ((kIndex & kHalf) ? (kIndex ^ kHalf) + n : kIndex)...);
    row[i | kHalf] = __builtin_shufflevector(a, b, ((kIndex & kHalf) ? kIndex + n : (kIndex | kHalf))...);
  }
}
template <class T>
LF_INLINE void transpose(Vec<T>* row) {
  typedef std::make_integer_sequence<int, kLanes<T>> Index;
  if constexpr (kLanes<T> > 1) butterfly<T, 1>(row, Index{});
  if constexpr (kLanes<T> > 2) butterfly<T, 2>(row, Index{});
  if constexpr (kLanes<T> > 4) butterfly<T, 4>(row, Index{});
  if constexpr (kLanes<T> > 8) butterfly<T, 8>(row, Index{});
}

}  // namespace LF_ISA
}  // namespace lf
