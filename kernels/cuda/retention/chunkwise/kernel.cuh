// SPDX-License-Identifier: Apache-2.0
//
// Chunkwise retention, the operator Ret(q, k, v; S0) (Sun et al. 2023, Eq. 7), for sm_80 and later. It
// computes the forward pass and, with other tensors as q, k and v, each gradient (plan.h):
// - for grad_q, q = grad_out, k = v and v = k;
// - for grad_k, q = v, k = grad_out and v = q;
// - for grad_v, q = k, k = q and v = grad_out.
//
//  1. Equation. With i, j positions in a chunk of L tokens and S the state before it,
//       out_i = scale (sum_{j<=i} gamma^(i-j) (q_i . k_j) v_j + gamma^(i+1) q_i S)
//       S     = gamma^L S + sum_j k_j^T (gamma^(L-1-j) v_j)
//     In reverse, positions count from the end of the sequence. S is then the gradient R of the state. It
//     enters undecayed, decays once more before it leaves, and holds scale:
//       out_i = scale sum_{j<=i} gamma^(i-j) (q_i . k_j) v_j + gamma^i q_i R
//       R     = gamma^L R + sum_j k_j^T (scale gamma^(L-j) v_j)
//  2. Shapes. q, k [B, T, H, Dk] and v [B, T, H, Dv] with any strides of b, t, h that are multiples of 4;
//     out [B, T, H, Dv] and states [N, H, Dk, Dv] ([N, H, Dv, Dk] if transposed) contiguous. Zeros in
//     shared memory pad Dk and Dv to the tile. A null operand stands for zeros.
//  3. CTA -> problem. Block ((segment * H) + h) * slices + s owns `slice` columns of Dv of one segment, a
//     sequence or a part of one, and walks its chunks in order. Slices of a head are neighbours and share
//     q and k through L2.
//  4. Warp roles. Each warp owns 16 columns of the slice with all of Dk. The warps share the scores. Each
//     computes one or two columns of 8 tokens of k for all, or some, rows of 16 tokens of q. If Dk = 512,
//     two warps share the columns, and each has a half of Dk. They sum outputs and scores in shared memory,
//     and each continues with half of the rows.
//  5. Tile and budget. A thread has Dk / 2 float32 registers of state (128 if Dk = 512), chunk / 2 of outputs
//     and 4, 8, 16 or 32 of scores. A block has ChunkwiseTile::shared_bytes of shared memory (136 KB for
//     256 x 128 x 64). A token and head takes 2 (2 Dk slices + 2 Dv) bytes of L2 (6,144 for Dk = 256, Dv =
//     512). cost_model.h has the wavefronts and mma of a chunk.
//  6. Pipeline. k and v of the next chunk are copied while this chunk is computed. Its q is copied as soon
//     as the q of this chunk is spent, after the scores.
//  7. Sync contract. There are two block barriers a chunk.
//     - At the first, this chunk has arrived for all threads (for the first chunk, the weights too), and all
//       are done with k, v and the scores of the last chunk.
//     - At the second, the scores are written, and all are done with q. Without outputs (kLocal) there is
//       no second one.
//     - If Dk = 512, there is a third one between them. At it, what the halves send each other is written.
//       It is read before the second barrier, and written again after the next first one.
//  8. Numerics. Operands have 16 bits, and products, sums and states are float32. The decayed scores, the
//     decayed v, the state as an operand (saturated in float16) and out are rounded to 16 bits. Powers are
//     float32 (ex2 of n log2 gamma). Those of a negative n, above the diagonal of the scores, are computed
//     too. They may be infinite, and a select drops them. Only the sum of the halves crosses warps, so the
//     order of additions depends only on the tile.
//  9. Tails. Rows past the end are zeros in shared memory (never what the next sequence holds), and the
//     decay uses the true length.
// 10. Writes. Each element of out and of the final state is written once, by one thread.
// 11. Parameters. Each dtype (bfloat16, float16) and tile of the table has an instance. The direction of time and
//     the layout of states are chosen at run time.
//
// Why this way: the state is kept transposed, S^T [16 columns of Dv, Dk], in the layout of the accumulator
// of the mma. That layout is also that of its B operand, so q S takes the state from registers and rounds
// it there. The state never passes through shared memory, no sum crosses warps, and one fragment of v
// serves as B operand of the outputs and as A operand of the update.
#pragma once

#include "kernels/cuda/prim/prim.cuh"
#include "kernels/cuda/retention/chunkwise/launch.h"
#include "kernels/cuda/retention/decay.cuh"
#include "kernels/cuda/retention/segments.cuh"
#include "kernels/cuda/retention/tile.cuh"

namespace retnet::kernels::cuda {

template <DType kDtype, int kTile>
class ChunkwiseBlock {
  static constexpr ChunkwiseTile kShape = kChunkwiseTiles[kTile];
  static constexpr int kHeadDimQk = kShape.head_dim_qk, kSlice = kShape.slice,
                       kChunk = kShape.chunk;
  static constexpr int kThreads = kShape.threads(), kWarps = kThreads / 32;
  static constexpr int kHalves = kShape.halves();  // of Dk, each of warps of its own
  static constexpr int kColumnWarps = kWarps / kHalves, kOwnHeadDimQk = kHeadDimQk / kHalves;
  static constexpr int kRowTiles = kChunk / 16;  // of 16 tokens
  static constexpr int kKTiles = kChunk / 8;     // of 8 tokens of k
  // The scores of a warp: columns of tiles, and the row tiles of each.
  static constexpr int kScoreGroups = kColumnWarps > kKTiles ? kColumnWarps / kKTiles : 1;
  static constexpr int kScoreColumns = kColumnWarps < kKTiles ? kKTiles / kColumnWarps : 1;
  static constexpr int kScoreRows = kRowTiles / kScoreGroups;
  static_assert(kScoreColumns <= 2 && (kHalves == 1 || kScoreGroups == 1));
  // Row tiles of outputs and scores that a warp continues with once halves are summed.
  static constexpr int kOwnRows = kRowTiles / kHalves, kOwnScoreRows = kScoreRows / kHalves;
  // Shared memory.
  static constexpr int kRowBytesQk = kHeadDimQk * 2, kRowBytesV = kSlice * 2;
  static constexpr int kRowBytesScores = kChunk * 2;
  static constexpr int kOffsetK = kChunk * kRowBytesQk;  // behind q
  static constexpr int kOffsetV = kOffsetK + 2 * kChunk * kRowBytesQk;
  static constexpr int kOffsetScores = kOffsetV + 2 * kChunk * kRowBytesV;
  static constexpr int kOffsetWeights = kOffsetScores + kChunk * kRowBytesScores;
  static constexpr int kOffsetSums =
      kOffsetWeights + 2 * kChunk * 4;  // what halves send each other
  static_assert(kOffsetSums + (kHalves - 1) * 4 * kChunk * (kSlice + kChunk) ==
                kShape.shared_bytes());

 public:
  // If `wide`, copies have 16 bytes (chunkwise_wide), else 8.
  RETNET_DEVICE ChunkwiseBlock(const ChunkwiseParams& params, ChunkwisePhase phase,
                               int segment_length, bool wide, unsigned char* shared)
      : p_(params), phase_(phase), wide_(wide), shared_(shared), sQ_(prim::smem_u32(shared)) {
    const uint32_t slices = static_cast<uint32_t>((p_.head_dim_v + kSlice - 1) / kSlice);
    const uint32_t heads = static_cast<uint32_t>(p_.heads);
    const uint32_t segment_and_head = blockIdx.x / slices;
    const uint32_t segment = segment_and_head / heads;
    column_ = static_cast<int>(blockIdx.x - segment_and_head * slices) * kSlice;
    segment_index_ = static_cast<int>(segment);
    segment_ = find_segment(p_, segment_index_, segment_length);
    warp_ = threadIdx.x / 32;
    lane_ = threadIdx.x % 32;
    head_ = segment_and_head - segment * heads;
  }

  RETNET_DEVICE void run() {
    // There is nothing to do without a segment, nor for a local state that no segment starts from.
    if (phase_ == ChunkwisePhase::kLocal ? segment_.last || segment_.length == 0
                                         : segment_.length == 0 && !segment_.last) {
      return;
    }
    Decay decay(p_.log_decay_ptr[head_]);
    const float full_chunk_power_minus_one = decay.power_minus_one(kChunk);
    const bool local = phase_ == ChunkwisePhase::kLocal;
    store_weights(decay);
    load_state(decay);
    if (segment_.length > 0) {
      load_k_and_v(0, 0);
      if (!local) load_q(0);
    }
    int stage = 0;
    for (int start = 0; start < segment_.length; start += kChunk) {
      const int length = prim::min(kChunk, segment_.length - start);
      const bool last = start + kChunk >= segment_.length;
      // Powers and addresses follow from these and are computed again in each chunk. Kept from one chunk
      // to the next, they would take more registers than there are.
      decay.log2 = prim::opaque(decay.log2);
      lane_ = prim::opaque(lane_);
      warp_ = prim::opaque(warp_);
      head_ = prim::opaque(head_);
      prim::cp_async_wait<0>();
      prim::sync_block();
      if (!last) load_k_and_v(start + kChunk, stage ^ 1);
      if (!local) {
        multiply_q(stage);
        if constexpr (kHalves > 1) sum_halves();
        finish_scores(decay, start > 0);
        prim::sync_block();
        if (!last) load_q(start + kChunk);
      }
      decay_state(length == kChunk ? full_chunk_power_minus_one : decay.power_minus_one(length));
      // If gamma is 0 no chunk passes a state on, except that the last one leaves what it has.
      multiply_v(stage, length, last || !decay.gamma_is_zero);
      if (!local) store_out(start, length);
      stage ^= 1;
    }
    if (local) {
      store_state(head_state(p_.workspace_ptr, segment_index_), false);
    } else if (segment_.last && p_.final_state_ptr != nullptr) {
      // In reverse it decays once more after the last token that is walked. If gamma is 0, it becomes zero,
      // NaN or not.
      const bool zero = decay.gamma_is_zero && reverse() && segment_.length > 0;
      store_state(head_state(p_.final_state_ptr, segment_.sequence), zero);
    }
  }

 private:
  RETNET_DEVICE bool reverse() const { return p_.direction < 0; }
  RETNET_DEVICE int token_at(int position) const {
    return segment_.start + p_.direction * position;
  }

  // Copies positions start .. start + kChunk - 1 of the segment, kColumns columns from `column`.
  template <int kColumns>
  RETNET_DEVICE void load(uint32_t dst, const RetentionOperand& operand, int start, int column,
                          int64_t columns) const {
    const char* src = static_cast<const char*>(operand.ptr) +
                      2 * (segment_.batch * operand.stride_b + head_ * operand.stride_h + column);
    const int inside = operand.ptr != nullptr ? static_cast<int>(columns) - column : 0;
    load_tile<kColumns, kChunk, kThreads>(dst, src, operand.stride_t, token_at(start), p_.direction,
                                          segment_.length - start, inside, 32 * warp_ + lane_,
                                          wide_);
  }

  RETNET_DEVICE void load_q(int start) const {
    load<kHeadDimQk>(sQ_, p_.q, start, 0, p_.head_dim_qk);
    prim::cp_async_commit();
  }
  RETNET_DEVICE void load_k_and_v(int start, int stage) const {
    load<kHeadDimQk>(sK(stage), p_.k, start, 0, p_.head_dim_qk);
    load<kSlice>(sV(stage), p_.v, start, column_, p_.head_dim_v);
    prim::cp_async_commit();
  }
  RETNET_DEVICE uint32_t sK(int stage) const {
    return sQ_ + kOffsetK + stage * kChunk * kRowBytesQk;
  }
  RETNET_DEVICE uint32_t sV(int stage) const {
    return sQ_ + kOffsetV + stage * kChunk * kRowBytesV;
  }

  // Stores the weights of v, gamma^(length - 1 - j) of each position j in a full chunk and in the last one
  // (in reverse scale gamma^(length - j)). They are 0 past its end.
  RETNET_DEVICE void store_weights(const Decay& decay) const {
    auto* weights = reinterpret_cast<float*>(shared_ + kOffsetWeights);
    for (int i = static_cast<int>(threadIdx.x); i < 2 * kChunk; i += kThreads) {
      const int length = i < kChunk ? kChunk : segment_.length % kChunk;
      const int left = length - 1 - i % kChunk;
      const float power = decay.power(static_cast<float>(reverse() ? left + 1 : left));
      weights[i] = left >= 0 ? power * (reverse() ? p_.scale : 1.0f) : 0.0f;
    }
  }

  // lane_row is the row of elements 0 and 1 of an accumulator; 2 and 3 lie 8 rows below. lane_pair is the
  // column of elements 0 and 2; 1 and 3 lie one to the right.
  RETNET_DEVICE int lane_row() const { return static_cast<int>(lane_ / 4); }
  RETNET_DEVICE int lane_pair() const { return static_cast<int>(lane_ % 4 * 2); }
  RETNET_DEVICE int column_warp() const {
    return static_cast<int>(kHalves == 1 ? warp_ : warp_ % kColumnWarps);
  }
  RETNET_DEVICE int half() const {
    return kHalves == 1 ? 0 : static_cast<int>(warp_ / kColumnWarps);
  }
  // The first of the warp's columns of Dv.
  RETNET_DEVICE int warp_column() const { return column_ + 16 * column_warp(); }

  // Calls f(state_[n][e], its offset in a state) for each element that lies inside the state.
  RETNET_DEVICE void for_each_state(const auto& f) {
    const auto head_dim_qk = static_cast<uint32_t>(p_.head_dim_qk);
    const auto head_dim_v = static_cast<uint32_t>(p_.head_dim_v);
    const uint32_t stride_qk = p_.transposed ? 1 : head_dim_v;
    const uint32_t stride_v = p_.transposed ? head_dim_qk : 1;
    uint32_t row = half() * kOwnHeadDimQk + lane_pair();  // of Dk, of e = 0 and 2
    const uint32_t column = warp_column() + lane_row();   // of Dv, of e = 0 and 1
    uint32_t offset = row * stride_qk + column * stride_v;
    RETNET_UNROLL
    for (int n = 0; n < kOwnHeadDimQk / 8; ++n, row += 8, offset += 8 * stride_qk) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) {
        const bool inside = row + e % 2 < head_dim_qk && column + e / 2 * 8 < head_dim_v;
        if (inside) f(state_[n][e], offset + e % 2 * stride_qk + e / 2 * 8 * stride_v);
      }
    }
  }

  // The state of this head at `index` in states [.., H, Dk, Dv] or [.., H, Dv, Dk].
  template <class T>
  RETNET_DEVICE T* head_state(T* states, int index) const {
    return states +
           (static_cast<int64_t>(index) * p_.heads + head_) * p_.head_dim_qk * p_.head_dim_v;
  }

  RETNET_DEVICE void load_state(const Decay& decay) {
    const float* src = nullptr;
    if (phase_ == ChunkwisePhase::kFused) {
      src = head_state(p_.workspace_ptr, segment_index_);
    } else if (phase_ == ChunkwisePhase::kWhole && p_.initial_state_ptr != nullptr) {
      src = head_state(p_.initial_state_ptr, segment_.sequence);
    }
    clear_state();
    if (src == nullptr || initial_state_decays_to_zero(p_, decay, segment_.sequence)) return;
    for_each_state([&](float& state, uint32_t offset) { state = src[offset]; });
  }

  RETNET_DEVICE void clear_state() {
    RETNET_UNROLL
    for (int n = 0; n < kOwnHeadDimQk / 8; ++n) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) state_[n][e] = 0;
    }
  }

  RETNET_DEVICE void store_state(float* dst, bool zero) {
    for_each_state([&](const float& state, uint32_t offset) { dst[offset] = zero ? 0.0f : state; });
  }

  RETNET_DEVICE void clear_out() {
    RETNET_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) out_[r][0][e] = out_[r][1][e] = 0;
    }
  }

  // This warp's scores: the tile of k of column x, and the first row tile.
  RETNET_DEVICE int k_tile(int x) const { return column_warp() % kKTiles + x * kColumnWarps; }
  RETNET_DEVICE int first_row_tile() const {
    return kHalves > 1 ? half() * kOwnScoreRows : column_warp() / kKTiles * kScoreRows;
  }
  RETNET_DEVICE int first_own_row() const { return half() * kOwnRows; }  // row tile of out_[0]

  // out = q S and the scores q k^T, in one pass over the warp's part of Dk.
  RETNET_DEVICE void multiply_q(int stage) {
    clear_out();
    RETNET_UNROLL
    for (int x = 0; x < kScoreColumns; ++x) {
      RETNET_UNROLL
      for (int r = 0; r < kScoreRows; ++r) {
        RETNET_UNROLL
        for (int e = 0; e < 4; ++e) score_[x][r][e] = 0;
      }
    }
    const uint32_t part = half() * kOwnHeadDimQk * 2;
    const uint32_t from_q = sQ_ + part + swizzled<kHeadDimQk>(lane_ % 16, lane_ / 16);
    const uint32_t from_k = sK(stage) + part + swizzled<kHeadDimQk>(lane_ % 8, lane_ / 8);
    uint32_t rK[kScoreColumns][4];  // 32 columns of Dk
    RETNET_UNROLL
    for (int d = 0; d < kOwnHeadDimQk / 16; ++d) {  // 16 columns of Dk
      if (d % 2 == 0) {
        RETNET_UNROLL
        for (int x = 0; x < kScoreColumns; ++x) {
          prim::ldmatrix_x4(rK[x], advance_columns(from_k, d) + k_tile(x) * 8 * kRowBytesQk);
        }
      }
      uint32_t rS[2][2];  // the state as operand b
      RETNET_UNROLL
      for (int half = 0; half < 2; ++half) {
        RETNET_UNROLL
        for (int i = 0; i < 2; ++i) {
          rS[half][i] = prim::saturate_pair<kDtype>(prim::pack_pair<kDtype>(
              state_[2 * d + i][2 * half], state_[2 * d + i][2 * half + 1]));
        }
      }
      uint32_t rQ[kRowTiles][4];
      RETNET_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        prim::ldmatrix_x4(rQ[r], advance_columns(from_q, d) + r * 16 * kRowBytesQk);
      }
      RETNET_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        prim::mma<kDtype>(out_[r][0], rQ[r], rS[0][0], rS[0][1]);
        prim::mma<kDtype>(out_[r][1], rQ[r], rS[1][0], rS[1][1]);
      }
      RETNET_UNROLL
      for (int r = 0; r < kScoreRows; ++r) {
        if constexpr (kScoreGroups > 1) {
          const uint32_t rows = (first_row_tile() + r) * 16 * kRowBytesQk;
          prim::ldmatrix_x4(rQ[r], advance_columns(from_q, d) + rows);
        }
        RETNET_UNROLL
        for (int x = 0; x < kScoreColumns; ++x) {
          prim::mma<kDtype>(score_[x][r], rQ[r], rK[x][d % 2 * 2], rK[x][d % 2 * 2 + 1]);
        }
      }
    }
  }

  // Sums outputs and scores over the halves of Dk. The warps of the second half keep the last rows, which
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
    unsigned char* to = shared_ + kOffsetSums + thread * 16;
    for_each_tile([&](const float(&head)[4], const float(&tail)[4], int n) {
      uint32_t sent[4];
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) sent[e] = prim::float_to_word(second ? head[e] : tail[e]);
      prim::store(to + n * kThreads * 16, sent);
    });
    prim::sync_block();
    const unsigned char* from = shared_ + kOffsetSums + (thread + kThreads / 2) % kThreads * 16;
    for_each_tile([&](float(&head)[4], const float(&tail)[4], int n) {
      uint32_t received[4];
      prim::load(received, from + n * kThreads * 16);
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) {
        head[e] = (second ? tail[e] : head[e]) + prim::word_to_float(received[e]);
      }
    });
  }

  // Decays what the outputs have of the state and the scores, and hands the scores to all warps.
  RETNET_DEVICE void finish_scores(const Decay& decay, bool later) {
    const int group = lane_row(), pair = lane_pair();
    const int age = 16 * first_own_row() + group + (reverse() ? 0 : 1);
    float weight = decay.power(static_cast<float>(age)) * (reverse() ? 1.0f : p_.scale);
    const float eight_rows = decay.power(8);
    // In reverse with gamma = 0 only the first chunk sees the state, which may hold NaN.
    if (later && decay.gamma_is_zero) clear_out();
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
      const int q_token = 16 * first_row_tile() + group, k_token = 8 * k_tile(x) + pair;
      // The swizzle is the same in every eighth row.
      unsigned char* to = shared_ + kOffsetScores + swizzled<kChunk>(q_token, k_tile(x)) + 2 * pair;
      RETNET_UNROLL
      for (int r = 0; r < kOwnScoreRows; ++r) {
        // Nothing reads a tile above the diagonal later.
        if (q_token - group + 16 * r + 15 < 8 * k_tile(x)) continue;
        RETNET_UNROLL
        for (int half = 0; half < 2; ++half) {
          float weighted[2];
          RETNET_UNROLL
          for (int e = 0; e < 2; ++e) {
            const float distance = static_cast<float>(q_token - k_token) + (16 * r + 8 * half - e);
            const float weight = decay.power(distance) * p_.scale;
            weighted[e] = distance >= 0 ? score_[x][r][2 * half + e] * weight : 0.0f;
          }
          *reinterpret_cast<uint32_t*>(to + (16 * r + 8 * half) * kRowBytesScores) =
              prim::pack_pair<kDtype>(weighted[0], weighted[1]);
        }
      }
    }
  }

  RETNET_DEVICE void decay_state(float power_minus_one) {
    RETNET_UNROLL
    for (int n = 0; n < kOwnHeadDimQk / 8; ++n) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) state_[n][e] += state_[n][e] * power_minus_one;
    }
  }

  // out += scores v, and S += k^T (weight_j v_j).
  RETNET_DEVICE void multiply_v(int stage, int length, bool update) {
    const uint32_t from_scores = sQ_ + kOffsetScores + first_own_row() * 16 * kRowBytesScores +
                                 swizzled<kChunk>(lane_ % 16, lane_ / 16);
    const uint32_t from_k =
        sK(stage) + half() * kOwnHeadDimQk * 2 + swizzled<kHeadDimQk>(lane_ % 16, lane_ / 16);
    const uint32_t from_v =
        sV(stage) + swizzled<kSlice>(lane_ / 16 * 8 + lane_ % 8, 2 * column_warp() + lane_ / 8 % 2);
    const unsigned char* weights =
        shared_ + kOffsetWeights + (length == kChunk ? 0 : kChunk * 4) + lane_pair() * 4;
    RETNET_UNROLL
    for (int j = 0; j < kRowTiles; ++j) {  // 16 tokens of k and v
      // rV has tokens 0..7 in columns 0..7 and 8..15 of the warp, then tokens 8..15.
      uint32_t rV[4];
      prim::ldmatrix_x4_t(rV, from_v + j * 16 * kRowBytesV);
      if (phase_ != ChunkwisePhase::kLocal) {
        RETNET_UNROLL
        for (int r = 0; r < kOwnRows; ++r) {
          if (first_own_row() + r < j) continue;  // above the diagonal
          uint32_t rScores[4];
          prim::ldmatrix_x4(rScores, advance_columns(from_scores, j) + r * 16 * kRowBytesScores);
          prim::mma<kDtype>(out_[r][0], rScores, rV[0], rV[2]);
          prim::mma<kDtype>(out_[r][1], rScores, rV[1], rV[3]);
        }
      }
      if (!update) continue;
      weigh_fragment<kDtype>(rV, rV, weights + 16 * j * 4);
      RETNET_UNROLL
      for (int d = 0; d < kOwnHeadDimQk / 16; ++d) {
        uint32_t rK[4];
        prim::ldmatrix_x4_t(rK, advance_columns(from_k, d) + j * 16 * kRowBytesQk);
        prim::mma<kDtype>(state_[2 * d], rV, rK[0], rK[1]);
        prim::mma<kDtype>(state_[2 * d + 1], rV, rK[2], rK[3]);
      }
    }
  }

  // Neighbouring lanes exchange pairs, so that each stores 4 columns. An even lane stores some of the first
  // 8 columns of its warp, an odd one some of the others.
  RETNET_DEVICE void store_out(int start, int length) const {
    const bool odd = lane_ % 2 != 0;
    const int column = warp_column() + (odd ? 8 : 0) + lane_pair() / 4 * 4;
    const int first = start + 16 * first_own_row() + lane_row();
    const int64_t token = segment_.batch * p_.tokens + token_at(first);
    char* dst =
        static_cast<char*>(p_.out_ptr) + 2 * ((token * p_.heads + head_) * p_.head_dim_v + column);
    const int64_t eight_tokens = 2 * 8 * p_.heads * p_.head_dim_v * p_.direction;
    const int rows = column < p_.head_dim_v ? start + length - first : 0;
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
        dst += eight_tokens;
      }
    }
  }

  const ChunkwiseParams& p_;
  const ChunkwisePhase phase_;
  const bool wide_;
  unsigned char* const shared_;
  // q, the first array in shared memory. The offsets of k, v and scores count from it.
  const uint32_t sQ_;
  Segment segment_;
  int segment_index_;
  int column_;  // of Dv, where the slice starts
  uint32_t head_, warp_, lane_;

  float state_[kOwnHeadDimQk / 8][4];  // S^T: accumulators of 16 columns of Dv by 8 rows of Dk
  float out_[kRowTiles][2][4];         // accumulators of 16 tokens by 8 columns of Dv
  float score_[kScoreColumns][kScoreRows][4];
};

template <DType kDtype, int kTile>
__global__ void __launch_bounds__(kChunkwiseTiles[kTile].threads(), 1)
    chunkwise_kernel(const ChunkwiseParams p, ChunkwisePhase phase, int segment_length, bool wide) {
  if constexpr (prim::kHasAsyncMma) {
    RETNET_DYNAMIC_SHARED(shared);
    ChunkwiseBlock<kDtype, kTile>(p, phase, segment_length, wide, shared).run();
  }
}

template <DType kDtype, int kTile>
cudaError_t chunkwise_launch(const ChunkwiseParams& params, ChunkwisePhase phase,
                             int64_t segment_length, int64_t segments, cudaStream_t stream) {
  constexpr ChunkwiseTile kShape = kChunkwiseTiles[kTile];
  const int64_t slices = (params.head_dim_v + kShape.slice - 1) / kShape.slice;
  const auto blocks = static_cast<unsigned>(segments * params.heads * slices);
  return prim::launch(chunkwise_kernel<kDtype, kTile>, dim3(blocks), kShape.threads(),
                      kShape.shared_bytes(), stream, params, phase,
                      static_cast<int>(segment_length), chunkwise_wide(params));
}

}  // namespace retnet::kernels::cuda
