// Takes pictures of the page with traffic, to look at: desktop and phone, light and dark.
//
//   node tests/web/pictures.mjs FOLDER
import { join } from "node:path";
import { makeFolder, openPage, startAgent, startBrowser, startServer } from "./parts.mjs";

// So that addresses are as people know them, without a port.
const HERE = "127.0.0.77";
const target = process.argv[2];
if (!target || target.startsWith("-")) {
  console.error("usage: node tests/web/pictures.mjs FOLDER");
  process.exit(2);
}
const folder = makeFolder("curl-demo");
let agent, browser, server;
try {
  [agent, browser, server] = await Promise.all([startAgent("curl-demo"), startBrowser(), startServer(folder.path, HERE, 443)]);
  const at = (host) => `https://${host}`;
  const curl = (host, ...flags) => folder.curl("--resolve", `${host}:443:${HERE}`, ...flags);
  await curl("www.example.org", "--http1.1", `${at("www.example.org")}/`, `${at("www.example.org")}/chunked`);
  await curl("api.example.com", "--http2", "-d", '{"name":"Ada","roles":["admin"]}', "-H", "Content-Type: application/json",
    `${at("api.example.com")}/v1/users`, `${at("api.example.com")}/v1/session`);
  await curl("api.example.com", `${at("api.example.com")}/gzip`, `${at("api.example.com")}/missing`, `${at("api.example.com")}/bytes`);
  await curl("shop.example.net", "-X", "DELETE", "-H", "Accept-Language: en", `${at("shop.example.net")}/cart/items/17`);
  await curl("shop.example.net", `${at("shop.example.net")}/search?q=a+long+query+with+many+words&page=2&sort=newest`);
  for (const [name, viewport, colorScheme] of [["desktop-light", { width: 1180, height: 640 }, "light"],
    ["desktop-dark", { width: 1180, height: 640 }, "dark"], ["phone-light", { width: 390, height: 800 }, "light"],
    ["phone-dark", { width: 390, height: 800 }, "dark"]]) {
    const { page, close } = await openPage(browser, agent.port, { viewport, colorScheme });
    if (name === "phone-dark") {
      await page.getByRole("option").last().waitFor();
      await page.screenshot({ path: join(target, "phone-list.png") });
    }
    await page.getByRole("option").filter({ hasText: "/gzip" }).click();
    await page.getByRole("region", { name: "Detail" }).locator("pre").waitFor();
    await page.screenshot({ path: join(target, `${name}.png`) });
    await close();
  }
} finally {
  await browser?.close();
  server?.stop();
  await agent?.stop();
  folder.remove();
}
