// Asks wabt about modules: `node wabt.js WABT count|validate FILE...` prints one line of JSON for each file.
//
// `count`: how often each instruction of interest stands in the module's text. `validate`: null, or wabt's complaint.
"use strict";

const fs = require("node:fs");

const [, , library, question, ...files] = process.argv;
const features = Object.fromEntries(
  `exceptions mutable_globals sat_float_to_int sign_extension simd threads multi_value tail_call bulk_memory reference_types
   memory64 multi_memory extended_const relaxed_simd`.split(/\s+/).map((name) => [name, true]),
);

function count(module) {
  const counts = {};
  for (const [, name] of module.toText({}).matchAll(/\b(memory\.(?:copy|fill|init|atomic\.\w+))\b/g)) {
    counts[name] = (counts[name] ?? 0) + 1;
  }
  return counts;
}

function complaint(module) {
  try {
    module.validate(features);
    return null;
  } catch (error) {
    return error.message;
  }
}

require(library)().then((wabt) => {
  for (const file of files) {
    const module = wabt.readWasm(fs.readFileSync(file), { ...features, readDebugNames: false });
    console.log(JSON.stringify(question === "count" ? count(module) : complaint(module)));
    module.destroy();
  }
});
