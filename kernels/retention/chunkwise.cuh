// SPDX-License-Identifier: Apache-2.0
//
// Chunkwise retention, the operator Ret(a, b, c; S0) (Sun et al. 2023, Eq. 7), for sm_80 and later.
//
//  1. Equation. With i, j positions in a chunk of L tokens and S the state before it,
//       out_i = scale (sum_{j<=i} gamma^(i-j) (a_i . b_j) c_j + gamma^(i+1) a_i S)
//       S     = gamma^L S + sum_j b_j^T (gamma^(L-1-j) c_j)
//  2. Shapes. a, b [B, T, H, I], c [B, T, H, O] with any strides of b, t, h that are multiples of 4;
//     out [B, T, H, O] and states [N, H, I, O] contiguous. I and O are padded to the tile by zeros
//     in shared memory.
//  3. CTA -> problem. Block ((row * H) + h) * slices + s owns `slice` columns of O of one sequence, or
//     of one segment of it, and walks its chunks in order. Slices of a head are neighbours and share
//     a and b through L2.
//  4. Warp roles. Each warp owns 16 columns of the slice with all of I. The scores are shared out: a
//     warp computes one or two columns of 8 keys for all, or some, rows of 16 tokens.
//  5. Tile and budget. State: inner / 2 fp32 registers a thread; outputs of the chunk: chunk / 2;
//     scores: 4, 16 or 32. Shared memory: ChunkwiseTile::shared_bytes (136 KB for 256 x 128 x 64).
//     Bytes of L2 per token-head: 2 (2 I slices + 2 O) (6,144 for I = 256, O = 512); wavefronts and
//     mma per chunk: chunkwise_model.h.
//  6. Pipeline. Keys and values of the next chunk are copied while this chunk is computed, its
//     readout tile once this chunk's is spent, after the scores.
//  7. Sync contract. Two block barriers a chunk. The first: this chunk, and before the first one the
//     weights, have arrived for all threads, and all are done with the last chunk's keys, values and
//     scores. The second: the scores are written, and all are done with the readout tile; without
//     outputs (kLocal) there is none.
//  8. Numerics. Products of 16-bit operands, sums and states in fp32. Rounded to 16 bits: the decayed
//     scores, the decayed values, the state as an operand (saturated in fp16) and out. Powers are fp32
//     (ex2 of n log2 gamma). Those of a negative n, above the diagonal of the scores, are computed as
//     well, infinite perhaps, and dropped by a select. No sum crosses warps, so the order of additions
//     depends on the tile alone.
//  9. Tails. Rows past the end are zeros in shared memory (never what the next sequence holds), and
//     the decay uses the true length.
// 10. Writes. Each element of out and of the final state once, by one thread.
// 11. Parameters. bf16 and fp16; the tile table.
//
// Why this way: the state is kept transposed, S^T [16 columns of O, I] in the layout of the mma's
// accumulator. That layout is also that of its B operand, so the readout takes the state from
// registers, rounded there: it never passes through shared memory, no sum crosses warps, and one
// fragment of the values serves as B operand of the outputs and as A operand of the update.
#pragma once

#include "kernels/retention/chunkwise_launch.h"
#include "kernels/retention/segments.cuh"

namespace retnet::kernels {

// Offset of 16-byte unit `unit` of row `row` in a tile of 16-bit elements with kColumns columns: the
// units of a row change places with the row, so that the same unit of 8 rows lies in 8 different
// groups of 4 banks.
template <int kColumns>
RETNET_DEVICE uint32_t swizzled(uint32_t row, uint32_t unit) {
  constexpr uint32_t kUnits = kColumns / 8 < 8 ? kColumns / 8 : 8;
  return row * kColumns * 2 + ((unit ^ (row * kUnits / 8 % kUnits)) << 4);
}

// From a swizzled address in the first 16 columns to the same row's k-th 16 columns (in the first 32:
// with k even). The swizzle changes the address inside 128 bytes alone, which leaves most of the step
// to the instruction's immediate offset.
RETNET_DEVICE uint32_t step_columns(uint32_t address, int k) {
  return (address ^ (k % 4 * 32)) + k / 4 * 128;
}

template <DType kDtype, int kTile>
class ChunkwiseBlock {
  static constexpr ChunkwiseTile kShape = kChunkwiseTiles[kTile];
  static constexpr int kInner = kShape.inner, kSlice = kShape.slice, kChunk = kShape.chunk;
  static constexpr int kThreads = kShape.threads(), kWarps = kThreads / 32;
  static constexpr int kRowTiles = kChunk / 16;  // of 16 tokens
  static constexpr int kKeyTiles = kChunk / 8;   // of 8 keys
  // A warp's scores: columns of tiles, and the row tiles of each.
  static constexpr int kScoreGroups = kWarps > kKeyTiles ? kWarps / kKeyTiles : 1;
  static constexpr int kScoreColumns = kWarps < kKeyTiles ? kKeyTiles / kWarps : 1;
  static constexpr int kScoreRows = kRowTiles / kScoreGroups;
  static_assert(kScoreColumns <= 2);
  // Shared memory.
  static constexpr int kInnerRow = kInner * 2, kSliceRow = kSlice * 2, kChunkRow = kChunk * 2;
  static constexpr int kKeys = kChunk * kInnerRow;  // behind the readout tile
  static constexpr int kValues = kKeys + 2 * kChunk * kInnerRow;
  static constexpr int kScores = kValues + 2 * kChunk * kSliceRow;
  static constexpr int kWeights = kScores + kChunk * kChunkRow;
  static_assert(kWeights + 2 * kChunk * 4 == kShape.shared_bytes());

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
        finish_scores(decay);
        prim::sync_block();
        if (!last) load_readout(start + kChunk);
      }
      decay_state(length == kChunk ? full_chunk : decay.power_minus_one(length));
      // With gamma = 0 the state stays zero, whatever it would be multiplied by, up to the last chunk.
      add_values(stage, length, last || !decay.forget);
      if (!local) store_out(start, length);
      stage ^= 1;
    }
    if (local || segment_.last) {
      store_state(local ? state_of(p_.workspace_ptr, row_)
                        : state_of(p_.final_state_ptr, segment_.sequence));
    }
  }

 private:
  // Copies rows start .. start + kChunk - 1 of the segment, kColumns columns from `column`; those
  // from `columns` on and those past the segment's end become zeros.
  template <int kColumns>
  RETNET_DEVICE void load_tile(uint32_t dst, const RetentionOperand& operand, int start, int column,
                               int64_t columns) const {
    constexpr int kUnits = kColumns / 8, kStep = kThreads / kUnits;
    const int unit = static_cast<int>((32 * warp_ + lane_) % kUnits);
    const int first = static_cast<int>((32 * warp_ + lane_) / kUnits);
    const char* src = static_cast<const char*>(operand.ptr) + 16 * unit +
                      2 * (segment_.batch * operand.stride_b + head_ * operand.stride_h +
                           int64_t{segment_.start + start + first} * operand.stride_t + column);
    const int64_t step = 2 * kStep * operand.stride_t;
    const uint32_t to = dst + swizzled<kColumns>(first, unit);
    const int rows = segment_.length - start - first;
    const int left =
        static_cast<int>(columns) - column - 8 * unit;  // elements from the unit's first
    if (wide_) {
      RETNET_UNROLL
      for (int i = 0; i < kChunk / kStep; ++i, src += step) {
        const bool inside = left > 0 && i * kStep < rows;
        prim::cp_async<16>(to + i * kStep * kColumns * 2, src, inside ? 16 : 0);
      }
    } else {
      RETNET_UNROLL_BY(1)
      for (int i = 0; i < kChunk / kStep; ++i, src += step) {
        const bool inside = i * kStep < rows;
        prim::cp_async<8>(to + i * kStep * kColumns * 2, src, inside && left > 0 ? 8 : 0);
        prim::cp_async<8>(to + i * kStep * kColumns * 2 + 8, src + 8, inside && left > 4 ? 8 : 0);
      }
    }
  }

  RETNET_DEVICE void load_readout(int start) const {
    load_tile<kInner>(sReadout_, p_.readout, start, 0, p_.inner);
    prim::cp_async_commit();
  }
  RETNET_DEVICE void load_keys_and_values(int start, int stage) const {
    load_tile<kInner>(keys(stage), p_.key, start, 0, p_.inner);
    load_tile<kSlice>(values(stage), p_.value, start, column_, p_.outer);
    prim::cp_async_commit();
  }
  RETNET_DEVICE uint32_t keys(int stage) const {
    return sReadout_ + kKeys + stage * kChunk * kInnerRow;
  }
  RETNET_DEVICE uint32_t values(int stage) const {
    return sReadout_ + kValues + stage * kChunk * kSliceRow;
  }

  // gamma^(length - 1 - j) of each position j in a full chunk and in the last one; 0 past its end.
  RETNET_DEVICE void store_weights(const Decay& decay) const {
    auto* weights = reinterpret_cast<float*>(shared_ + kWeights);
    for (int i = static_cast<int>(threadIdx.x); i < 2 * kChunk; i += kThreads) {
      const int length = i < kChunk ? kChunk : segment_.length % kChunk;
      const int left = length - 1 - i % kChunk;
      weights[i] = left >= 0 ? decay.power(static_cast<float>(left)) : 0.0f;
    }
  }

  // Of an accumulator: row of elements 0 and 1 (8 more: 2 and 3), column of elements 0 and 2 (1 more:
  // 1 and 3).
  RETNET_DEVICE int lane_row() const { return static_cast<int>(lane_ / 4); }
  RETNET_DEVICE int lane_pair() const { return static_cast<int>(lane_ % 4 * 2); }
  // First of the warp's columns of O.
  RETNET_DEVICE int warp_column() const { return column_ + 16 * static_cast<int>(warp_); }

  // Calls f(state_[n][e], its offset in a state [I, O]) for what lies inside.
  template <class F>
  RETNET_DEVICE void for_each_state(const F& f) {
    const int64_t outer = p_.outer;
    int i = lane_pair();  // row of I of e = 0 and 2
    const int o = warp_column() + lane_row();
    int64_t offset = i * outer + o;
    RETNET_UNROLL
    for (int n = 0; n < kInner / 8; ++n, i += 8, offset += 8 * outer) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) {
        const bool inside = i + e % 2 < p_.inner && o + e / 2 * 8 < outer;
        if (inside) f(state_[n][e], offset + e % 2 * outer + e / 2 * 8);
      }
    }
  }

  // This head's state in row `row` of states [.., H, I, O].
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
    RETNET_UNROLL
    for (int n = 0; n < kInner / 8; ++n) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) state_[n][e] = 0;
    }
    if (src == nullptr || decay.forget) return;
    for_each_state([&](float& value, int64_t offset) { value = src[offset]; });
  }

  RETNET_DEVICE void store_state(float* dst) {
    for_each_state([&](const float& value, int64_t offset) { dst[offset] = value; });
  }

  // This warp's scores: key tile of column x, first row tile.
  RETNET_DEVICE int key_tile(int x) const {
    return static_cast<int>(warp_ % kKeyTiles) + x * kWarps;
  }
  RETNET_DEVICE int first_row_tile() const {
    return static_cast<int>(warp_ / kKeyTiles) * kScoreRows;
  }

  // out = a S and the scores a b^T, in one pass over I.
  RETNET_DEVICE void read_out(int stage) {
    RETNET_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) out_[r][0][e] = out_[r][1][e] = 0;
    }
    RETNET_UNROLL
    for (int x = 0; x < kScoreColumns; ++x) {
      RETNET_UNROLL
      for (int r = 0; r < kScoreRows; ++r) {
        RETNET_UNROLL
        for (int e = 0; e < 4; ++e) score_[x][r][e] = 0;
      }
    }
    const uint32_t sA = sReadout_ + swizzled<kInner>(lane_ % 16, lane_ / 16);
    const uint32_t sB = keys(stage) + swizzled<kInner>(lane_ % 8, lane_ / 8);
    uint32_t b[kScoreColumns][4];  // of two steps
    RETNET_UNROLL
    for (int k = 0; k < kInner / 16; ++k) {
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

  // Decays the outputs of the state and the scores, and hands the scores to all warps.
  RETNET_DEVICE void finish_scores(const Decay& decay) {
    const int group = lane_row(), pair = lane_pair();
    float weight = decay.power(static_cast<float>(group + 1)) * p_.scale;
    const float eight_rows = decay.power(8);
    RETNET_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
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
      for (int r = 0; r < kScoreRows; ++r) {
        if (query - group + 16 * r + 15 < 8 * key_tile(x))
          continue;  // no later step reads the tile
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
    for (int n = 0; n < kInner / 8; ++n) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) state_[n][e] += state_[n][e] * minus_one;
    }
  }

  // out += scores c, and S += b^T (gamma^(length - 1 - j) c_j).
  RETNET_DEVICE void add_values(int stage, int length, bool update) {
    const uint32_t sP = sReadout_ + kScores + swizzled<kChunk>(lane_ % 16, lane_ / 16);
    const uint32_t sB = keys(stage) + swizzled<kInner>(lane_ % 16, lane_ / 16);
    const uint32_t sC =
        values(stage) + swizzled<kSlice>(lane_ / 16 * 8 + lane_ % 8, 2 * warp_ + lane_ / 8 % 2);
    const unsigned char* weights =
        shared_ + kWeights + (length == kChunk ? 0 : kChunk * 4) + lane_pair() * 4;
    RETNET_UNROLL
    for (int k = 0; k < kRowTiles; ++k) {
      // Tokens 0..7 of the step and columns 0..7 and 8..15 of the warp, then tokens 8..15.
      uint32_t c[4];
      prim::ldmatrix_x4_t(c, sC + k * 16 * kSliceRow);
      if (phase_ != ChunkwisePhase::kLocal) {
        RETNET_UNROLL
        for (int r = k; r < kRowTiles; ++r) {
          uint32_t a[4];
          prim::ldmatrix_x4(a, step_columns(sP, k) + r * 16 * kChunkRow);
          prim::mma<kDtype>(out_[r][0], a, c[0], c[2]);
          prim::mma<kDtype>(out_[r][1], a, c[1], c[3]);
        }
      }
      if (!update) continue;
      RETNET_UNROLL
      for (int half = 0; half < 2; ++half) {
        uint32_t weight[2];
        prim::load(weight, weights + (16 * k + 8 * half) * 4);
        RETNET_UNROLL
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          float value[2];
          prim::unpack_pair<kDtype>(c[i], value[0], value[1]);
          c[i] = prim::pack_pair<kDtype>(value[0] * prim::word_to_float(weight[0]),
                                         value[1] * prim::word_to_float(weight[1]));
        }
      }
      RETNET_UNROLL
      for (int n = 0; n < kInner / 16; ++n) {
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
    const int64_t token = segment_.batch * p_.tokens + segment_.start + start + lane_row();
    char* dst = static_cast<char*>(p_.out_ptr) + 2 * ((token * p_.heads + head_) * p_.outer + o);
    const int64_t step = 2 * 8 * p_.heads * p_.outer;
    const int rows = o < p_.outer ? length - lane_row() : 0;
    RETNET_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
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

  float state_[kInner / 8][4];  // S^T: accumulators of 16 columns of O by 8 rows of I
  float out_[kRowTiles][2][4];  // accumulators of 16 tokens by 8 columns of O
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
                             int64_t segment_length, int64_t rows, cudaStream_t stream) {
  constexpr ChunkwiseTile kShape = kChunkwiseTiles[kTile];
  const int64_t slices = (params.outer + kShape.slice - 1) / kShape.slice;
  const auto blocks = static_cast<unsigned>(rows * params.heads * slices);
  return prim::launch(chunkwise_kernel<kDtype, kTile>, dim3(blocks), kShape.threads(),
                      kShape.shared_bytes(), stream, params, phase,
                      static_cast<int>(segment_length), chunkwise_wide(params));
}

}  // namespace retnet::kernels
