#!/usr/bin/env python3
"""Make tiny models of random weights, and what the reference implementation computes with them.

    scripts/goldens.py [NAME ...]        writes tests/golden/NAME/ (default: all)
    scripts/goldens.py --routes NAME ... measures by how much experts are chosen in tests/golden/NAME/

A folder gets config.json, as published checkpoints write it, config_v5.json, as the reference writes it today,
model.safetensors, and for two prompts of random tokens golden.safetensors: the input of the first layer and the output of
each (`pN.hidden`), all logits (`pN.logits`), and a greedy continuation through the reference's cache (`pN.greedy_ids`).
Everything is computed in float32 with eager attention on the CPU. Seeds are fixed, and chosen so that neither a greedy token
nor an expert is a close call. Of the folders that were made elsewhere two have experts: over all layers and positions, those of
the continuations too, mixtral chooses by 0.0101 or more and qwen3_moe by 0.0053 (as ROUTE counts); the difference of the two
logits is off by 3e-5 at most in float32, beside float64.

Needs torch, transformers (5.23) and safetensors.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

torch.set_num_threads(1)

OUT = Path(__file__).parent.parent / "tests" / "golden"

GREEDY = 16  # tokens of a continuation
PROMPTS = [7, 37]  # tokens; the second goes beyond every window
MARGIN = 0.01  # between the two largest logits, as a share of the largest
ROUTE = 0.001  # between the last expert that is chosen and the next, as a share of the larger score
NARROW_ROUTE = 0.02  # the same where weights have so few bits that they are multiplied in bf16
SHARD = "60KB"  # where a model is to be in several files

COMMON = {
    "vocab_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
    "transformers_version": "4.57.0",
}

# Decoders after Llama; sizes are no round numbers, and a head is no whole number of vectors.
LLAMA = COMMON | {
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

GEMMA = LLAMA | {
    "num_hidden_layers": 4,
    "head_dim": 10,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "tie_word_embeddings": True,
}

DEEPSEEK_V2 = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "hidden_size": 40,
    "moe_intermediate_size": 22,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "n_routed_experts": 9,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
}


QWEN2_MOE = LLAMA | {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "hidden_size": 40,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "norm_topk_prob": False,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [],
    "use_sliding_window": False,
}

QWEN3_MOE = LLAMA | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 40,
    "head_dim": 10,
    "moe_intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "attention_bias": False,
}

OLMOE = LLAMA | {
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "hidden_size": 40,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "norm_topk_prob": False,
    "attention_bias": False,
    "clip_qkv": None,
}

GPT_OSS = LLAMA | {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 40,
    "head_dim": 10,
    "intermediate_size": 22,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "swiglu_limit": 1.5,
    "attention_bias": True,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 24,
    },
}


def without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


MODELS = {
    "qwen2": LLAMA
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "head_dim": 10,
        "use_sliding_window": True,
        "sliding_window": 12,
        "max_window_layers": 1,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
    },
    "gemma": without(GEMMA, "hidden_activation")
    | {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "gemma2": without(GEMMA, "hidden_act")
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "sliding_window": 12,
        "query_pre_attn_scalar": 14,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma2_uncapped": without(GEMMA, "hidden_act")
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "num_hidden_layers": 2,
        "sliding_window": 12,
        "query_pre_attn_scalar": 14,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "olmo2": LLAMA
    | {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "hidden_size": 40,
        "attention_bias": False,
    },
    "gptj": COMMON
    | {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "n_embd": 40,
        "n_head": 4,
        "n_inner": None,
        "n_layer": 3,
        "n_positions": 96,
        "rotary_dim": 6,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
    },
    "stablelm": without(LLAMA, "rms_norm_eps")
    | {
        "architectures": ["StableLmForCausalLM"],
        "model_type": "stablelm",
        "hidden_size": 48,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "use_qkv_bias": True,
        "use_parallel_residual": False,
    },
    "stablelm_parallel": without(LLAMA, "rms_norm_eps")
    | {
        "architectures": ["StableLmForCausalLM"],
        "model_type": "stablelm",
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.34,
        "use_qkv_bias": False,
        "use_parallel_residual": True,
    },
    "stablelm_normed": without(LLAMA, "rms_norm_eps")
    | {
        "architectures": ["StableLmForCausalLM"],
        "model_type": "stablelm",
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "use_qkv_bias": False,
        "use_parallel_residual": True,
        "qk_layernorm": True,
    },
    "falcon_alibi": COMMON
    | {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "multi_query": False,
        "parallel_attn": False,
        "new_decoder_architecture": False,
        "bias": True,
        "alibi": True,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 96,
        "tie_word_embeddings": True,
    },
    "falcon": COMMON
    | {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "hidden_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "bias": False,
        "alibi": False,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 96,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "falcon_new": COMMON
    | {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_kv_heads": 2,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": True,
        "bias": False,
        "alibi": False,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 96,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "bloom": COMMON
    | {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "hidden_size": 36,
        "n_layer": 3,
        "n_head": 6,
        "layer_norm_epsilon": 1e-5,
        "apply_residual_connection_post_layernorm": False,
        "seq_length": 96,
        "tie_word_embeddings": True,
    },
    "starcoder2": without(LLAMA, "rms_norm_eps")
    | {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        "hidden_size": 40,
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": 1e-5,
        "sliding_window": 12,
        "use_bias": True,
        "tie_word_embeddings": True,
    },
    "cohere": without(LLAMA, "rms_norm_eps")
    | {
        "architectures": ["CohereForCausalLM"],
        "model_type": "cohere",
        "hidden_size": 40,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.125,
        "use_qk_norm": True,
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
    "granite_moe": LLAMA
    | {
        "architectures": ["GraniteMoeForCausalLM"],
        "model_type": "granitemoe",
        "hidden_size": 40,
        "intermediate_size": 22,
        "num_hidden_layers": 2,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "attention_bias": False,
        "embedding_multiplier": 6.0,
        "attention_multiplier": 0.125,
        "residual_multiplier": 0.4,
        "logits_scaling": 4.0,
        "tie_word_embeddings": True,
    },
    "qwen2_moe": QWEN2_MOE,
    # Every layer has experts, as in every file of GGUF.
    "qwen2_moe_sparse": QWEN2_MOE | {"num_hidden_layers": 1, "decoder_sparse_step": 1},
    "olmoe": OLMOE,
    "olmoe_clipped": OLMOE | {"num_hidden_layers": 1, "clip_qkv": 0.8},
    "qwen3_moe_shards": QWEN3_MOE,
    "gpt_oss": GPT_OSS,
    "gpt_oss_mxfp4": GPT_OSS
    | {
        "hidden_size": 64,
        "head_dim": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
        },
    },
    "deepseek_v3": without(LLAMA, "num_key_value_heads")
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_size": 40,
        "moe_intermediate_size": 22,
        "q_lora_rank": 18,
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 10,
        "qk_rope_head_dim": 6,
        "v_head_dim": 12,
        "num_key_value_heads": 4,
        "n_routed_experts": 9,
        "n_shared_experts": 2,
        "n_group": 3,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "rope_interleave": True,
        "num_nextn_predict_layers": 0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 24,
        },
    },
    "deepseek_v2": without(LLAMA, "num_key_value_heads")
    | DEEPSEEK_V2
    | {"q_lora_rank": 18, "n_group": 3, "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0},
    "deepseek_v2_lite": without(LLAMA, "num_key_value_heads")
    | DEEPSEEK_V2
    | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "num_hidden_layers": 2},
    "llama4": LLAMA
    | {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "hidden_size": 40,
        "head_dim": 10,
        "intermediate_size": 22,
        "intermediate_size_mlp": 52,
        "num_hidden_layers": 4,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 3,
        "attention_chunk_size": 16,
        "use_qk_norm": True,
        "attn_temperature_tuning": True,
        "attn_scale": 0.3,
        "floor_scale": 8,
        "attention_bias": False,
    },
    "granite": LLAMA
    | {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "hidden_size": 40,
        "attention_bias": True,
        "embedding_multiplier": 6.0,
        "attention_multiplier": 0.125,
        "residual_multiplier": 0.4,
        "logits_scaling": 4.0,
        "tie_word_embeddings": True,
    },
}


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights that make every part of a layer count."""
    generator = torch.Generator().manual_seed(seed)
    corrections = [(name, bias) for name, bias in model.named_buffers() if "correction_bias" in name]
    for name, weight in sorted([*model.named_parameters(), *corrections]):
        noise = torch.randn(weight.shape, generator=generator)
        with torch.no_grad():
            if weight.dim() == 1 or "_norm." in name:
                around = weight.mean().round() if "bias" not in name else 0.0
                weight.copy_(around + 0.2 * noise)
            elif "embed" in name or "wte" in name:
                weight.copy_(0.7 * noise)
            else:
                weight.copy_(1.4 * noise / weight.shape[1] ** 0.5)


def pack(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Experts of which every number is a code of MXFP4, and the tensors that published checkpoints have for them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = weight.shape
            blocks = torch.randint(256, (experts, outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(122, 125, blocks.shape[:-1], generator=generator, dtype=torch.uint8)
            with torch.no_grad():
                weight.copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    return tensors


def mxfp4() -> dict[str, torch.Tensor]:
    """Random blocks with every scale, and the reference's numbers."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (2, 64, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.arange(256, dtype=torch.uint8).reshape(2, 64, 2)
    floats = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return {"mxfp4.blocks": blocks, "mxfp4.scales": scales, "mxfp4.floats": floats.contiguous()}


class Choices(torch.overrides.TorchFunctionMode):
    """Notes the smallest margin by which some of several scores were chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = float("inf")

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.topk, torch.Tensor.topk):
            scores, count = args[0], kwargs.get("k", args[1] if len(args) > 1 else None)
            if count < scores.shape[-1]:
                last, after = scores.sort(dim=-1, descending=True).values[..., count - 1 : count + 1].unbind(-1)
                gap = (last - after) / torch.maximum(last.abs(), after.abs())
                # Where both are what is left out by an earlier choice, neither counts.
                self.margin = min(self.margin, float(gap[last != after].min()))
        return function(*args, **kwargs)


def layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    stacks = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    return max(stacks, key=lambda stack: sum(1 for _ in stack.parameters()))


def hidden_states(model: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the first layer and what leaves each, and the logits."""
    states = []
    stack = layers(model)
    hooks = [stack[0].register_forward_pre_hook(lambda _, args: states.append(args[0][0].clone()))]
    for layer in stack:
        take = lambda _, __, out: states.append((out[0] if isinstance(out, tuple) else out)[0].clone())
        hooks.append(layer.register_forward_hook(take))
    logits = model(ids[None], use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return torch.stack(states), logits


def greedy(model: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
    """A continuation, and the smallest margin by which a token was chosen, as a share of the largest logit."""
    given, cache, chosen, margin = ids[None], None, [], float("inf")
    for _ in range(GREEDY):
        out = model(given, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[0, -1]
        best = logits.topk(2).values
        margin = min(margin, float((best[0] - best[1]) / logits.abs().max()))
        chosen.append(int(logits.argmax()))
        given = torch.tensor([[chosen[-1]]])
    return torch.tensor(chosen), margin


def make(name: str, config: dict) -> None:
    folder = OUT / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    # The reference's eager attention of Falcon adds the linear biases twice, in the mask too.
    attention = "sdpa" if config.get("alibi") else "eager"
    parsed = AutoConfig.from_pretrained(folder, attn_implementation=attention)
    packed = getattr(parsed, "quantization_config", None)
    if packed:
        del parsed.quantization_config
    model = AutoModelForCausalLM.from_config(parsed, attn_implementation=attention, experts_implementation="eager").float().eval()
    codes = {}
    for seed in range(1000):
        randomise(model, seed)
        if packed:
            codes = pack(model, seed)
        generator = torch.Generator().manual_seed(seed)
        prompts = [torch.randint(3, config["vocab_size"], (length,), generator=generator) for length in PROMPTS]
        with torch.no_grad():
            continued = [greedy(model, ids) for ids in prompts]
            if min(margin for _, margin in continued) < MARGIN:
                continue
            with Choices() as choices:
                computed = [hidden_states(model, torch.cat([ids, more])) for ids, (more, _) in zip(prompts, continued)]
            if choices.margin < (NARROW_ROUTE if packed else ROUTE):
                continue
            computed = [hidden_states(model, ids) for ids in prompts]
        break
    else:
        sys.exit(f"{name}: no seed makes every greedy token and expert a clear one")
    tensors = {}
    for n, (ids, (tokens, _), (hidden, logits)) in enumerate(zip(prompts, continued, computed)):
        tensors |= {
            f"p{n}.input_ids": ids,
            f"p{n}.hidden": hidden.contiguous(),
            f"p{n}.logits": logits.contiguous(),
            f"p{n}.greedy_ids": tokens,
        }
    save_file(tensors | (mxfp4() if packed else {}), folder / "golden.safetensors")
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved, **({"max_shard_size": SHARD} if name.endswith("_shards") else {}))
        for file in Path(saved).glob("model*.safetensors*"):
            (folder / file.name).write_bytes(file.read_bytes())
        newer = json.loads((Path(saved) / "config.json").read_text())
        if packed:
            plain = {key: value for key, value in load_file(folder / "model.safetensors").items() if f"{key}_blocks" not in codes}
            save_file(plain | codes, folder / "model.safetensors", metadata={"format": "pt"})
            newer["quantization_config"] = config["quantization_config"]
        (folder / "config_v5.json").write_text(json.dumps(newer, indent=2) + "\n")
    about = {
        "name": name,
        "seed": seed,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]},
        "compute": f"float32, {attention} attention, CPU",
        "prompts": [{"input_ids": ids.tolist(), "greedy_ids": tokens.tolist()} for ids, (tokens, _) in zip(prompts, continued)],
    }
    (folder / "golden.json").write_text(json.dumps(about) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    margin = f", experts by {choices.margin:.4f}" if choices.margin < float("inf") else ""
    print(f"{name}: seed {seed}, {size // 1024} KB{margin}")


def routes(name: str) -> None:
    """Print the smallest margin by which experts are chosen for the prompts of a folder and their continuations."""
    model = AutoModelForCausalLM.from_pretrained(OUT / name, dtype=torch.float32, attn_implementation="eager").eval()
    golden = load_file(OUT / name / "golden.safetensors")
    with torch.no_grad(), Choices() as choices:
        for n in range(sum(key.endswith(".input_ids") for key in golden)):
            model(torch.cat([golden[f"p{n}.input_ids"], golden[f"p{n}.greedy_ids"]])[None], use_cache=False)
    print(f"{name}: experts by {choices.margin:.4f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--routes"]:
        for chosen in sys.argv[2:]:
            routes(chosen)
        sys.exit()
    for chosen in sys.argv[1:] or MODELS:
        make(chosen, MODELS[chosen])
