// SPDX-License-Identifier: Apache-2.0
#include "simt/report.h"

#include <algorithm>

#include "simt/runtime/findings.h"

namespace retnet::simt {
namespace {

void add(SharedCount& sum, const SharedCount& other) {
  sum.instructions += other.instructions;
  sum.wavefronts += other.wavefronts;
  sum.minimum += other.minimum;
}

void add(GlobalCount& sum, const GlobalCount& other) {
  sum.instructions += other.instructions;
  sum.requested_bytes += other.requested_bytes;
  sum.sector_bytes += other.sector_bytes;
}

}  // namespace

const char* name(FindingKind kind) {
  switch (kind) {
    case FindingKind::kSharedReadAfterWrite:
      return "shared memory read before a barrier after its write";
    case FindingKind::kSharedWriteAfterRead:
      return "shared memory written before a barrier after its read";
    case FindingKind::kSharedWriteAfterWrite:
      return "shared memory written twice without a barrier";
    case FindingKind::kSharedUninitialised:
      return "uninitialised shared memory";
    case FindingKind::kSharedOutOfBounds:
      return "shared memory out of bounds";
    case FindingKind::kSharedTooLarge:
      return "too much shared memory";
    case FindingKind::kAsyncInFlight:
      return "cp.async in flight";
    case FindingKind::kAsyncPendingAtExit:
      return "cp.async pending at exit";
    case FindingKind::kGlobalOutOfBounds:
      return "global memory out of bounds";
    case FindingKind::kGlobalReadOnly:
      return "write to an input";
    case FindingKind::kGlobalUninitialised:
      return "uninitialised global memory";
    case FindingKind::kGlobalBlockConflict:
      return "conflict of two blocks";
    case FindingKind::kGlobalRace:
      return "global memory race in a block";
    case FindingKind::kUnwrittenOutput:
      return "output never written";
    case FindingKind::kMisaligned:
      return "misaligned access";
    case FindingKind::kUnmatchedBarrier:
      return "unmatched barrier";
    case FindingKind::kDivergentBarrier:
      return "divergent barrier";
    case FindingKind::kBadBarrier:
      return "bad barrier";
    case FindingKind::kUnmatchedCollective:
      return "unmatched warp-wide instruction";
    case FindingKind::kDivergentCollective:
      return "divergent warp-wide instruction";
    case FindingKind::kBadShuffle:
      return "shuffle from no lane";
    case FindingKind::kClusterAbsent:
      return "block of the cluster not known to run";
    case FindingKind::kArrayBounds:
      return "index past an array";
    case FindingKind::kArithmetic:
      return "undefined arithmetic";
    case FindingKind::kBadLaunch:
      return "bad launch";
  }
  return "?";
}

std::string to_string(const Finding& finding) {
  std::string text = name(finding.kind);
  if (!finding.where.empty()) text += " at " + finding.where;
  if (!finding.other.empty()) text += " against " + finding.other;
  if (finding.thread >= 0) text += format(" | block %u thread %d", finding.block, finding.thread);
  if (!finding.detail.empty()) text += " | " + finding.detail;
  if (finding.count > 1) text += format(" | %llu times", (unsigned long long)finding.count);
  return text;
}

Counters& Counters::operator+=(const Counters& other) {
  add(shared_load, other.shared_load);
  add(shared_store, other.shared_store);
  add(matrix_load, other.matrix_load);
  add(async_store, other.async_store);
  add(global_load, other.global_load);
  add(global_store, other.global_store);
  mma += other.mma;
  barriers += other.barriers;
  shuffles += other.shuffles;
  return *this;
}

bool Report::has(FindingKind kind) const {
  return std::any_of(findings.begin(), findings.end(),
                     [&](const Finding& finding) { return finding.kind == kind; });
}

Counters Report::total() const {
  Counters sum;
  for (const LaunchCounters& launch : launches) sum += launch.total;
  return sum;
}

std::string Report::to_string() const {
  std::string text;
  for (const Finding& finding : findings) text += simt::to_string(finding) + "\n";
  return text;
}

}  // namespace retnet::simt
