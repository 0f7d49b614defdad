#!/usr/bin/env python3
"""Make tiny models of random weights, and what the reference implementation computes with them.

    scripts/goldens.py [NAME ...]        writes tests/golden/NAME/ (default: all)

A folder gets config.json, as published checkpoints write it, config_v5.json, as the reference writes it today,
model.safetensors, and for two prompts of random tokens golden.safetensors: the input of the first layer and the output of
each (`pN.hidden`), all logits (`pN.logits`), and a greedy continuation through the reference's cache (`pN.greedy_ids`).
Everything is computed in float32 with eager attention on the CPU. Seeds are fixed, and chosen so that no greedy token is
a close call.

Needs torch, transformers (5.23) and safetensors.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(1)

OUT = Path(__file__).parent.parent / "tests" / "golden"

GREEDY = 16  # tokens of a continuation
PROMPTS = [7, 37]  # tokens; the second goes beyond every window
MARGIN = 0.01  # between the two largest logits, as a share of the largest

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
    "qwen2_moe": LLAMA
    | {
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
    },
    "olmoe": LLAMA
    | {
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
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape, generator=generator)
        with torch.no_grad():
            if weight.dim() == 1 or "_norm." in name:
                around = weight.mean().round() if "bias" not in name else 0.0
                weight.copy_(around + 0.2 * noise)
            elif "embed" in name or "wte" in name:
                weight.copy_(0.7 * noise)
            else:
                weight.copy_(1.4 * noise / weight.shape[1] ** 0.5)


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
    parsed = AutoConfig.from_pretrained(folder, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(parsed, attn_implementation="eager", experts_implementation="eager").float().eval()
    for seed in range(1000):
        randomise(model, seed)
        generator = torch.Generator().manual_seed(seed)
        prompts = [torch.randint(3, config["vocab_size"], (length,), generator=generator) for length in PROMPTS]
        with torch.no_grad():
            continued = [greedy(model, ids) for ids in prompts]
            if min(margin for _, margin in continued) < MARGIN:
                continue
            computed = [hidden_states(model, ids) for ids in prompts]
        break
    else:
        sys.exit(f"{name}: no seed makes every greedy token a clear one")
    tensors = {}
    for n, (ids, (tokens, _), (hidden, logits)) in enumerate(zip(prompts, continued, computed)):
        tensors |= {
            f"p{n}.input_ids": ids,
            f"p{n}.hidden": hidden.contiguous(),
            f"p{n}.logits": logits.contiguous(),
            f"p{n}.greedy_ids": tokens,
        }
    save_file(tensors, folder / "golden.safetensors")
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        (folder / "model.safetensors").write_bytes((Path(saved) / "model.safetensors").read_bytes())
        (folder / "config_v5.json").write_text((Path(saved) / "config.json").read_text().rstrip() + "\n")
    about = {
        "name": name,
        "seed": seed,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]},
        "compute": "float32, eager attention, CPU",
        "prompts": [{"input_ids": ids.tolist(), "greedy_ids": tokens.tolist()} for ids, (tokens, _) in zip(prompts, continued)],
    }
    (folder / "golden.json").write_text(json.dumps(about) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: seed {seed}, {size // 1024} KB")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or MODELS:
        make(chosen, MODELS[chosen])
