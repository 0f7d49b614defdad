#!/usr/bin/env python3
"""What scripts/peers.sh does in Python: converts a model for the peers, and measures them in turn with einfuse.

Each round runs every engine once, in a process of its own, and every other round in the reverse order; the table has the
medians over the rounds. Before, each engine continues a text greedily, as the check of its answer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CHECKED = 24  # tokens of the greedy continuation
PROMPT, GENERATE = 512, 64
PROMPTS, SHORT = f"pp{PROMPT}", f"tg{GENERATE}"


def deep(depth):
    """The test that generates after so many tokens."""
    return f"{SHORT} @ d{depth}"


class Folder:
    """The tensors of a Hugging Face folder with one safetensors file."""

    def __init__(self, path):
        import numpy as np

        self.np, self.path = np, Path(path)
        self.config = json.loads((self.path / "config.json").read_text())
        file = self.path / "model.safetensors"
        with open(file, "rb") as data:
            length = int.from_bytes(data.read(8), "little")
            self.header = json.loads(data.read(length))
        self.header.pop("__metadata__", None)
        self.data = np.memmap(file, dtype=np.uint8, mode="r", offset=8 + length)
        kind, tied = self.config.get("model_type"), self.config.get("tie_word_embeddings")
        if kind != "llama" or not tied:
            sys.exit(f"error: {path}: a Llama with tied embeddings is wanted, this is `{kind}`, tied: {tied}")

    def floats(self, name):
        entry, np = self.header[name], self.np
        start, end = entry["data_offsets"]
        raw = self.data[start:end]
        if entry["dtype"] == "BF16":
            values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.view({"F32": np.float32, "F16": np.float16}[entry["dtype"]]).astype(np.float32)
        return values.reshape(entry["shape"])

    def tokens(self):
        """The vocabulary in order, and which of it are control tokens."""
        tokenizer = json.loads((self.path / "tokenizer.json").read_text())
        names = {number: token for token, number in tokenizer["model"]["vocab"].items()}
        control = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
        names.update({token["id"]: token["content"] for token in tokenizer["added_tokens"]})
        merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
        return [names.get(i, f"<unused {i}>") for i in range(self.config["vocab_size"])], control, merges


LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def to_gguf(options):
    """A GGUF file whose matrices are of the type that is asked for."""
    import gguf

    folder = Folder(options.model)
    np, config = folder.np, folder.config
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads", heads)
    width = config.get("head_dim") or config["hidden_size"] // heads
    draft = options.out + ".part"
    writer = gguf.GGUFWriter(draft, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    file = gguf.LlamaFileType
    writer.add_file_type({"f32": file.ALL_F32, "f16": file.MOSTLY_F16, "bf16": file.MOSTLY_BF16}[options.type])
    names, control, merges = folder.tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(options.pre)
    writer.add_token_list(names)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if i in control else kinds.NORMAL for i in range(len(names))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config.get("pad_token_id") or config["eos_token_id"])
    writer.add_add_bos_token(False)

    def add(name, values):
        if values.ndim == 1 or options.type == "f32":
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
        elif options.type == "f16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            bits = np.ascontiguousarray(values).view(np.uint32)
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            writer.add_tensor(name, rounded.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    add("token_embd.weight", folder.floats("model.embed_tokens.weight"))
    add("output_norm.weight", folder.floats("model.norm.weight"))
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in LAYER.items():
            values = folder.floats(f"model.layers.{layer}.{theirs}.weight")
            count = {"attn_q": heads, "attn_k": groups}.get(ours)
            if count:  # rotary pairs become neighbours
                rows, inner = values.shape
                values = values.reshape(count, 2, rows // count // 2, inner).swapaxes(1, 2).reshape(rows, inner)
            add(f"blk.{layer}.{ours}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.rename(draft, options.out)


def to_ct2(options):
    """A folder of CTranslate2, in f32: it makes bytes of it when it loads, if asked to."""
    from ctranslate2.specs import common_spec, transformer_spec

    folder = Folder(options.model)
    np, config = folder.np, folder.config
    heads = config["num_attention_heads"]
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config["num_hidden_layers"],
        heads,
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_base=config["rope_theta"],
        num_heads_kv=config.get("num_key_value_heads", heads),
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = folder.floats("model.embed_tokens.weight")
    decoder.projection.weight = decoder.embeddings.weight
    decoder.layer_norm.gamma = folder.floats("model.norm.weight")
    for number, layer in enumerate(decoder.layer):
        weight = lambda name: folder.floats(f"model.layers.{number}.{name}.weight")
        layer.self_attention.layer_norm.gamma = weight("input_layernorm")
        layer.ffn.layer_norm.gamma = weight("post_attention_layernorm")
        inputs = [weight(f"self_attn.{part}_proj") for part in "qkv"]
        layer.self_attention.linear[0].weight = np.concatenate(inputs)
        layer.self_attention.linear[1].weight = weight("self_attn.o_proj")
        layer.ffn.linear_0.weight = weight("mlp.gate_proj")
        layer.ffn.linear_0_noact.weight = weight("mlp.up_proj")
        layer.ffn.linear_1.weight = weight("mlp.down_proj")
    names, _, _ = folder.tokens()
    spec.register_vocabulary(names)
    spec.config.bos_token, spec.config.eos_token = names[config["bos_token_id"]], names[config["eos_token_id"]]
    spec.config.unk_token = names[0]
    spec.config.layer_norm_epsilon = config["rms_norm_eps"]
    spec.validate()
    spec.optimize(quantization="float32")
    os.makedirs(options.out, exist_ok=True)
    spec.save(options.out)


def measure(options):
    """One round of CTranslate2 or OpenVINO, within its own Python: prints one JSON object."""
    turn = 0

    def tokens(count):
        # never the same prompt twice: its beginning may be cached
        nonlocal turn
        turn += 1
        return [(i + 37 * turn) * 7919 % 40000 + 10 for i in range(count)]

    if options.engine == "ct2":
        import ctranslate2

        names = json.loads((Path(options.file) / "vocabulary.json").read_text())
        engine = ctranslate2.Generator(
            options.file, device="cpu", compute_type=options.compute, intra_threads=options.threads, inter_threads=1
        )

        def go(prompt, count):
            start = time.perf_counter()
            result = engine.generate_batch(
                [[names[i] for i in prompt]],
                max_length=count,
                min_length=count,
                beam_size=1,
                include_prompt_in_result=False,
                return_end_token=True,
            )
            return time.perf_counter() - start, result[0].sequences_ids[0]
    else:
        import numpy as np
        import openvino
        import openvino_genai as genai

        engine = genai.LLMPipeline(
            options.file, "CPU", INFERENCE_NUM_THREADS=options.threads, INFERENCE_PRECISION_HINT=options.compute
        )

        def go(prompt, count):
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            mask = openvino.Tensor(np.ones((1, len(prompt)), dtype=np.int64))
            config = genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
            start = time.perf_counter()
            result = engine.generate(genai.TokenizedInputs(ids, mask), config)
            return time.perf_counter() - start, list(result.tokens[0])

    if options.ids:
        print(json.dumps(go([int(i) for i in options.ids.split(",")], CHECKED)[1]))
        return
    def generate(depth):
        """The time of so many tokens and one more, less that of one."""
        more = go(tokens(depth), GENERATE + 1)[0]
        return GENERATE / max(more - go(tokens(depth), 1)[0], 1e-9)

    go(tokens(PROMPT), 2)
    rates = {PROMPTS: PROMPT / go(tokens(PROMPT), 1)[0], SHORT: generate(1)}
    if options.depth:
        rates[deep(options.depth)] = generate(options.depth)
    print(json.dumps(rates))


def output(command, **settings):
    """What a command prints; the end of what it complains about, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **settings)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


class Einfuse:
    name = "einfuse"

    def __init__(self, options, threads):
        kept = {"f32": ["--precision", "f32"], "bf16": ["--precision", "bf16"]}
        self.kept = kept.get(options.precision) or ["--quant", options.precision]
        self.binary, self.model, self.threads = options.einfuse, str(options.model), str(threads)
        self.depth = options.depth

    def version(self):
        return output([self.binary, "--version"]).split()[-1]

    def greedy(self, text):
        made = [self.binary, "run", "-m", self.model, *self.kept, "-t", self.threads, "--temperature", "0", "--json"]
        return json.loads(output([*made, "-n", str(CHECKED), text]))["text"]

    def measure(self):
        made = [self.binary, "bench", "-m", self.model, *self.kept, "-t", self.threads, "-r", "1", "--json"]
        rows = lambda *tests: [row["tokens_per_second"] for row in json.loads(output([*made, *tests]))]
        rates = dict(zip([PROMPTS, SHORT], rows("-p", str(PROMPT), "-n", str(GENERATE))))
        if self.depth:
            (rates[deep(self.depth)],) = rows("-p", "0", "-n", str(GENERATE), "-d", str(self.depth))
        return rates


class Llama:
    name = "llama.cpp"

    def __init__(self, options, threads):
        kind = {"q8": "q8_0", "q4": "q4_0"}.get(options.precision, options.precision)
        self.bin, self.file = options.folder / "llama-build/bin", str(options.files / f"{kind}.gguf")
        self.threads, self.depth = str(threads), options.depth
        # where its own order of weights is for tiles (AMX), it can crash: then it keeps that of the file
        self.repacks = True
        try:
            self.greedy("a")
        except (OSError, RuntimeError):
            self.repacks = False

    def version(self):
        file = self.bin.parent / "version"
        version = file.read_text().strip() if file.exists() else "of unknown version"
        return version if self.repacks else f"{version}, without repacking"

    def rows(self, tests):
        made = [self.bin / "llama-bench", "-m", self.file, "-t", self.threads, "-r", "1", "-o", "json"]
        made += [] if self.repacks else ["--repack", "0"]
        return [row["avg_ts"] for row in json.loads(output([*map(str, made), *tests]))]

    def greedy(self, text):
        made = [self.bin / "llama-completion", "-m", self.file, "-t", self.threads, "--temp", "0", "-n", CHECKED, "-p", text]
        made += [] if self.repacks else ["--no-repack"]
        return output([*map(str, made), "-no-cnv", "--no-display-prompt", "--simple-io"]).rstrip("\n")

    def measure(self):
        rates = dict(zip([PROMPTS, SHORT], self.rows(["-p", str(PROMPT), "-n", str(GENERATE)])))
        if self.depth:
            (rates[deep(self.depth)],) = self.rows(["-p", "0", "-n", str(GENERATE), "-d", str(self.depth)])
        return rates


class InPython:
    def __init__(self, options, threads, engine, package, file, compute):
        self.python, self.package = options.folder / f"venv-{engine}/bin/python", package
        self.threads = str(threads)
        self.made = [str(self.python), __file__, "measure", engine, str(file), "--compute", compute]
        self.made += ["--threads", self.threads, "--depth", str(options.depth)]
        self.ours = Einfuse(options, threads)

    def version(self):
        code = f"from importlib.metadata import version; print(version('{self.package}'))"
        return output([str(self.python), "-c", code]).strip()

    def run(self, *more):
        return json.loads(output([*self.made, *more], env={**os.environ, "OMP_NUM_THREADS": self.threads}).splitlines()[-1])

    def greedy(self, text):
        """The ids are turned into text, and text into ids, by einfuse's tokenizer, so that only the engine differs."""
        vocabulary, _, _ = Folder(self.ours.model).tokens()
        encoded = [self.ours.binary, "run", "-m", self.ours.model, "-n", "0", "--json", text]
        ids = json.loads(output(encoded))["prompt_ids"]
        pieces = "".join(vocabulary[i] for i in self.run("--ids", ",".join(map(str, ids))))
        return pieces.replace("Ġ", " ").replace("Ċ", "\n")

    def measure(self):
        return self.run()


def engines(options, threads):
    """Those that have the precision."""
    all_of = {"llama.cpp": lambda: Llama(options, threads)}
    if compute := {"f32": "float32", "q8": "int8"}.get(options.precision):
        all_of["ctranslate2"] = lambda: InPython(options, threads, "ct2", "ctranslate2", options.files / "ct2", compute)
    kind = {"q8": "q8_0", "q4": "q4_0"}.get(options.precision, "f16")
    hint = "bf16" if options.precision == "bf16" else "f32"
    file = options.files / f"{kind}.gguf"
    all_of["openvino"] = lambda: InPython(options, threads, "ov", "openvino-genai", file, hint)
    chosen = options.peers.split(",") if options.peers else list(all_of)
    made = [Einfuse(options, threads)]
    for name in chosen:
        if name not in all_of:
            sys.exit(f"error: no peer `{name}` has {options.precision}; there are {', '.join(all_of)}")
        made.append(all_of[name]())
        made[-1].name = name
    return made


def run(options):
    for threads in options.threads:
        compare(options, threads)


def compare(options, threads):
    """Measures all engines with so many threads, and prints their table."""
    measured = {}
    for engine in engines(options, threads):
        try:
            print(f"{engine.name} {engine.version()}: {engine.greedy(options.text)!r}", flush=True)
            measured[engine.name] = (engine, [])
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            print(f"{engine.name} is left out: {error}", flush=True)
    if "einfuse" not in measured:
        sys.exit("error: there is nothing to compare with: einfuse did not run")
    for number in range(options.rounds):
        order = list(measured.values())
        for engine, runs in order if number % 2 == 0 else reversed(order):
            runs.append(engine.measure())
            print(f"round {number + 1} of {options.rounds}: {engine.name}", file=sys.stderr, flush=True)
    tests = [PROMPTS, SHORT] + ([deep(options.depth)] if options.depth else [])
    middle = lambda name, test: statistics.median(one[test] for one in measured[name][1])
    print(f"\n{options.model.name}, {options.precision}, threads: {threads}, medians of {options.rounds} rounds\n")
    print(f"| engine | {' | '.join(f'{test} | of ours' for test in tests)} |")
    print(f"| --- |{' --: | --: |' * len(tests)}")
    for name in measured:
        cells = []
        for test in tests:
            rate = middle(name, test)
            cells += [f"{rate:.1f}", f"{rate / middle('einfuse', test):.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    print(flush=True)


def counts(text):
    """Positive numbers, separated by commas."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("gguf", help="write a GGUF file")
    command.add_argument("model")
    command.add_argument("out")
    command.add_argument("--type", choices=["f32", "f16", "bf16"], default="f32")
    command.add_argument("--pre", default="smollm", help="what llama.cpp calls the way in which a text is cut into words")
    command.set_defaults(do=to_gguf)

    command = commands.add_parser("ct2", help="write a folder of CTranslate2")
    command.add_argument("model")
    command.add_argument("out")
    command.set_defaults(do=to_ct2)

    command = commands.add_parser("measure", help="one round, within the engine's Python")
    command.add_argument("engine", choices=["ct2", "ov"])
    command.add_argument("file")
    command.add_argument("--compute", required=True)
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--depth", type=int, default=0)
    command.add_argument("--ids")
    command.set_defaults(do=measure)

    command = commands.add_parser("run", help="measure all in turn")
    for name in ("folder", "model", "files"):
        command.add_argument(name, type=Path)
    command.add_argument("--precision", choices=["f32", "bf16", "q8", "q4"], default="bf16")
    command.add_argument("--threads", type=counts, default=[os.cpu_count()], help="numbers of them, separated by commas")
    command.add_argument("--depth", type=int, default=0, help="generate after so many tokens too")
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--peers", help="separated by commas [default: all that have the precision]")
    command.add_argument("--einfuse", default="target/release/einfuse", help="the binary [default: %(default)s]")
    command.add_argument("--text", default="The capital of France is", help="what is continued as a check")
    command.set_defaults(do=run)

    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
