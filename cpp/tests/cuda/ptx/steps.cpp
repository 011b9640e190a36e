// What each opcode does for its thread alone. Those that nvcc makes of the kernels are here, and a kernel
// with another is refused when it is read.
#include "cuda/ptx/steps.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <type_traits>

#include "cuda/emulation.h"

namespace vlkv::ptx {
namespace {

template <class T>
struct Wider;
template <>
struct Wider<int32_t> {
  using Type = int64_t;
};
template <>
struct Wider<uint32_t> {
  using Type = uint64_t;
};

template <class T>
constexpr unsigned kBits = sizeof(T) * 8;

// d = f(a, b): f has no state.
template <class T, class F>
void two(Thread& t, const Instruction& i) {
  set<T>(t, i.operands[0], F{}(get<T>(t, i.operands[1]), get<T>(t, i.operands[2])));
}
template <class T, class F>
void one(Thread& t, const Instruction& i) {
  set<T>(t, i.operands[0], F{}(get<T>(t, i.operands[1])));
}

template <class T>
struct Subtract {
  T operator()(T a, T b) const { return wrapped<T, std::minus<>>(a, b); }
};
template <class T>
struct Multiply {
  T operator()(T a, T b) const { return wrapped<T, std::multiplies<>>(a, b); }
};
template <class T>
struct Negate {
  T operator()(T a) const {
    if constexpr (std::is_floating_point_v<T>)
      return -a;
    else
      return static_cast<T>(std::make_unsigned_t<T>{0} - static_cast<std::make_unsigned_t<T>>(a));
  }
};

template <class T>
void divide(Thread& t, const Instruction& i) {
  const T a = get<T>(t, i.operands[1]), b = get<T>(t, i.operands[2]);
  if constexpr (std::is_integral_v<T>) {
    if (b == 0) t.fail("divides by 0");
  }
  set<T>(t, i.operands[0], a / b);
}
template <class T>
void remainder(Thread& t, const Instruction& i) {
  const T a = get<T>(t, i.operands[1]), b = get<T>(t, i.operands[2]);
  if (b == 0) t.fail("divides by 0");
  set<T>(t, i.operands[0], a % b);
}
template <class T>
void multiply_wide(Thread& t, const Instruction& i) {
  using W = typename Wider<T>::Type;
  set<W>(t, i.operands[0], W{get<T>(t, i.operands[1])} * W{get<T>(t, i.operands[2])});
}
template <class T>
void multiply_high(Thread& t, const Instruction& i) {
  using W = typename Wider<T>::Type;
  const W product = W{get<T>(t, i.operands[1])} * W{get<T>(t, i.operands[2])};
  set<T>(t, i.operands[0], static_cast<T>(product >> kBits<T>));
}
template <class T>
void multiply_then_add(Thread& t, const Instruction& i) {
  const T product = Multiply<T>{}(get<T>(t, i.operands[1]), get<T>(t, i.operands[2]));
  set<T>(t, i.operands[0], Add<T>{}(product, get<T>(t, i.operands[3])));
}
template <class T>
void fused(Thread& t, const Instruction& i) {
  set<T>(t, i.operands[0],
         std::fma(get<T>(t, i.operands[1]), get<T>(t, i.operands[2]), get<T>(t, i.operands[3])));
}

// Shifts beyond the width leave zeros, or the sign.
template <class T>
void shift_left(Thread& t, const Instruction& i) {
  const auto by = get<uint32_t>(t, i.operands[2]);
  set<T>(t, i.operands[0], by >= kBits<T> ? T{0} : static_cast<T>(get<T>(t, i.operands[1]) << by));
}
template <class T>
void shift_right(Thread& t, const Instruction& i) {
  const auto by = get<uint32_t>(t, i.operands[2]);
  const T value = get<T>(t, i.operands[1]);
  if (by >= kBits<T>)
    set<T>(t, i.operands[0], std::is_signed_v<T> && value < 0 ? static_cast<T>(-1) : T{0});
  else
    set<T>(t, i.operands[0], static_cast<T>(value >> by));
}

// The low bits of the first number take the place of some of the second's: from which on, and how many.
template <class T>
void insert_bits(Thread& t, const Instruction& i) {
  const auto at = get<uint32_t>(t, i.operands[3]) & 0xffU, count = get<uint32_t>(t, i.operands[4]) & 0xffU;
  const T ones = count >= kBits<T> ? static_cast<T>(-1) : static_cast<T>((T{1} << count) - 1);
  const T mask = at >= kBits<T> ? T{0} : static_cast<T>(ones << at);
  const T from = at >= kBits<T> ? T{0} : static_cast<T>(get<T>(t, i.operands[1]) << at);
  set<T>(t, i.operands[0], static_cast<T>((from & mask) | (get<T>(t, i.operands[2]) & ~mask)));
}

template <class T, class F>
void compare(Thread& t, const Instruction& i) {
  set<uint32_t>(t, i.operands[0], F{}(get<T>(t, i.operands[1]), get<T>(t, i.operands[2])) ? 1 : 0);
}
// Ordered: with a NaN it does not hold.
struct NotEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return a < b || b < a;
  }
};
struct LessEqualOrUnordered {
  template <class T>
  bool operator()(T a, T b) const {
    return !(a > b);
  }
};
struct LessOrUnordered {
  template <class T>
  bool operator()(T a, T b) const {
    return !(a >= b);
  }
};
struct GreaterEqualOrUnordered {
  template <class T>
  bool operator()(T a, T b) const {
    return !(a < b);
  }
};
template <class T>
void select(Thread& t, const Instruction& i) {
  set<T>(t, i.operands[0], get<T>(t, i.operands[get<uint32_t>(t, i.operands[3]) != 0 ? 1 : 2]));
}

template <class To, class From>
void convert(Thread& t, const Instruction& i) {
  set<To>(t, i.operands[0], static_cast<To>(get<From>(t, i.operands[1])));
}

// Vectors into one register and back.
template <class T>
void move(Thread& t, const Instruction& i) {
  if (i.sizes[0] == 1 && i.sizes[1] == 1) {
    set<T>(t, i.operands[0], get<T>(t, i.operands[1]));
  } else if (i.sizes[1] == 2) {
    const auto low = get<uint64_t>(t, i.operands[1]), high = get<uint64_t>(t, i.operands[2]);
    const unsigned half = kBits<T> / 2;
    const uint64_t mask = (uint64_t{1} << half) - 1;
    set<T>(t, i.operands[0], static_cast<T>((low & mask) | (high & mask) << half));
  } else {
    const auto whole = get<uint64_t>(t, i.operands[2]);
    const unsigned half = kBits<T> / 2;
    const uint64_t mask = (uint64_t{1} << half) - 1;
    set<uint64_t>(t, i.operands[0], whole & mask);
    set<uint64_t>(t, i.operands[1], whole >> half & mask);
  }
}

template <Space kSpace, class T, int kCount>
void load(Thread& t, const Instruction& i) {
  const char* const from =
      place<kSpace>(t, address(t, i.operands[kCount]), sizeof(T) * static_cast<size_t>(kCount));
  for (size_t e = 0; e < kCount; ++e) {
    T value;
    std::memcpy(&value, from + e * sizeof(T), sizeof value);
    // A register that is wider than what is read gets its sign (PTX ISA, "Operand Size Exceeding
    // Instruction-Type Size").
    if constexpr (std::is_integral_v<T> && std::is_signed_v<T>)
      set<int64_t>(t, i.operands[e], int64_t{value});
    else if constexpr (sizeof(T) >= 4)
      set<T>(t, i.operands[e], value);
    else
      set<uint32_t>(t, i.operands[e], value);
  }
}
template <Space kSpace, class T, int kCount>
void store(Thread& t, const Instruction& i) {
  char* const to = place<kSpace>(t, address(t, i.operands[0]), sizeof(T) * static_cast<size_t>(kCount));
  for (size_t e = 0; e < kCount; ++e) {
    const T value = get<T>(t, i.operands[e + 1]);
    std::memcpy(to + e * sizeof(T), &value, sizeof value);
  }
}

void branch(Thread& t, const Instruction& i) { t.next = i.target; }
void leave(Thread& t, const Instruction&) { t.next = static_cast<int64_t>(t.kernel.instructions.size()); }

void exponential(Thread& t, const Instruction& i) {
  set<float>(t, i.operands[0], cuda::exp2_flushed(get<float>(t, i.operands[1])));
}
void reciprocal(Thread& t, const Instruction& i) {
  set<float>(t, i.operands[0], 1.0F / get<float>(t, i.operands[1]));
}
void count_bits(Thread& t, const Instruction& i) {
  set<uint32_t>(t, i.operands[0], static_cast<uint32_t>(std::popcount(get<uint32_t>(t, i.operands[1]))));
}
void half_to_float(Thread& t, const Instruction& i) {
  set<float>(t, i.operands[0], emulation::half_to_float(get<uint16_t>(t, i.operands[1])));
}
template <uint16_t (*kNarrow)(float)>
void narrow(Thread& t, const Instruction& i) {
  set<uint32_t>(t, i.operands[0], kNarrow(get<float>(t, i.operands[1])));
}
// The first number goes to the upper half.
template <uint16_t (*kNarrow)(float)>
void narrow_two(Thread& t, const Instruction& i) {
  const uint32_t high = kNarrow(get<float>(t, i.operands[1])), low = kNarrow(get<float>(t, i.operands[2]));
  set<uint32_t>(t, i.operands[0], high << 16 | low);
}
void not_predicate(Thread& t, const Instruction& i) {
  set<uint32_t>(t, i.operands[0], get<uint32_t>(t, i.operands[1]) == 0 ? 1 : 0);
}

template <class T>
void add_arithmetic(Table& all, const std::string& type) {
  all["add." + type] = two<T, Add<T>>, all["sub." + type] = two<T, Subtract<T>>;
  all["min." + type] = two<T, Smaller<T>>, all["max." + type] = two<T, Larger<T>>;
  all["mov." + type] = move<T>, all["selp." + type] = select<T>;
  all["setp.lt." + type] = compare<T, std::less<T>>, all["setp.le." + type] = compare<T, std::less_equal<T>>;
  all["setp.gt." + type] = compare<T, std::greater<T>>,
                   all["setp.ge." + type] = compare<T, std::greater_equal<T>>;
  all["setp.eq." + type] = compare<T, std::equal_to<T>>, all["setp.ne." + type] = compare<T, NotEqual>;
  all["neg." + type] = one<T, Negate<T>>;
}

template <class T>
void add_integers(Table& all, const std::string& type) {
  add_arithmetic<T>(all, type);
  all["mul.lo." + type] = two<T, Multiply<T>>, all["mad.lo." + type] = multiply_then_add<T>;
  all["div." + type] = divide<T>, all["rem." + type] = remainder<T>;
  all["shr." + type] = shift_right<T>;
  const auto from = [&](const char* source, Step step) { all["cvt." + type + "." + source] = step; };
  from("s32", convert<T, int32_t>), from("u32", convert<T, uint32_t>);
  from("s64", convert<T, int64_t>), from("u64", convert<T, uint64_t>), from("u16", convert<T, uint16_t>);
  all["cvt.rn.f32." + type] = convert<float, T>, all["cvt.rn.f64." + type] = convert<double, T>;
}

template <class T>
void add_floats(Table& all, const std::string& type) {
  add_arithmetic<T>(all, type);
  all["add.rn." + type] = two<T, Add<T>>;
  all["mul." + type] = all["mul.rn." + type] = two<T, Multiply<T>>;
  all["div.rn." + type] = divide<T>, all["fma.rn." + type] = fused<T>;
  all["setp.leu." + type] = compare<T, LessEqualOrUnordered>;
  all["setp.ltu." + type] = compare<T, LessOrUnordered>;
  all["setp.geu." + type] = compare<T, GreaterEqualOrUnordered>;
}

template <class T>
void add_bits(Table& all, const std::string& type) {
  all["and." + type] = two<T, std::bit_and<T>>, all["or." + type] = two<T, std::bit_or<T>>;
  all["xor." + type] = two<T, std::bit_xor<T>>, all["not." + type] = one<T, std::bit_not<T>>;
  all["shl." + type] = shift_left<T>, all["mov." + type] = move<T>, all["selp." + type] = select<T>;
}

template <Space kSpace, class T>
void add_memory(Table& all, const std::string& space, const std::string& type) {
  all["ld." + space + "." + type] = load<kSpace, T, 1>, all["st." + space + "." + type] = store<kSpace, T, 1>;
  all["ld." + space + ".v2." + type] = load<kSpace, T, 2>,
                               all["st." + space + ".v2." + type] = store<kSpace, T, 2>;
  all["ld." + space + ".v4." + type] = load<kSpace, T, 4>,
                               all["st." + space + ".v4." + type] = store<kSpace, T, 4>;
}
template <Space kSpace>
void add_space(Table& all, const std::string& space) {
  add_memory<kSpace, uint8_t>(all, space, "u8"), add_memory<kSpace, uint16_t>(all, space, "u16");
  add_memory<kSpace, uint32_t>(all, space, "u32"), add_memory<kSpace, int32_t>(all, space, "s32");
  add_memory<kSpace, uint64_t>(all, space, "u64"), add_memory<kSpace, float>(all, space, "f32");
  add_memory<kSpace, double>(all, space, "f64");
}

Table steps() {
  Table all;
  add_integers<int32_t>(all, "s32"), add_integers<uint32_t>(all, "u32");
  add_integers<int64_t>(all, "s64"), add_integers<uint64_t>(all, "u64");
  add_arithmetic<int16_t>(all, "s16"), add_arithmetic<uint16_t>(all, "u16");
  add_floats<float>(all, "f32"), add_floats<double>(all, "f64");
  add_bits<uint16_t>(all, "b16"), add_bits<uint32_t>(all, "b32"), add_bits<uint64_t>(all, "b64");
  add_bits<uint32_t>(all, "pred");
  all["not.pred"] = not_predicate;
  all["mul.wide.u32"] = multiply_wide<uint32_t>, all["mul.wide.s32"] = multiply_wide<int32_t>;
  all["mul.hi.u32"] = multiply_high<uint32_t>, all["mul.hi.s32"] = multiply_high<int32_t>;
  add_space<Space::kGlobal>(all, "global"), add_space<Space::kShared>(all, "shared");
  add_space<Space::kParameter>(all, "param");
  // Addresses that the compiler can't place, read from memory: our kernels keep those of global memory alone
  // there.
  const Table known = all;
  for (const auto& [name, step] : known) {
    if (name.compare(2, 8, ".global.") == 0) all[name.substr(0, 3) + name.substr(10)] = step;
  }
  all["cvta.to.global.u64"] = move<uint64_t>;
  all["bra"] = all["bra.uni"] = branch, all["ret"] = leave;
  add_steps_together(all);
  all["bfi.b32"] = insert_bits<uint32_t>, all["bfi.b64"] = insert_bits<uint64_t>;
  all["ex2.approx.ftz.f32"] = exponential, all["rcp.rn.f32"] = reciprocal, all["popc.b32"] = count_bits;
  all["cvt.f32.f16"] = half_to_float, all["cvt.rn.f32.f64"] = convert<float, double>;
  all["cvt.f64.f32"] = convert<double, float>;
  all["cvt.rzi.s64.f32"] = convert<int64_t, float>, all["cvt.rzi.s32.f64"] = convert<int32_t, double>;
  all["cvt.rzi.u64.f64"] = convert<uint64_t, double>;
  all["cvt.rn.f16.f32"] = narrow<emulation::float_to_half>;
  all["cvt.rn.bf16.f32"] = narrow<emulation::float_to_bfloat16>;
  all["cvt.rn.f16x2.f32"] = narrow_two<emulation::float_to_half>;
  all["cvt.rn.bf16x2.f32"] = narrow_two<emulation::float_to_bfloat16>;
  return all;
}

}  // namespace

Step step_of(const std::string& opcode) {
  static const Table all = steps();
  const auto found = all.find(opcode);
  return found == all.end() ? nullptr : found->second;
}

}  // namespace vlkv::ptx
