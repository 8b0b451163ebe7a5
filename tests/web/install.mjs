// Looks at the web page of an origin as docs/install.md says: signs in with the first admin token, finds the device, and
// watches a rollout until it is complete.
//
// node install.mjs STEP, with ORIGIN, TOKEN and BROWSER as for browse.mjs. STEP is "device" or "rollout".
import puppeteer from "puppeteer-core";

const { ORIGIN, TOKEN, BROWSER } = process.env;
const [step] = process.argv.slice(2);
const PATIENCE = 60_000;

const browser = await puppeteer.launch({
  executablePath: BROWSER,
  acceptInsecureCerts: true,
  args: ["--no-sandbox", "--disable-dev-shm-usage"],
});
process.on("exit", () => browser.process()?.kill("SIGKILL"));
const page = await browser.newPage();
page.setDefaultTimeout(PATIENCE);
await page.goto(`${ORIGIN}/ui`);
await page.type("#token", TOKEN);
await Promise.all([page.waitForNavigation(), page.keyboard.press("Enter")]);
await page.waitForSelector("#main");

// Loads a page again until its text has all these words.
const until = async (path, words) => {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    await page.goto(ORIGIN + path);
    const text = await page.$eval("#main", (main) => main.innerText);
    if (words.every((word) => text.toLowerCase().includes(word))) return text;
    if (Date.now() > deadline) throw new Error(`${path} lacks ${words}: ${text}`);
    await new Promise((done) => setTimeout(done, 200));
  }
};

if (step === "device") {
  await until("/ui/nodes", ["device", "os:stable 1 up_to_date"]);
} else {
  await until("/ui/products/os/channels/stable", ["rollout of 2"]);
  await until("/ui/products/os/channels/stable", ["complete", "points to 2"]);
}
await browser.close();
