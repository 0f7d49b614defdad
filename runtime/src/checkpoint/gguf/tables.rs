//! What GGUF files call the keys and tensors of each architecture, and what the reference implementation calls them.
//!
//! To read another architecture, add it to [`ARCHITECTURES`].

use serde_json::{Map, Value, json};

use super::Gguf;
use super::architecture::Differs::{self, Each, Fused, KeyPairs, Not, Other, PlusOne, QueryPairs, Transposed, Woven};
use super::architecture::From::{self, Count, FlagIf, Number, NumberIf, Said, Tensor, Text, Whole, WholeIf, Window};
use super::architecture::Weave;
use super::architecture::When::{self, Always};
use super::architecture::{Architecture, EXPERTS};
use crate::Error;

/// Sizes of the decoders that followed Llama, rotary positions included; and whether there are biases, which few have. Of two
/// places for a key the later counts.
macro_rules! llama_keys {
    ($($more:expr),* $(,)?) => {
        &[
            ("hidden_size", Whole("embedding_length")),
            ("intermediate_size", Whole("feed_forward_length")),
            ("num_hidden_layers", Whole("block_count")),
            ("num_attention_heads", Whole("attention.head_count")),
            ("num_key_value_heads", WholeIf("attention.head_count_kv")),
            ("head_dim", WholeIf("attention.key_length")),
            ("rms_norm_eps", Number("attention.layer_norm_rms_epsilon")),
            ("rope_theta", NumberIf("rope.freq_base")),
            ("max_position_embeddings", WholeIf("context_length")),
            ("attention_bias", Tensor("blk.0.attn_q.bias")),
            ("mlp_bias", Tensor("blk.0.ffn_up.bias")),
            $($more),*
        ]
    };
}

/// The same where norms are layer norms, whose constant this key has.
macro_rules! layer_norm_keys {
    ($eps:literal; $($more:expr),* $(,)?) => {
        &[
            ("hidden_size", Whole("embedding_length")),
            ("intermediate_size", Whole("feed_forward_length")),
            ("num_hidden_layers", Whole("block_count")),
            ("num_attention_heads", Whole("attention.head_count")),
            ("num_key_value_heads", WholeIf("attention.head_count_kv")),
            ($eps, Number("attention.layer_norm_epsilon")),
            ("rope_theta", NumberIf("rope.freq_base")),
            ("max_position_embeddings", WholeIf("context_length")),
            $($more),*
        ]
    };
}

const OUTER: &[(&str, &str, Differs)] =
    &[("token_embd", "model.embed_tokens", Not), ("output_norm", "model.norm", Not), ("output", "lm_head", Not)];

const OUTER_GEMMA: &[(&str, &str, Differs)] =
    &[("token_embd", "model.embed_tokens", Not), ("output_norm", "model.norm", PlusOne), ("output", "lm_head", Not)];

/// Every architecture that can be read.
pub(super) static ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "llama",
        when: When::Experts(true),
        class: "MixtralForCausalLM",
        keys: llama_keys![
            ("sliding_window", Window("attention.sliding_window")),
            ("num_local_experts", Whole("expert_count")),
            ("num_experts_per_tok", Whole("expert_used_count")),
            ("hidden_act", Text("silu")),
        ],
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_q", "self_attn.q_proj", QueryPairs),
            ("attn_k", "self_attn.k_proj", KeyPairs),
            ("attn_v", "self_attn.v_proj", Not),
            ("attn_output", "self_attn.o_proj", Not),
            ("ffn_norm", "post_attention_layernorm", Not),
            ("ffn_gate_inp", "block_sparse_moe.gate", Not),
            ("ffn_gate_exps", "block_sparse_moe.experts.{e}.w1", Each(EXPERTS)),
            ("ffn_down_exps", "block_sparse_moe.experts.{e}.w2", Each(EXPERTS)),
            ("ffn_up_exps", "block_sparse_moe.experts.{e}.w3", Each(EXPERTS)),
        ],
        ..KIN
    },
    // Biases of queries, keys and values alone are what Qwen 2 has.
    Architecture {
        name: "llama",
        when: When::Tensors(&[("blk.0.attn_q.bias", true), ("blk.0.attn_output.bias", false)]),
        class: "Qwen2ForCausalLM",
        keys: llama_keys![("hidden_act", Text("silu"))],
        inner: LLAMA,
        ..KIN
    },
    Architecture {
        name: "llama",
        when: When::Experts(false),
        class: "LlamaForCausalLM",
        keys: llama_keys![("hidden_act", Text("silu"))],
        inner: LLAMA,
        ..KIN
    },
    Architecture { name: "qwen2", class: "Qwen2ForCausalLM", keys: llama_keys![("hidden_act", Text("silu"))], ..KIN },
    Architecture { name: "qwen3", class: "Qwen3ForCausalLM", keys: llama_keys![("hidden_act", Text("silu"))], ..KIN },
    Architecture {
        name: "qwen2moe",
        when: When::Experts(true),
        class: "Qwen2MoeForCausalLM",
        keys: llama_keys![
            ("num_experts", Whole("expert_count")),
            ("num_experts_per_tok", Whole("expert_used_count")),
            ("moe_intermediate_size", Whole("expert_feed_forward_length")),
            ("shared_expert_intermediate_size", Whole("expert_shared_feed_forward_length")),
            ("norm_topk_prob", Said(false)),
            ("hidden_act", Text("silu")),
        ],
        ..KIN
    },
    Architecture {
        name: "qwen3moe",
        when: When::Experts(true),
        class: "Qwen3MoeForCausalLM",
        keys: llama_keys![
            ("num_experts", Whole("expert_count")),
            ("num_experts_per_tok", Whole("expert_used_count")),
            ("moe_intermediate_size", Whole("expert_feed_forward_length")),
            ("norm_topk_prob", Said(true)),
            ("hidden_act", Text("silu")),
        ],
        ..KIN
    },
    Architecture {
        name: "olmoe",
        when: When::Experts(true),
        class: "OlmoeForCausalLM",
        keys: llama_keys![
            ("num_experts", Whole("expert_count")),
            ("num_experts_per_tok", Whole("expert_used_count")),
            ("norm_topk_prob", Said(false)),
            ("hidden_act", Text("silu")),
        ],
        ..KIN
    },
    Architecture {
        name: "phi3",
        class: "Phi3ForCausalLM",
        keys: llama_keys![
            ("sliding_window", Window("attention.sliding_window")),
            ("attention_bias", Tensor("blk.0.attn_qkv.bias")),
            ("hidden_act", Text("silu")),
        ],
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_qkv", "self_attn.qkv_proj", Not),
            ("attn_output", "self_attn.o_proj", Not),
            ("ffn_norm", "post_attention_layernorm", Not),
            ("ffn_up", "mlp.gate_up_proj", Not),
            ("ffn_down", "mlp.down_proj", Not),
        ],
        ..KIN
    },
    Architecture {
        name: "gemma",
        class: "GemmaForCausalLM",
        keys: llama_keys![("hidden_activation", Text("gelu_pytorch_tanh"))],
        outer: OUTER_GEMMA,
        inner: &[
            ("attn_norm", "input_layernorm", PlusOne),
            ("attn_q", "self_attn.q_proj", Not),
            ("attn_k", "self_attn.k_proj", Not),
            ("attn_v", "self_attn.v_proj", Not),
            ("attn_output", "self_attn.o_proj", Not),
            ("ffn_norm", "post_attention_layernorm", PlusOne),
            ("ffn_gate", "mlp.gate_proj", Not),
            ("ffn_up", "mlp.up_proj", Not),
            ("ffn_down", "mlp.down_proj", Not),
        ],
        ..KIN
    },
    Architecture {
        name: "gemma2",
        class: "Gemma2ForCausalLM",
        keys: llama_keys![
            ("sliding_window", Whole("attention.sliding_window")),
            ("attn_logit_softcapping", Number("attn_logit_softcapping")),
            ("final_logit_softcapping", Number("final_logit_softcapping")),
            ("hidden_activation", Text("gelu_pytorch_tanh")),
        ],
        more: |gguf, config| gemma_layers(gguf, config, 2),
        outer: OUTER_GEMMA,
        inner: GEMMA,
        ..KIN
    },
    Architecture {
        name: "gemma3",
        class: "Gemma3ForCausalLM",
        keys: llama_keys![
            ("sliding_window", Whole("attention.sliding_window")),
            ("rope_local_base_freq", NumberIf("rope.freq_base_swa")),
            ("hidden_activation", Text("gelu_pytorch_tanh")),
        ],
        more: |gguf, config| {
            // Older files do not say it; every Gemma 3 has it.
            config.entry("rope_local_base_freq").or_insert(json!(10_000.0));
            gemma_layers(gguf, config, 6)
        },
        outer: OUTER_GEMMA,
        inner: GEMMA,
        ..KIN
    },
    Architecture {
        name: "gpt2",
        class: "GPT2LMHeadModel",
        keys: &[
            ("n_embd", Whole("embedding_length")),
            ("n_inner", Whole("feed_forward_length")),
            ("n_layer", Whole("block_count")),
            ("n_head", Whole("attention.head_count")),
            ("n_positions", Whole("context_length")),
            ("layer_norm_epsilon", Number("attention.layer_norm_epsilon")),
            ("activation_function", Text("gelu_new")),
        ],
        rotary: false,
        outer: &[
            ("token_embd", "transformer.wte", Not),
            ("position_embd", "transformer.wpe", Not),
            ("output_norm", "transformer.ln_f", Not),
            ("output", "lm_head", Not),
        ],
        layer: "transformer.h.",
        inner: &[
            ("attn_norm", "ln_1", Not),
            ("attn_qkv", "attn.c_attn", Transposed),
            ("attn_output", "attn.c_proj", Transposed),
            ("ffn_norm", "ln_2", Not),
            ("ffn_up", "mlp.c_fc", Transposed),
            ("ffn_down", "mlp.c_proj", Transposed),
        ],
        ..KIN
    },
    Architecture {
        name: "gptneox",
        class: "GPTNeoXForCausalLM",
        keys: &[
            ("hidden_size", Whole("embedding_length")),
            ("intermediate_size", Whole("feed_forward_length")),
            ("num_hidden_layers", Whole("block_count")),
            ("num_attention_heads", Whole("attention.head_count")),
            ("max_position_embeddings", WholeIf("context_length")),
            ("layer_norm_eps", Number("attention.layer_norm_epsilon")),
            ("rotary_emb_base", NumberIf("rope.freq_base")),
            ("use_parallel_residual", FlagIf("use_parallel_residual")),
            ("hidden_act", Text("gelu")),
        ],
        more: |_, config| {
            // The older name of the rotated share of a head, of which all is the other's default.
            let share = config.remove("partial_rotary_factor").unwrap_or(json!(1.0));
            config.insert("rotary_pct".into(), share);
            Ok(())
        },
        outer: &[
            ("token_embd", "gpt_neox.embed_in", Not),
            ("output_norm", "gpt_neox.final_layer_norm", Not),
            ("output", "embed_out", Not),
        ],
        layer: "gpt_neox.layers.",
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_qkv", "attention.query_key_value", Fused),
            ("attn_output", "attention.dense", Not),
            ("ffn_norm", "post_attention_layernorm", Not),
            ("ffn_up", "mlp.dense_h_to_4h", Not),
            ("ffn_down", "mlp.dense_4h_to_h", Not),
        ],
        ..KIN
    },
    Architecture {
        name: "bloom",
        class: "BloomForCausalLM",
        keys: &[
            ("hidden_size", Whole("embedding_length")),
            ("n_layer", Whole("block_count")),
            ("n_head", Whole("attention.head_count")),
            ("layer_norm_epsilon", Number("attention.layer_norm_epsilon")),
        ],
        rotary: false,
        outer: &[
            ("token_embd", "transformer.word_embeddings", Not),
            ("token_embd_norm", "transformer.word_embeddings_layernorm", Not),
            ("output_norm", "transformer.ln_f", Not),
            ("output", "lm_head", Not),
        ],
        layer: "transformer.h.",
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_qkv", "self_attention.query_key_value", Fused),
            ("attn_output", "self_attention.dense", Not),
            ("ffn_norm", "post_attention_layernorm", Not),
            ("ffn_up", "mlp.dense_h_to_4h", Not),
            ("ffn_down", "mlp.dense_4h_to_h", Not),
        ],
        ..KIN
    },
    Architecture { name: "olmo2", class: "Olmo2ForCausalLM", keys: llama_keys![("hidden_act", Text("silu"))], ..KIN },
    Architecture {
        name: "stablelm",
        class: "StableLmForCausalLM",
        keys: layer_norm_keys![
            "layer_norm_eps";
            ("use_parallel_residual", FlagIf("use_parallel_residual")),
            ("use_qkv_bias", Tensor("blk.0.attn_q.bias")),
            ("qk_layernorm", Tensor("blk.0.attn_q_norm.weight")),
            ("hidden_act", Text("silu")),
        ],
        more: |_, config| {
            // All of a head is rotated unless the file says otherwise, which is not the other's default.
            config.entry("partial_rotary_factor").or_insert(json!(1.0));
            Ok(())
        },
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_q", "self_attn.q_proj", Not),
            ("attn_k", "self_attn.k_proj", Not),
            ("attn_v", "self_attn.v_proj", Not),
            ("attn_output", "self_attn.o_proj", Not),
            ("attn_q_norm", "self_attn.q_layernorm.norms.{e}", Each("attention.head_count")),
            ("attn_k_norm", "self_attn.k_layernorm.norms.{e}", Each("attention.head_count_kv")),
            ("ffn_norm", "post_attention_layernorm", Not),
            ("ffn_gate", "mlp.gate_proj", Not),
            ("ffn_up", "mlp.up_proj", Not),
            ("ffn_down", "mlp.down_proj", Not),
        ],
        ..KIN
    },
    Architecture {
        name: "starcoder2",
        class: "Starcoder2ForCausalLM",
        keys: layer_norm_keys![
            "norm_epsilon";
            ("sliding_window", Window("attention.sliding_window")),
            ("use_bias", Tensor("blk.0.attn_q.bias")),
            ("hidden_act", Text("gelu_pytorch_tanh")),
        ],
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_q", "self_attn.q_proj", Not),
            ("attn_k", "self_attn.k_proj", Not),
            ("attn_v", "self_attn.v_proj", Not),
            ("attn_output", "self_attn.o_proj", Not),
            ("ffn_norm", "post_attention_layernorm", Not),
            ("ffn_up", "mlp.c_fc", Not),
            ("ffn_down", "mlp.c_proj", Not),
        ],
        ..KIN
    },
    Architecture {
        name: "command-r",
        class: "CohereForCausalLM",
        keys: layer_norm_keys![
            "layer_norm_eps";
            ("logit_scale", Number("logit_scale")),
            ("attention_bias", Tensor("blk.0.attn_q.bias")),
            ("use_qk_norm", Tensor("blk.0.attn_q_norm.weight")),
            ("hidden_act", Text("silu")),
        ],
        ..KIN
    },
    Architecture {
        name: "granite",
        when: When::Experts(false),
        class: "GraniteForCausalLM",
        keys: llama_keys![
            ("embedding_multiplier", NumberIf("embedding_scale")),
            ("attention_multiplier", NumberIf("attention.scale")),
            ("residual_multiplier", NumberIf("residual_scale")),
            ("logits_scaling", NumberIf("logit_scale")),
            ("hidden_act", Text("silu")),
        ],
        inner: LLAMA,
        ..KIN
    },
    Architecture {
        name: "falcon",
        when: When::Tensors(&[("blk.0.attn_norm_2.weight", false)]),
        class: "FalconForCausalLM",
        keys: FALCON,
        more: |_, config| falcon(config, 1),
        outer: OUTER_FALCON,
        layer: "transformer.h.",
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_qkv", "self_attention.query_key_value", Fused),
            ("attn_output", "self_attention.dense", Not),
            ("ffn_up", "mlp.dense_h_to_4h", Not),
            ("ffn_down", "mlp.dense_4h_to_h", Not),
        ],
        ..KIN
    },
    Architecture {
        name: "falcon",
        when: When::Tensors(&[("blk.0.attn_norm_2.weight", true)]),
        class: "FalconForCausalLM",
        keys: FALCON,
        more: |_, config| falcon(config, 2),
        outer: OUTER_FALCON,
        layer: "transformer.h.",
        inner: &[
            ("attn_norm", "ln_mlp", Not),
            ("attn_norm_2", "ln_attn", Not),
            ("attn_qkv", "self_attention.query_key_value", Fused),
            ("attn_output", "self_attention.dense", Not),
            ("ffn_up", "mlp.dense_h_to_4h", Not),
            ("ffn_down", "mlp.dense_4h_to_h", Not),
        ],
        ..KIN
    },
    Architecture {
        name: "granitemoe",
        when: When::Experts(true),
        class: "GraniteMoeForCausalLM",
        keys: llama_keys![
            ("embedding_multiplier", NumberIf("embedding_scale")),
            ("attention_multiplier", NumberIf("attention.scale")),
            ("residual_multiplier", NumberIf("residual_scale")),
            ("logits_scaling", NumberIf("logit_scale")),
            ("num_local_experts", Whole("expert_count")),
            ("num_experts_per_tok", Whole("expert_used_count")),
            ("hidden_act", Text("silu")),
        ],
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_q", "self_attn.q_proj", QueryPairs),
            ("attn_k", "self_attn.k_proj", KeyPairs),
            ("attn_v", "self_attn.v_proj", Not),
            ("attn_output", "self_attn.o_proj", Not),
            ("ffn_norm", "post_attention_layernorm", Not),
            ("ffn_gate_inp", "block_sparse_moe.router.layer", Not),
            ("ffn_gate_exps", "block_sparse_moe.input_linear", Woven("ffn_up_exps.weight", Weave::Halves)),
            ("ffn_up_exps", "", Other),
            ("ffn_down_exps", "block_sparse_moe.output_linear", Not),
        ],
        ..KIN
    },
    Architecture {
        name: "gpt-oss",
        when: When::Experts(true),
        class: "GptOssForCausalLM",
        keys: llama_keys![
            ("sliding_window", Whole("attention.sliding_window")),
            ("num_local_experts", Whole("expert_count")),
            ("num_experts_per_tok", Whole("expert_used_count")),
            ("attention_bias", Said(true)),
        ],
        more: |_, config| {
            // Files do not say it; the bounds of GPT-OSS's scaling are no whole pairs.
            if let Some(Value::Object(scaling)) = config.get_mut("rope_scaling") {
                scaling.insert("truncate".into(), json!(false));
            }
            Ok(())
        },
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_q", "self_attn.q_proj", Not),
            ("attn_k", "self_attn.k_proj", Not),
            ("attn_v", "self_attn.v_proj", Not),
            ("attn_output", "self_attn.o_proj", Not),
            ("attn_sinks.weight", "self_attn.sinks", Not),
            ("post_attention_norm", "post_attention_layernorm", Not),
            ("ffn_gate_inp", "mlp.router", Not),
            ("ffn_gate_exps.weight", "mlp.experts.gate_up_proj", Woven("ffn_up_exps.weight", Weave::TurnsTransposed)),
            ("ffn_gate_exps.bias", "mlp.experts.gate_up_proj_bias", Woven("ffn_up_exps.bias", Weave::Numbers)),
            ("ffn_up_exps", "", Other),
            ("ffn_down_exps.weight", "mlp.experts.down_proj", Transposed),
            ("ffn_down_exps.bias", "mlp.experts.down_proj_bias", Not),
        ],
        ..KIN
    },
    Architecture {
        name: "llama4",
        when: When::Experts(true),
        class: "Llama4ForCausalLM",
        keys: llama_keys![
            ("intermediate_size", Whole("expert_feed_forward_length")),
            ("intermediate_size_mlp", Whole("feed_forward_length")),
            ("interleave_moe_layer_step", Whole("interleave_moe_layer_step")),
            ("num_local_experts", Whole("expert_count")),
            ("num_experts_per_tok", Whole("expert_used_count")),
            ("hidden_act", Text("silu")),
        ],
        more: llama4,
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_q", "self_attn.q_proj", Not),
            ("attn_k", "self_attn.k_proj", Not),
            ("attn_v", "self_attn.v_proj", Not),
            ("attn_output", "self_attn.o_proj", Not),
            ("ffn_norm", "post_attention_layernorm", Not),
            ("ffn_gate", "feed_forward.gate_proj", Not),
            ("ffn_up", "feed_forward.up_proj", Not),
            ("ffn_down", "feed_forward.down_proj", Not),
            ("ffn_gate_inp", "feed_forward.router", Not),
            (
                "ffn_gate_exps.weight",
                "feed_forward.experts.gate_up_proj",
                Woven("ffn_up_exps.weight", Weave::HalvesTransposed),
            ),
            ("ffn_up_exps", "", Other),
            ("ffn_down_exps.weight", "feed_forward.experts.down_proj", Transposed),
            ("ffn_gate_shexp", "feed_forward.shared_expert.gate_proj", Not),
            ("ffn_up_shexp", "feed_forward.shared_expert.up_proj", Not),
            ("ffn_down_shexp", "feed_forward.shared_expert.down_proj", Not),
        ],
        ..KIN
    },
    Architecture {
        name: "deepseek2",
        when: When::Says("expert_gating_func", SIGMOID),
        class: "DeepseekV3ForCausalLM",
        keys: DEEPSEEK,
        more: deepseek,
        inner: LATENT,
        ..KIN
    },
    Architecture {
        name: "deepseek2",
        class: "DeepseekV2ForCausalLM",
        keys: DEEPSEEK,
        more: deepseek_v2,
        inner: LATENT,
        ..KIN
    },
];

/// What most architectures have alike.
const KIN: Architecture = Architecture {
    name: "",
    when: Always,
    class: "",
    keys: &[],
    rotary: true,
    more: nothing,
    outer: OUTER,
    layer: "model.layers.",
    inner: DECODER,
};

/// How files say that experts are scored by the sigmoid.
const SIGMOID: u64 = 2;

/// Sizes of DeepSeek 2 and 3. Older files have the sizes of heads under the keys that others use.
const DEEPSEEK: &[(&str, From)] = &[
    ("hidden_size", Whole("embedding_length")),
    ("intermediate_size", Whole("feed_forward_length")),
    ("moe_intermediate_size", Whole("expert_feed_forward_length")),
    ("num_hidden_layers", Whole("block_count")),
    ("num_attention_heads", Whole("attention.head_count")),
    ("q_lora_rank", WholeIf("attention.q_lora_rank")),
    ("kv_lora_rank", Whole("attention.kv_lora_rank")),
    ("qk_head_dim", WholeIf("attention.key_length")),
    ("qk_head_dim", WholeIf("attention.key_length_mla")),
    ("v_head_dim", WholeIf("attention.value_length")),
    ("v_head_dim", WholeIf("attention.value_length_mla")),
    ("qk_rope_head_dim", Whole("rope.dimension_count")),
    ("rms_norm_eps", Number("attention.layer_norm_rms_epsilon")),
    ("rope_theta", NumberIf("rope.freq_base")),
    ("max_position_embeddings", WholeIf("context_length")),
    ("n_routed_experts", Whole("expert_count")),
    ("num_experts_per_tok", Whole("expert_used_count")),
    ("n_shared_experts", Whole("expert_shared_count")),
    ("n_group", WholeIf("expert_group_count")),
    ("topk_group", WholeIf("expert_group_used_count")),
    ("first_k_dense_replace", WholeIf("leading_dense_block_count")),
    ("norm_topk_prob", Said(false)),
    ("norm_topk_prob", FlagIf("expert_weights_norm")),
    ("routed_scaling_factor", NumberIf("expert_weights_scale")),
    ("moe_layer_freq", Count(1)),
    ("attention_bias", Said(false)),
    ("rope_interleave", Said(true)),
    ("hidden_act", Text("silu")),
];

/// Layers of DeepSeek 2 and 3. Older files have keys and values in one tensor, as the reference implementation has.
const LATENT: &[(&str, &str, Differs)] = &[
    ("attn_norm", "input_layernorm", Not),
    ("attn_q", "self_attn.q_proj", Not),
    ("attn_q_a", "self_attn.q_a_proj", Not),
    ("attn_q_a_norm", "self_attn.q_a_layernorm", Not),
    ("attn_q_b", "self_attn.q_b_proj", Not),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa", Not),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm", Not),
    ("attn_kv_b", "self_attn.kv_b_proj", Not),
    ("attn_k_b", "self_attn.kv_b_proj", Woven("attn_v_b.weight", Weave::Heads)),
    ("attn_v_b", "", Other),
    ("attn_output", "self_attn.o_proj", Not),
    ("ffn_norm", "post_attention_layernorm", Not),
    ("ffn_gate", "mlp.gate_proj", Not),
    ("ffn_up", "mlp.up_proj", Not),
    ("ffn_down", "mlp.down_proj", Not),
    ("ffn_gate_inp", "mlp.gate", Not),
    ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", Not),
    ("ffn_gate_exps", "mlp.experts.{e}.gate_proj", Each(EXPERTS)),
    ("ffn_up_exps", "mlp.experts.{e}.up_proj", Each(EXPERTS)),
    ("ffn_down_exps", "mlp.experts.{e}.down_proj", Each(EXPERTS)),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj", Not),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj", Not),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj", Not),
];

/// The part of a head without rotary positions, and that there may be no latent of queries.
fn deepseek(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<(), Error> {
    let number = |key: &str| config.get(key).and_then(Value::as_u64);
    let key = "deepseek2.attention.key_length_mla";
    let head = number("qk_head_dim").ok_or_else(|| gguf.missing(key))?;
    let rotated = number("qk_rope_head_dim").unwrap_or(0);
    let others = head.checked_sub(rotated).ok_or_else(|| {
        gguf.wrong(key, &format!("is {head}; no less than the {rotated} of rotary positions was expected"))
    })?;
    config.insert("qk_nope_head_dim".into(), json!(others));
    // Files without a latent of queries do not say so.
    config.entry("q_lora_rank").or_insert(Value::Null);
    // The rotated share of a head is what `qk_rope_head_dim` says.
    config.remove("partial_rotary_factor");
    Ok(())
}

/// The same, and how groups of experts are chosen.
fn deepseek_v2(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<(), Error> {
    deepseek(gguf, config)?;
    let groups = config.get("n_group").and_then(Value::as_u64).unwrap_or(1);
    config.insert("topk_method".into(), json!(if groups > 1 { "group_limited_greedy" } else { "greedy" }));
    Ok(())
}

/// What files do not say: the larger of the two has no norms of queries and keys.
fn llama4(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<(), Error> {
    let key = "llama4.attention.sliding_window";
    if gguf.whole(key)? == Some(0) {
        return Err(gguf.wrong(key, "is 0: positions in all layers; Llama 4 has layers without"));
    }
    let experts = config.get("num_local_experts").and_then(Value::as_u64);
    config.insert("use_qk_norm".into(), json!(experts != Some(128)));
    Ok(())
}

/// Layers of Llama, and of those that came after it and have rotary pairs as it has.
const LLAMA: &[(&str, &str, Differs)] = &[
    ("attn_norm", "input_layernorm", Not),
    ("attn_q", "self_attn.q_proj", QueryPairs),
    ("attn_k", "self_attn.k_proj", KeyPairs),
    ("attn_v", "self_attn.v_proj", Not),
    ("attn_output", "self_attn.o_proj", Not),
    ("ffn_norm", "post_attention_layernorm", Not),
    ("ffn_gate", "mlp.gate_proj", Not),
    ("ffn_up", "mlp.up_proj", Not),
    ("ffn_down", "mlp.down_proj", Not),
];

/// Sizes of Falcon, whose older decoder with one key head is the newer one with one group and one norm.
const FALCON: &[(&str, From)] = &[
    ("hidden_size", Whole("embedding_length")),
    ("ffn_hidden_size", WholeIf("feed_forward_length")),
    ("num_hidden_layers", Whole("block_count")),
    ("num_attention_heads", Whole("attention.head_count")),
    ("num_kv_heads", WholeIf("attention.head_count_kv")),
    ("layer_norm_epsilon", Number("attention.layer_norm_epsilon")),
    ("rope_theta", NumberIf("rope.freq_base")),
    ("max_position_embeddings", WholeIf("context_length")),
    ("new_decoder_architecture", Said(true)),
    ("bias", Tensor("blk.0.attn_qkv.bias")),
    ("alibi", Said(false)),
];

const OUTER_FALCON: &[(&str, &str, Differs)] = &[
    ("token_embd", "transformer.word_embeddings", Not),
    ("output_norm", "transformer.ln_f", Not),
    ("output", "lm_head", Not),
];

fn falcon(config: &mut Map<String, Value>, norms: u32) -> Result<(), Error> {
    config.insert("num_ln_in_parallel_attn".into(), json!(norms));
    Ok(())
}

/// Layers of Qwen 2 and 3, OLMo 2, OLMoE and Cohere, of which none has all of these.
const DECODER: &[(&str, &str, Differs)] = &[
    ("attn_norm", "input_layernorm", Not),
    ("attn_q", "self_attn.q_proj", Not),
    ("attn_k", "self_attn.k_proj", Not),
    ("attn_v", "self_attn.v_proj", Not),
    ("attn_output", "self_attn.o_proj", Not),
    ("attn_q_norm", "self_attn.q_norm", Not),
    ("attn_k_norm", "self_attn.k_norm", Not),
    ("post_attention_norm", "post_attention_layernorm", Not),
    ("post_ffw_norm", "post_feedforward_layernorm", Not),
    ("ffn_norm", "post_attention_layernorm", Not),
    ("ffn_gate", "mlp.gate_proj", Not),
    ("ffn_up", "mlp.up_proj", Not),
    ("ffn_down", "mlp.down_proj", Not),
    ("ffn_gate_inp", "mlp.gate", Not),
    ("ffn_gate_exps", "mlp.experts.{e}.gate_proj", Each(EXPERTS)),
    ("ffn_up_exps", "mlp.experts.{e}.up_proj", Each(EXPERTS)),
    ("ffn_down_exps", "mlp.experts.{e}.down_proj", Each(EXPERTS)),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate", Not),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj", Not),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj", Not),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj", Not),
];

/// Layers of Gemma 2 and 3; the former has no norms of queries and keys.
const GEMMA: &[(&str, &str, Differs)] = &[
    ("attn_norm", "input_layernorm", PlusOne),
    ("attn_q", "self_attn.q_proj", Not),
    ("attn_k", "self_attn.k_proj", Not),
    ("attn_v", "self_attn.v_proj", Not),
    ("attn_output", "self_attn.o_proj", Not),
    ("attn_q_norm", "self_attn.q_norm", PlusOne),
    ("attn_k_norm", "self_attn.k_norm", PlusOne),
    ("post_attention_norm", "post_attention_layernorm", PlusOne),
    ("ffn_norm", "pre_feedforward_layernorm", PlusOne),
    ("post_ffw_norm", "post_feedforward_layernorm", PlusOne),
    ("ffn_gate", "mlp.gate_proj", Not),
    ("ffn_up", "mlp.up_proj", Not),
    ("ffn_down", "mlp.down_proj", Not),
];

fn nothing(_: &Gguf, _: &mut Map<String, Value>) -> Result<(), Error> {
    Ok(())
}

/// Of every `period` layers, the last attends to all positions, the others to a window. Scores are scaled by the size of a
/// head, except in the 27 billion models, where it is the width's share of a head.
fn gemma_layers(gguf: &Gguf, config: &mut Map<String, Value>, period: u64) -> Result<(), Error> {
    let number = |key: &str| config.get(key).and_then(Value::as_u64);
    let (layers, heads) = (number("num_hidden_layers").unwrap_or(0), number("num_attention_heads").unwrap_or(0));
    let (width, head) = (number("hidden_size").unwrap_or(0), number("head_dim"));
    // A lying number of layers must not become a list of that length.
    if layers > gguf.header.tensors.len() as u64 {
        let key = format!("{}.block_count", if period == 2 { "gemma2" } else { "gemma3" });
        return Err(gguf.wrong(&key, &format!("is {layers}; the file has {} tensors", gguf.header.tensors.len())));
    }
    let kind = |l| if (l + 1) % period == 0 { "full_attention" } else { "sliding_attention" };
    config.insert("layer_types".into(), (0..layers).map(kind).collect());
    let largest = layers == if period == 2 { 46 } else { 62 };
    let scalar = if largest { width.checked_div(heads) } else { head };
    if let Some(scalar) = scalar {
        config.insert("query_pre_attn_scalar".into(), json!(scalar));
    }
    Ok(())
}
