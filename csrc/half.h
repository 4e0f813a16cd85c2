// Cells: what a row of activations holds for a sample. A cell is a number, or two bfloat16 in a word: features 2p and 2p + 1
// (or, where sums run over samples, samples 2s and 2s + 1).
//
// A bfloat16 is the upper half of a single-precision number, so it has the same range and 8 bits of precision. Pairs take half
// the memory of numbers, and processors with an instruction for it (AVX512-BF16) multiply both halves and add both products to
// a single-precision sum at once. Elsewhere the same sum takes two multiply-adds and is no gain; it is there so that what a
// machine has learned, another can read, and test.
#pragma once
#include "simd.h"

#if defined(__AVX512BF16__) && LF_BYTES == 64
#include <immintrin.h>
#define LF_PAIR_INSTRUCTION 1
#endif

namespace lf {

typedef uint32_t Pair;

namespace LF_ISA {

template <class X>
struct Cell {
  typedef X number;
  static constexpr int per = 1;
};
template <>
struct Cell<Pair> {
  typedef float number;
  static constexpr int per = 2;
};
template <class X>
using NumberOf = typename Cell<X>::number;
template <class X>
constexpr int kPer = Cell<X>::per;  // numbers of a cell

// Cells that hold `count` numbers.
template <class X>
constexpr int cells(int count) {
  return (count + kPer<X> - 1) / kPer<X>;
}

// To the nearest, of two equally near ones to the even; what is not a number stays one.
LF_INLINE Pair rounded(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return x == x ? (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40u;
}
LF_INLINE Vec<Pair> rounded(Vec<float> x) {
  const Vec<Pair> bits = (Vec<Pair>)x;
  return x == x ? (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40u;
}

template <class X>
LF_INLINE X cell_of(NumberOf<X> low, NumberOf<X> high) {
  if constexpr (kPer<X> == 1)
    return low;
  else
    return rounded(low) | rounded(high) << 16;
}

// Two vectors of numbers as one of pairs.
LF_INLINE Vec<Pair> pair_of(Vec<float> low, Vec<float> high) {
#if defined(LF_PAIR_INSTRUCTION)
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                              20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (Vec<Pair>)_mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
#else
  return rounded(low) | rounded(high) << 16;
#endif
}

// A vector of numbers, rounded, one after the other: cells of neighbouring samples.
LF_INLINE void store_rounded(Pair* at, Vec<float> x) {
#if defined(LF_PAIR_INSTRUCTION)
  const __m256i halves = (__m256i)_mm512_cvtneps_pbh((__m512)x);
  __builtin_memcpy(at, &halves, sizeof halves);
#else
  typedef uint16_t Halves __attribute__((vector_size(kRegisterBytes / 2)));
  const Halves halves = __builtin_convertvector(rounded(x), Halves);
  __builtin_memcpy(at, &halves, sizeof halves);
#endif
}

// sum += a b
LF_INLINE void multiply_add(Vec<float>& sum, Vec<float> a, Vec<float> b) { sum += a * b; }
LF_INLINE void multiply_add(Vec<double>& sum, Vec<double> a, Vec<double> b) { sum += a * b; }
LF_INLINE void multiply_add(Vec<float>& sum, Vec<Pair> a, Vec<Pair> b) {
#if defined(LF_PAIR_INSTRUCTION)
  sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum += (Vec<float>)(a & 0xFFFF0000u) * (Vec<float>)(b & 0xFFFF0000u);
  sum += (Vec<float>)(a << 16) * (Vec<float>)(b << 16);
#endif
}

// Rows of numbers as rows of cells. Numbers are their own cells, and stay where they are; pairs are written into `into`, and
// whole vectors are read and written.
template <class T>
LF_INLINE T* cells_of(T* rows, size_t, int, int, T*) {
  return rows;
}
inline Pair* cells_of(const float* rows, size_t stride, int width, int count, Pair* into) {
  for (int k = 0; k < width; k += 2)
    for (int i = 0; i < count; i += kLanes<float>)
      store(into + k / 2 * stride + i,
            pair_of(load(rows + k * stride + i), k + 1 < width ? load(rows + (k + 1) * stride + i) : Vec<float>{}));
  return into;
}

}  // namespace LF_ISA
}  // namespace lf
