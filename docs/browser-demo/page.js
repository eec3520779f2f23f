// What the page does: load libraries, model and tokenizer from where its address says, then generate on demand.
//
//   model=      the directory that irlab wrote                          ./model/
//   ort=        onnxruntime-web's module; its .wasm lies beside it       ./ort/ort.wasm.bundle.min.mjs
//   tokenizers= the module of @huggingface/tokenizers                    ./tokenizers/tokenizers.min.mjs
//   ep=         wasm or webgpu                                           wasm
//   tokens=     how many to generate                                     128

import { Decoder } from "./decoder.js";

const asked = new URLSearchParams(location.search);
const at = (name, otherwise) => new URL(asked.get(name) ?? otherwise, location.href).href;
const provider = asked.get("ep") ?? "wasm";
const library = provider === "webgpu" ? "./ort/ort.webgpu.bundle.min.mjs" : "./ort/ort.wasm.bundle.min.mjs";
const show = (id, text) => (document.getElementById(id).textContent = text);
const [go, stop] = ["go", "stop"].map((id) => document.getElementById(id));

async function fetched(url, read) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return read(response);
}
const bytes = (url) => fetched(url, async (response) => new Uint8Array(await response.arrayBuffer()));
const json = (url) => fetched(url, (response) => response.json());
const optional = (url) => json(url).catch(() => ({}));

async function load() {
  const model = at("model", "./model/");
  const source = at("ort", library);
  const [ort, { Tokenizer }] = await Promise.all([
    import(source),
    import(at("tokenizers", "./tokenizers/tokenizers.min.mjs")),
  ]);
  ort.env.wasm.wasmPaths = new URL(".", source).href;
  const [graph, data, words, config, generation] = await Promise.all([
    bytes(`${model}model.onnx`),
    bytes(`${model}model.onnx.data`),
    json(`${model}tokenizer.json`),
    optional(`${model}tokenizer_config.json`),
    optional(`${model}generation_config.json`),
  ]);
  const decoder = await Decoder.load(ort, graph, data, provider);
  const megabytes = ((graph.length + data.length) / 1e6).toFixed(1);
  return { decoder, tokenizer: new Tokenizer(words, config), ends: [generation.eos_token_id ?? []].flat(), megabytes };
}

async function generate({ decoder, tokenizer, ends }) {
  const prompt = tokenizer.encode(document.getElementById("prompt").value).ids;
  const made = [];
  let began = 0;
  let stopped = false;
  stop.onclick = () => (stopped = true);
  for await (const token of decoder.tokens(prompt, Number(asked.get("tokens") ?? 128), ends)) {
    made.push(token);
    show("output", tokenizer.decode([...prompt, ...made], { skip_special_tokens: true }));
    // The first token waits for the whole prompt: speed is that of those after it.
    if (made.length === 1) began = performance.now();
    else show("status", `${((made.length - 1) / ((performance.now() - began) / 1000)).toFixed(1)} tokens/s (${provider})`);
    await new Promise((resume) => setTimeout(resume)); // let the page draw
    if (stopped) break;
  }
  document.body.dataset.tokens = made.join(" ");
}

try {
  const loaded = await load();
  show("status", `${loaded.megabytes} MB loaded`);
  go.onclick = async () => {
    go.disabled = !(stop.disabled = false);
    delete document.body.dataset.tokens;
    await generate(loaded).catch((error) => show("status", String(error)));
    go.disabled = !(stop.disabled = true);
  };
  go.disabled = false;
} catch (error) {
  show("status", `The demo could not be loaded: ${error.message ?? error}`);
  throw error;
}
