// Signs in at an OpenID provider in a real browser, as somebody of a known group and as somebody of none.
//
// node oidc.mjs, with ORIGIN and BROWSER as for browse.mjs. Prints the label under which the first person is known.
import puppeteer from "puppeteer-core";

const { ORIGIN, BROWSER } = process.env;
const PATIENCE = 60_000;

const browser = await puppeteer.launch({
  executablePath: BROWSER,
  acceptInsecureCerts: true,
  args: ["--no-sandbox", "--disable-dev-shm-usage"],
});
process.on("exit", () => browser.process()?.kill("SIGKILL"));

const signIn = async (name) => {
  const page = await (await browser.createBrowserContext()).newPage();
  page.setDefaultTimeout(PATIENCE);
  await page.goto(`${ORIGIN}/ui/nodes`);
  await Promise.all([page.waitForNavigation(), page.click("a[href^='/ui/oidc/begin']")]);
  await page.waitForSelector("input[name=login]");
  await page.type("input[name=login]", name);
  await page.type("input[name=password]", "any");
  // After the password the provider asks whether the origin may know.
  for (let forms = 0; forms < 3 && !page.url().startsWith(ORIGIN); forms += 1) {
    await Promise.all([page.waitForNavigation(), page.click("form button")]);
  }
  if (!page.url().startsWith(ORIGIN)) throw new Error(await page.content());
  await page.waitForSelector("#main");
  return page;
};

const person = await signIn("ops-anna");
const who = await person.$eval(".out .dim", (label) => label.innerText);
if (!person.url().endsWith("/ui/nodes")) throw new Error(`signed in at ${person.url()}`);
// The group lets her look and not order.
if ((await person.$$("form[method=post]")).length !== 1) throw new Error("she sees forms beside that for signing out");

const stranger = await signIn("mallory");
const said = await stranger.$eval("#main", (main) => main.innerText);
if (!said.includes("you are in no group")) throw new Error(said);
await stranger.goto(`${ORIGIN}/ui`);
if (!stranger.url().includes("/ui/sign-in")) throw new Error("somebody of no group has a session");
console.log(who);
await browser.close();
