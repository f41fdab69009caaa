// SPDX-License-Identifier: Apache-2.0
//
// What the cases use of Catch2, for kernel_smoke, which is built where Catch2 is not installed. main.cpp runs
// the cases.
#pragma once

#include <cstddef>
#include <cstdio>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace retnet::smoke {

struct TestCase {
  const char* name;
  std::string tags;
  void (*run)();
};

/// What the cases of a kernel have checked.
struct Tally {
  size_t checks = 0;
  size_t failures = 0;
};

inline std::vector<TestCase>& test_cases() {
  static std::vector<TestCase> cases;
  return cases;
}
inline Tally tally;
inline std::vector<std::string> infos;  // of the INFO in scope

struct Registration {
  Registration(const char* name, const char* tags, void (*run)()) {
    test_cases().push_back({name, tags, run});
  }
};

/// Thrown by REQUIRE. The failure is printed already.
struct Stop : std::runtime_error {
  Stop() : std::runtime_error("a requirement failed") {}
};

class Info {
 public:
  explicit Info(std::string text) { infos.push_back(std::move(text)); }
  ~Info() { infos.pop_back(); }
  Info(const Info&) = delete;
  Info& operator=(const Info&) = delete;
};

template <class T>
std::string text_of(const T& value) {
  if constexpr (std::is_null_pointer_v<T>) {
    return "null";
  } else if constexpr (std::is_convertible_v<T, std::string>) {
    if constexpr (std::is_pointer_v<T>) {
      if (value == nullptr) return "null";
    }
    return '"' + std::string(value) + '"';
  } else if constexpr (std::is_enum_v<T>) {
    return std::to_string(static_cast<long long>(value));
  } else if constexpr (std::is_pointer_v<T>) {
    return value == nullptr ? "null" : "not null";
  } else if constexpr (std::is_arithmetic_v<T>) {
    return (std::ostringstream() << value).str();
  } else {
    return "{...}";
  }
}

struct Outcome {
  bool passed;
  std::string values;
};

/// An integer as a signed one, so that those of both kinds compare.
template <class T>
decltype(auto) widened(const T& x) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<long long>(x);
  } else {
    return (x);
  }
}

/// The left side of a comparison, so that a failure shows both.
template <class T>
struct Left {
  const T& left;

  template <class U, class Compare>
  Outcome compare(const U& right, const char* sign, Compare holds) const {
    const bool passed = holds(left, right);
    return {passed, passed ? "" : text_of(left) + sign + text_of(right)};
  }
#define RETNET_SMOKE_COMPARE(sign)                                                     \
  template <class U>                                                                   \
  Outcome operator sign(const U& right) const {                                        \
    return compare(right, " " #sign " ",                                               \
                   [](const T& a, const U& b) { return widened(a) sign widened(b); }); \
  }
  RETNET_SMOKE_COMPARE(==)
  RETNET_SMOKE_COMPARE(!=)
  RETNET_SMOKE_COMPARE(<)
  RETNET_SMOKE_COMPARE(<=)
  RETNET_SMOKE_COMPARE(>)
  RETNET_SMOKE_COMPARE(>=)
#undef RETNET_SMOKE_COMPARE
  operator Outcome() const { return {static_cast<bool>(left), text_of(left)}; }
};

struct Split {
  template <class T>
  Left<T> operator<<(const T& left) const {
    return {left};
  }
};

/// Counts a check, and prints it if it failed.
inline bool check(const Outcome& outcome, const char* file, int line, const char* expression) {
  ++tally.checks;
  if (outcome.passed) return true;
  constexpr size_t kPrinted = 20;  // of a kernel: one fault fails many cases
  if (++tally.failures <= kPrinted) {
    std::printf("%s:%d: %s\n    %s\n", file, line, expression, outcome.values.c_str());
    for (const std::string& info : infos) std::printf("    %s\n", info.c_str());
  }
  return false;
}

}  // namespace retnet::smoke

#define RETNET_SMOKE_JOIN_(a, b) a##b
#define RETNET_SMOKE_JOIN(a, b) RETNET_SMOKE_JOIN_(a, b)
#define RETNET_SMOKE_CASE(function, name, ...)                                           \
  static void function();                                                                \
  static const ::retnet::smoke::Registration RETNET_SMOKE_JOIN(function, _registration)( \
      name, "" __VA_ARGS__, function);                                                   \
  static void function()
#define TEST_CASE(...) RETNET_SMOKE_CASE(RETNET_SMOKE_JOIN(test_case_, __LINE__), __VA_ARGS__)
#define INFO(message)                            \
  const ::retnet::smoke::Info RETNET_SMOKE_JOIN( \
      info_, __LINE__)(static_cast<std::ostringstream&&>(std::ostringstream() << message).str())
// `<<` binds tighter than a comparison.
#define RETNET_SMOKE_CHECK(...) \
  ::retnet::smoke::check(::retnet::smoke::Split() << __VA_ARGS__, __FILE__, __LINE__, #__VA_ARGS__)
#define CHECK(...) static_cast<void>(RETNET_SMOKE_CHECK(__VA_ARGS__))
#define REQUIRE(...)                                                     \
  do {                                                                   \
    if (!RETNET_SMOKE_CHECK(__VA_ARGS__)) throw ::retnet::smoke::Stop(); \
  } while (false)
