// Runs a program of the npm package binaryen many times in one process: `node batch.js PROGRAM < JOBS`, a JSON list of argument lists.
//
// Started by itself for each module, such a program spends most of its time on decoding and compiling its own wasm. Here that is done
// once; each run gets a fresh instance of it, so what a job makes depends on the job alone.
"use strict";

const fs = require("node:fs");
const path = require("node:path");

const program = process.argv[2];
const jobs = JSON.parse(fs.readFileSync(0, "utf8"));
const script = fs.readFileSync(program, "utf8").replace(/^#!.*/, "");
const main = new Function("Module", "module", "process", "WebAssembly", "require", "__filename", "__dirname", script);
let compiled; // the program's wasm, after the first run

function run(job) {
  return new Promise((resolve, reject) => {
    const hooks = { arguments: job, print() {}, printErr() {}, postRun: resolve, onAbort: (reason) => reject(new Error(reason)) };
    if (compiled) {
      hooks.instantiateWasm = (imports, receive) => receive(new WebAssembly.Instance(compiled, imports));
    }
    const firstOnly = {
      instantiate: { value: async (bytes, imports) => ({ instance: new WebAssembly.Instance((compiled = new WebAssembly.Module(bytes)), imports) }) },
    };
    const { versions, platform, cwd, binding, stdin, stdout, stderr } = process;
    const host = { argv: ["node", program], env: {}, exitCode: 0, versions, platform, cwd, binding, stdin, stdout, stderr };
    main(hooks, undefined, host, Object.create(WebAssembly, firstOnly), require, program, path.dirname(program));
  });
}

(async () => {
  for (const job of jobs) {
    await run(job).catch((error) => {
      // Not the error itself: its stack quotes the program's one line of ten million characters.
      console.error(`${job.join(" ")}: ${error.message}`);
      process.exit(1);
    });
  }
})();
