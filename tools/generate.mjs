// node generate.mjs MODEL_DIRECTORY COUNT ID...: the tokens that ONNX Runtime Web generates in Node, as JSON.
import fs from "node:fs";
import * as ort from "onnxruntime-web";
import { Decoder } from "./decoder.mjs";

const [directory, count, ...prompt] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const read = (name) => new Uint8Array(fs.readFileSync(`${directory}/${name}`));
const loaded = await Decoder.load(ort, read("model.onnx"), read("model.onnx.data"));
const tokens = [];
for await (const token of loaded.tokens(prompt.map(Number), Number(count))) tokens.push(token);
console.log(JSON.stringify(tokens));
