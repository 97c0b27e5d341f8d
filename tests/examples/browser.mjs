// Opens the page of examples/javascript/serve.js in Chromium, and prints what it shows, line by line, until it is closed.
//
//     node browser.mjs URL      of the agent

import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { startBrowser } from "../web/parts.mjs";

const program = fileURLToPath(new URL("../../examples/javascript/serve.js", import.meta.url));
const server = spawn(process.execPath, [program, process.argv[2], "0"], { stdio: ["ignore", "pipe", "inherit"] });
const browser = await startBrowser();
try {
  const [address] = await once(server.stdout, "data");
  const page = await browser.newPage();
  page.on("pageerror", (error) => console.error(error));
  await page.exposeFunction("show", (text) => process.stdout.write(text));
  await page.addInitScript(() => {
    const append = Element.prototype.append;
    Element.prototype.append = function (...parts) {
      append.apply(this, parts);
      window.show(parts.join(""));
    };
  });
  await page.goto(String(address).trim());
  await page.getByText(/^closed: 1001/m).waitFor({ timeout: 300_000 });
} finally {
  await browser.close();
  server.kill();
}
