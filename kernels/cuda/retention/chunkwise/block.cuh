// SPDX-License-Identifier: Apache-2.0
//
// Chunkwise retention, the operator Ret(a, b, c; S0) (Sun et al. 2023, Eq. 7), for sm_80 and later.
//
//  1. Equation. With i, j positions in a chunk of L tokens and S the state before it,
//       out_i = scale (sum_{j<=i} gamma^(i-j) (a_i . b_j) c_j + gamma^(i+1) a_i S)
//       S     = gamma^L S + sum_j b_j^T (gamma^(L-1-j) c_j)
//     In reverse, positions count from the end of the sequence and S is the adjoint X of the state, which
//     enters undecayed, decays once on its way out, and holds scale:
//       out_i = scale sum_{j<=i} gamma^(i-j) (a_i . b_j) c_j + gamma^i a_i X
//       X     = gamma^L X + sum_j b_j^T (scale gamma^(L-j) c_j)
//  2. Shapes. a, b [B, T, H, I], c [B, T, H, O] with any strides of b, t, h that are multiples of 4;
//     out [B, T, H, O] and states [N, H, I, O] ([N, H, O, I] where transposed) contiguous. I and O are
//     padded to the tile by zeros in shared memory. An operand that is null is one of zeros.
//  3. CTA -> problem. Block ((row * H) + h) * slices + s owns `slice` columns of O of one sequence, or
//     of one segment of it, and walks its chunks in order. Slices of a head are neighbours and share
//     a and b through L2.
//  4. Warp roles. Each warp owns 16 columns of the slice with all of I. The scores are shared out: a
//     warp computes one or two columns of 8 keys for all, or some, rows of 16 tokens. With I = 512 two
//     warps share the columns, each with a half of I; they sum outputs and scores in shared memory, and
//     each goes on with half of the rows.
//  5. Tile and budget. State: inner / 2 fp32 registers a thread (I = 512: 128); outputs of the chunk:
//     chunk / 2; scores: 4, 8, 16 or 32. Shared memory: ChunkwiseTile::shared_bytes (136 KB for 256 x 128 x 64).
//     Bytes of L2 per token-head: 2 (2 I slices + 2 O) (6,144 for I = 256, O = 512); wavefronts and
//     mma per chunk: chunkwise_model.h.
//  6. Pipeline. Keys and values of the next chunk are copied while this chunk is computed, its
//     readout tile once this chunk's is spent, after the scores.
//  7. Sync contract. Two block barriers a chunk. The first: this chunk, and before the first one the
//     weights, have arrived for all threads, and all are done with the last chunk's keys, values and
//     scores. The second: the scores are written, and all are done with the readout tile; without
//     outputs (kLocal) there is none. With I = 512 a third between them: what the halves send each
//     other is written; it is read before the second, and written again behind the next first.
//  8. Numerics. Products of 16-bit operands, sums and states in fp32. Rounded to 16 bits: the decayed
//     scores, the decayed values, the state as an operand (saturated in fp16) and out. Powers are fp32
//     (ex2 of n log2 gamma). Those of a negative n, above the diagonal of the scores, are computed as
//     well, infinite perhaps, and dropped by a select. No sum but the halves' crosses warps, so the
//     order of additions depends on the tile alone.
//  9. Tails. Rows past the end are zeros in shared memory (never what the next sequence holds), and
//     the decay uses the true length.
// 10. Writes. Each element of out and of the final state once, by one thread.
// 11. Parameters. bf16 and fp16; the tile table; direction of time and layout of states at run time.
//
// Why this way: the state is kept transposed, S^T [16 columns of O, I] in the layout of the mma's
// accumulator. That layout is also that of its B operand, so the readout takes the state from
// registers, rounded there: it never passes through shared memory, no sum crosses warps, and one
// fragment of the values serves as B operand of the outputs and as A operand of the update.
#pragma once

#include "kernels/cuda/retention/chunkwise/instances.h"
#include "kernels/cuda/retention/segments.cuh"
#include "kernels/cuda/retention/tile.cuh"

namespace retnet::kernels::cuda {

template <DType kDtype, int kTile>
class ChunkwiseBlock {
  static constexpr ChunkwiseTile kShape = kChunkwiseTiles[kTile];
  static constexpr int kInner = kShape.inner, kSlice = kShape.slice, kChunk = kShape.chunk;
  static constexpr int kThreads = kShape.threads(), kWarps = kThreads / 32;
  static constexpr int kHalves = kShape.halves();  // of I, each of warps of its own
  static constexpr int kColumnWarps = kWarps / kHalves, kOwnInner = kInner / kHalves;
  static constexpr int kRowTiles = kChunk / 16;  // of 16 tokens
  static constexpr int kKeyTiles = kChunk / 8;   // of 8 keys
  // A warp's scores: columns of tiles, and the row tiles of each.
  static constexpr int kScoreGroups = kColumnWarps > kKeyTiles ? kColumnWarps / kKeyTiles : 1;
  static constexpr int kScoreColumns = kColumnWarps < kKeyTiles ? kKeyTiles / kColumnWarps : 1;
  static constexpr int kScoreRows = kRowTiles / kScoreGroups;
  static_assert(kScoreColumns <= 2 && (kHalves == 1 || kScoreGroups == 1));
  // Row tiles of outputs and scores that a warp goes on with once halves are summed.
  static constexpr int kOwnRows = kRowTiles / kHalves, kOwnScoreRows = kScoreRows / kHalves;
  // Shared memory.
  static constexpr int kInnerRow = kInner * 2, kSliceRow = kSlice * 2, kChunkRow = kChunk * 2;
  static constexpr int kKeys = kChunk * kInnerRow;  // behind the readout tile
  static constexpr int kValues = kKeys + 2 * kChunk * kInnerRow;
  static constexpr int kScores = kValues + 2 * kChunk * kSliceRow;
  static constexpr int kWeights = kScores + kChunk * kChunkRow;
  static constexpr int kSums = kWeights + 2 * kChunk * 4;  // with halves: what one sends the other
  static_assert(kSums + (kHalves - 1) * 4 * kChunk * (kSlice + kChunk) == kShape.shared_bytes());

 public:
  // `wide`: copies of 16 bytes (chunkwise_wide), else of 8.
  RETNET_DEVICE ChunkwiseBlock(const ChunkwiseParams& params, ChunkwisePhase phase,
                               int segment_length, bool wide, unsigned char* shared)
      : p_(params), phase_(phase), wide_(wide), shared_(shared), sReadout_(prim::smem_u32(shared)) {
    const uint32_t slices = static_cast<uint32_t>((p_.outer + kSlice - 1) / kSlice);
    const uint32_t heads = static_cast<uint32_t>(p_.heads);
    const uint32_t row_and_head = blockIdx.x / slices;
    const uint32_t row = row_and_head / heads;
    column_ = static_cast<int>(blockIdx.x - row_and_head * slices) * kSlice;
    row_ = static_cast<int>(row);
    segment_ = find_segment(p_, row_, segment_length);
    warp_ = threadIdx.x / 32;
    lane_ = threadIdx.x % 32;
    head_ = row_and_head - row * heads;
  }

  RETNET_DEVICE void run() {
    // Nothing to do in rows without a segment; nor where none follows that starts from its state.
    if (phase_ == ChunkwisePhase::kLocal ? segment_.last || segment_.length == 0
                                         : segment_.length == 0 && !segment_.last) {
      return;
    }
    Decay decay(p_.log_decay_ptr[head_]);
    const float full_chunk = decay.power_minus_one(kChunk);
    const bool local = phase_ == ChunkwisePhase::kLocal;
    store_weights(decay);
    load_state(decay);
    if (segment_.length > 0) {
      load_keys_and_values(0, 0);
      if (!local) load_readout(0);
    }
    int stage = 0;
    for (int start = 0; start < segment_.length; start += kChunk) {
      const int length = prim::min(kChunk, segment_.length - start);
      const bool last = start + kChunk >= segment_.length;
      // What follows from these, powers and addresses, is worked out in each chunk: kept from one to
      // the next it would take more registers than there are.
      decay.log2 = prim::opaque(decay.log2);
      lane_ = prim::opaque(lane_);
      warp_ = prim::opaque(warp_);
      head_ = prim::opaque(head_);
      prim::cp_async_wait<0>();
      prim::sync_block();
      if (!last) load_keys_and_values(start + kChunk, stage ^ 1);
      if (!local) {
        read_out(stage);
        if constexpr (kHalves > 1) sum_halves();
        finish_scores(decay, start > 0);
        prim::sync_block();
        if (!last) load_readout(start + kChunk);
      }
      decay_state(length == kChunk ? full_chunk : decay.power_minus_one(length));
      // With gamma = 0 no chunk hands on a state: the last one leaves what it has.
      add_values(stage, length, last || !decay.forget);
      if (!local) store_out(start, length);
      stage ^= 1;
    }
    if (local) {
      store_state(state_of(p_.workspace_ptr, row_), false);
    } else if (segment_.last && p_.final_state_ptr != nullptr) {
      // With gamma = 0 the last token drops it in reverse, NaN or not.
      const bool dropped = decay.forget && reverse() && segment_.length > 0;
      store_state(state_of(p_.final_state_ptr, segment_.sequence), dropped);
    }
  }

 private:
  RETNET_DEVICE bool reverse() const { return p_.direction < 0; }
  RETNET_DEVICE int token_of(int position) const {
    return segment_.start + p_.direction * position;
  }

  // Copies positions start .. start + kChunk - 1 of the segment, kColumns columns from `column`.
  template <int kColumns>
  RETNET_DEVICE void load(uint32_t dst, const RetentionOperand& operand, int start, int column,
                          int64_t columns) const {
    const char* src = static_cast<const char*>(operand.ptr) +
                      2 * (segment_.batch * operand.stride_b + head_ * operand.stride_h + column);
    const int inside = operand.ptr != nullptr ? static_cast<int>(columns) - column : 0;
    load_tile<kColumns, kChunk, kThreads>(dst, src, operand.stride_t, token_of(start), p_.direction,
                                          segment_.length - start, inside, 32 * warp_ + lane_,
                                          wide_);
  }

  RETNET_DEVICE void load_readout(int start) const {
    load<kInner>(sReadout_, p_.readout, start, 0, p_.inner);
    prim::cp_async_commit();
  }
  RETNET_DEVICE void load_keys_and_values(int start, int stage) const {
    load<kInner>(keys(stage), p_.key, start, 0, p_.inner);
    load<kSlice>(values(stage), p_.value, start, column_, p_.outer);
    prim::cp_async_commit();
  }
  RETNET_DEVICE uint32_t keys(int stage) const {
    return sReadout_ + kKeys + stage * kChunk * kInnerRow;
  }
  RETNET_DEVICE uint32_t values(int stage) const {
    return sReadout_ + kValues + stage * kChunk * kSliceRow;
  }

  // gamma^(length - 1 - j) of each position j in a full chunk and in the last one (in reverse scale
  // gamma^(length - j)); 0 past its end.
  RETNET_DEVICE void store_weights(const Decay& decay) const {
    auto* weights = reinterpret_cast<float*>(shared_ + kWeights);
    for (int i = static_cast<int>(threadIdx.x); i < 2 * kChunk; i += kThreads) {
      const int length = i < kChunk ? kChunk : segment_.length % kChunk;
      const int left = length - 1 - i % kChunk;
      const float power = decay.power(static_cast<float>(reverse() ? left + 1 : left));
      weights[i] = left >= 0 ? power * (reverse() ? p_.scale : 1.0f) : 0.0f;
    }
  }

  // Of an accumulator: row of elements 0, 1 (8 more: 2, 3), column of elements 0, 2 (1 more: 1, 3).
  RETNET_DEVICE int lane_row() const { return static_cast<int>(lane_ / 4); }
  RETNET_DEVICE int lane_pair() const { return static_cast<int>(lane_ % 4 * 2); }
  RETNET_DEVICE int column_warp() const {
    return static_cast<int>(kHalves == 1 ? warp_ : warp_ % kColumnWarps);
  }
  RETNET_DEVICE int half() const {
    return kHalves == 1 ? 0 : static_cast<int>(warp_ / kColumnWarps);
  }
  // First of the warp's columns of O.
  RETNET_DEVICE int warp_column() const { return column_ + 16 * column_warp(); }

  // Calls f(state_[n][e], its offset in a state) for what lies inside.
  RETNET_DEVICE void for_each_state(const auto& f) {
    const auto inner = static_cast<uint32_t>(p_.inner), outer = static_cast<uint32_t>(p_.outer);
    const uint32_t stride_i = p_.transposed ? 1 : outer, stride_o = p_.transposed ? inner : 1;
    uint32_t i = half() * kOwnInner + lane_pair();  // row of I of e = 0 and 2
    const uint32_t o = warp_column() + lane_row();
    uint32_t offset = i * stride_i + o * stride_o;
    RETNET_UNROLL
    for (int n = 0; n < kOwnInner / 8; ++n, i += 8, offset += 8 * stride_i) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) {
        const bool inside = i + e % 2 < inner && o + e / 2 * 8 < outer;
        if (inside) f(state_[n][e], offset + e % 2 * stride_i + e / 2 * 8 * stride_o);
      }
    }
  }

  // This head's state in row `row` of states [.., H, I, O] or [.., H, O, I].
  template <class T>
  RETNET_DEVICE T* state_of(T* states, int row) const {
    return states + (static_cast<int64_t>(row) * p_.heads + head_) * p_.inner * p_.outer;
  }

  RETNET_DEVICE void load_state(const Decay& decay) {
    const float* src = nullptr;
    if (phase_ == ChunkwisePhase::kFused) {
      src = state_of(p_.workspace_ptr, row_);
    } else if (phase_ == ChunkwisePhase::kWhole && p_.initial_state_ptr != nullptr) {
      src = state_of(p_.initial_state_ptr, segment_.sequence);
    }
    clear_state();
    if (src == nullptr || drops_start(p_, decay, segment_.sequence)) return;
    for_each_state([&](float& value, uint32_t offset) { value = src[offset]; });
  }

  RETNET_DEVICE void clear_state() {
    RETNET_UNROLL
    for (int n = 0; n < kOwnInner / 8; ++n) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) state_[n][e] = 0;
    }
  }

  RETNET_DEVICE void store_state(float* dst, bool dropped) {
    for_each_state(
        [&](const float& value, uint32_t offset) { dst[offset] = dropped ? 0.0f : value; });
  }

  RETNET_DEVICE void clear_out() {
    RETNET_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) out_[r][0][e] = out_[r][1][e] = 0;
    }
  }

  // This warp's scores: key tile of column x, first row tile.
  RETNET_DEVICE int key_tile(int x) const { return column_warp() % kKeyTiles + x * kColumnWarps; }
  RETNET_DEVICE int first_row_tile() const {
    return kHalves > 1 ? half() * kOwnScoreRows : column_warp() / kKeyTiles * kScoreRows;
  }
  RETNET_DEVICE int first_own_row() const { return half() * kOwnRows; }  // row tile of out_[0]

  // out = a S and the scores a b^T, in one pass over the warp's part of I.
  RETNET_DEVICE void read_out(int stage) {
    clear_out();
    RETNET_UNROLL
    for (int x = 0; x < kScoreColumns; ++x) {
      RETNET_UNROLL
      for (int r = 0; r < kScoreRows; ++r) {
        RETNET_UNROLL
        for (int e = 0; e < 4; ++e) score_[x][r][e] = 0;
      }
    }
    const uint32_t part = half() * kOwnInner * 2;
    const uint32_t sA = sReadout_ + part + swizzled<kInner>(lane_ % 16, lane_ / 16);
    const uint32_t sB = keys(stage) + part + swizzled<kInner>(lane_ % 8, lane_ / 8);
    uint32_t b[kScoreColumns][4];  // of two steps
    RETNET_UNROLL
    for (int k = 0; k < kOwnInner / 16; ++k) {
      if (k % 2 == 0) {
        RETNET_UNROLL
        for (int x = 0; x < kScoreColumns; ++x) {
          prim::ldmatrix_x4(b[x], step_columns(sB, k) + key_tile(x) * 8 * kInnerRow);
        }
      }
      uint32_t s[2][2];
      RETNET_UNROLL
      for (int half = 0; half < 2; ++half) {
        RETNET_UNROLL
        for (int i = 0; i < 2; ++i) {
          s[half][i] = prim::saturate_pair<kDtype>(prim::pack_pair<kDtype>(
              state_[2 * k + i][2 * half], state_[2 * k + i][2 * half + 1]));
        }
      }
      uint32_t a[kRowTiles][4];
      RETNET_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        prim::ldmatrix_x4(a[r], step_columns(sA, k) + r * 16 * kInnerRow);
      }
      RETNET_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        prim::mma<kDtype>(out_[r][0], a[r], s[0][0], s[0][1]);
        prim::mma<kDtype>(out_[r][1], a[r], s[1][0], s[1][1]);
      }
      RETNET_UNROLL
      for (int r = 0; r < kScoreRows; ++r) {
        if constexpr (kScoreGroups > 1) {
          prim::ldmatrix_x4(a[r], step_columns(sA, k) + (first_row_tile() + r) * 16 * kInnerRow);
        }
        RETNET_UNROLL
        for (int x = 0; x < kScoreColumns; ++x) {
          prim::mma<kDtype>(score_[x][r], a[r], b[x][k % 2 * 2], b[x][k % 2 * 2 + 1]);
        }
      }
    }
  }

  // Sums outputs and scores over the halves of I. The second half's warps keep the last rows, which
  // change places with the first in the arrays.
  RETNET_DEVICE void sum_halves() {
    const bool second = half() != 0;
    const auto for_each_tile = [&](const auto& f) {
      int n = 0;
      RETNET_UNROLL
      for (int r = 0; r < kOwnRows; ++r) {
        RETNET_UNROLL
        for (int x = 0; x < 2; ++x) f(out_[r][x], out_[r + kOwnRows][x], n++);
        RETNET_UNROLL
        for (int x = 0; x < kScoreColumns; ++x) f(score_[x][r], score_[x][r + kOwnRows], n++);
      }
    };
    const uint32_t thread = 32 * warp_ + lane_;
    unsigned char* to = shared_ + kSums + thread * 16;
    for_each_tile([&](const float(&head)[4], const float(&tail)[4], int n) {
      uint32_t sent[4];
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) sent[e] = prim::float_to_word(second ? head[e] : tail[e]);
      prim::store(to + n * kThreads * 16, sent);
    });
    prim::sync_block();
    const unsigned char* from = shared_ + kSums + (thread + kThreads / 2) % kThreads * 16;
    for_each_tile([&](float(&head)[4], const float(&tail)[4], int n) {
      uint32_t received[4];
      prim::load(received, from + n * kThreads * 16);
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) {
        head[e] = (second ? tail[e] : head[e]) + prim::word_to_float(received[e]);
      }
    });
  }

  // Decays the outputs of the state and the scores, and hands the scores to all warps.
  RETNET_DEVICE void finish_scores(const Decay& decay, bool later) {
    const int group = lane_row(), pair = lane_pair();
    const int age = 16 * first_own_row() + group + (reverse() ? 0 : 1);
    float weight = decay.power(static_cast<float>(age)) * (reverse() ? 1.0f : p_.scale);
    const float eight_rows = decay.power(8);
    // In reverse with gamma = 0 the first chunk alone sees the state, which may hold NaN.
    if (later && decay.forget) clear_out();
    RETNET_UNROLL
    for (int r = 0; r < kOwnRows; ++r) {
      RETNET_UNROLL
      for (int half = 0; half < 2; ++half, weight *= eight_rows) {
        RETNET_UNROLL
        for (int x = 0; x < 2; ++x) {
          out_[r][x][2 * half] *= weight;
          out_[r][x][2 * half + 1] *= weight;
        }
      }
    }
    RETNET_UNROLL
    for (int x = 0; x < kScoreColumns; ++x) {
      const int query = 16 * first_row_tile() + group, key = 8 * key_tile(x) + pair;
      // The swizzle is the same in every eighth row.
      unsigned char* to = shared_ + kScores + swizzled<kChunk>(query, key_tile(x)) + 2 * pair;
      RETNET_UNROLL
      for (int r = 0; r < kOwnScoreRows; ++r) {
        // No later step reads a tile above the diagonal.
        if (query - group + 16 * r + 15 < 8 * key_tile(x)) continue;
        RETNET_UNROLL
        for (int half = 0; half < 2; ++half) {
          float value[2];
          RETNET_UNROLL
          for (int e = 0; e < 2; ++e) {
            const float distance = static_cast<float>(query - key) + (16 * r + 8 * half - e);
            const float weight = decay.power(distance) * p_.scale;
            value[e] = distance >= 0 ? score_[x][r][2 * half + e] * weight : 0.0f;
          }
          *reinterpret_cast<uint32_t*>(to + (16 * r + 8 * half) * kChunkRow) =
              prim::pack_pair<kDtype>(value[0], value[1]);
        }
      }
    }
  }

  RETNET_DEVICE void decay_state(float minus_one) {
    RETNET_UNROLL
    for (int n = 0; n < kOwnInner / 8; ++n) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) state_[n][e] += state_[n][e] * minus_one;
    }
  }

  // out += scores c, and S += b^T (weight_j c_j).
  RETNET_DEVICE void add_values(int stage, int length, bool update) {
    const uint32_t sP = sReadout_ + kScores + first_own_row() * 16 * kChunkRow +
                        swizzled<kChunk>(lane_ % 16, lane_ / 16);
    const uint32_t sB =
        keys(stage) + half() * kOwnInner * 2 + swizzled<kInner>(lane_ % 16, lane_ / 16);
    const uint32_t sC = values(stage) + swizzled<kSlice>(lane_ / 16 * 8 + lane_ % 8,
                                                         2 * column_warp() + lane_ / 8 % 2);
    const unsigned char* weights =
        shared_ + kWeights + (length == kChunk ? 0 : kChunk * 4) + lane_pair() * 4;
    RETNET_UNROLL
    for (int k = 0; k < kRowTiles; ++k) {
      // Tokens 0..7 of the step and columns 0..7 and 8..15 of the warp, then tokens 8..15.
      uint32_t c[4];
      prim::ldmatrix_x4_t(c, sC + k * 16 * kSliceRow);
      if (phase_ != ChunkwisePhase::kLocal) {
        RETNET_UNROLL
        for (int r = 0; r < kOwnRows; ++r) {
          if (first_own_row() + r < k) continue;  // above the diagonal
          uint32_t a[4];
          prim::ldmatrix_x4(a, step_columns(sP, k) + r * 16 * kChunkRow);
          prim::mma<kDtype>(out_[r][0], a, c[0], c[2]);
          prim::mma<kDtype>(out_[r][1], a, c[1], c[3]);
        }
      }
      if (!update) continue;
      weigh_fragment<kDtype>(c, c, weights + 16 * k * 4);
      RETNET_UNROLL
      for (int n = 0; n < kOwnInner / 16; ++n) {
        uint32_t b[4];
        prim::ldmatrix_x4_t(b, step_columns(sB, n) + k * 16 * kInnerRow);
        prim::mma<kDtype>(state_[2 * n], c, b[0], b[1]);
        prim::mma<kDtype>(state_[2 * n + 1], c, b[2], b[3]);
      }
    }
  }

  // Neighbouring lanes exchange pairs, so that each stores 4 columns: of its warp's first 8 where it
  // is even, of the others where it is odd.
  RETNET_DEVICE void store_out(int start, int length) const {
    const bool odd = lane_ % 2 != 0;
    const int o = warp_column() + (odd ? 8 : 0) + lane_pair() / 4 * 4;
    const int first = start + 16 * first_own_row() + lane_row();
    const int64_t token = segment_.batch * p_.tokens + token_of(first);
    char* dst = static_cast<char*>(p_.out_ptr) + 2 * ((token * p_.heads + head_) * p_.outer + o);
    const int64_t step = 2 * 8 * p_.heads * p_.outer * p_.direction;
    const int rows = o < p_.outer ? start + length - first : 0;
    RETNET_UNROLL
    for (int r = 0; r < kOwnRows; ++r) {
      RETNET_UNROLL
      for (int half = 0; half < 2; ++half) {
        uint32_t pair[2];
        RETNET_UNROLL
        for (int x = 0; x < 2; ++x) {
          pair[x] = prim::pack_pair<kDtype>(out_[r][x][2 * half], out_[r][x][2 * half + 1]);
        }
        const float send = prim::word_to_float(odd ? pair[0] : pair[1]);
        const uint32_t received = prim::float_to_word(prim::shuffle_xor(send, 1));
        const uint32_t word[2] = {odd ? received : pair[0], odd ? pair[1] : received};
        if (16 * r + 8 * half < rows) prim::store(dst, word);
        dst += step;
      }
    }
  }

  const ChunkwiseParams& p_;
  const ChunkwisePhase phase_;
  const bool wide_;
  unsigned char* const shared_;
  const uint32_t sReadout_;
  Segment segment_;
  int row_;
  int column_;  // of O, where the slice starts
  uint32_t head_, warp_, lane_;

  float state_[kOwnInner / 8][4];  // S^T: accumulators of 16 columns of O by 8 rows of I
  float out_[kRowTiles][2][4];     // accumulators of 16 tokens by 8 columns of O
  float score_[kScoreColumns][kScoreRows][4];
};

}  // namespace retnet::kernels::cuda
