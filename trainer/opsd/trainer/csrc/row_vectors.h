// OPSD_LANES floats at a time with the compiler's vector extensions: types, elementary functions, and
// rows in memory. Included by row_kernel_impl.h, inside its namespace.

constexpr int kLanes = OPSD_LANES;
typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

constexpr float kInfinity = __builtin_inff();
constexpr int kFlush = 32;  // vectors summed in fp32 before they go into an fp64 sum

inline Floats all(float x) { return Floats{} + x; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats magnitude(Floats x) { return (Floats)((Words)x & 0x7fffffffu); }

inline double sum_of(Floats x) {
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

// --- elementary functions: Cephes' single-precision polynomials, at most 2 ulp off

struct Exponential {
  Floats minus_one;  // exp(x) - 1, accurate near 0
  Floats value;      // exp(x); 0 below the smallest normal number
};

// x at most 88; NaN is not looked at (a row that holds one never comes here).
inline Exponential exponential(Floats x) {
  const Floats low = all(-87.3f);
  const Floats bounded = larger(x, low);
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Floats n = (bounded * 1.44269504f + magic) - magic;
  const Floats r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  const Floats g = y * (r * r) + r;  // exp(r) - 1
  const Ints exponent = __builtin_convertvector(n, Ints);
  const Floats scale = (Floats)((exponent + 127) << 23);
  const Floats minus_one = scale * g + (scale - 1.0f);
  const auto underflow = x < low;
  return {underflow ? all(-1.0f) : minus_one, underflow ? all(0.0f) : scale * g + scale};
}

// log(1 + u) for u in (-1, 0].
inline Floats log_one_plus(Floats u) {
  const Floats whole = larger(u + 1.0f, all(1.17549435e-38f));
  const Words bits = (Words)whole;
  // The mantissa in [1/sqrt(2), sqrt(2)), and the exponent that belongs to it.
  const Words shifted = bits - 0x3f3504f3u;
  const Ints e = (Ints)shifted >> 23;
  const Floats mantissa = (Floats)((shifted & 0x007fffffu) + 0x3f3504f3u);
  const auto near = u > -0.25f;  // 1 + u has lost bits that u still has
  const Floats x = near ? u : mantissa - 1.0f;
  const Floats k = near ? all(0.0f) : __builtin_convertvector(e, Floats);
  const Floats z = x * x;
  Floats y = x * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * x + 1.1676998740e-1f;
  y = y * x - 1.2420140846e-1f;
  y = y * x + 1.4249322787e-1f;
  y = y * x - 1.6668057665e-1f;
  y = y * x + 2.0000714765e-1f;
  y = y * x - 2.4999993993e-1f;
  y = y * x + 3.3333331174e-1f;
  y = y * x * z;
  y = y - k * 2.12194440e-4f;
  y = y - z * 0.5f;
  return (x + y) + k * 0.693359375f;
}

// --- rows in memory, a vector at a time; `count` below kLanes is the row's end

template <Format format>
struct Memory;

template <>
struct Memory<Format::kFloat32> {
  using Element = float;
  using Vector = Floats;
  static Floats widen(Vector x) { return x; }
  static Vector narrow(Floats x) { return x; }
};

template <>
struct Memory<Format::kBFloat16> {
  using Element = uint16_t;
  using Vector = Halves;
  static Floats widen(Vector x) { return (Floats)(__builtin_convertvector(x, Words) << 16); }
  static Vector narrow(Floats x) {
    const Words bits = (Words)x;
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // ties to even
    const Words kept = x == x ? rounded : Words{} + 0x7fc0u;
    return __builtin_convertvector(kept, Halves);
  }
};

template <>
struct Memory<Format::kFloat16> {
  // In whole numbers: not every compiler has the type.
  using Element = uint16_t;
  using Vector = Halves;
  static Floats widen(Vector x) {
    const Words bits = __builtin_convertvector(x, Words);
    const Words size = bits & 0x7fffu;
    const Words normal = (size << 13) + (112u << 23);
    const Words special = (size << 13) | 0x7f800000u;
    const Floats subnormal = __builtin_convertvector(size, Floats) * 5.9604644775390625e-8f;
    Words wide = size >= 0x7c00u ? special : normal;
    wide = size < 0x0400u ? (Words)subnormal : wide;
    return (Floats)(wide | ((bits & 0x8000u) << 16));
  }
  static Vector narrow(Floats x) {
    const Words bits = (Words)x;
    const Words size = bits & 0x7fffffffu;
    const Words normal = (size + 0xfffu + ((size >> 13) & 1u) - (112u << 23)) >> 13;
    // Adding 1/2 leaves a subnormal's bits, rounded, at the end of the sum's.
    const Words subnormal = (Words)((Floats)size + 0.5f) - 0x3f000000u;
    Words half = size < 0x38800000u ? subnormal : normal;
    half = size >= 0x477ff000u ? Words{} + 0x7c00u : half;
    half = size > 0x7f800000u ? Words{} + 0x7e00u : half;
    return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), Halves);
  }
};

// What is beyond the row's end reads as -inf: an entry of probability 0.
template <Format format>
inline Floats load(const void* row, int64_t at, int64_t count) {
  using M = Memory<format>;
  const auto* from = static_cast<const typename M::Element*>(row) + at;
  typename M::Vector raw{};
  if (count >= kLanes) {
    __builtin_memcpy(&raw, from, sizeof raw);
    return M::widen(raw);
  }
  for (int64_t i = 0; i < count; ++i) raw[i] = from[i];
  float wide[kLanes];
  const Floats read = M::widen(raw);
  __builtin_memcpy(wide, &read, sizeof wide);
  for (int64_t i = count; i < kLanes; ++i) wide[i] = -kInfinity;
  Floats x;
  __builtin_memcpy(&x, wide, sizeof x);
  return x;
}

template <Format format>
inline void store(void* row, int64_t at, int64_t count, Floats x) {
  using M = Memory<format>;
  auto* to = static_cast<typename M::Element*>(row) + at;
  const typename M::Vector raw = M::narrow(x);
  if (count >= kLanes) {
    __builtin_memcpy(to, &raw, sizeof raw);
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = raw[i];
}

template <Format format>
inline float element(const void* row, int64_t at) {
  const Floats x = load<format>(row, at, 1);
  return x[0];
}
