// SPDX-License-Identifier: Apache-2.0
//
// Runs the checker on kernels with one injected bug each, and on the same kernels without it.
#include <cmath>
#include <cstdio>
#include <numeric>
#include <set>
#include <vector>

#include "catch.h"
#include "simt/bug_kernels.h"
#include "simt/simt.h"

using namespace retnet::simt;

namespace {

constexpr size_t kCount = kBugBlocks * kBugThreads;

Report run(const BugCase& bug_case, bool bug, const Options& options) {
  std::vector<float> values(kCount);
  std::iota(values.begin(), values.end(), 1.0f);
  Simulator simulator(options);
  const float* in = simulator.input<float>(values, "in");
  float* out = simulator.output<float>(kCount, "out");
  REQUIRE(bug_case.launch(bug, in, out) == cudaSuccess);
  Report report = simulator.finish();
  if (!bug) {
    for (size_t i = 0; i < kCount; ++i) {
      INFO("out[" << i << "]");
      CHECK(std::isfinite(out[i]));
    }
  }
  return report;
}

std::vector<Options> all_orders() {
  std::vector<Options> result;
  for (const Order order : {Order::kAscending, Order::kDescending}) {
    result.emplace_back().order = order;
  }
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    result.emplace_back().order = Order::kRandom;
    result.back().seed = seed;
  }
  result.emplace_back().os_threads = 2;
  return result;
}

}  // namespace

TEST_CASE("each injected bug is found, in every order") {
  for (const BugCase& bug_case : bug_cases()) {
    for (const Options& options : all_orders()) {
      const Report report = run(bug_case, true, options);
      INFO(bug_case.name << ", order " << static_cast<int>(options.order) << ", found:\n"
                         << report.to_string());
      CHECK(report.has(bug_case.expected));
    }
  }
}

TEST_CASE("the same kernels without the bug give no finding") {
  for (const BugCase& bug_case : bug_cases()) {
    for (const Options& options : all_orders()) {
      const Report report = run(bug_case, false, options);
      INFO(bug_case.name << ", order " << static_cast<int>(options.order));
      CHECK(report.to_string() == "");
    }
  }
}

TEST_CASE("findings name the kernel's lines") {
  for (const BugCase& bug_case : bug_cases()) {
    const Report report = run(bug_case, true, {});
    for (const Finding& finding : report.findings) {
      const bool of_a_launch = finding.kind == FindingKind::kUnwrittenOutput ||
                               finding.kind == FindingKind::kSharedTooLarge;
      INFO(bug_case.name << ": " << to_string(finding));
      CHECK(finding.where.empty() == of_a_launch);
      for (const std::string& line : {finding.where, finding.other}) {
        if (!line.empty()) CHECK_THAT(line, ContainsSubstring("bug_kernels.cpp:"));
      }
    }
  }
}

TEST_CASE("every kind of finding has its bug") {
  std::set<FindingKind> provoked;
  for (const BugCase& bug_case : bug_cases()) provoked.insert(bug_case.expected);
  provoked.insert(FindingKind::kBadLaunch);  // below
  for (int kind = 0; kind <= static_cast<int>(FindingKind::kBadLaunch); ++kind) {
    INFO(name(static_cast<FindingKind>(kind)));
    CHECK(provoked.count(static_cast<FindingKind>(kind)) == 1);
  }
}

// This test is hidden. `simt_test "[.table]"` prints the findings of each bug.
TEST_CASE("table of bugs", "[.table]") {
  for (const BugCase& bug_case : bug_cases()) {
    std::printf("%s:\n%s", bug_case.name, run(bug_case, true, {}).to_string().c_str());
  }
}
