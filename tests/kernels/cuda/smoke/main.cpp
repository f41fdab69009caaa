// SPDX-License-Identifier: Apache-2.0
//
// kernel_smoke: runs the cases of the kernels without torch, and prints for each kernel pass or FAIL and how
// long a launch takes. See --help for the options. tools/kernel_smoke.sh builds it for a GPU.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "catch.h"
#include "test_device.h"
#include "times.h"

namespace {

using retnet::smoke::TestCase;

constexpr const char* kKernels[] = {
    "chunkwise_forward", "chunkwise_backward", "grad_log_decay", "segment_scan",
    "decode_step",       "gated_group_norm",   "column_sum",     "rotary"};

constexpr const char* kUsage =
    "usage: kernel_smoke [options]\n"
    "  --kernel NAME   only this kernel; may be repeated\n"
    "  --case TEXT     only cases whose name contains TEXT\n"
    "  --short         only one case of each kernel, which runs every instantiation\n"
    "  --no-check      only the times\n"
    "  --no-time       only the cases\n"
    "  --sanitizer     no red zones and no poison: compute-sanitizer watches the memory\n"
    "exit status: 0; 1 if a kernel failed; 2 without a device that can run them; 3 for bad "
    "options\n";

struct Options {
  std::vector<std::string> kernels;
  std::string name;
  bool short_only = false, check = true, time = true;
};

/// Returns false if the options are bad.
bool parse(int count, char** arguments, Options& options) {
  for (int i = 1; i < count; ++i) {
    const std::string option = arguments[i];
    const bool has_value = option == "--kernel" || option == "--case";
    if (has_value && i + 1 == count) return false;
    if (option == "--kernel") {
      const std::string kernel = arguments[++i];
      bool known = false;
      for (const char* name : kKernels) known = known || kernel == name;
      if (!known) return false;
      options.kernels.push_back(kernel);
    } else if (option == "--case") {
      options.name = arguments[++i];
    } else if (option == "--short") {
      options.short_only = true;
    } else if (option == "--no-check") {
      options.check = false;
    } else if (option == "--no-time") {
      options.time = false;
    } else if (option == "--sanitizer") {
      retnet::kernels::cuda::leave_memory_to_sanitizer();
    } else {
      return false;
    }
  }
  return options.check || options.time;
}

bool selected(const TestCase& test, const std::string& kernel, const Options& options) {
  const auto tagged = [&](const std::string& tag) {
    return test.tags.find("[" + tag + "]") != std::string::npos;
  };
  return tagged(kernel) && (!options.short_only || tagged("short")) &&
         std::strstr(test.name, options.name.c_str()) != nullptr;
}

/// Runs something that may throw. An exception is a failure.
template <class F>
void guarded(const char* what, const F& run) {
  try {
    run();
  } catch (const retnet::smoke::Stop&) {  // printed already
  } catch (const std::exception& problem) {
    ++retnet::smoke::tally.failures;
    std::printf("%s: %s\n", what, problem.what());
  }
}

enum class Result { kNothing, kPassed, kFailed };

Result run_kernel(const std::string& kernel, const Options& options) {
  retnet::smoke::tally = {};
  size_t cases = 0;
  const auto begin = std::chrono::steady_clock::now();
  const size_t left_out = retnet::kernels::cuda::cases_left_out();
  for (const TestCase& test : retnet::smoke::test_cases()) {
    if (!options.check || !selected(test, kernel, options)) continue;
    ++cases;
    guarded(test.name, test.run);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  const auto& tally = retnet::smoke::tally;
  if (cases > 0) {
    const size_t skipped = retnet::kernels::cuda::cases_left_out() - left_out;
    const bool passed = tally.failures == 0 && tally.checks > 0;
    std::printf("%s %-28s %zu cases, %zu checks, %zu failures, %.1f s", passed ? "pass" : "FAIL",
                kernel.c_str(), cases, tally.checks, tally.failures, seconds.count());
    if (skipped > 0) std::printf(", %zu instantiations left out on this device", skipped);
    std::printf("\n");
    std::fflush(stdout);
    if (!passed) return Result::kFailed;
  }
  // The emulator has no times.
  const bool timed =
      options.time && (cases > 0 || !options.check) && !retnet::kernels::cuda::test_device_counts();
  if (timed) {
    guarded(kernel.c_str(), [&] { retnet::smoke::print_times(kernel); });
    if (tally.failures > 0) return Result::kFailed;
  }
  return cases > 0 || timed ? Result::kPassed : Result::kNothing;
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  if (!parse(count, arguments, options)) {
    std::fputs(kUsage, stderr);
    return 3;
  }
  const auto status = retnet::kernels::cuda::test_device_status();
  std::printf("kernel_smoke: %s\n", status.line.c_str());
  std::fflush(stdout);
  if (!status.usable) return 2;
  if (options.kernels.empty()) options.kernels.assign(std::begin(kKernels), std::end(kKernels));

  size_t passed = 0;
  std::string failed;
  for (const std::string& kernel : options.kernels) {
    const Result result = run_kernel(kernel, options);
    passed += result == Result::kPassed ? 1 : 0;
    if (result != Result::kFailed) continue;
    failed += " " + kernel;
    const auto now = retnet::kernels::cuda::test_device_status();
    if (now.usable) continue;
    std::printf("kernel_smoke: the device cannot go on: %s\n", now.line.c_str());
    failed += ", and no kernel after it ran";
    break;
  }
  if (!failed.empty()) {
    std::printf("kernel_smoke failed:%s\n", failed.c_str());
    return 1;
  }
  if (passed == 0) {
    std::fprintf(stderr, "kernel_smoke: no case was selected\n");
    return 3;
  }
  std::printf("kernel_smoke passed: %zu kernels\n", passed);
  return 0;
}
