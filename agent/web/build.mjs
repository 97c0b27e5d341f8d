// Makes page.html.gz, the one self-contained file that the agent serves, of the sources here.
//
//   node agent/web/build.mjs           writes it
//   node agent/web/build.mjs --check   says whether it is what the sources make
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { gunzipSync, gzipSync } from "node:zlib";

const read = (name) => readFileSync(new URL(name, import.meta.url), "utf8");
const hash = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
// In the order of their needs; they share one scope, so that names must differ.
const modules = ["proto.js", "http1.js", "hpack.js", "http2.js", "traffic.js", "export.js", "link.js", "app.js"];
const script = modules.map((name) =>
  read(name).replace(/^import .*\n/gm, "").replace(/^export /gm, "").replace(/^\s*\/\/.*\n|^\s*\/\*\*[^]*?\*\/\n/gm, ""))
  .join("");
const style = read("style.css");
const csp = `default-src 'none'; script-src ${hash(script)}; style-src ${hash(style)}; connect-src 'self' ws:; img-src data:; ` +
  "base-uri 'none'; form-action 'none'";
const page = read("index.html").replace("@CSP@", () => csp).replace("@STYLE@", () => style).replace("@SCRIPT@", () => script);
const target = new URL("page.html.gz", import.meta.url);
if (process.argv.includes("--check")) {
  if (gunzipSync(readFileSync(target)).toString() !== page) {
    console.error("agent/web/page.html.gz is older than its sources: run node agent/web/build.mjs");
    process.exit(1);
  }
} else {
  writeFileSync(target, gzipSync(page, { level: 9 }));
}
