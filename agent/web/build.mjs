// Makes what the agent serves of the sources here: page.html.gz, one self-contained file, and policy.txt, its
// Content-Security-Policy.
//
//   node agent/web/build.mjs           writes them
//   node agent/web/build.mjs --check   says whether they are what the sources make
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { Script } from "node:vm";
import { gunzipSync, gzipSync } from "node:zlib";

const read = (name) => readFileSync(new URL(name, import.meta.url), "utf8");
const hash = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
// In the order of their needs; they share one scope, so that names must differ.
const modules = ["pile.js", "proto.js", "http1.js", "hpack.js", "http2.js", "traffic.js", "export.js", "link.js", "detail.js", "list.js", "app.js"];
const script = modules.map((name) =>
  read(name).replace(/^import .*\n/gm, "").replace(/^export /gm, "").replace(/^\s*\/\/.*\n|^\s*\/\*\*[\s\S]*?\*\/\n/gm, ""))
  .join("");
// Throws where two modules use one name.
new Script(script);
const style = read("style.css");
const policy = `default-src 'none'; script-src ${hash(script)}; style-src ${hash(style)}; connect-src 'self'; img-src data:; ` +
  "base-uri 'none'; form-action 'none'";
const page = read("index.html").replace("@CSP@", () => policy).replace("@STYLE@", () => style).replace("@SCRIPT@", () => script);
const target = new URL("page.html.gz", import.meta.url);
if (process.argv.includes("--check")) {
  if (gunzipSync(readFileSync(target)).toString() !== page || read("policy.txt") !== policy) {
    console.error("agent/web/page.html.gz and policy.txt are older than their sources: run node agent/web/build.mjs");
    process.exit(1);
  }
} else {
  writeFileSync(target, gzipSync(page, { level: 9 }));
  writeFileSync(new URL("policy.txt", import.meta.url), policy);
}
