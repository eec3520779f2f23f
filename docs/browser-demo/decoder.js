// How is a decoder that `irlab-opt --emit onnx` wrote run in ONNX Runtime Web? In a page or in Node, token by token.

/** A half as a number; `bits` are those of its 16. */
function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** The index of the largest number of the last row of `logits`, a tensor of any place. */
async function likeliest(logits) {
  const width = logits.dims.at(-1);
  const data = await logits.getData(true);
  const last = data.subarray(data.length - width);
  const value = last instanceof Uint16Array ? (i) => half(last[i]) : (i) => last[i];
  let best = 0;
  let top = value(0);
  for (let i = 1; i < width; i++) {
    const here = value(i);
    if (here > top) [best, top] = [i, here];
  }
  return best;
}

const EMPTY = { float32: () => new Float32Array(0), float16: () => new Uint16Array(0) };

export class Decoder {
  /**
   * `ort`: the module of onnxruntime-web. `model`, `data`: the bytes of model.onnx and model.onnx.data.
   * `provider`: "wasm" or "webgpu"; the latter keeps the cache on the GPU.
   */
  static async load(ort, model, data, provider = "wasm") {
    const session = await ort.InferenceSession.create(model, {
      executionProviders: [provider],
      externalData: [{ path: "model.onnx.data", data }],
      preferredOutputLocation: provider === "webgpu" ? "gpu-buffer" : "cpu",
      // WebAssembly multiplies floats faster than codes: DequantizeLinear of weights is worked out while loading.
      extra: provider === "wasm" ? { session: { disable_quant_qdq: "1" } } : {},
    });
    return new Decoder(ort, session);
  }

  constructor(ort, session) {
    this.ort = ort;
    this.session = session;
  }

  /** The likeliest tokens after `prompt` (ids), one by one, up to `count` or the first of `ends`. */
  async *tokens(prompt, count, ends = []) {
    let cache = {};
    let fresh = prompt;
    for (let past = 0, made = 0; made < count; made++) {
      const results = await this.session.run(this.feed(fresh, past, cache));
      past += fresh.length;
      for (const tensor of Object.values(cache)) tensor.dispose();
      cache = {};
      for (const [name, tensor] of Object.entries(results)) {
        if (name.startsWith("present.")) cache[name.replace("present", "past_key_values")] = tensor;
      }
      const token = await likeliest(results.logits);
      if (ends.includes(token)) break;
      yield token;
      fresh = [token];
    }
    for (const tensor of Object.values(cache)) tensor.dispose();
  }

  /** The inputs for `tokens` after `past` others whose keys and values are in `cache`. */
  feed(tokens, past, cache) {
    const total = past + tokens.length;
    const ints = (numbers) => new this.ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
    const known = {
      input_ids: () => ints(tokens),
      attention_mask: () => ints(new Array(total).fill(1)),
      position_ids: () => ints(tokens.map((_, i) => past + i)),
    };
    const found = {};
    for (const { name, type, shape } of this.session.inputMetadata) {
      if (known[name]) found[name] = known[name]();
      else found[name] = cache[name] ?? new this.ort.Tensor(type, EMPTY[type](), [1, shape[1], 0, shape[3]]);
    }
    return found;
  }
}
