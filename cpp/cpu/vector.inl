// Vectors of kLanes floats in the compiler's vector extension. Included inside a namespace of one instruction
// set, where kLanes is defined; nothing here may be inline with external linkage, or sets would mix at link
// time.

typedef float F __attribute__((vector_size(kLanes * 4)));
typedef int32_t I __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U __attribute__((vector_size(kLanes * 4)));
typedef uint16_t H __attribute__((vector_size(kLanes * 2)));

#define VLKV_INLINE static inline __attribute__((always_inline))

template <class V, class T>
VLKV_INLINE V load(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <class V, class T>
VLKV_INLINE void store(T* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

// Forces the vector into a register: GCC would otherwise read the memory again in every instruction that can.
VLKV_INLINE F in_register(F v) {
#if defined(__AVX__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

VLKV_INLINE F splat(float x) { return x - F{}; }
VLKV_INLINE I splat(int32_t x) { return I{} + x; }

// The larger of both; b if a is NaN.
VLKV_INLINE F larger(F a, F b) { return a > b ? a : b; }

// 2^x for x <= 126; 0 for x <= -127; relative error 1.2e-7 where the result is not under 2^-126; NaN stays
// NaN.
VLKV_INLINE F exp2_below(F x) {
  const float shift = 12583039.0F;  // 1.5 * 2^23 + 127: the sum's low bits are the biased exponent
  const F y = larger(in_register(splat(-127.0F)), x);
  const F t = y + shift;
  const F f = y - (t - shift);
  F r = splat(0.00015461445f);
  r = r * f + 0.0013400428f;
  r = r * f + 0.009618057f;
  r = r * f + 0.055503268f;
  r = r * f + 0.24022651f;
  r = r * f + 0.6931472f;
  r = r * f + 1.0f;
  return r * (F)((I)t << 23);
}

// 2^x; larger x than 126 give 2^126.
VLKV_INLINE F exp2(F x) { return exp2_below(x > 126.0F ? splat(126.0F) : x); }

VLKV_INLINE float sum_lanes(F v) {
  float parts[kLanes];
  store(parts, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  }
  return parts[0];
}
