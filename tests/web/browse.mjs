// What a person does at the web page, in a real browser: signs in, starts a rollout, watches it, halts and resumes it.
// Each page is checked by axe, for what its content security policy refused, and for its bytes over the wire.
//
// node browse.mjs, with the environment:
//   ORIGIN   address of the origin, of a realm with the product "os", releases 1 and 2, and a fleet on os:stable
//   TOKEN    API token with the scope admin
//   VIEWER   API token with the scopes read and view
//   BROWSER  the browser's executable
//   SHOTS    directory for screenshots; none are made without it
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import puppeteer from "puppeteer-core";

const { ORIGIN, TOKEN, VIEWER, BROWSER, SHOTS } = process.env;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const BYTES_MAX = 100_000;
const PATIENCE = 120_000;

const check = (holds, text) => {
  if (!holds) throw new Error(text);
};

const browser = await puppeteer.launch({
  executablePath: BROWSER,
  acceptInsecureCerts: true,
  args: ["--no-sandbox", "--disable-dev-shm-usage"],
});
// A browser that stays behind would hold the test's machine.
process.on("exit", () => browser.process()?.kill("SIGKILL"));

// Opens a page that counts its bytes and notes what was refused or failed.
const open = async (context) => {
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.refused = [];
  page.bytes = 0;
  page.on("console", (said) => {
    if (said.type() === "error") page.refused.push(said.text());
  });
  page.on("pageerror", (error) => page.refused.push(String(error)));
  const session = await page.createCDPSession();
  // A page behind another one is looked at too.
  await session.send("Emulation.setFocusEmulationEnabled", { enabled: true });
  await session.send("Network.enable");
  await session.send("Network.setCacheDisabled", { cacheDisabled: true });
  session.on("Network.loadingFinished", ({ encodedDataLength }) => {
    page.bytes += encodedDataLength;
  });
  return page;
};

const goto = async (page, path) => {
  page.bytes = 0;
  const answer = await page.goto(ORIGIN + path, { waitUntil: "load" });
  check(answer.ok(), `${path}: ${answer.status()}`);
};

const inspect = async (page, path, name) => {
  await goto(page, path);
  check(page.bytes <= BYTES_MAX, `${path} takes ${page.bytes} bytes over the wire`);
  const bytes = page.bytes;
  for (const scheme of ["light", "dark"]) {
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.evaluate(AXE);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    const said = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
    check(said.length === 0, `${path} in ${scheme}: ${said.join("\n")}`);
  }
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
  // On a narrow screen nothing lies outside.
  await page.setViewport({ width: 360, height: 740 });
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  check(width <= 360, `${path} is ${width} wide on a screen of 360`);
  await page.setViewport({ width: 1200, height: 900 });
  const inline = await page.evaluate(() => document.querySelectorAll("script:not([src]), style, [style], [onclick]").length);
  check(inline === 0, `${path} has ${inline} inline scripts or styles`);
  check(page.refused.length === 0, `${path}: ${page.refused.join("\n")}`);
  if (SHOTS) await page.screenshot({ path: `${SHOTS}/web-${name}.png`, fullPage: name !== "nodes" });
  console.log(JSON.stringify({ path, bytes }));
};

const signIn = async (page, token) => {
  await page.type("#token", token);
  await Promise.all([page.waitForNavigation(), page.keyboard.press("Enter")]);
};

const text = (page) => page.$eval("#main", (main) => main.innerText);
const shows = (page, wanted) =>
  page.waitForFunction((wanted) => document.querySelector("#main").innerText.includes(wanted), {}, wanted);

// Gives an order about the rollout, as a person does: opens its form, writes a reason, sends it.
const order = async (page, label) => {
  await page.evaluate((label) => {
    const summary = [...document.querySelectorAll("summary")].find((summary) => summary.innerText === label);
    summary.click();
    summary.parentElement.querySelector("input[name=reason]").focus();
  }, label);
  await page.keyboard.type(`${label} by a person`);
  await Promise.all([page.waitForNavigation(), page.keyboard.press("Enter")]);
};

const person = await browser.createBrowserContext();
const page = await open(person);

// A page without a session leads to the form, and back.
await goto(page, "/ui/nodes?update=up_to_date");
check(page.url().includes("/ui/sign-in?back="), page.url());
await inspect(page, "/ui/sign-in", "sign-in");
await goto(page, "/ui/nodes?update=up_to_date");
await page.type("#token", "distd-api-v1.wrong");
await Promise.all([page.waitForNavigation(), page.keyboard.press("Enter")]);
check((await text(page)).includes("Paste another API token"), "a wrong token is not refused");
page.refused = [];
await signIn(page, TOKEN);
check(page.url().endsWith("/ui/nodes?update=up_to_date"), `signed in at ${page.url()}`);

// Another page watches, and is never loaded again by hand.
const watcher = await open(person);
await goto(watcher, "/ui/products/os/channels/stable");
await watcher.evaluate(() => {
  globalThis.sameDocument = true;
});

await goto(page, "/ui/products/os/channels/stable");
await page.type("#waves", "50%,100%");
await page.type("#soak", "600");
await page.select("#version", "2");
await Promise.all([page.waitForNavigation(), page.click("form[action$='/rollouts'] button")]);
await shows(page, "Rollout of 2");
await shows(watcher, "Rollout of 2");
await order(page, "Halt");
await shows(page, "Halt by a person");
await shows(watcher, "halted");
const labels = (page) => page.$$eval("summary", (all) => all.map((summary) => summary.innerText).join(", "));
await watcher.waitForFunction(() => document.querySelector("summary")?.innerText === "Resume");
check((await labels(watcher)) === "Resume, Roll back", `a halted rollout offers ${await labels(watcher)}`);
await inspect(page, "/ui", "overview-halted");
await goto(page, "/ui/products/os/channels/stable");
await order(page, "Resume");
await shows(page, "Resume by a person");
await shows(watcher, "Resume by a person");
// Devices report by themselves, and the page that watches shows them.
await shows(watcher, "succeeded");
check(await watcher.evaluate(() => globalThis.sameDocument), "the page that watches was loaded again");
check(watcher.refused.length === 0, watcher.refused.join("\n"));

const node = await page.goto(`${ORIGIN}/ui/nodes`).then(() => page.$eval("td a", (link) => new URL(link.href).pathname));
for (const [path, name] of [
  ["/ui", "overview"],
  ["/ui/products", "products"],
  ["/ui/products/os", "product"],
  ["/ui/products/os/releases/2", "release"],
  ["/ui/products/os/channels/stable", "rollout"],
  ["/ui/nodes", "nodes"],
  [node, "node"],
  ["/ui/storage", "storage"],
  ["/ui/access", "access"],
  ["/ui/audit", "audit"],
]) {
  await inspect(page, path, name);
}

// Everything can be read without scripts.
const still = await open(person);
await still.setJavaScriptEnabled(false);
await goto(still, "/ui/products/os/channels/stable");
check((await still.content()).includes("Resume by a person"), "a page without scripts has no contents");

// Somebody who may only look sees the fleet and no order.
const other = await open(await browser.createBrowserContext());
await goto(other, "/ui");
await signIn(other, VIEWER);
await goto(other, "/ui/products/os/channels/stable");
check((await other.$$("form[method=post]")).length === 1, "a viewer sees forms beside that for signing out");
await shows(other, "Rollout of 2");

// Signing out ends the session.
await Promise.all([page.waitForNavigation(), page.click(".out button")]);
await goto(page, "/ui/audit");
check(page.url().includes("/ui/sign-in"), "signing out left the session");
await browser.close();
