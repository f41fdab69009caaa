// SPDX-License-Identifier: Apache-2.0
//
// The decode step (Sun et al. 2023, Eq. 6 and 8): one token of each batch entry, with everything between the
// projections of a layer.
//
//  1. Equation. For a batch entry and head, with q and k rotated by the angles position * frequency:
//       state <- state + state expm1(log gamma) + k^T v           (gamma = 0: k^T v)
//       o      = scale q state
//       out    = ((o - mean) rsqrt(var + eps) * weight + bias) * gate * sigmoid(gate)
//     (kRms: without mean). Without frequencies, q and k are not rotated. Without a gate, out = o.
//  2. Shapes. q, k [B, H, Dk], v, gate [B, H, Dv] with any strides of b and h; state float32 [S, H, Dk, Dv]
//     with any of s, h and k; positions [B]; frequencies [Dk / 2]; weight, bias [Dv] or [H, Dv]; out
//     [B, H, Dv] contiguous. With slots [B], batch entry b has state slots[b].
//  3. CTA -> problem. Block ((b H) + h) cluster + rank has `decode_step_columns` columns of Dv of one batch
//     entry and head, and all of Dk, so q state needs no sum over blocks. The norm needs a sum over the
//     blocks of a head, which are a cluster. Clusters exist from sm_90 on. Before, cluster is 1 and a block
//     has all columns.
//  4. Warp roles. All warps do the same. Columns are taken in units of 64. A warp reads two rows of the
//     state at once, and the 8 warps 16 rows. Lane l reads 4 columns of row l / 16. Thread t ends with
//     columns t, t + 256, ...
//  5. Tile and budget. A thread keeps 8 x 4 elements of the state and 4 sums, in at most 128 registers. So
//     a multiprocessor has 2 blocks and 64 KB of loads in flight. A block has decode_step_shared_bytes of
//     shared memory (20 KB at Dk = 256, Dv = 512, if a head has one block). The state takes 8 Dk Dv bytes
//     of device memory, because each element is read and written once. The vectors are added
//     (cost_model.h).
//  6. Pipeline. As soon as an element is updated and stored, its registers take the one 128 rows below. So
//     a thread always waits for the oldest of 8 loads. The first 8 start before q and k are known.
//  7. Sync contract.
//     - sQK and sV are written before the first barrier, and then only read. That barrier is one of the cluster,
//       so it also shows that the other blocks have started.
//     - Each warp writes its own row of sPartial. After a barrier all threads read all rows.
//     - One warp writes each group of 32 columns of sStats, into all blocks of the cluster. After a barrier
//       of the cluster all threads read them, and no block touches the memory of another.
//     - Batch entries that slots skip return before any barrier, in all blocks of the cluster.
//  8. Numerics. Everything is float32, except that angles are float64. o is summed over the rows of a thread
//     in order, then over both half warps, then over the warps in order. The mean and the second moment
//     about it come from those of groups of 32 columns, in order. The store of out rounds once.
//  9. Tails. Rows past Dk and columns past Dv are neither loaded nor stored. Zeros pad v.
// 10. Writes. Each element of state and out is written once, by one thread. The bits of a batch entry
//     depend on that entry only, neither on the rest of the batch nor on the number of blocks that share a
//     head.
// 11. Parameters. The kernel takes float32, bfloat16 and float16, and Dk and Dv up to 1,024. Accesses to the state
//     have 16 bytes if its rows allow them, else 4. It runs on any architecture from sm_75, in clusters
//     from sm_90.
//
// Why this way: only the state counts. A head moves 512 KB of it each way, and 3 KB of vectors. Norm, gate,
// slots and rotation are branches that a whole launch takes alike. See docs/kernels/decode_step.md.
#pragma once

#include "kernels/cuda/prim/angle.cuh"
#include "kernels/cuda/prim/prim.cuh"
#include "kernels/cuda/retention/decay.cuh"
#include "kernels/cuda/retention/decode_step/launch.h"

namespace retnet::kernels::cuda {

// The four columns of a lane in a unit. They are neighbours, or lie 16 apart.
template <bool kWide>
struct DecodeStepQuad {
  RETNET_DEVICE static int column(int j) {
    const int lane = static_cast<int>(threadIdx.x % 16);
    return kWide ? 4 * lane + j : lane + 16 * j;
  }
  // Load from, and store to, a row that has `columns` columns from the first of the unit on. If kWide, that
  // is a multiple of 4.
  RETNET_DEVICE static void load(float (&x)[4], const float* row, int columns) {
    if constexpr (kWide) {
      if (column(0) >= columns) return;
      prim::unpack(prim::load_packet<DType::kFloat32, 4>(row, column(0)), x);
    } else {
      RETNET_UNROLL
      for (int j = 0; j < 4; ++j) {
        if (column(j) < columns) x[j] = row[column(j)];
      }
    }
  }
  RETNET_DEVICE static void store(float* row, const float (&x)[4], int columns) {
    if constexpr (kWide) {
      if (column(0) < columns) prim::store_packet(row, column(0), prim::pack<DType::kFloat32>(x));
    } else {
      RETNET_UNROLL
      for (int j = 0; j < 4; ++j) {
        if (column(j) < columns) row[column(j)] = x[j];
      }
    }
  }
};

// Returns element `offset` of weight or bias, or `absent` if there is none.
template <DType kDtype>
RETNET_DEVICE float load_affine_element(const void* ptr, DType dtype, int64_t offset,
                                        float absent) {
  if (ptr == nullptr) return absent;
  return kDtype == DType::kFloat32 || dtype == DType::kFloat32
             ? prim::load_element<DType::kFloat32>(ptr, offset)
             : prim::load_element<kDtype>(ptr, offset);
}

template <DType kDtype, bool kWide>
class DecodeStepBlock {
 public:
  RETNET_DEVICE DecodeStepBlock(const DecodeStepParams& p, int cluster, unsigned char* shared)
      : p_(p),
        cluster_(cluster),
        head_dim_qk_(static_cast<int>(p.head_dim_qk)),
        width_(static_cast<int>(block_columns(p, cluster))),
        first_((cluster > 1 ? prim::cluster_rank() : 0) * width_),
        columns_(prim::min(width_, static_cast<int>(p.head_dim_v) - first_)) {
    batch_and_head_ = blockIdx.x / static_cast<uint32_t>(cluster);
    b_ = batch_and_head_ / static_cast<uint32_t>(p.heads);
    h_ = batch_and_head_ - b_ * static_cast<uint32_t>(p.heads);
    sQK = reinterpret_cast<float*>(shared);
    sV = sQK + 2 * (head_dim_qk_ + head_dim_qk_ % 2);  // 16-byte aligned
    sPartial = sV + width_;
    sStats = sPartial + kDecodeStepWarps * width_;
  }

  RETNET_DEVICE void run() {
    const int64_t slot = p_.slots_ptr != nullptr ? p_.slots_ptr[b_] : b_;
    const int64_t out = batch_and_head_ * p_.head_dim_v + first_;
    if (slot < 0 || slot >= p_.states) {
      for (int c = thread(); c < columns_; c += kDecodeStepThreads) {
        prim::store_element<kDtype>(p_.out_ptr, out + c, 0);
      }
      return;
    }
    state_ = p_.state_ptr + slot * p_.state_stride_s + h_ * p_.state_stride_h + first_ +
             row_of_thread() * p_.state_stride_k;
    RETNET_UNROLL
    for (int i = 0; i < kDecodeStepLoads; ++i) load(i, 0, 0);

    load_q_and_k();
    for (int c = thread(); c < width_; c += kDecodeStepThreads) {
      sV[c] = c < columns_ ? prim::load_element<kDtype>(
                                 p_.v_ptr, at(p_.v_stride_b, p_.v_stride_h) + first_ + c)
                           : 0;
    }
    float gate[kColumnsOfThread], weight[kColumnsOfThread], bias[kColumnsOfThread];
    load_gate_and_affine(gate, weight, bias);
    const Decay decay(p_.log_decay_ptr[h_]);
    sync_head();

    update_state(decay);
    prim::sync_block();

    float o[kColumnsOfThread];
    RETNET_UNROLL
    for (int j = 0; j < kColumnsOfThread; ++j) {
      o[j] = 0;
      if (column(j) >= columns_) continue;
      RETNET_UNROLL
      for (int w = 0; w < kDecodeStepWarps; ++w) o[j] += sPartial[w * width_ + column(j)];
      o[j] *= p_.scale;
    }
    if (p_.gate_ptr != nullptr) {
      send_statistics(o);
      sync_head();
      float mean, rstd;
      statistics(mean, rstd);
      RETNET_UNROLL
      for (int j = 0; j < kColumnsOfThread; ++j) {
        o[j] = ((o[j] - mean) * rstd * weight[j] + bias[j]) * gate[j] *
               prim::reciprocal(1.0f + prim::exp(-gate[j]));
      }
    }
    RETNET_UNROLL
    for (int j = 0; j < kColumnsOfThread; ++j) {
      if (column(j) < columns_) prim::store_element<kDtype>(p_.out_ptr, out + column(j), o[j]);
    }
  }

 private:
  using Quad = DecodeStepQuad<kWide>;
  static constexpr int kColumnsOfThread = kDecodeStepMaxDim / kDecodeStepThreads;

  // This is decode_step_columns, which device code may not call.
  RETNET_DEVICE static int64_t block_columns(const DecodeStepParams& p, int cluster) {
    const int units = (static_cast<int>(p.head_dim_v) + kDecodeStepUnit - 1) / kDecodeStepUnit;
    return (units + cluster - 1) / cluster * kDecodeStepUnit;
  }
  RETNET_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }
  RETNET_DEVICE static int warp() { return thread() / 32; }
  RETNET_DEVICE static int row_of_thread() { return thread() / 16; }
  RETNET_DEVICE static int column(int j) { return thread() + j * kDecodeStepThreads; }
  RETNET_DEVICE int64_t at(int64_t stride_b, int64_t stride_h) const {
    return b_ * stride_b + h_ * stride_h;
  }
  RETNET_DEVICE void sync_head() const {
    if (cluster_ > 1) {
      prim::sync_cluster();
    } else {
      prim::sync_block();
    }
  }

  // The i-th of the 8 quads of a unit that a thread loads in a turn.
  RETNET_DEVICE float* quad_at(int i, int turn, int unit) const {
    const int row = (turn * kDecodeStepLoads + i) * kDecodeStepRows;
    return state_ + row * p_.state_stride_k + unit * kDecodeStepUnit;
  }
  RETNET_DEVICE bool has(int i, int turn) const {
    return (turn * kDecodeStepLoads + i) * kDecodeStepRows + row_of_thread() < head_dim_qk_;
  }
  RETNET_DEVICE void load(int i, int turn, int unit) {
    if (!has(i, turn)) return;
    Quad::load(rS_[i], quad_at(i, turn, unit), columns_ - unit * kDecodeStepUnit);
  }

  RETNET_DEVICE void load_q_and_k() const {
    const int64_t q = at(p_.q_stride_b, p_.q_stride_h), k = at(p_.k_stride_b, p_.k_stride_h);
    const auto element = [&](const void* ptr, int64_t offset) {
      return prim::load_element<kDtype>(ptr, offset);
    };
    if (p_.frequencies_ptr == nullptr) {
      for (int c = thread(); c < head_dim_qk_; c += kDecodeStepThreads) {
        const float both[2] = {element(p_.q_ptr, q + c), element(p_.k_ptr, k + c)};
        store_q_and_k(c, both);
      }
      return;
    }
    const int64_t offset = b_ * p_.positions_stride_b;
    const auto position =
        p_.positions_64
            ? static_cast<double>(static_cast<const int64_t*>(p_.positions_ptr)[offset])
            : static_cast<double>(static_cast<const int32_t*>(p_.positions_ptr)[offset]);
    const int half = head_dim_qk_ / 2;
    for (int pair = thread(); pair < half; pair += kDecodeStepThreads) {
      float cos, sin;
      prim::cos_sin(position * static_cast<double>(p_.frequencies_ptr[pair]), cos, sin);
      const int a = p_.interleaved ? 2 * pair : pair, b = p_.interleaved ? a + 1 : a + half;
      const float qa = element(p_.q_ptr, q + a), qb = element(p_.q_ptr, q + b);
      const float ka = element(p_.k_ptr, k + a), kb = element(p_.k_ptr, k + b);
      const float first[2] = {qa * cos - qb * sin, ka * cos - kb * sin};
      const float second[2] = {qa * sin + qb * cos, ka * sin + kb * cos};
      if (p_.interleaved) {
        store_q_and_k(a, {first[0], first[1], second[0], second[1]});
      } else {
        store_q_and_k(a, first);
        store_q_and_k(b, second);
      }
    }
  }
  // Stores q and k of one row of the state, or of two neighbouring rows, in one access.
  template <int kCount>
  RETNET_DEVICE void store_q_and_k(int row, const float (&values)[kCount]) const {
    prim::store_packet(sQK, 2 * row, prim::pack<DType::kFloat32>(values));
  }

  RETNET_DEVICE void load_gate_and_affine(float (&gate)[kColumnsOfThread],
                                          float (&weight)[kColumnsOfThread],
                                          float (&bias)[kColumnsOfThread]) const {
    if (p_.gate_ptr == nullptr) return;
    RETNET_UNROLL
    for (int j = 0; j < kColumnsOfThread; ++j) {
      if (column(j) >= columns_) continue;
      const int64_t c = first_ + column(j);
      gate[j] = prim::load_element<kDtype>(p_.gate_ptr, at(p_.gate_stride_b, p_.gate_stride_h) + c);
      weight[j] = load_affine_element<kDtype>(p_.weight_ptr, p_.weight_dtype,
                                              h_ * p_.weight_stride_h + c, 1);
      bias[j] =
          load_affine_element<kDtype>(p_.bias_ptr, p_.bias_dtype, h_ * p_.bias_stride_h + c, 0);
    }
  }

  // Updates the columns of the state that this block has, and leaves the part of q state of each warp in
  // sPartial.
  RETNET_DEVICE void update_state(const Decay& decay) {
    const float power_minus_one = decay.power_minus_one(1);
    const int units = (columns_ + kDecodeStepUnit - 1) / kDecodeStepUnit;
    const int turns = (head_dim_qk_ + kDecodeStepLoads * kDecodeStepRows - 1) /
                      (kDecodeStepLoads * kDecodeStepRows);
    for (int unit = 0; unit < units; ++unit) {
      float v[4], sum[4] = {0, 0, 0, 0};
      Quad::load(v, sV + unit * kDecodeStepUnit, kDecodeStepUnit);
      RETNET_UNROLL_BY(1)
      for (int turn = 0; turn < turns; ++turn) {
        const bool last = turn + 1 == turns;
        const int next_turn = last ? 0 : turn + 1, next_unit = last ? unit + 1 : unit;
        RETNET_UNROLL
        for (int i = 0; i < kDecodeStepLoads; ++i) {
          if (has(i, turn)) {
            const int row = (turn * kDecodeStepLoads + i) * kDecodeStepRows + row_of_thread();
            uint32_t words[2];
            prim::load(words, sQK + 2 * row);
            const float q = prim::word_to_float(words[0]), k = prim::word_to_float(words[1]);
            RETNET_UNROLL
            for (int j = 0; j < 4; ++j) {
              const float decayed = rS_[i][j] + rS_[i][j] * power_minus_one;
              rS_[i][j] = (decay.gamma_is_zero ? 0.0f : decayed) + k * v[j];
              sum[j] += q * rS_[i][j];
            }
            Quad::store(quad_at(i, turn, unit), rS_[i], columns_ - unit * kDecodeStepUnit);
          }
          if (next_unit < units) load(i, next_turn, next_unit);
        }
      }
      RETNET_UNROLL
      for (int j = 0; j < 4; ++j) sum[j] += prim::shuffle_xor(sum[j], 16);
      if (thread() % 32 < 16) {
        Quad::store(sPartial + warp() * width_ + unit * kDecodeStepUnit, sum, kDecodeStepUnit);
      }
    }
  }

  // The number of columns of group `index` of the head.
  RETNET_DEVICE float group_size(int index) const {
    return static_cast<float>(
        prim::min(kDecodeStepGroup, static_cast<int>(p_.head_dim_v) - index * kDecodeStepGroup));
  }

  // Sends the sum and second moment of each group of columns of this block to all blocks of the head.
  RETNET_DEVICE void send_statistics(const float (&o)[kColumnsOfThread]) const {
    RETNET_UNROLL
    for (int j = 0; j < kColumnsOfThread; ++j) {
      const int start = warp() * kDecodeStepGroup + j * kDecodeStepThreads;
      if (start >= columns_) break;
      const int group = (first_ + start) / kDecodeStepGroup;
      const float sum = warp_sum(o[j]);
      const float mean = p_.norm == Norm::kLayer ? sum / group_size(group) : 0.0f;
      const float centred = column(j) < columns_ ? o[j] - mean : 0.0f;
      const float moment = warp_sum(centred * centred);
      const int lane = thread() % 32;
      if (cluster_ == 1) {
        if (lane == 0) sStats[2 * group] = sum, sStats[2 * group + 1] = moment;
      } else if (lane < cluster_) {
        prim::store_cluster(&sStats[2 * group], lane, sum);
        prim::store_cluster(&sStats[2 * group + 1], lane, moment);
      }
    }
  }

  // Puts all groups together, by their moments about their own means and the moments of the means.
  RETNET_DEVICE void statistics(float& mean, float& rstd) const {
    const auto size = static_cast<float>(p_.head_dim_v);
    const int groups = (static_cast<int>(p_.head_dim_v) + kDecodeStepGroup - 1) / kDecodeStepGroup;
    mean = 0;
    if (p_.norm == Norm::kLayer) {
      for (int g = 0; g < groups; ++g) mean += sStats[2 * g];
      mean /= size;
    }
    float moment = 0;
    for (int g = 0; g < groups; ++g) {
      moment += sStats[2 * g + 1];
      if (p_.norm == Norm::kLayer) {
        const float apart = sStats[2 * g] / group_size(g) - mean;
        moment += group_size(g) * apart * apart;
      }
    }
    rstd = prim::rsqrt(moment / size + p_.eps);
  }

  RETNET_DEVICE static float warp_sum(float x) {
    RETNET_UNROLL
    for (int mask = 1; mask < 32; mask *= 2) x += prim::shuffle_xor(x, mask);
    return x;
  }

  const DecodeStepParams& p_;
  const int cluster_, head_dim_qk_;
  const int width_;    // columns of a block, whole units
  const int first_;    // the first of them
  const int columns_;  // of these, inside the head
  int64_t batch_and_head_, b_, h_;
  float* state_ =
      nullptr;  // the row of this thread among the first 16, at the first column of the block
  float rS_[kDecodeStepLoads][4];
  float *sQK, *sV, *sPartial, *sStats;  // q and k of a row side by side
};

template <DType kDtype, bool kWide>
__global__ void __launch_bounds__(kDecodeStepThreads, kDecodeStepOccupancy)
    decode_step_kernel(const DecodeStepParams p, int cluster) {
  RETNET_DYNAMIC_SHARED(shared);
  DecodeStepBlock<kDtype, kWide>(p, cluster, shared).run();
}

template <DType kDtype, bool kWide>
int decode_step_code_cluster(int cluster) {
  static prim::CodeArchitecture architecture;
  if (cluster == 1) return 1;
  const int code = architecture.of(decode_step_kernel<kDtype, kWide>);
  return code < kDecodeStepClusterCapability ? 1 : cluster;
}

template <DType kDtype, bool kWide>
cudaError_t decode_step_launch(const DecodeStepParams& params, int cluster, cudaStream_t stream) {
  const auto kernel = decode_step_kernel<kDtype, kWide>;
  cluster = decode_step_code_cluster<kDtype, kWide>(cluster);
  const auto blocks = static_cast<unsigned>(params.batch * params.heads * cluster);
  return prim::launch_clusters(
      kernel, blocks, static_cast<unsigned>(cluster), kDecodeStepThreads,
      decode_step_shared_bytes(params.head_dim_qk, params.head_dim_v, cluster), stream, params,
      cluster);
}

}  // namespace retnet::kernels::cuda
